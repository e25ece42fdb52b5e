"""RandAugment (Cubuk et al. 2020) of whole clips, as in the released code: sixteen operations (docs/method.md 1.7).

L frames of SxS pixels. Every draw is made once a clip; statistics are those of each frame, as on single images.
"""

import math

import numpy as np
import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import equalize
from torch import Tensor
from torch.nn import functional as F

MOST = 30                                    # magnitudes are whole numbers from 0 to 30
GREY = (125 / 255, 123 / 255, 114 / 255)     # of what is cut out
SMOOTH = (1, 1, 1, 1, 5, 1, 1, 1, 1)         # PIL's, over 13

# Each operation's value at magnitude 30, and whether its sign is drawn. Angles in degrees, shifts and the side of what
# is cut out as shares of the frame, levels of 255, posterize in bits of four.
RANGES = {"autocontrast": (0, False), "equalize": (0, False), "invert": (0, False), "rotate": (30, True),
          "posterize": (4, False), "solarize": (256, False), "solarize_add": (110, False), "colour": (0.9, True),
          "contrast": (0.9, True), "brightness": (0.9, True), "sharpness": (0.9, True), "shear_x": (0.3, True),
          "shear_y": (0.3, True), "cutout": (0.3571, False), "translate_x": (0.4464, True),
          "translate_y": (0.4464, True)}


def rand_augment(clip: Tensor, rng: np.random.Generator, count: int, magnitude: int) -> Tensor:
    """`count` operations one after the other, each drawn uniformly. clip: (3, L, S, S) float32 in [0, 1], not changed;
    returns the same shape and range."""
    frames = clip.transpose(0, 1)
    for number in rng.integers(len(RANGES), size=count):
        name = list(RANGES)[number]
        most, signed = RANGES[name]
        sign = -1.0 if rng.random() < 0.5 and signed else 1.0
        frames = apply(frames, name, sign * most * magnitude / MOST, rng.random(2))
    return frames.transpose(0, 1)


def apply(frames: Tensor, name: str, value: float, centre=(0.5, 0.5)) -> Tensor:
    """One operation by its name in RANGES; (L, 3, S, S) float32 in [0, 1] -> the same.

    centre: of what is cut out, (across, down) as shares of the frame.
    """
    match name:
        case "autocontrast":
            low, high = frames.amin((2, 3), keepdim=True), frames.amax((2, 3), keepdim=True)
            return torch.where(high > low, (frames - low) / (high - low).clamp_min(1e-6), frames)
        case "equalize":
            return equalize(frames)
        case "invert":
            return 1 - frames
        case "posterize":
            step = 2 ** (4 + int(value)) / 255      # the lowest bits that go
            return torch.floor(frames / step + 1e-4) * step
        case "solarize":
            return torch.where(frames < (256 - value) / 255 - 1e-4, frames, 1 - frames)
        case "solarize_add":
            return torch.where(frames < 128 / 255 - 1e-4, (frames + value / 255).clamp(max=1), frames)
        case "colour":
            return _blend(rgb_to_grayscale(frames), frames, value)
        case "contrast":
            return _blend(rgb_to_grayscale(frames).mean((2, 3), keepdim=True), frames, value)
        case "brightness":
            return _blend(torch.zeros_like(frames), frames, value)
        case "sharpness":
            return _blend(_smoothed(frames), frames, value)
        case "cutout":
            return _cut(frames, value, centre)
        case "rotate":
            turn = math.radians(value)
            return _moved(frames, [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0]])
        # As PIL's, a shear is about the upper left corner, which is -1 of the coordinates here.
        case "shear_x":
            return _moved(frames, [[1, value, value], [0, 1, 0]])
        case "shear_y":
            return _moved(frames, [[1, 0, 0], [value, 1, value]])
        case "translate_x":
            return _moved(frames, [[1, 0, 2 * value], [0, 1, 0]])
        case "translate_y":
            return _moved(frames, [[1, 0, 0], [0, 1, 2 * value]])
    raise ValueError(f"{name!r} is no operation of RandAugment")


def _blend(other: Tensor, frames: Tensor, value: float) -> Tensor:
    """`frames` at 1 - value of itself: towards `other` for a positive one, away from it for a negative one."""
    return (other + (1 - value) * (frames - other)).clamp(0, 1)


def _smoothed(frames: Tensor) -> Tensor:
    """3x3 mean with a heavy middle; the outermost pixels stay."""
    kernel = torch.tensor(SMOOTH, dtype=frames.dtype, device=frames.device).view(1, 1, 3, 3) / sum(SMOOTH)
    out = frames.clone()
    out[:, :, 1:-1, 1:-1] = F.conv2d(frames, kernel.expand(3, 1, 3, 3), groups=3)
    return out


def _cut(frames: Tensor, value: float, centre) -> Tensor:
    """A grey square whose side is `value` of the frame, where it lies inside."""
    size = frames.shape[-1]
    left, top = (int(max(0.0, share * size - value * size / 2)) for share in centre)
    right, bottom = (int(min(size, first + value * size)) for first in (left, top))
    out = frames.clone()
    out[:, :, top:bottom + 1, left:right + 1] = torch.tensor(GREY, device=frames.device).view(3, 1, 1)
    return out


def _moved(frames: Tensor, matrix) -> Tensor:
    """Each pixel from where `matrix` (2x3, coordinates of [-1, 1]) sends it, the nearest; black from outside."""
    matrix = torch.tensor(matrix, dtype=frames.dtype, device=frames.device).expand(len(frames), 2, 3)
    grid = F.affine_grid(matrix, list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, mode="nearest", padding_mode="zeros", align_corners=False)
