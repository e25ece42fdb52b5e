"""The draws of one training sample: clips in time, boxes in the frame, colours (MCL section 3.2; clips as SeCo's).

C clips of one video, V views (query first, then its keys), HxW pixels, hxw motion cells. Everything is drawn on the
host from one generator a sample, so a sample is a pure function of (seed, epoch, video), whatever process reads it.
"""

import math

import numpy as np

from shared.clips.index import Box, ClipGeometry, ClipIndex, above, clip_median, draw_crop, draw_size, unpack_mask
from shared.motion import CELL, zero_border
from shared.recipes.pretraining import Augment, Sampling

# One view: its clip's start, its crop (y, x, height, width in pixels of the frame), and its augmentation. `order` lists
# the jitter's four operations as they are applied; `factors` are theirs: brightness, contrast and saturation as
# multipliers, hue in radians. sigma: of the blur in pixels of the view, 0 = none.
VIEW = np.dtype([("start", "<i4"), ("box", "<i4", 4), ("jitter", "?"), ("order", "i1", 4), ("factors", "<f4", 4),
                 ("grey", "?"), ("sigma", "<f4"), ("flip", "?")])

REGION = 7  # cells a side of the released code's motion map


def generator(seed: int, *key: int) -> np.random.Generator:
    """An independent generator for every key, such as (epoch, video), and every length of key."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def halves(starts: np.ndarray, frames: int, geometry: ClipGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Positions among `starts` (C,) of the clips that lie wholly in the first half of the video, and in the second."""
    return (np.flatnonzero(starts + geometry.span <= frames // 2), np.flatnonzero(starts >= frames // 2))


def draw_moving(rng: np.random.Generator, scores: np.ndarray, candidates: np.ndarray, threshold: float | None) -> int:
    """One of the candidates, uniformly: with a threshold, of those above it; none above, at it; none at it, the best.

    scores: (C,) px/frame per px; candidates: positions (n,), n > 0; threshold: same unit, None = no motion focus.
    """
    if threshold is not None:
        chosen = scores[candidates]
        moving = above(chosen, threshold)  # a half may lie wholly below the median of its video
        candidates = candidates[moving if moving.any() else chosen == chosen.max()]
    return int(candidates[rng.integers(len(candidates))])


def draw_clips(rng: np.random.Generator, clips: ClipIndex, frames: int, geometry: ClipGeometry,
               sampling: Sampling) -> tuple[tuple[int, ...], int]:
    """Positions of the clips of query and keys, (q, q) or (q, q, k2, k3), and the order: 1 where q is after the pair.

    One key: the query from all of the video. Three (docs/method.md 1.3): the query from one half, k2 <= k3 from the
    other; the coin, motion-focused or not, falls once a sample (released code). Where a half holds no clip the furthest
    starts are taken, non-identical where the video has two.
    """
    order = int(rng.integers(2))
    focused = sampling.ta and rng.random() < sampling.ta_probability
    if sampling.keys == 1:
        query = draw_moving(rng, clips.score, np.arange(len(clips.start)), clips.median if focused else None)
        return (query, query), 0
    one, two = halves(clips.start, frames, geometry)
    if not len(one) or not len(two):
        last = len(clips.start) - 1
        query, other, step = (last, 0, 1) if order else (0, last, -1)
        beside = other + step if last > 1 else other
        return (query, query, *sorted((other, beside))), order
    mine, other = (two, one) if order else (one, two)

    def draw(half: np.ndarray) -> int:
        median = clips.median if sampling.ta_scope == "video" else clip_median(clips.score[half])
        return draw_moving(rng, clips.score, half, median if focused else None)
    query = draw(mine)
    return (query, query, *sorted((draw(other), draw(other)))), order


def draw_pair(rng: np.random.Generator, clips: ClipIndex, last: int, near: float, far: float,
              sampling: Sampling) -> tuple[int, int]:
    """Positions of the clips of query and key, `near` to `far` frames apart (MaCLR's positives, docs/method.md 2.2).

    Of all clips that start at frame `last` or before; where none lies at such a distance from the query's, the one that
    misses it least: in a short video the furthest. With TA both are motion-focused, over the median of the video.
    """
    threshold = clips.median if sampling.ta and rng.random() < sampling.ta_probability else None
    fitting = np.flatnonzero(clips.start <= last)
    query = draw_moving(rng, clips.score, fitting, threshold)
    distance = np.abs(clips.start[fitting] - clips.start[query])
    miss = np.maximum(0, np.maximum(near - distance, distance - far))
    return query, draw_moving(rng, clips.score, fitting[miss == miss.min()], threshold)


def partnered(starts: np.ndarray, near: float, far: float) -> np.ndarray:
    """(C,) bool: which of the sorted starts have another (or, for near = 0, themselves) near to far frames away."""
    before = np.searchsorted(starts, starts - near, "right") > np.searchsorted(starts, starts - far, "left")
    return before | (np.searchsorted(starts, starts + far, "right") > np.searchsorted(starts, starts + near, "left"))


def half_cells(first: int, length: int) -> tuple[int, int]:
    """The half-size cells (2 pixels a side) that pixels first to first + length - 1 touch: first cell and end."""
    return first // 2, -(-(first + length) // 2)


def draw_box(rng: np.random.Generator, sampling: Sampling, size: tuple[int, int], mask: np.ndarray | None = None,
             s_map: np.ndarray | None = None) -> Box:
    """One crop: plain (no SA); around the hot mask (h, w) bool (MCL section 3.2); or the released code's, from s_map.

    size: height and width of the frame in pixels. The law of the box's size is the same in all three.
    """
    area, aspect = (sampling.area_min, sampling.area_max), (sampling.aspect_min, sampling.aspect_max)
    if not sampling.sa:
        h, w = draw_size(rng, *size, area, aspect)
        return Box(int(rng.integers(size[0] - h + 1)), int(rng.integers(size[1] - w + 1)), h, w)
    if sampling.sa_variant == "released":
        return _released_box(rng, s_map, size, area, aspect)
    return draw_crop(rng, mask, area, aspect, sampling.cover)


def motion_region(s_map: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The released code's region of motion: rows and columns (first, end) of the box around the top 4 of 7x7 cells, and
    the share of its area that a crop must cover: the smaller the region, the more; 0 = any crop will do.

    s_map: (h, w) px/frame per px; its border cells are left out. Returned in cells of the 7x7 map.
    """
    h, w = s_map.shape
    coarse = overlaps(0, h, REGION, h) @ zero_border(s_map, 1).astype(np.float64) @ overlaps(0, w, REGION, w).T
    top = np.argsort(coarse.ravel(), kind="stable")[-(REGION * REGION // 10):]
    rows, columns = np.divmod(top, REGION)
    rows, columns = np.array([rows.min(), rows.max() + 1]), np.array([columns.min(), columns.max() + 1])
    cells = int(np.diff(rows)[0] * np.diff(columns)[0])
    return rows, columns, 0.9 if cells <= 4 else 0.8 if cells <= 8 else 0.7 if cells <= 12 else 0.0


def _released_box(rng: np.random.Generator, s_map: np.ndarray, size: tuple[int, int], area, aspect) -> Box:
    """At most 20 sizes until one fits, then 40 positions of it, then the best of them (docs/method.md 1.2.2)."""
    rows, columns, cover = motion_region(s_map)
    spans = rows * size[0] / REGION, columns * size[1] / REGION
    h, w = draw_size(rng, *size, area, aspect, tries=20)
    best, most = None, -1.0
    for _ in range(40):
        y, x = int(rng.integers(size[0] - h + 1)), int(rng.integers(size[1] - w + 1))
        inside = [max(0.0, min(b, start + side) - max(a, start)) / (b - a)
                  for (a, b), start, side in zip(spans, (y, x), (h, w))]
        if inside[0] * inside[1] > most:
            best, most = Box(y, x, h, w), inside[0] * inside[1]
        if most >= cover:
            break
    return best


def overlaps(first: float, length: float, parts: int, cells: int) -> np.ndarray:
    """Shares of unit cells in equal parts of an interval: (parts, cells) float64, rows sum to 1 inside [0, cells].

    Part i is [first + i length/parts, first + (i+1) length/parts): the exact area weights of one axis.
    """
    edges = first + length * np.arange(parts + 1) / parts
    cell = np.arange(cells)
    shared = np.minimum(edges[1:, None], cell + 1) - np.maximum(edges[:-1, None], cell)
    return np.maximum(shared, 0) * (parts / length)


def draw_augment(rng: np.random.Generator, augment: Augment, view: np.ndarray) -> None:
    """Fill one row of VIEW with its colours and its flip. The number of draws does not depend on their outcome."""
    view["jitter"] = rng.random() < augment.jitter_p
    view["order"] = rng.permutation(4)
    for i, strength in enumerate((augment.brightness, augment.contrast, augment.saturation)):
        view["factors"][i] = rng.uniform(max(0.0, 1 - strength), 1 + strength)
    view["factors"][3] = 2 * math.pi * rng.uniform(-augment.hue, augment.hue)
    view["grey"] = rng.random() < augment.grey_p
    sigma = rng.uniform(augment.blur_min, augment.blur_max)
    view["sigma"] = sigma if rng.random() < augment.blur_p else 0.0
    view["flip"] = rng.random() < augment.flip_p


def clip_mask(clips: ClipIndex, position: int, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool hot mask of a clip of frames of `size` pixels."""
    return unpack_mask(clips.hot_mask[position], (size[0] // CELL, size[1] // CELL))
