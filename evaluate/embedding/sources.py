"""The videos that are embedded, and a store as their source; files.py has those of a folder.

L frames at stride S of a clip, u clips read together.
"""

import contextlib
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from shared.nn.transform import Transform
from shared.recipes.preprocessing import read_description
from shared.store.place import Place
from shared.store.reader import StoreReader
from shared.store.tables import FailureRow

OPEN_PACKS = 8        # a thread


@dataclass(frozen=True)
class Item:
    """A video. label: its class by name, "" without one; splits: separated by semicolons; state: what its bytes are, as
    far as that shows without reading them: whoever has features of the same state need not read it again."""

    id: str
    path: str
    label: str
    splits: str
    state: str


@dataclass(frozen=True)
class Piece:
    """Some clips of a video of `count` frames: frames (n, s, s, 3) uint8, what the view shows of the distinct ones;
    places (u, L) of each clip's among them; starts (u,) int64: the clips' first frames; weights (u,): how many of the
    view's clips each stands for; share: of the video's clips, those up to here. Pieces of a later attempt take the
    place of those before: the file has turned out to have other frames than were expected."""

    attempt: int
    count: int
    frames: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    weights: np.ndarray
    share: float


class Videos(Protocol):
    """A source: where it is, its videos by id, and those that cannot even be asked for."""

    place: Place
    items: list[Item]
    failures: list[FailureRow]

    def to_dict(self) -> dict:
        """What decides the frames beside the files themselves; a plain dictionary."""

    def details(self) -> dict:
        """What else the record says; it may change between two runs."""

    def opened(self) -> AbstractContextManager[Any]:
        """A reader, for one thread."""

    def read(self, reader, item: Item, view: Transform, batch: int) -> Generator[Piece, None, str]:
        """The video's clips, `batch` at a time; returns what is to say of its damage, "" where it is whole.

        Raises VideoError for a video that cannot be used, StoreError for a damaged store."""

    def middle(self, reader, item: Item) -> np.ndarray:
        """(H, W, 3) uint8: the video's middle frame."""

    def interrupt(self, reader) -> None:
        """From another thread: what is being read comes to an end soon."""


class StoreVideos(Videos):
    """The videos of a store. Raises RequestError for what is no store, StoreError for a damaged index."""

    def __init__(self, store: Place):
        self.place, self.reader = store, StoreReader(store)
        index = self.reader.index
        self.document = read_description(store)
        rgb = {name: index.pack_row(name).files["rgb/c.0.0.0.0"][1] for name in index.packs}
        self.items = [Item(index.id[i], index.path[i], index.class_name[i], index.split_text[i],
                           f"{rgb[index.pack[i]]:08x}:{index.first_frame[i]}:{index.frames[i]}")
                      for i in range(len(index))]
        self.failures: list[FailureRow] = []

    def to_dict(self) -> dict:
        return {"store": str(self.place.absolute())}

    def details(self) -> dict:
        return {"dataset": self.document["dataset"], "index": self.reader.index.generation,
                "recipe_hash": self.document["recipe_hash"]}

    @contextlib.contextmanager
    def opened(self) -> Iterator[StoreReader]:
        with contextlib.closing(StoreReader(self.place, OPEN_PACKS, index=self.reader.index)) as reader:
            yield reader

    def read(self, reader: StoreReader, item: Item, view: Transform, batch: int) -> Generator[Piece, None, str]:
        count = int(reader.index.frames[reader.index.position(item.id)])
        for numbers, *clips in batches(view, count, batch):
            frames = reader.frames(item.id, numbers)
            yield Piece(0, count, np.ascontiguousarray(frames[:, *view.crop(*frames.shape[1:3])]), *clips)
        return ""

    def interrupt(self, reader: StoreReader) -> None:
        pass                         # reads are short

    def middle(self, reader: StoreReader, item: Item) -> np.ndarray:
        return reader.frames(item.id, [int(reader.index.frames[reader.index.position(item.id)]) // 2])[0]


def batches(view: Transform, count: int, batch: int) -> Iterator[tuple[np.ndarray, ...]]:
    """(numbers (n,), places (u, L), starts (u,), weights (u,), share) of `batch` clips of a video at a time: which
    frames are read, and the rest of their Piece."""
    distinct, places, weights = view.frames(count)
    for first in range(0, len(places), batch):
        some = slice(first, first + batch)
        numbers, within = np.unique(distinct[places[some]], return_inverse=True)
        yield (numbers, within.reshape(-1, view.geometry.length), distinct[places[some, 0]], weights[some],
               min(1.0, (first + batch) / len(places)))
