"""Clips from which something has been taken away: their motion, the order or direction of their frames, what moves.

n distinct frames of HxW pixels, u clips of L frames, hxw cells of 8x8 pixels.
"""

import numpy as np
from scipy.ndimage import binary_dilation, binary_fill_holes

from shared.motion import CELL
from shared.store.reader import StoreReader

VARIANTS = STILL, SHUFFLED, REVERSED, BACKGROUND = "still", "shuffled", "reversed", "background_only"
MOVING = 0.02      # px/frame per px: a cell moves where its motion is above it; of generated objects none is missed
MEDIAN = 31        # frames, evenly over the video, whose median stands for what does not move
MARGIN = 2         # cells about those that move


def altered(variant: str, reader: StoreReader, position: int, numbers: np.ndarray, frames: np.ndarray,
            places: np.ndarray, crop: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    """(frames (m, h, w, 3) uint8, places (u, L) in them) of a video's clips in a variant.

    position: the video's in the index; numbers (n,): which of its frames `frames` (n, h, w, 3) are, cut out by `crop`;
    places (u, L). `still`: the middle frame of each clip, repeated; `shuffled`: each clip's frames in an order drawn by
    the video's position; `reversed`: last frame first; `background_only`: what moves in a clip is replaced by the
    video's temporal median there, at all of the clip's times.
    """
    if variant == STILL:
        return frames, np.repeat(places[:, places.shape[1] // 2, None], places.shape[1], axis=1)
    if variant == SHUFFLED:
        return frames, shuffled(places, np.random.default_rng(position))
    if variant == REVERSED:
        return frames, np.ascontiguousarray(places[:, ::-1])
    video, count = reader.index.id[position], int(reader.index.frames[position])
    sample = reader.frames(video, np.linspace(0, count - 1, min(MEDIAN, count)).round().astype(int))[:, *crop]
    still = np.median(sample, axis=0).round().astype(np.uint8)
    first = int(numbers.min())
    motion = reader.motion(video, first, int(numbers.max()) + 1)
    clips = frames[places]                                               # (u, L, h, w, 3), a copy
    for clip, place in zip(clips, places):
        inside = moving_cells(motion[numbers[place] - first]).repeat(CELL, 0).repeat(CELL, 1)[crop]
        clip[:, inside] = still[inside]
    return clips.reshape(-1, *clips.shape[2:]), np.arange(places.size).reshape(places.shape)


def shuffled(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each clip's frames, (u, L), in another order than theirs. Raises ValueError for clips of one frame."""
    if places.shape[1] < 2:
        raise ValueError("one frame has no order")
    plain = np.tile(np.arange(places.shape[1]), (len(places), 1))
    orders = rng.permuted(plain, axis=1)
    while (same := (orders == plain).all(1)).any():
        orders[same] = rng.permuted(plain[same], axis=1)
    return np.take_along_axis(places, orders, axis=1)


def moving_cells(motion: np.ndarray) -> np.ndarray:
    """(h, w) bool: cells that move at any time of a clip, those that are up to two cells away, and those enclosed.

    motion: (L, h, w) px/frame per px. It is of edges, so that an object's inside may have none; and JPEG, whose blocks
    of colour are two cells wide, carries what moves into the cells around.
    """
    moving = (np.asarray(motion, np.float32) > MOVING).any(0)
    return binary_fill_holes(binary_dilation(moving, np.ones((2 * MARGIN + 1, 2 * MARGIN + 1))))
