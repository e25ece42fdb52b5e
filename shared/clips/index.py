"""Clip windows, scores, medians, hot masks and motion-focused crop boxes (MCL section 3.2).

T frames, HxW pixels, hxw cells of 8x8 pixels, L sampled frames at stride S, C clips of one video. Plain integers and
arrays, numpy or CuPy alike: nothing here knows of stores or files. A clip spans (L-1)S+1 frames; its start is relative
to its video.
"""

import re
from dataclasses import dataclass

import numpy as np

from shared.motion import CELL, namespace, s_motion, to_host

HOT_PERCENTILE = 90  # of the clip's S-motion (MCL section 3.2)


@dataclass(frozen=True)
class ClipGeometry:
    """L frames at stride S, written `LxS`, as in `16x2`."""

    length: int
    stride: int

    @classmethod
    def parse(cls, text: str) -> "ClipGeometry":
        """`16x2` -> ClipGeometry(16, 2). Raises ValueError for anything else."""
        match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,2})", str(text).strip())
        if not match:
            raise ValueError(f"clip geometry {text!r}; expected LxS, frames by stride, such as 16x2")
        return cls(int(match[1]), int(match[2]))

    @property
    def span(self) -> int:
        """Frames from the first sampled frame to the last, both counted."""
        return (self.length - 1) * self.stride + 1

    def __str__(self) -> str:
        return f"{self.length}x{self.stride}"


@dataclass(frozen=True)
class ClipIndex:
    """What the store keeps of one video's clips; C may be 0.

    start (C,) int32, frames from the video's first; score (C,) float32, px/frame per px; s_p90 (C,) float32, same
    unit; hot_mask (C, ceil(hw/8)) uint8 packed bits; median: float, NaN without clips.
    """

    start: np.ndarray
    score: np.ndarray
    s_p90: np.ndarray
    hot_mask: np.ndarray
    median: float


@dataclass(frozen=True)
class Box:
    """A crop in pixels of the stored frame: top, left, height, width."""

    y: int
    x: int
    h: int
    w: int


def clip_starts(frames: int, geometry: ClipGeometry, step: int) -> np.ndarray:
    """Starts of all clips of a video, every `step` frames: (C,) int32, empty where the video is shorter than a span."""
    return np.arange(0, max(0, frames - geometry.span + 1), step, dtype=np.int32)


def clip_scores(t_motion: np.ndarray, starts: np.ndarray, geometry: ClipGeometry) -> np.ndarray:
    """Clip-level motion: mean of T-motion over the L sampled frames (MCL section 3.2).

    t_motion: (T,) float32, px/frame per px; starts: (C,).   Returns (C,) float32, same unit.
    """
    sampled = starts[:, None] + namespace(starts).arange(geometry.length) * geometry.stride
    return t_motion[sampled].mean(axis=1, dtype=np.float64).astype(np.float32)


def clip_median(scores: np.ndarray) -> float:
    """Median over all clips of one video, the temporal threshold (MCL section 3.2); NaN without clips."""
    return float(namespace(scores).median(scores).astype(np.float32)) if len(scores) else float("nan")


def above(values: np.ndarray, threshold: float) -> np.ndarray:
    """Which values lie strictly above the threshold; where none does (a plateau), which lie at or above it. Bool."""
    strictly = values > threshold
    return strictly if strictly.any() else values >= threshold


def hot_mask(s_map: np.ndarray, percentile: float = HOT_PERCENTILE) -> tuple[np.float32, np.ndarray]:
    """The 90th percentile of a clip's S-motion, or another, and the cells above it (MCL section 3.2).

    s_map: (h, w) float32, border already zeroed.   Returns (threshold, (h, w) bool).
    A constant map has an empty mask: it prefers no place, and an empty mask accepts every box.
    """
    xp = namespace(s_map)
    threshold = np.float32(xp.percentile(s_map.astype(np.float64), percentile))
    if s_map.min() == s_map.max():
        return threshold, xp.zeros(s_map.shape, bool)
    return threshold, above(s_map, threshold)


def pack_mask(mask: np.ndarray) -> np.ndarray:
    """(h, w) bool -> (ceil(hw/8),) uint8, C order, most significant bit first, zero padded (docs/format.md)."""
    return namespace(mask).packbits(mask.ravel())


def unpack_mask(packed: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """Inverse of `pack_mask`: (ceil(hw/8),) uint8 and (h, w) -> (h, w) bool."""
    return np.unpackbits(packed, count=cells[0] * cells[1]).astype(bool).reshape(cells)


class ClipIndexer:
    """Builds a video's ClipIndex while its frames stream by: memory holds one span of maps, whatever the length.

    maps: (n, h, w) float32 cells with the border zeroed; t_motion: (n,) float32, their means.
    """

    def __init__(self, geometry: ClipGeometry, step: int):
        self.geometry, self.step = geometry, step
        self.maps = None
        self.first = 0        # frame number of self.maps[0]
        self.t_motion = []
        self.start, self.s_p90, self.hot = [], [], []

    def append(self, maps, t_motion) -> None:
        """Take the next n frames; emits every clip whose span is complete."""
        xp = namespace(maps)
        self.maps = maps if self.maps is None else xp.concatenate([self.maps, maps])
        self.t_motion.append(to_host(t_motion))
        g, end = self.geometry, self.first + len(self.maps)
        start = len(self.start) * self.step
        while start + g.span <= end:
            at = start - self.first
            threshold, mask = hot_mask(s_motion(self.maps[at:at + g.span:g.stride]))
            self.start.append(start)
            self.s_p90.append(threshold)
            self.hot.append(to_host(pack_mask(mask)))
            start += self.step
        keep = min(max(start - self.first, 0), len(self.maps))
        self.maps, self.first = self.maps[keep:].copy(), self.first + keep

    def finish(self) -> ClipIndex:
        """The index of all clips seen. Raises ValueError if no frame was ever appended."""
        if self.maps is None:
            raise ValueError("no frame was appended")
        h, w = self.maps.shape[1:]
        start = np.array(self.start, np.int32)
        score = clip_scores(np.concatenate(self.t_motion), start, self.geometry)
        hot = np.array(self.hot, np.uint8).reshape(len(start), -(-h * w // 8))
        return ClipIndex(start, score, np.array(self.s_p90, np.float32), hot, clip_median(score))


def summed_area(mask: np.ndarray, cell: int = CELL) -> np.ndarray:
    """Summed-area table of a cell mask at every pixel corner, exact in integers.

    mask: (h, w) bool.   Returns (H+1, W+1) int32: hot pixels above and left of each corner, H = h*cell, W = w*cell.
    """
    xp = namespace(mask)
    down = xp.repeat(mask, cell, axis=0).cumsum(axis=0, dtype=np.int32)  # before it is wide: a third of the time
    table = xp.zeros((mask.shape[0] * cell + 1, mask.shape[1] * cell + 1), np.int32)
    table[1:, 1:] = xp.repeat(down, cell, axis=1).cumsum(axis=1, dtype=np.int32)
    return table


def covered(table: np.ndarray, height: int, width: int) -> np.ndarray:
    """Hot pixels inside the box of this size at every position: (H-height+1, W-width+1) int32."""
    return table[height:, width:] - table[:-height, width:] - table[height:, :-width] + table[:-height, :-width]


def valid_positions(table: np.ndarray, height: int, width: int, cover: float = 0.8) -> np.ndarray:
    """Where a box of this size covers at least `cover` of the hot pixels (MCL section 3.2).

    table: from `summed_area`.   Returns (H-height+1, W-width+1) bool; all true for an empty mask.
    """
    return covered(table, height, width) >= _enough(table, cover)


def _enough(table: np.ndarray, cover: float) -> float:
    """Hot pixels that make up `cover` of all; the margin keeps 0.8 * 10 at 8 in floating point."""
    return cover * table[-1, -1] - 1e-6


def draw_position(rng: np.random.Generator, valid: np.ndarray) -> tuple[int, int] | None:
    """One true (y, x) of `valid`, uniformly; None where there is none."""
    places = namespace(valid).flatnonzero(valid)
    if not len(places):
        return None
    return divmod(int(places[rng.integers(len(places))]), valid.shape[1])


def draw_size(rng: np.random.Generator, height: int, width: int, area=(0.2, 1.0), aspect=(3 / 4, 4 / 3),
              tries: int = 100) -> tuple[int, int]:
    """Box size (h, w) in pixels: area share uniform, aspect w/h log-uniform (released code), redrawn until it fits.

    The whole frame's largest box of an allowed aspect where no draw fits (a very long frame).
    """
    for _ in range(tries):
        pixels = rng.uniform(*area) * height * width
        ratio = np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1])))
        h, w = round((pixels / ratio) ** 0.5), round((pixels * ratio) ** 0.5)
        if 1 <= h <= height and 1 <= w <= width:
            return h, w
    ratio = min(max(width / height, aspect[0]), aspect[1])
    return min(height, round(width / ratio)), min(width, round(height * ratio))


def draw_crop(rng: np.random.Generator, mask: np.ndarray, area=(0.2, 1.0), aspect=(3 / 4, 4 / 3), cover: float = 0.8,
              tries: int = 20) -> Box:
    """A motion-focused crop (MCL section 3.2): the size first, then uniform over the positions that cover enough.

    mask: (h, w) bool hot mask; the frame is h*8 x w*8 pixels. Where no position of the size covers `cover` of the hot
    pixels another size is drawn, at most `tries` times; then the best-covering position of all sizes tried is taken
    (ties: the first). An empty mask accepts every box.
    """
    height, width = mask.shape[0] * CELL, mask.shape[1] * CELL
    table = summed_area(mask)
    best, best_cover = None, -1
    for _ in range(tries):
        h, w = draw_size(rng, height, width, area, aspect)
        inside = covered(table, h, w)
        position = draw_position(rng, inside >= _enough(table, cover))
        if position is not None:
            return Box(*position, h, w)
        if int(inside.max()) > best_cover:
            best, best_cover = Box(*divmod(int(inside.argmax()), inside.shape[1]), h, w), int(inside.max())
    return best
