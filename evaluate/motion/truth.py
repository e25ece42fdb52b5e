"""The synthetic set's truth at the positions of a network: where the object is, and how it moves.

V videos, n clips a video of L frames, HxW pixels of the source, T'xh'xw' positions of h.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.features.cache import FeatureCache
from evaluate.features.extract import View
from evaluate.motion.maps import centre, clip_numbers
from shared.cli import Progress, RequestError, plural
from shared.clips.sampling import overlaps
from shared.datasets.truth import load_truth, truth_path
from shared.motion import motion_map
from shared.recipes.preprocessing import read_description
from shared.store.index import Index
from shared.store.place import Place
from shared.store.reader import StoreReader
from shared.store.record import read_records

STILL = 0.01       # px/frame per px: below it the truth's float16 flow moves by rounding
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Truth:
    """motion (V, n, T', h', w') float32: Eq. 1 of MCL on the true flow, px/frame per px; cover (V, n, T', h', w')
    float32: share of each position that the object covers; both averaged over the position's pixels and frames."""

    motion: np.ndarray
    cover: np.ndarray


def check_synthetic(index: Index, positions: np.ndarray) -> None:
    """Raises RequestError where classes and groups are not those of the synthetic set: motions and backgrounds."""
    dataset = read_description(index.store)["dataset"]
    bare = sum(not index.group[i] or index.label[i] < 0 for i in positions)
    if dataset != SYNTHETIC:
        raise RequestError(f"controls: {index.store} holds {dataset}; expected the synthetic set, whose classes are "
                           "motions and whose groups are backgrounds: make it with `python -m preprocess.run --dataset "
                           "synthetic`")
    if bare:
        raise RequestError(f"controls: {plural(bare, 'video')} of {len(positions):,} of {index.store} without "
                           "label or group; expected motion and background: make the store anew from the generator's "
                           "annotations.csv")


def videos_root(store: Place, asked: str, videos: Sequence[str]) -> Path:
    """The folder of the videos: `asked`, or the one that the store's last run recorded.

    videos: paths within it whose truth is wanted. Raises RequestError where it is unknown or a truth is not there.
    """
    recorded = [record["videos_root"] for record in read_records(store).values() if "videos_root" in record]
    if not asked and not recorded:
        raise RequestError(f"controls: {store} does not record where its videos were; name their folder by --set "
                           "controls.videos=DIR, or leave out what needs the truth by --set controls.truth=false")
    root = Path(asked or recorded[-1])
    absent = [video for video in videos if not truth_path(root / video).is_file()]
    if absent:
        raise RequestError(f"controls: {truth_path(root / absent[0])} is not there ({len(absent)} of {len(videos)} "
                           "videos have no truth); the dense probe and the saliency need it: name the videos' folder "
                           "by --set controls.videos=DIR, or leave both out by --set controls.truth=false")
    return root


@dataclass(frozen=True)
class Clips:
    """Where in the store's frames the clips of V videos are.

    positions (V,) in the index; numbers (V, n, L) int64 frames; boxes (V, 4) y, x, height, width of what is seen,
    pixels; sizes (V, 2) height and width of the stored frames, pixels.
    """

    positions: np.ndarray
    numbers: np.ndarray
    boxes: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, reader: StoreReader, positions: np.ndarray, view: View) -> "Clips":
        """Those of a view: n is `view.clips`, one that is there twice stands twice."""
        index, numbers, boxes, sizes = reader.index, [], [], []
        for position in positions.tolist():
            size = reader.frames(index.id[position], [0]).shape[1:3]
            numbers.append(clip_numbers(view, index, position))
            boxes.append(centre(view, *size)["box"].tolist())
            sizes.append(size)
        return cls(np.asarray(positions), np.stack(numbers), np.array(boxes), np.array(sizes))

    def digest(self) -> str:
        parts = (np.ascontiguousarray(part, np.int64).tobytes() for part in (self.numbers, self.boxes, self.sizes))
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def read_truth(reader: StoreReader, root: Path, clips: Clips, grid: tuple[int, int, int], cache: FeatureCache,
               label: str) -> Truth:
    """The clips' truth, from the cache or computed. grid: (T', h', w')."""
    index, document = reader.index, read_description(reader.store)
    key = {"truth": 1, "still": STILL, "clips": clips.digest(), "grid": list(grid),
           "store": {"index": index.generation, "recipe_hash": document["recipe_hash"]}}
    shape = (len(clips.positions), 2, clips.numbers.shape[1], *grid)
    if (vectors := cache.whole(key, clips.positions)) is not None:
        return _apart(vectors, shape)
    progress, known = Progress(f"truth {label}", shape[0]), {}
    short_side = document["recipe"]["frames"]["short_side"]
    for row, position in enumerate(clips.positions.tolist()):
        values = clip_truth(root / index.path[position], clips.numbers[row], clips.boxes[row], clips.sizes[row],
                            short_side, grid)
        known[position] = np.stack(values).reshape(1, -1), 0
        progress.update(row + 1)
    progress.close()
    return _apart(cache.put(key, known, clips.positions.tolist(), int(np.prod(shape[1:]))), shape)


def _apart(vectors: np.ndarray, shape: Sequence[int]) -> Truth:
    values = vectors.reshape(shape)
    return Truth(values[:, 0], values[:, 1])


def clip_truth(video: Path, numbers: np.ndarray, box: Sequence[int], size: Sequence[int], short_side: int,
               grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(motion, cover), each (n, T', h', w') float32: exact means over the pixels and frames of every position.

    numbers (n, L): frames; box: y, x, height, width of what is seen, pixels of the stored frame; size: its height and
    width; short_side: the length in pixels to which the source's short side was scaled where it was longer.
    """
    mask, flow = load_truth(video)
    distinct, places = np.unique(numbers, return_inverse=True)
    places = places.reshape(numbers.shape)
    mask, motion = mask[distinct], motion_map(flow[distinct])
    motion[motion < STILL] = 0
    source = mask.shape[1:]
    # Frames were scaled evenly, then cropped about their middle.
    scale = max(1.0, min(source) / short_side)
    down, across = (overlaps((first - kept / 2) * scale + whole / 2, side * scale, parts, whole).astype(np.float32)
                    for first, side, kept, whole, parts in zip(box[:2], box[2:], size, source, grid[1:]))
    time = overlaps(0, numbers.shape[1], grid[0], numbers.shape[1]).astype(np.float32)             # (T', L)
    return tuple(np.einsum("at,nthw->nahw", time, (down @ values.astype(np.float32) @ across.T)[places])
                 for values in (motion, mask))
