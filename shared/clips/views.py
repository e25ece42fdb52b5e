"""Views on the training device: resize, colour jitter, greyscale, blur and flip, and the motion target.

B queries on this rank, V views (query first, then its keys), L frames, SxS pixels of a view, hxw motion cells of the
frame, T'xh'xw' positions of the network's last convolution.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import hflip

from shared.clips.loader import Batch
from shared.clips.motion_clips import motion_clips
from shared.clips.resampling import normalise, on_device, resize
from shared.clips.sampling import overlaps
from shared.motion import CELL
from shared.recipes.pretraining import Augment, Maclr

JITTER = (adjust_brightness_accumulative, adjust_contrast_with_mean_subtraction,
          adjust_saturation_with_gray_subtraction, adjust_hue)
CHUNK = 1 << 26  # values that are augmented together: the conversions of the hue take some ten times their memory


@dataclass
class Views:
    """What the network sees.

    query (B, 3, L, S, S) float32, normalised by ImageNet's mean and std; keys: (k1,) or (k1, k2, k3), alike; motion
    (B, T', h', w') float32 target of the query, px/frame per px, or None; ids (B,) int64 video numbers, the same on
    every rank; order (B,) int64: 1 where the query comes after the pair (k2, k3) in time, else 0; motion_clips: what
    MaCLR's motion pathway sees of query and key, (B, 3, Lm, S, S) float32 each (`shared.clips.motion_clips`), or None.
    """

    query: torch.Tensor
    keys: tuple[torch.Tensor, ...]
    motion: torch.Tensor | None
    ids: torch.Tensor
    order: torch.Tensor
    motion_clips: tuple[torch.Tensor, ...] | None = None


def make_views(batch: Batch, settings: Augment, size: int, target_shape: tuple[int, int, int] | None = None,
               device="cpu", maclr: Maclr | None = None) -> Views:
    """The batch's crops as network input, each view S = size pixels, and the target at (T', h', w') where one is given.

    Nothing is drawn here: what was drawn with the samples, by the same settings, is in `batch.views`. maclr: the
    settings by which the batch's motion inputs, if it has any, were read.
    Raises ValueError for a target of a batch that was read without motion.
    """
    crops, motion, inputs = batch.arrays(device)
    views = []
    for v in range(batch.views.shape[1]):
        clips = torch.empty(len(crops), 3, len(crops[0][v]), size, size, device=device)
        for clip, row in zip(clips, crops):
            clip.copy_(resize(row[v], size))
        views.append(augment(clips, batch.views[:, v], settings))
    target = None
    if target_shape is not None:
        if motion is None:
            raise ValueError("a motion target is wanted of a batch that was read without motion")
        target = motion_target(motion, batch.views[:, 0], target_shape)
    second = None
    if inputs is not None:
        second = tuple(motion_clips([row[v] for row in inputs], batch.views[:, v], maclr, size)
                       for v in range(batch.views.shape[1]))
    ids, order = (values.to(device, non_blocking=True) for values in (batch.ids, batch.order))
    return Views(views[0], tuple(views[1:]), target, ids, order, second)


def augment(clips: torch.Tensor, views: np.ndarray, settings: Augment) -> torch.Tensor:
    """Colours and flips of clips, and ImageNet's normalisation (docs/method.md 1.2.4); `clips` is overwritten.

    clips: (B, 3, L, S, S) float32 in [0, 1]; views: (B,) of `sampling.VIEW`, on the host. One draw a clip: all frames
    of a clip go through the same function, and contrast turns about the mean of the clip. What becomes of a clip does
    not depend on the others.
    """
    step = max(1, CHUNK // clips[0].numel())
    for first in range(0, len(clips), step):
        some = slice(first, first + step)
        # A clip as one tall image: (n, 3, LS, S), in which only the blur has to know where frames end.
        tall = clips[some].flatten(2, 3)
        colour(tall, views[some])
        blur(clips[some], views[some]["sigma"], math.ceil(3 * settings.blur_max))
        _change(tall, views[some]["flip"], hflip)
        normalise(clips[some])
    return clips


def colour(images: torch.Tensor, views: np.ndarray) -> None:
    """Jitter, its four operations in each clip's own order (released code), then greyscale; (n, 3, H, W) in place."""
    for place in range(len(JITTER)):
        for kind, operation in enumerate(JITTER):
            chosen = views["jitter"] & (views["order"][:, place] == kind)
            _change(images, chosen, operation, views["factors"][:, kind])
    _change(images, views["grey"], rgb_to_grayscale)


def blur(clips: torch.Tensor, sigma: np.ndarray, reach: int) -> None:
    """Gaussian blur of every frame, sigma (n,) and reach in pixels, sigma 0 = none; (n, 3, L, S, S) in place."""
    reach = min(reach, clips.shape[-1] - 1)  # reflection at the border has no more pixels

    def apply(planes, values):
        return gaussian_blur2d(planes, 2 * reach + 1, values[:, None].expand(-1, 2))
    _change(clips.flatten(1, 2), sigma > 0, apply, sigma)


def _change(images: torch.Tensor, chosen: np.ndarray, operation, factors: np.ndarray | None = None) -> None:
    """images[chosen] = operation(images[chosen], factors[chosen]), in place."""
    if chosen.any():
        index, *values = (on_device(array, images.device) for array in
                          (np.flatnonzero(chosen), *(() if factors is None else (factors[chosen],))))
        images.index_copy_(0, index, operation(images[index], *values).expand(len(index), *images.shape[1:]))


def motion_target(motion: list[torch.Tensor], views: np.ndarray, shape: tuple[int, int, int]) -> torch.Tensor:
    """ST-motion in the query's crop at the size of h, flipped as the crop is (docs/method.md 1.2.5, 1.4).

    motion: B maps (L, h, w) of whole frames; views: (B,) of `sampling.VIEW`; shape: (T', h', w').
    Returns (B, T', h', w') float32, px/frame per px: the exact mean over each target cell's share of crop and time.
    """
    steps, height, width = shape
    length, device = len(motion[0]), motion[0].device
    rows, columns = (max(maps.shape[axis] for maps in motion) for axis in (1, 2))
    maps = torch.zeros(len(motion), length, rows, columns, device=device)
    for padded, values in zip(maps, motion):
        padded[:, :values.shape[1], :values.shape[2]] = values
    down, across = [], []
    for view in views:
        y, x, h, w = view["box"] / CELL
        down.append(overlaps(y, h, height, rows))
        across.append(overlaps(x, w, width, columns)[::-1 if view["flip"] else 1])
    time, down, across = (on_device(np.asarray(weights, np.float32), device) for weights in
                          (overlaps(0, length, steps, length), down, across))
    return torch.einsum("at,bthw,bih,bjw->baij", time, maps, down, across)
