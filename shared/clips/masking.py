"""Motion of the tokens of a video transformer, and masks drawn by it for masked autoencoding (MAE).

L sampled frames, HxW pixels, hxw motion cells of 8x8 pixels. A token is a patch of `patch` x `patch` pixels over
`tubelet` sampled frames: T' = L // tubelet, H' = H // patch, W' = W // patch. Frames and pixels after the last whole
token have none, as a convolution of that stride leaves them out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shared.clips.index import hot_mask
from shared.clips.sampling import overlaps
from shared.motion import CELL


@dataclass(frozen=True)
class TokenMotion:
    """motion (T', H', W') float32, px/frame per px; high (T', H', W') bool: the tokens that move most, as `high_bin`
    finds them. A flipped clip's are `[..., ::-1]`."""

    motion: np.ndarray
    high: np.ndarray


def token_motion(maps: np.ndarray, patch: int = 16, tubelet: int = 2, box: tuple[int, int, int, int] | None = None,
                 size: int | tuple[int, int] | None = None) -> np.ndarray:
    """Mean ST-motion of every token: (T', H', W') float32, px/frame per px.

    maps: (L, h, w) of the sampled frames, or (1, h, w) S-motion with tubelet 1; box: the crop that the network is
    given, (y, x, height, width) in pixels of the stored frame, by default all of it; size: the pixels that it is
    resized to, one number for both sides or (H, W), by default its own. A token's mean is exact: it weighs each cell by
    the area that they share. Raises ValueError for a box outside of the frame and where there is no whole token.
    """
    length, rows, columns = maps.shape
    y, x, height, width = box or (0, 0, rows * CELL, columns * CELL)
    if not (0 <= y < y + height <= rows * CELL and 0 <= x < x + width <= columns * CELL):
        raise ValueError(f"box {(y, x, height, width)}; expected y, x, height, width inside {rows * CELL}x"
                         f"{columns * CELL} px")
    seen = (height, width) if size is None else (size, size) if isinstance(size, int) else size
    if min(patch, tubelet) < 1 or not (steps := length // tubelet) or not (down := seen[0] // patch) or \
            not (across := seen[1] // patch):
        raise ValueError(f"patch {patch}, tubelet {tubelet}; expected at least one whole token in {length} frames of "
                         f"{seen[0]}x{seen[1]} px")

    def weights(first: float, side: float, pixels: int, tokens: int, cells: int) -> np.ndarray:
        return overlaps(first / CELL, tokens * patch / pixels * side / CELL, tokens, cells)
    time = overlaps(0, steps * tubelet, steps, length)
    return np.einsum("at,thw,bh,cw->abc", time, maps.astype(np.float64), weights(y, height, seen[0], down, rows),
                     weights(x, width, seen[1], across, columns), optimize=True).astype(np.float32)


def high_bin(motion: np.ndarray, ratio: float = 0.5) -> np.ndarray:
    """The share `ratio` of the tokens of one clip that move most, bool of the same shape: those above the quantile
    1 - ratio, by the rules of the hot mask (docs/format.md 5). Of a still clip none is.

    Raises ValueError for a ratio that does not lie between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio {ratio}; expected more than 0 and less than 1")
    return hot_mask(motion, 100 * (1 - ratio))[1]


def motion_masks(rng: np.random.Generator, motion: np.ndarray, ratio: float = 0.9, power: float = 1.0,
                 tube: bool = False) -> np.ndarray:
    """Masks of MAE by weight: True = masked, bool of the shape of `motion`; round(ratio N) of each clip's N tokens.

    motion: (..., T', H', W') >= 0. Tokens are drawn without replacement in proportion to motion ** power: power 1
    hides what moves, -1 leaves it visible, 0 is the plain random mask. What stands still counts as a thousandth of its
    clip's mean. tube: one mask (H', W') of the mean over time, for all T' (VideoMAE's tubes); round(ratio H' W') each.
    Raises ValueError for a ratio that is not from 0 to 1.
    """
    def order(clips: np.ndarray, count: int) -> np.ndarray:
        floor = clips.mean(axis=1, keepdims=True) / 1000
        weights = power * np.log(clips + np.where(floor > 0, floor, 1))
        return np.argsort(-weights - rng.gumbel(size=clips.shape), axis=1)   # exact draws: Efraimidis, Spirakis 2006
    return _masks(motion, ratio, tube, order)


def binned_masks(rng: np.random.Generator, motion: np.ndarray, ratio: float = 0.9, high_ratio: float = 0.75,
                 share: float = 0.5, tube: bool = False) -> np.ndarray:
    """Masks of MAE by bins: as `motion_masks`, but `high_ratio` of the high bin is masked, or what comes next to it
    with `ratio` of all tokens masked, and within either bin every token is as likely.

    share: of the tokens in the high bin (`high_bin`). Raises ValueError for a ratio that is not from 0 to 1.
    """
    if not 0 <= high_ratio <= 1:
        raise ValueError(f"high_ratio {high_ratio}; expected 0 to 1")

    def order(clips: np.ndarray, count: int) -> np.ndarray:
        out = np.empty(clips.shape, np.int64)
        for row, clip in zip(out, clips):
            high = high_bin(clip, share)
            inside, outside = rng.permutation(np.flatnonzero(high)), rng.permutation(np.flatnonzero(~high))
            taken = min(max(round(high_ratio * len(inside)), count - len(outside)), len(inside), count)
            row[:] = np.concatenate([inside[:taken], outside, inside[taken:]])
        return out
    return _masks(motion, ratio, tube, order)


def _masks(motion: np.ndarray, ratio: float, tube: bool, order: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """order(clips (B, N), how many are masked) -> (B, N): token numbers, those to be masked first."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio {ratio}; expected 0 to 1")
    motion = np.asarray(motion, np.float64)
    seen = motion.mean(axis=-3, keepdims=True) if tube else motion
    clips = seen.reshape(-1, math.prod(seen.shape[-3:]))
    count = round(ratio * clips.shape[1])
    masks = np.zeros(clips.shape, bool)
    np.put_along_axis(masks, order(clips, count)[:, :count], True, axis=1)
    return np.broadcast_to(masks.reshape(seen.shape), motion.shape).copy()
