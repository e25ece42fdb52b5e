"""Clip samples from the packs of one or more stores.

L frames at stride S, HxW pixels, hxw motion cells, V views (query first, then its keys).
"""

import contextlib
import hashlib
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shared.cli import RequestError, nearest, typed
from shared.clips.index import ClipGeometry, ClipIndex, clip_starts
from shared.clips.sampling import (
    VIEW,
    clip_mask,
    draw_augment,
    draw_box,
    draw_clips,
    draw_pair,
    generator,
    half_cells,
    halves,
    partnered,
)
from shared.motion import CELL, s_motion
from shared.recipes.preprocessing import pack_recipe_hash, read_description
from shared.recipes.pretraining import Augment, Maclr, Sampling
from shared.store.index import Index
from shared.store.layout import StoreError, clip_arrays, damage_stops
from shared.store.place import Place, as_place
from shared.store.reader import StoreReader
from shared.store.record import read_records

MAX_OPEN = 64  # packs that a worker keeps open, all stores together
DEFAULT_SPLITS = "train", "train1"  # docs/method.md 1.6: the training list; UCF101 and HMDB51 have three
ASSUMED_FPS = 25.0  # where the index knows no frame rate


@dataclass(frozen=True)
class Sample:
    """One query and its keys, read.

    views: (V,) of `sampling.VIEW`; order: 1 where the query comes after k2 and k3; crops: V arrays (L, h, w, 3) uint8;
    motion: (L, H/8, W/8) float16 ST-motion of the query's frames, whole frame, px/frame per px, or None; inputs: V
    arrays for MaCLR's motion pathway, as `shared.clips.motion_clips` takes them, or none.
    """

    views: np.ndarray
    order: int
    crops: list[np.ndarray]
    motion: np.ndarray | None
    inputs: list[np.ndarray]


def _made(store: Place) -> str:
    """What the run that made the store last was given: ` --videos DIR`, annotations, flow and settings; "" where no
    record tells."""
    with contextlib.suppress(StoreError, KeyError, ValueError, IndexError):
        record = [record for record in read_records(store).values() if "plan" in record][-1]
        words = [part for word in shlex.split(record["command"])
                 for part in (word.split("=", 1) if word.startswith("--") else [word])]
        given = [word for flag, value in zip(words, words[1:]) if flag in ("--annotations", "--flow", "--set")
                 for word in (flag, value)]
        return f" {shlex.join(['--videos', *record.get('videos', [record['videos_root']]), *given])}"
    return ""


class ClipData:
    """The clips of a split's videos, from one or more stores. Numbers 0 to len - 1 stand for the videos, in the order
    of the stores and their ids; those shorter than a clip are left out and counted in `short`, those of the groups
    `sampling.leave_out` in `left_out`.

    stores: folders or URLs; split: default `train`, else `train1`; motion: whether the query's ST-motion is wanted;
    maclr: its one key is another clip, shifted in time, and the motion input of both is read where a term asks for it.
    videos: (N, 2) int64, store and position in its index; undivided: videos too short to hold a clip in either half
    (three keys), or (MaCLR) in which some clip has no other at the wanted distance, whose clips are the furthest ones
    instead; span: frames of a video that a sample needs, which all may lack; classes: names, sorted. Nothing of a pack
    is open before the first sample, and a process that was forked opens its own.
    Raises RequestError for a store, a split, a group, a clip geometry or a motion input that is not there, Stopped for
    a damaged index.
    """

    def __init__(self, stores: Sequence[Place | str], sampling: Sampling, augment: Augment, split: str | None = None,
                 seed: int = 0, motion: bool = True, maclr: Maclr | None = None):
        places = [as_place(store) for store in stores]
        different = {place.resolve() if isinstance(place, Path) else place for place in places}
        if not places or len(different) < len(places):
            raise RequestError(f"--store {', '.join(map(str, stores)) or '(none)'}; expected each store once")
        self.stores, self.sampling, self.augment = tuple(places), sampling, augment
        self.geometry, self.seed, self.motion, self.maclr = sampling.geometry, seed, motion, maclr
        # The same videos and clips with and without a motion pathway.
        self.span = max(self.geometry.span, maclr.geometry.span) if maclr else self.geometry.span
        self.indexes, self._provenance, videos, self.classes, self.left_out = [], [], [], set(), 0
        self._frames, self._kept = np.empty(0, np.int64), None    # of all the split's videos; clips of all stores
        for number, store in enumerate(self.stores):
            with damage_stops(store):
                reader = StoreReader(store)
                positions, entry = self._choose(reader, split)
            self.indexes.append(reader.index)
            self._provenance.append(entry)
            self.classes.update(reader.index.class_name[i] for i in positions)
            videos.append(np.stack([np.full(len(positions), number), positions], axis=1))
        self._check_groups()
        self.videos = np.concatenate(videos)
        self.classes = sorted(self.classes - {""})
        self.short = sum(entry["short"] for entry in self._provenance)
        self.undivided = sum(entry["undivided"] for entry in self._provenance)
        if not len(self.videos) and self.left_out and not self.short:
            raise RequestError(f"sampling.leave_out is {', '.join(sampling.leave_out)}; no video is of another group, "
                               "and nothing is left to train on")
        self._readers, self._process = {}, None

    def _choose(self, reader: StoreReader, split: str | None) -> tuple[np.ndarray, dict]:
        """Positions (n,) of a store's videos, and what the checkpoint records of the choice."""
        index, store = reader.index, reader.store
        name = next((name for name in DEFAULT_SPLITS if name in index.splits), None) if split is None else split
        if name not in index.splits:
            asked = f"split {split!r}" if split is not None else " nor ".join(map(repr, DEFAULT_SPLITS))
            raise RequestError(f"{store} has no {asked}; it has {', '.join(index.splits) or 'none'}: choose by --split")
        positions, told = index.in_split(name), {}
        if self.sampling.leave_out:
            kept = np.array([index.group[i] not in self.sampling.leave_out for i in positions], bool)
            self.left_out += int((~kept).sum())
            positions = positions[kept]
            told = {"left_out": list(self.sampling.leave_out), "groups": sorted({index.group[i] for i in positions})}
        enough = index.frames[positions] >= self.span
        document = read_description(reader.store)
        self._frames = np.concatenate([self._frames, index.frames[positions]])
        kept = {ClipGeometry.parse(clips) for clips in document["recipe"]["clips"]["geometries"]}
        self._kept = kept if self._kept is None else self._kept & kept
        positions, undivided = positions[enough], 0
        kinds = np.stack([index.frames[positions], index.fps[positions]])
        for (frames, fps), count in zip(*(a.T for a in np.unique(kinds, axis=1, return_counts=True))):
            starts = clip_starts(int(frames), self.geometry, document["recipe"]["clips"]["step"])
            if not self._divides(starts, int(frames), fps):
                undivided += int(count)
        self._check_arrays(index, positions, store, document["dataset"])
        return positions, {"store": str(store), "dataset": document["dataset"], "recipe_hash": document["recipe_hash"],
                           "index": index.generation, "used": _digest(index, positions, document["recipe"]),
                           "split": name, "videos": len(positions),
                           "short": int((~enough).sum()), "undivided": undivided, **told}

    def _check_groups(self) -> None:
        """Raises RequestError for a group to be left out that no store has: its name is misspelt."""
        groups = {group for index in self.indexes for group in index.group if group}
        for name in self.sampling.leave_out:
            if name not in groups:
                hint = nearest(name, sorted(groups)) if groups else "; the videos have no groups: give them some by " \
                    f"`python -m preprocess.reindex {typed(self.stores[0])} --annotations CSV`"
                stores = ", ".join(map(str, self.stores))
                raise RequestError(f"sampling.leave_out: {stores} has no group {name!r}{hint}")

    def _divides(self, starts: np.ndarray, frames: int, fps: float) -> bool:
        """Whether query and keys can lie as the method wants them, wherever the query lies."""
        if self.maclr:
            return bool(partnered(starts[starts + self.span <= frames], *self._shift(fps)).all())
        return self.sampling.keys == 1 or all(map(len, halves(starts, frames, self.geometry)))

    def _shift(self, fps: float) -> tuple[float, float]:
        """Least and largest distance of MaCLR's two clips, in frames."""
        rate = fps if fps > 0 else ASSUMED_FPS
        return self.maclr.shift_min_s * rate, self.maclr.shift_max_s * rate

    def _check_arrays(self, index: Index, positions: np.ndarray, store, dataset: str) -> None:
        start = next(layout for layout in clip_arrays(self.geometry, (CELL, CELL)) if layout.name.endswith("/start"))
        stored = self.maclr.motion_input if self.maclr and self.maclr.reads else "difference"
        for pack in sorted({index.pack[i] for i in positions}):
            files = index.pack_row(pack).files
            if stored != "difference" and f"{stored}/zarr.json" not in files:        # first: clips can be added
                raise RequestError(f"{store} keeps no {stored} (pack {pack}), which the motion pathway reads; make "
                                   f"another store with `python -m preprocess.run --dataset {dataset}{_made(store)} "
                                   f"--store {typed(f'{store}-{stored}')} --recipe maclr --set {stored}=true "
                                   f"--set geometries={self.geometry}`, or train with --set motion_input=difference")
            if start.metadata_file not in files:
                raise RequestError(f"{store} has no clips {self.geometry} (pack {pack}); add them with `python -m "
                                   f"preprocess.reindex {typed(store)} --clips {self.geometry}`")

    def __len__(self) -> int:
        return len(self.videos)

    def shorter(self, wanted: int) -> tuple[str, int]:
        """Settings of shorter clips, ` --set clip=LxS` and what goes with it, and how many videos of the split are long
        enough for them; ("", 0) where no more than now are. Most videos up to `wanted` come first, then clips that all
        stores hold, then the longest."""
        clip, maclr, found = self.geometry, self.maclr, []
        for geometry in {*self._kept, *(replace(clip, stride=stride) for stride in range(1, clip.stride))}:
            settings, span = f" --set clip={geometry}", geometry.span
            if maclr:
                stride, rest = divmod(geometry.length * geometry.stride, maclr.geometry.length)
                if rest or not stride:
                    continue
                motion = replace(maclr.geometry, stride=stride)
                settings, span = f"{settings} --set motion_clip={motion}", max(span, motion.span)
            enough = int((self._frames >= span).sum())
            if enough > len(self) and (geometry.length > 1) == (clip.length > 1):
                found.append((min(enough, wanted), geometry in self._kept, span, settings, enough))
        return max(found)[3:] if found else ("", 0)

    def name(self, number: int) -> str:
        """The video's id; with several stores `store: id`."""
        store, position = self.videos[number]
        video = self.indexes[store].id[position]
        return f"{self.stores[store]}: {video}" if len(self.stores) > 1 else video

    def provenance(self) -> list[dict]:
        """For the checkpoint, one entry a store: store, dataset, recipe_hash, index (its generation), used (a digest of
        the videos and how they were made), split, videos, short, undivided; with `sampling.leave_out` also left_out and
        groups, the names of those that are left out and of those that are trained on."""
        return [dict(entry) for entry in self._provenance]

    def frame_size(self, number: int) -> tuple[int, int]:
        """Height and width of the video's stored frames, pixels, as its pack's path says (docs/format.md)."""
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

        allocate(shape, dtype) gives the memory of the crops and of the inputs, in the order of the views, then of
        motion. One range of frames a clip, which the query and its first key may share, and one of maps. Raises
        StoreError, naming pack and video.
        """
        store, position = self.videos[number]
        reader, index = self.reader(store), self.indexes[store]
        video, frames, size = index.id[position], int(index.frames[position]), self.frame_size(number)
        rng = generator(self.seed, epoch, int(number))
        clips = reader.clips(video, self.geometry)
        if self.maclr:
            shift = self._shift(float(index.fps[position]))
            positions, order = draw_pair(rng, clips, frames - self.span, *shift, self.sampling), 0
        else:
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
        reads = views if self.maclr and self.maclr.reads else ()
        inputs = [self._motion_input(reader, video, frames, view, allocate) for view in reads]
        motion = None
        if self.motion:
            values = maps[int(views["start"][0])]
            motion = allocate(values.shape, values.dtype)
            motion[...] = values
        return Sample(views, order, crops, motion, inputs)

    def _motion_input(self, reader: StoreReader, video: str, frames: int, view: np.ndarray, allocate) -> np.ndarray:
        """What the motion pathway is made of, in the view's crop: edges and flow of the half-size cells that the box
        touches, frames as pairs of neighbours (the video's last pair stands for its last frame, as its flow does)."""
        geometry, kind = self.maclr.geometry, self.maclr.motion_input
        start, (y, x, h, w) = int(view["start"]), view["box"].tolist()
        indices = np.arange(start, start + geometry.span, geometry.stride)
        if kind == "difference":
            first = np.minimum(indices, frames - 2)
            rows, columns = slice(y, y + h), slice(x, x + w)
            values = reader.frames(video, np.stack([first, first + 1], axis=1).ravel())[:, rows, columns]
        else:
            rows, columns = slice(*half_cells(y, h)), slice(*half_cells(x, w))
            read = reader.edges if kind == "edges" else reader.flow
            values = read(video, indices)[:, :, rows, columns]
        out = allocate(values.shape, values.dtype)
        out[...] = values
        return out

    def largest(self) -> list[int]:
        """Bytes of each array of a sample, if all its crops were whole frames of the largest size."""
        (height, width), views, length = self.largest_frame(), self.sampling.keys + 1, self.geometry.length
        arrays = [length * height * width * 3] * views + [length * height * width // CELL**2 * 2]
        if self.maclr and self.maclr.reads:
            pixel = {"edges": 2 / 4, "flow": 2 * 2 / 4, "difference": 2 * 3}[self.maclr.motion_input]   # bytes a frame
            arrays += [int(self.maclr.geometry.length * height * width * pixel)] * views
        return arrays

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


def _digest(index: Index, positions: np.ndarray, recipe: dict) -> str:
    """16 hex digits for videos as they lie in their packs; labels, splits and other videos do not count."""
    lines = [pack_recipe_hash(recipe)]
    lines += [f"{index.id[i]}\t{index.pack[i]}\t{index.first_frame[i]}\t{index.frames[i]}" for i in positions]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
