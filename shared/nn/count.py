"""Parameters and multiply-adds of a backbone, counted as Table 3 counts (docs/method.md 1.5)."""

from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shared.nn.layers import Backbone, on_meta


@dataclass(frozen=True)
class Counts:
    """parameters; convolutions: their multiply-adds; others: BN 2 an element, ReLU and pooling 1 an element."""

    parameters: int
    convolutions: int
    others: int

    @property
    def total(self) -> int:
        """The paper's FLOPs: multiply-adds of everything counted."""
        return self.convolutions + self.others


class _Counter(TorchDispatchMode):
    """Counts what really runs, whatever module asked for it."""

    def __init__(self):
        super().__init__()
        self.convolutions = self.others = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name == "convolution":
            self.convolutions += out.numel() * args[1][0].numel()
        elif "batch_norm" in name:
            self.others += 2 * args[0].numel()
        elif name in ("relu", "relu_", "mean") or "max_pool" in name:
            self.others += args[0].numel()
        return out


def count(backbone: Backbone, length: int, size: int) -> Counts:
    """Counts for one clip of `length` frames of `size` pixels, heads apart; computes nothing, at any size."""
    backbone.h_shape(length, size)  # says what is wrong with clips that it cannot take
    twin = on_meta(backbone)
    with torch.no_grad(), _Counter() as counter:
        twin(torch.empty(1, 3, length, size, size, device="meta"))
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return Counts(parameters, counter.convolutions, counter.others)
