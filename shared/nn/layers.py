"""What every backbone is made of: the Backbone contract, its convolution, its initialisation.

B clips, L frames, S pixels, C channels of h, T'xh'xw' its positions.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.cli import RequestError, plural

NARROW = 8   # below so many channels oneDNN's gradient of a strided 1x1 kernel corrupts memory where AVX-512 is missing


class Conv(nn.Conv3d):
    """nn.Conv3d without bias: same weights, same values, run as a 2D convolution wherever the kernel lets it be one.

    kernel, stride, padding: (time, rows, columns); padding is half the kernel unless given. In channels-last memory
    (`Backbone.admit`) joining frames with the batch, or rows with columns, moves no data; a training step is 1.2 to 2.3
    times faster for it on CPU.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int] = (1, 1, 1),
                 padding: Sequence[int] | None = None):
        padding = [size // 2 for size in kernel] if padding is None else padding
        super().__init__(inputs, outputs, tuple(kernel), tuple(stride), tuple(padding), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (time, *space), (step, *steps), (before, *around) = self.kernel_size, self.stride, self.padding
        if time == 1 and space == [1, 1] and not any(self.padding) and steps != [1, 1] and self.in_channels < NARROW:
            x, step, steps = x[:, :, ::step, ::steps[0], ::steps[1]], 1, [1, 1]
            x = x.contiguous(memory_format=torch.channels_last_3d)
        if time == 1 and before == 0:
            return _by_frame(x[:, :, ::step], self.weight.squeeze(2), steps, around)
        if space == [1, 1] and steps == [1, 1] and around == [0, 0]:
            y = F.conv2d(x.flatten(3), self.weight.flatten(3), None, (step, 1), (before, 0))
            return y.unflatten(3, x.shape[3:])
        if time == step and before == 0 and x.shape[2] >= time:
            return _by_frame(_stacked(x, time), self.weight.transpose(1, 2).flatten(1, 2), steps, around)
        return super().forward(x)


def _by_frame(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """conv2d of every frame: (B, C, T, H, W) -> (B, C', T, H', W')."""
    if x.shape[2] == 1:  # through squeeze the strides of an axis of one stay those of channels-last memory
        return F.conv2d(x.squeeze(2), weight, None, stride, padding).unsqueeze(2)
    y = F.conv2d(x.transpose(1, 2).flatten(0, 1), weight, None, stride, padding)
    return y.unflatten(0, (len(x), -1)).transpose(1, 2)


def _stacked(x: Tensor, time: int) -> Tensor:
    """`time` consecutive frames side by side as channels: (B, C, T, H, W) -> (B, time C, T // time, H, W)."""
    x = x[:, :, :x.shape[2] // time * time].permute(0, 2, 3, 4, 1).unflatten(1, (-1, time))
    return x.permute(0, 1, 3, 4, 2, 5).flatten(4).permute(0, 4, 1, 2, 3)


class Backbone(nn.Module):
    """A video network without a classifier, cut at the output of its last convolution (docs/method.md 1.4).

    name, width, eps: as `build_backbone` takes them; features: channels of the pooled feature, and of h; frames: a 2D
    net, which takes single frames. Subclasses define `body` and `summed`; neither keeps a tensor on the module.
    """

    name: str
    width: int
    eps: float
    features: int
    frames: bool = False

    def body(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, L, S, S) -> h (B, C, T', h', w') before its BN, and the shortcut that the tail adds, or None.

        A 2D net takes L = 1 and gives T' = 1.
        """
        raise NotImplementedError

    def summed(self, h: Tensor, rest: Tensor | None) -> Tensor:
        """Last BN and residual: what the last ReLU takes, shaped like h."""
        raise NotImplementedError

    def output(self, h: Tensor, rest: Tensor | None) -> Tensor:
        """The last block's output, shaped like h. Twice differentiable in h."""
        return torch.relu(self.summed(h, rest))

    def tail(self, h: Tensor, rest: Tensor | None) -> Tensor:
        """The block's output and its global average: (B, features)."""
        return self.output(h, rest).mean((2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, L, S, S) -> (B, features)."""
        return self.tail(*self.body(x))

    def h_shape(self, length: int, size: int) -> tuple[int, int, int, int]:
        """(C, T', h', w') for clips of `length` frames of `size` pixels; nothing is computed.

        Raises RequestError for clips that the network cannot take.
        """
        twin = on_meta(self)
        try:
            return tuple(twin.body(torch.empty(1, 3, length, size, size, device="meta"))[0].shape[1:])
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RequestError(f"{self.name} cannot take clips of {plural(length, 'frame')} of {size} pixels "
                               f"({reason}); set a longer clip or a larger size") from None

    def admit(self, x: Tensor) -> Tensor:
        """The clips as `body` works on them: in channels-last memory, which every layer keeps.

        Raises RequestError where a 2D net is given more than one frame.
        """
        if self.frames and x.shape[2] != 1:
            raise RequestError(f"{self.name} takes single frames, but a clip of {x.shape[2]} arrived; use clip 1x1")
        return x.contiguous(memory_format=torch.channels_last_3d)


def on_meta(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose tensors have shapes and no values: runs at once, at any size."""
    memo = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    memo |= {id(b): b.to("meta") for b in module.buffers()}
    return copy.deepcopy(module, memo).eval()


def initialise(module: nn.Module) -> None:
    """Kaiming normal over fan-out for every convolution, 1 and 0 for every BN; from torch's global generator."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm3d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
