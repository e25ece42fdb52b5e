"""Numbers of every video of a store, gathered pack by pack; no frame is decoded.

V videos in the index's order, C clips of one geometry, hxw motion cells.
"""

import numpy as np

from shared.clips.index import ClipGeometry
from shared.store.index import Index
from shared.store.reader import OpenPack
from shared.store.shards import ReadCounts

REST = 1e-3     # px/frame per px: T-motion of a frame in which nothing moves but what compression makes flicker
OPENING = 8     # frames whose sizes tell which videos may begin alike
STAYS = 0.9     # share of a video's clips in which a cell is hot, for it to stay hot


class VideoNumbers:
    """`take` fills in what a pack says of its videos; several threads may, each with packs of its own.

    motion (V,) float32: mean T-motion, px/frame per px; rest (V,) float32: share of frames in which nothing moves;
    detail (V,) float32: bytes a pixel of the stored frames; opening: V numbers, equal where the sizes of the first
    stored frames are; steady (V,) float32, where a geometry is given: cells that stay hot, over a clip's hot cells.
    """

    def __init__(self, index: Index, geometry: ClipGeometry | None):
        self.index, self.geometry = index, geometry
        self.motion, self.rest, self.detail, self.steady = np.zeros((4, len(index)), np.float32)
        self.opening = [0] * len(index)

    @property
    def order(self) -> list[int]:
        """Positions, the least moving video first."""
        return np.argsort(self.motion, kind="stable").tolist()

    def take(self, pack: OpenPack, positions: np.ndarray, places: np.ndarray) -> None:
        """positions, places (n,): of its videos in the index and in the pack. Raises StoreError for damage."""
        first = self.index.first_frame[positions]
        last = first + self.index.frames[positions]
        t_motion = pack.array(pack.layouts["t_motion"], pack.row.frames)
        sizes = pack.shard(pack.layouts["rgb"], pack.row.frames).nbytes
        self.motion[positions] = means(t_motion, first, last)
        self.rest[positions] = means(t_motion < REST, first, last)
        self.detail[positions] = means(sizes, first, last) / np.prod(pack.frame_size)
        for position, start, stop in zip(positions.tolist(), first.tolist(), last.tolist()):
            self.opening[position] = hash((pack.frame_size, sizes[start:min(stop, start + OPENING)].tobytes()))
        if self.geometry:
            self.steady[positions] = steadiness(pack, self.geometry, places)


def steadiness(pack: OpenPack, geometry: ClipGeometry, places: np.ndarray) -> np.ndarray:
    """Of each video, the cells that stay hot over the hot cells of a clip: (n,) float32, 0 without clips."""
    arrays, videos = pack.clip_layouts(geometry), pack.row.videos
    bounds = pack.array(arrays["offset"], videos + 1)
    count, mask = int(bounds[-1]), arrays["hot_mask"]
    if not count:
        return np.zeros(len(places), np.float32)
    hot = np.unpackbits(pack.shard(mask, count).rows(mask, 0, count, ReadCounts()), axis=1)
    clips = [hot[bounds[place]:bounds[place + 1]] for place in places]
    return np.array([(one.mean(axis=0) > STAYS).sum() / max(one.sum(axis=1).mean(), 1) if len(one) else 0
                     for one in clips], np.float32)


def means(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Means of values[first:last], a range each: (n,) float64; 0 for an empty range."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (total[last] - total[first]) / np.maximum(last - first, 1)
