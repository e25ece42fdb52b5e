"""Clip samples from the packs of one or more stores.

L frames at stride S, HxW pixels, hxw motion cells, V views (query first, then its keys).
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.cli import RequestError
from shared.clips import ClipIndex, clip_starts
from shared.motion import CELL, s_motion
from shared.pretraining import Augment, Sampling
from shared.sampling import VIEW, clip_mask, draw_augment, draw_box, draw_clips, generator, halves
from shared.store.index import Index
from shared.store.layout import StoreError, clip_arrays, damage_stops
from shared.store.place import Place, as_place
from shared.store.reader import StoreReader
from shared.store.record import read_json

MAX_OPEN = 64  # packs that a worker keeps open, all stores together
DEFAULT_SPLITS = "train", "train1"  # METHOD.md 1.6: the training list; UCF101 and HMDB51 have three


@dataclass(frozen=True)
class Sample:
    """One query and its keys, read.

    views: (V,) of `sampling.VIEW`; order: 1 where the query comes after k2 and k3; crops: V arrays (L, h, w, 3) uint8;
    motion: (L, H/8, W/8) float16 ST-motion of the query's frames, whole frame, px/frame per px, or None.
    """

    views: np.ndarray
    order: int
    crops: list[np.ndarray]
    motion: np.ndarray | None


class ClipData:
    """The clips of a split's videos, from one or more stores. Numbers 0 to len - 1 stand for the videos, in the order
    of the stores and their ids; those shorter than a clip are left out and counted in `short`.

    stores: folders or URLs; split: default `train`, else `train1`; motion: whether the query's ST-motion is wanted.
    videos: (N, 2) int64, store and position in its index; undivided: videos too short to hold a clip in either half
    (three keys), whose clips are the furthest ones instead; classes: names, sorted. Nothing of a pack is open before
    the first sample, and a process that was forked opens its own.
    Raises RequestError for a store, a split or a clip geometry that is not there, Stopped for a damaged index.
    """

    def __init__(self, stores: Sequence[Place | str], sampling: Sampling, augment: Augment, split: str | None = None,
                 seed: int = 0, motion: bool = True):
        places = [as_place(store) for store in stores]
        different = {place.resolve() if isinstance(place, Path) else place for place in places}
        if not places or len(different) < len(places):
            raise RequestError(f"--store {', '.join(map(str, stores)) or '(none)'}; expected each store once")
        self.stores, self.sampling, self.augment = tuple(places), sampling, augment
        self.geometry, self.seed, self.motion = sampling.geometry, seed, motion
        self.indexes, self._provenance, videos, self.classes = [], [], [], set()
        for number, store in enumerate(self.stores):
            with damage_stops(store):
                reader = StoreReader(store)
                positions, entry = self._choose(reader, split)
            self.indexes.append(reader.index)
            self._provenance.append(entry)
            self.classes.update(reader.index.class_name[i] for i in positions)
            videos.append(np.stack([np.full(len(positions), number), positions], axis=1))
        self.videos = np.concatenate(videos)
        self.classes = sorted(self.classes - {""})
        self.short = sum(entry["short"] for entry in self._provenance)
        self.undivided = sum(entry["undivided"] for entry in self._provenance)
        if not len(self.videos):
            raise RequestError(f"no video of {', '.join(map(str, self.stores))} is long enough for a clip of "
                               f"{self.geometry} ({self.geometry.span} frames; {self.short} are shorter)")
        self._readers, self._process = {}, None

    def _choose(self, reader: StoreReader, split: str | None) -> tuple[np.ndarray, dict]:
        """Positions (n,) of a store's videos, and what the checkpoint records of the choice."""
        index, store = reader.index, reader.store
        name = split or next((name for name in DEFAULT_SPLITS if name in index.splits), None)
        if name not in index.splits:
            asked = f"split {split!r}" if split else " nor ".join(map(repr, DEFAULT_SPLITS))
            raise RequestError(f"{store} has no {asked}; it has {', '.join(index.splits) or 'none'}: choose by --split")
        positions = index.in_split(name)
        enough = index.frames[positions] >= self.geometry.span
        document = read_json(reader.store / "store.json")
        undivided = 0
        for frames, count in zip(*np.unique(index.frames[positions[enough]], return_counts=True)):
            starts = clip_starts(int(frames), self.geometry, document["recipe"]["clips"]["step"])
            if self.sampling.keys > 1 and not all(map(len, halves(starts, int(frames), self.geometry))):
                undivided += int(count)
        positions = positions[enough]
        self._check_clips(index, positions, store)
        return positions, {"store": str(store), "dataset": document["dataset"], "recipe_hash": document["recipe_hash"],
                           "index": index.generation, "split": name, "videos": len(positions),
                           "short": int((~enough).sum()), "undivided": undivided}

    def _check_clips(self, index: Index, positions: np.ndarray, store) -> None:
        start = next(layout for layout in clip_arrays(self.geometry, (CELL, CELL)) if layout.name.endswith("/start"))
        for pack in sorted({index.pack[i] for i in positions}):
            if start.metadata_file not in index.pack_row(pack).files:
                raise RequestError(f"{store} has no clips {self.geometry} (pack {pack}); add them with `python -m "
                                   f"preprocess.reindex {store} --clips {self.geometry}`")

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, number: int) -> str:
        """The video's id; with several stores `store: id`."""
        store, position = self.videos[number]
        video = self.indexes[store].id[position]
        return f"{self.stores[store]}: {video}" if len(self.stores) > 1 else video

    def provenance(self) -> list[dict]:
        """For the checkpoint, one entry a store: store, dataset, recipe_hash, index (its generation), split, videos,
        short, undivided."""
        return [dict(entry) for entry in self._provenance]

    def frame_size(self, number: int) -> tuple[int, int]:
        """Height and width of the video's stored frames, pixels, as its pack's path says (FORMAT.md)."""
        store, position = self.videos[number]
        index = self.indexes[store]
        return _frame_size(index.pack_row(index.pack[position]).path)

    def largest_frame(self) -> tuple[int, int]:
        """The frame size with the most pixels among the packs of all videos."""
        packs = {(store, self.indexes[store].pack[position]) for store, position in self.videos.tolist()}
        return max((_frame_size(self.indexes[store].pack_row(pack).path) for store, pack in packs),
                   key=lambda size: size[0] * size[1])

    def reader(self, store: int) -> StoreReader:
        """This process's reader of a store."""
        if self._process != os.getpid():
            self._readers, self._process = {}, os.getpid()
        if store not in self._readers:
            share = max(1, MAX_OPEN // len(self.stores))
            self._readers[store] = StoreReader(self.stores[store], max_open=share, index=self.indexes[store])
        return self._readers[store]

    def sample(self, number: int, epoch: int,
               allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty) -> Sample:
        """Video `number`'s sample of this epoch, a pure function of (seed, epoch, number).

        allocate(shape, dtype) gives the memory of the crops, in the order of the views, then of motion. One range of
        frames a clip, which the query and its first key share, and one of maps. Raises StoreError, naming pack and
        video.
        """
        store, position = self.videos[number]
        reader, index = self.reader(store), self.indexes[store]
        video, frames, size = index.id[position], int(index.frames[position]), self.frame_size(number)
        rng = generator(self.seed, epoch, int(number))
        clips = reader.clips(video, self.geometry)
        positions, order = draw_clips(rng, clips, frames, self.geometry, self.sampling)
        views = np.zeros(len(positions), VIEW)
        views["start"] = clips.start[list(positions)]
        maps = self._maps(reader, video, views["start"])
        for view, clip in zip(views, positions):
            box = self._box(rng, clips, clip, size, maps.get(int(view["start"])))
            view["box"] = box.y, box.x, box.h, box.w
        for view in views:
            draw_augment(rng, self.augment, view)
        crops = [allocate((self.geometry.length, h, w, 3), np.dtype(np.uint8)) for _, _, h, w in views["box"].tolist()]
        for start in dict.fromkeys(views["start"].tolist()):
            decoded = reader.frames(video, range(start, start + self.geometry.span, self.geometry.stride))
            for v in np.flatnonzero(views["start"] == start):
                y, x, h, w = views["box"][v].tolist()
                crops[v][...] = decoded[:, y:y + h, x:x + w]
        motion = None
        if self.motion:
            values = maps[int(views["start"][0])]
            motion = allocate(values.shape, values.dtype)
            motion[...] = values
        return Sample(views, order, crops, motion)

    def _maps(self, reader: StoreReader, video: str, starts: np.ndarray) -> dict[int, np.ndarray]:
        """ST-motion (L, h, w) by start, of the clips whose maps are needed: the target's; the released crop's."""
        released = self.sampling.sa and self.sampling.sa_variant == "released"
        needed = set(starts.tolist()) if released else {int(starts[0])} if self.motion else ()
        stride = self.geometry.stride
        return {start: reader.motion(video, start, start + self.geometry.span)[::stride] for start in sorted(needed)}

    def _box(self, rng, clips: ClipIndex, clip: int, size: tuple[int, int], maps: np.ndarray | None):
        released = self.sampling.sa and self.sampling.sa_variant == "released"
        return draw_box(rng, self.sampling, size, None if released else clip_mask(clips, clip, size),
                        s_motion(maps) if released else None)


def _frame_size(path: str) -> tuple[int, int]:
    match = re.search(r"(?:^|/)packs/(\d+)x(\d+)/", path)
    if not match:
        raise StoreError(f"{path}: does not name its frame size; expected packs/<H>x<W>/<pack>")
    return int(match[1]), int(match[2])
