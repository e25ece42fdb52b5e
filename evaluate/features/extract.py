"""Checkpoint + store + split + setting -> features, once: computed over all ranks, cached with exactly that key.

V videos, L frames at stride S of a clip, C features.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from evaluate.features.cache import FeatureCache
from evaluate.features.encoders import Encoder, asked_view, finite
from evaluate.features.variants import altered
from evaluate.features.vectors import collect, in_order, share_out
from evaluate.holdout import held_out, relabelling
from evaluate.settings import FeatureSettings, RunEvaluation
from shared.cli import RequestError, nearest
from shared.nn.distributed import World
from shared.nn.transform import EDGE, Transform
from shared.recipes.preprocessing import read_description
from shared.store.index import Index
from shared.store.place import Place
from shared.store.reader import StoreReader

Window = tuple[int, int, int]      # a video's position in the index, its first frame looked at, and that after the last


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
class View(Transform):
    """How a video is looked at in evaluation; subclasses look at more than the square in the middle.

    variant: what has been taken away from the clips, one of evaluate/features/variants.py, empty for nothing.
    """

    variant: str = field(default="", kw_only=True)

    @classmethod
    def of(cls, settings: FeatureSettings, encoder: Encoder) -> "View":
        """The settings, what they leave open filled in from the checkpoint. Raises RequestError."""
        geometry, size = asked_view(settings, encoder)
        view = cls(settings.clips, geometry, size, settings.short_edge or round(size * EDGE))
        if view.short_edge < size:
            raise RequestError(f"features.short_edge is {view.short_edge} px and the view {size} px; expected a short "
                               "edge that holds the centre crop")
        encoder.check_view(geometry, size)
        return view

    def to_dict(self) -> dict:
        return super().to_dict() | ({"variant": self.variant} if self.variant else {})

    def squares(self, height: int, width: int) -> list[tuple[slice, slice, int]]:
        """The views of what `crop` left, as rows, columns, and how many of all views each stands for: the whole."""
        return [(slice(height), slice(width), 1)]


def choose(index: Index, split: str | None, flag: str = "--split") -> np.ndarray:
    """Positions (V,) of a split's videos, of all for None. Raises RequestError for a split that is not there."""
    if split is None:
        return np.arange(len(index))
    if (found := held_out(index, split)) is not None:
        return found
    if split not in index.splits:
        hint = nearest(split, index.splits) if index.splits else \
            f"; it has none: leave {flag} out, or {relabelling(index.store)}"
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
    index, document = reader.index, read_description(reader.store)
    positions = choose(index, split, flag)
    key = {"checkpoint": encoder.sha256, "backbone": encoder.net.name, "split": split, "setting": view.to_dict(),
           "store": {"index": index.generation, "recipe_hash": document["recipe_hash"]}}
    features = Features(
        ids=[index.id[i] for i in positions], labels=index.label[positions].astype(np.int64),
        classes=list(document["classes"]), groups=[index.group[i] for i in positions], vectors=np.empty(0), key=key,
        looped=int((index.frames[positions] < view.geometry.span).sum()))
    try:
        found = collect(key, positions, encoder.net.features, cache, world,
                        lambda missing: compute(encoder, reader, missing, view, run, world, split))
    finally:
        reader.close()
    return dataclasses.replace(features, clips=found.clips, seconds=found.seconds,
                               **({} if found.vectors is None else {"vectors": found.vectors}))


def compute(encoder: Encoder, reader: StoreReader, positions: np.ndarray, view: View, run: RunEvaluation, world: World,
            label: str | None = None, window: Callable[[int], Window] | None = None,
            ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(positions, their vectors (n, C) float32, clips looked at), a block of videos after the other, on every rank.

    window: what a position stands for where it is not a whole video of that position in the index.
    """
    window = window or whole_video(reader.index)

    def clips(item: int) -> int:
        position, first, stop = window(item)
        return len(view.frames(int(reader.index.frames[position]), first, stop)[2])

    def encode(mine: np.ndarray) -> Iterator[torch.Tensor]:
        return _encode(encoder, reader, mine, view, run, world, window)

    return finite(encoder, share_out(positions, encoder.net.features, encode, clips, world, label),
                  lambda item: reader.index.id[window(item)[0]])


def whole_video(index: Index) -> Callable[[int], Window]:
    """The window of a video's position: all its frames."""
    return lambda position: (position, 0, int(index.frames[position]))


@torch.no_grad()
def _encode(encoder: Encoder, reader: StoreReader, positions: np.ndarray, view: View, run: RunEvaluation,
            world: World, window: Callable[[int], Window]) -> Iterator[torch.Tensor]:
    """(C,) of every window, in order, while threads decode those that follow."""
    for frames, places, weights in read_ahead(reader, positions, view, run, window):
        squares = view.squares(*frames.shape[1:3])
        total = torch.zeros(encoder.net.features, dtype=torch.float64, device=world.device)
        for rows, columns, count in squares:
            images = view.images(torch.from_numpy(frames[:, rows, columns]).to(world.device))       # (3, n, S, S)
            total += torch.from_numpy(count * weights).to(total) @ clip_vectors(encoder, images, places, run.batch)
        yield (total / (weights.sum() * sum(count for _, _, count in squares))).float()


@torch.no_grad()
def clip_vectors(encoder: Encoder, images: torch.Tensor, places: np.ndarray, batch: int) -> torch.Tensor:
    """(u, C) float64 of clips whose frames are at `places` (u, L) of `images` (3, n, S, S); `batch` clips a forward."""
    parts = [encoder.net(images[:, torch.from_numpy(places[first:first + batch]).to(images.device)].transpose(0, 1))
             for first in range(0, len(places), batch)]                         # of (u, 3, L, S, S)
    return torch.cat(parts).double()


def read_ahead(reader: StoreReader, positions: np.ndarray, view: View, run: RunEvaluation,
               window: Callable[[int], Window] | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(distinct frames (n, s, s, 3) uint8, places (u, L), weights (u,)) of every window (default: whole videos), in
    order; each frame is decoded once."""
    index = reader.index
    window = window or whole_video(index)

    def read(reader: StoreReader, item: int):
        position, first, stop = window(item)
        numbers, places, weights = view.frames(int(index.frames[position]), first, stop)
        frames = reader.frames(index.id[position], numbers)
        crop = view.crop(*frames.shape[1:3])
        frames = np.ascontiguousarray(frames[:, *crop])
        if view.variant:
            frames, places = altered(view.variant, reader, position, numbers, frames, places, crop)
        return frames, places, weights

    return in_order(reader, positions.tolist(), read, run)
