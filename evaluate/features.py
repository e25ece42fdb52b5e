"""Checkpoint + store + split + setting -> features, once: computed over all ranks, cached with exactly that key.

V videos, L frames at stride S of a clip, C features.
"""

import dataclasses
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from evaluate.cache import FeatureCache, Known
from evaluate.encoders import Encoder
from evaluate.protocol import FeatureSettings, RunEvaluation
from shared.cli import Progress, RequestError, nearest
from shared.clips import ClipGeometry
from shared.nn.distributed import World, gather
from shared.store.index import Index
from shared.store.place import Place
from shared.store.reader import StoreReader
from shared.store.record import read_json
from shared.views import MEAN, STD, resize

EDGE = 256 / 224      # short edge over view (METHOD 1.7)
BLOCK = 64            # videos a rank between two exchanges
PART_S = 300          # a long extraction keeps what it has every so many seconds


@dataclass(frozen=True)
class Features:
    """Videos as vectors.

    ids, groups: lists of V; labels (V,) int64, numbers of `classes`, -1 unlabelled; vectors (V, C) float32, perhaps on
    disk (memory-mapped); looped: videos shorter than a clip, whose frames were repeated; key: what they depend on;
    clips, seconds: what extracting them took now, 0 where they were there.
    """

    ids: Sequence[str]
    labels: np.ndarray
    classes: Sequence[str]
    groups: Sequence[str]
    vectors: np.ndarray
    key: dict
    looped: int = 0
    clips: int = 0
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> "Features":
        """The videos of `rows`, positions or a mask."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
        return dataclasses.replace(self, ids=[self.ids[i] for i in rows], labels=self.labels[rows],
                                   groups=[self.groups[i] for i in rows], vectors=self.vectors[rows])


@dataclass(frozen=True)
class View:
    """How a video is looked at: clips evenly, short edge scaled to `short_edge`, centre crop of `size` pixels."""

    clips: int
    geometry: ClipGeometry
    size: int
    short_edge: int

    @classmethod
    def of(cls, settings: FeatureSettings, encoder: Encoder) -> "View":
        """The settings, what they leave open filled in from the checkpoint. Raises RequestError."""
        try:
            geometry = ClipGeometry.parse(settings.clip or encoder.clip)
        except ValueError as error:
            raise RequestError(f"features.clip: {error}") from None
        size = settings.size or encoder.size
        view = cls(settings.clips, geometry, size, settings.short_edge or round(size * EDGE))
        if view.short_edge < size:
            raise RequestError(f"features.short_edge is {view.short_edge} px and the view {size} px; expected a short "
                               "edge that holds the centre crop")
        encoder.check_view(geometry, size)
        return view

    def to_dict(self) -> dict:
        return {"clips": self.clips, "clip": str(self.geometry), "size": self.size, "short_edge": self.short_edge}

    def frames(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which frames of a video of `count` frames: (n,) distinct ones; (u, L) places among those, of the distinct
        clips; (u,) how many of `clips` each stands for. A video shorter than a clip is looped until it is one."""
        starts = np.linspace(0, max(count - self.geometry.span, 0), self.clips).round().astype(np.int64)
        starts, weights = np.unique(starts, return_counts=True)
        numbers = (starts[:, None] + self.geometry.stride * np.arange(self.geometry.length)) % count
        distinct, places = np.unique(numbers, return_inverse=True)
        return distinct, places.reshape(numbers.shape), weights

    def crop(self, height: int, width: int) -> tuple[slice, slice]:
        """The square in the middle of a frame that the centre crop shows: short_edge / size of the short side."""
        side = max(1, min(height, width, round(min(height, width) * self.size / self.short_edge)))
        top, left = (height - side) // 2, (width - side) // 2
        return slice(top, top + side), slice(left, left + side)


def choose(index: Index, split: str | None, flag: str = "--split") -> np.ndarray:
    """Positions (V,) of a split's videos, of all for None. Raises RequestError for a split that is not there."""
    if split is None:
        return np.arange(len(index))
    if split not in index.splits:
        hint = nearest(split, index.splits) if index.splits else "; it has none: give it an annotations CSV"
        raise RequestError(f"{flag} {split!r}: {index.store} has no such split{hint}")
    return index.in_split(split)


def extract(encoder: Encoder, store: Place | str, split: str | None, view: View, run: RunEvaluation,
            cache: FeatureCache, world: World, flag: str = "--split") -> Features:
    """The split's features, from the cache or computed: eval-mode BN, no gradient, float32; mean over the clips.

    Every rank computes its share; rank 0 alone keeps the cache and returns the vectors. An extraction that was stopped
    goes on where it was, one that was killed loses the last minutes. Raises RequestError for a split that is not there,
    StoreError for damage, naming pack and video.
    """
    reader = StoreReader(store)
    index, document = reader.index, read_json(reader.store / "store.json")
    positions = choose(index, split, flag)
    key = {"checkpoint": encoder.sha256, "backbone": encoder.net.name, "split": split, "setting": view.to_dict(),
           "store": {"index": index.generation, "recipe_hash": document["recipe_hash"]}}
    features = Features(
        ids=[index.id[i] for i in positions], labels=index.label[positions].astype(np.int64),
        classes=list(document["classes"]), groups=[index.group[i] for i in positions], vectors=np.empty(0), key=key,
        looped=int((index.frames[positions] < view.geometry.span).sum()))
    whole, known = _look_up(cache, key, positions) if world.main else (None, {})
    there, missing = _from_main((whole is not None, [i for i in positions.tolist() if i not in known]), world)
    if there:
        return dataclasses.replace(features, vectors=whole) if world.main else features
    started, clips, width = time.monotonic(), 0, encoder.net.features
    fresh, saved = [], started         # computed here and not yet on disk

    def keep() -> None:
        part = cache.put({**key, "part": fresh[0]}, known, fresh, width)
        known.update((position, (part, row)) for row, position in enumerate(fresh))
        fresh.clear()

    try:
        for some, vectors, count in compute(encoder, reader, np.asarray(missing, np.int64), view, run, world, split):
            clips += count
            if world.main:
                known.update((position, (vectors, row)) for row, position in enumerate(some.tolist()))
                fresh += some.tolist()
                if time.monotonic() - saved > PART_S:
                    keep()
                    saved = time.monotonic()
    except BaseException:
        if fresh:
            keep()
        raise
    finally:
        reader.close()
    if world.main:
        features = dataclasses.replace(features, vectors=cache.put(key, known, positions.tolist(), width))
        cache.drop_parts(key)
    return dataclasses.replace(features, clips=clips, seconds=time.monotonic() - started if clips else 0.0)


def _look_up(cache: FeatureCache, key: dict, positions: np.ndarray) -> tuple[np.ndarray | None, Known]:
    """The vectors, if all are held as one; else where each one is that other splits or parts hold."""
    wanted, known = set(positions.tolist()), {}
    for held, vectors in cache.find(key):
        if len(held) == len(positions) and (held == positions).all():
            return vectors, {}
        known.update((position, (vectors, row)) for row, position in enumerate(held.tolist()) if position in wanted)
    return None, known


def _from_main(value, world: World):
    """Rank 0's value on every rank: what a cache holds is read on one machine only."""
    if world.size == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=world.device)
    return box[0]


def compute(encoder: Encoder, reader: StoreReader, positions: np.ndarray, view: View, run: RunEvaluation, world: World,
            label: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(positions, their vectors (n, C) float32, clips looked at), a block of videos after the other, on every rank."""
    frames = reader.index.frames
    progress = Progress(f"features {label or 'all'}", len(positions)) if world.main and len(positions) else None
    done, clips, started = 0, 0, time.monotonic()
    for first in range(0, len(positions), BLOCK * world.size):
        block = positions[first:first + BLOCK * world.size]
        share = -(-len(block) // world.size)
        mine = block[world.rank * share:(world.rank + 1) * share]
        vectors = torch.zeros(share, encoder.net.features, device=world.device)
        for row, vector in enumerate(_encode(encoder, reader, mine, view, run, world)):
            vectors[row] = vector
            if progress:
                videos = min(done + (row + 1) * world.size, len(positions))
                rate = (clips + (row + 1) * world.size * view.clips) / (time.monotonic() - started)
                progress.update(videos, f"{videos:,} videos, {rate:.3g} clips/s")
        done += len(block)
        count = sum(len(view.frames(int(frames[i]))[2]) for i in block)
        clips += count
        yield block, gather(vectors, world)[:len(block)].cpu().numpy(), count
    if progress:
        progress.close(text=f"{done:,} videos, {clips / (time.monotonic() - started):.3g} clips/s")


@torch.no_grad()
def _encode(encoder: Encoder, reader: StoreReader, positions: np.ndarray, view: View, run: RunEvaluation,
            world: World) -> Iterator[torch.Tensor]:
    """(C,) of every video, in order, while threads decode those that follow."""
    mean, std = (torch.tensor(values, device=world.device)[:, None, None, None] for values in (MEAN, STD))
    for frames, places, weights in read_ahead(reader, positions, view, run):
        images = resize(torch.from_numpy(frames).to(world.device), view.size).sub_(mean).div_(std)   # (3, n, S, S)
        total = torch.zeros(encoder.net.features, dtype=torch.float64, device=world.device)
        for first in range(0, len(places), run.batch):
            some = slice(first, first + run.batch)
            clips = images[:, torch.from_numpy(places[some]).to(world.device)].transpose(0, 1)       # (u, 3, L, S, S)
            vectors = encoder.net(clips).double()
            total += torch.from_numpy(weights[some]).to(world.device).double() @ vectors
        yield (total / view.clips).float()


def read_ahead(reader: StoreReader, positions: np.ndarray, view: View,
               run: RunEvaluation) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(distinct frames (n, s, s, 3) uint8, places (u, L), weights (u,)) of every video, in order; each frame is decoded
    once, by threads (decoding releases the interpreter's lock), each with a reader of its own."""
    local, readers, index = threading.local(), [], reader.index
    threads = run.workers if run.workers >= 0 else min(8, len(os.sched_getaffinity(0)))

    def read(position: int):
        if not hasattr(local, "reader"):
            local.reader = StoreReader(reader.store, max_open=8, index=index)
            readers.append(local.reader)
        numbers, places, weights = view.frames(int(index.frames[position]))
        frames = local.reader.frames(index.id[position], numbers)
        return np.ascontiguousarray(frames[:, *view.crop(*frames.shape[1:3])]), places, weights

    try:
        if not threads:
            yield from map(read, positions.tolist())
            return
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque = deque()
            try:
                for position in positions.tolist():
                    ahead.append(pool.submit(read, position))
                    if len(ahead) > threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()
    finally:
        for opened in readers:
            opened.close()
