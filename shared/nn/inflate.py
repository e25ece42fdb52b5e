"""2D ImageNet weights in a video backbone (docs/method.md 1.5): MoCo v2 checkpoints and torchvision's ResNet-50.

O, I channels out and in; T the temporal size of a kernel.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO

import torch
from torch import Tensor, nn

from shared.cli import RequestError
from shared.nn.layers import Backbone
from shared.nn.resnet import RESNET_50

# How the first tensor of a ResNet is called in each layout that is read, most telling first.
LAYOUTS = {"moco": "module.encoder_q.", "torchvision-parallel": "module.", "torchvision": ""}
PROBE = "layer1.0.conv1.weight"
HEAD = "fc."                 # MoCo v2's own projection head: Linear, ReLU, Linear, as ours


@dataclass(frozen=True)
class Inflation:
    """What a file gave; part of a checkpoint's provenance.

    file: its name; sha256: hex digest of its bytes; layout: one of LAYOUTS; loaded: tensors taken from it; identities:
    temporal convolutions set to the identity; left_out: tensors not taken, counted by the start of their names; tap: of
    the stem, that took its 2D kernel.
    """

    file: str
    sha256: str
    layout: str
    loaded: int
    identities: int
    left_out: dict[str, int]
    tap: int


def inflate(path: Path, backbone: Backbone, tap: int = 1, head: nn.Module | None = None) -> Inflation:
    """Start `backbone` (r2plus1d_50 or r2d_50 at width 64) from a ResNet-50 of single images, in place.

    The stem's 2D kernel goes to `tap` of its kernel in time, the other taps are zero (2D nets have but tap 0); 3x1x1
    convolutions become the identity, so that the network gives what the 2D net gives on the frames under that tap.
    head: a projection head that starts from the file's own. Nothing changes if it raises.
    Raises RequestError, in one line, for a file that is damaged, needs unpickling or holds another network, for a
    backbone that has no 2D twin, and for a head that the file has not; OSError for a file that cannot be read.
    """
    path = Path(path)
    if backbone.name not in RESNET_50 or backbone.width != 64:
        raise RequestError(f"{backbone.name} of width {backbone.width} cannot start from ImageNet weights; they are "
                           f"read from a ResNet-50 into {' or '.join(RESNET_50)} of width 64; leave out --init")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        tensors = _tensors(path, file)
    layout, prefix = next(((name, prefix) for name, prefix in LAYOUTS.items() if prefix + PROBE in tensors), ("", ""))
    if not layout:
        raise RequestError(f"{path} holds no ResNet: no {PROBE!r} among its {len(tensors)} tensors; expected "
                           "a MoCo v2 checkpoint or torchvision's resnet50 weights")
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    state, taken, identities = {}, set(), 0
    tap = min(tap, backbone.stem.conv1.weight.shape[2] - 1)
    for name, own in backbone.state_dict().items():
        source = name.removeprefix("stem.").removeprefix("stages.")
        if ".temporal2." in source:
            state[name], identities = _identity(own), identities + 1
        elif source in weights:
            state[name] = _placed(path, prefix + source, weights[source], own, tap)
            taken.add(prefix + source)
        elif not source.endswith("num_batches_tracked"):  # files of torch before 0.4 carry none
            raise RequestError(f"{path} lacks {prefix + source}: no ResNet-50; expected a MoCo v2 checkpoint or "
                               "torchvision's resnet50 weights")
    surplus = sorted(name for name in weights if name.startswith("layer") and prefix + name not in taken)
    if surplus:
        raise RequestError(f"{path} holds {prefix + surplus[0]}, which a ResNet-50 has not; expected a MoCo v2 "
                           "checkpoint or torchvision's resnet50 weights")
    projection = {}
    for name, own in head.state_dict().items() if head is not None else ():
        weight = weights.get(HEAD + name)
        if weight is None or weight.shape != own.shape:
            found = "no" if weight is None else f"a {tuple(weight.shape)}"
            raise RequestError(f"{path} holds {found} {prefix + HEAD + name}; init_head=true expects MoCo v2's head, "
                               f"here {tuple(own.shape)}: leave it out, or set hidden and dim to the file's")
        projection[name] = _placed(path, prefix + HEAD + name, weight, own, 0)
        taken.add(prefix + HEAD + name)
    backbone.load_state_dict(state, strict=False)  # strict but for num_batches_tracked: checked above
    if head is not None:
        head.load_state_dict(projection)
    left_out = Counter(_group(name, prefix) for name in tensors if name not in taken)
    return Inflation(path.name, sha256, layout, len(taken), identities, dict(sorted(left_out.items())), tap)


def _tensors(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    """The file's tensors by name, from its `state_dict` where it has one. Runs no code that the file carries."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about the pickle's protocol, before it is refused anyway
            document = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise RequestError(f"{path} is no plain file of tensors, or holds objects that only running its own code would "
                           "restore, which is refused; save its state_dict alone with torch.save") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise RequestError(f"{path} is damaged or no PyTorch file ({type(error).__name__}); "
                           "copy or download it again") from None
    if isinstance(document, Mapping):
        document = document.get("state_dict", document)
    tensors = {}
    if isinstance(document, Mapping):
        tensors = {name: value for name, value in document.items()
                   if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise RequestError(f"{path} holds no named tensors; expected a MoCo v2 checkpoint or torchvision's "
                           "resnet50 weights")
    return tensors


def _placed(path: Path, name: str, weight: Tensor, own: Tensor, tap: int) -> Tensor:
    """A tensor of the 2D net in the shape of ours; (O, I, h, w) goes to one tap of (O, I, T, h, w)."""
    expected = own.shape[:2] + own.shape[3:] if own.dim() == 5 else own.shape
    if weight.shape != expected:
        raise RequestError(f"{path}: {name} is {tuple(weight.shape)}, expected {tuple(expected)} as in ResNet-50; "
                           "bring the weights of that network")
    if weight.layout is not torch.strided or weight.is_meta or weight.is_floating_point() != own.is_floating_point() \
            or weight.dtype.itemsize < 2:      # sparse, without values, complex, whole or 8-bit numbers
        raise RequestError(f"{path}: {name} is of {weight.dtype}, {weight.layout}, on {weight.device}; expected plain "
                           f"{own.dtype}: bring the weights as torchvision or MoCo save them")
    if not torch.isfinite(weight.to(own.dtype)).all():
        raise RequestError(f"{path}: {name} holds values that are not finite; bring another file")
    if own.dim() != 5:
        return weight
    out = torch.zeros_like(own)
    out[:, :, tap if own.shape[2] > 1 else 0] = weight
    return out


def _identity(own: Tensor) -> Tensor:
    """(C, C, T, 1, 1) that copies its input: one at the middle tap."""
    out = torch.zeros_like(own)
    out[:, :, own.shape[2] // 2, 0, 0] = torch.eye(len(own), dtype=own.dtype, device=own.device)
    return out


def _group(name: str, prefix: str) -> str:
    """`fc` for the head of the network that was read, the first two parts of a name for anything beside it."""
    if name.startswith(prefix):
        return name.removeprefix(prefix).split(".")[0]
    return ".".join(name.split(".")[:2])
