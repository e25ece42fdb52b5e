"""Clips -> features of videos, over all ranks: read by several threads at once, encoded as they come.

u clips, C features.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from evaluate.embedding.sources import Item, Piece, Videos
from evaluate.features.encoders import Encoder, refuse_features
from evaluate.features.extract import clip_vectors
from evaluate.settings import RunEvaluation
from shared.cli import Progress, RequestError, Stopped
from shared.nn.distributed import World
from shared.nn.together import every, lost_peer, raise_first
from shared.nn.transform import Transform
from shared.store.layout import damage_stops
from shared.store.place import Place
from shared.store.tables import FailureRow
from shared.videos.streams import VideoError

EXCHANGE_S = 10       # between two exchanges of several ranks
AHEAD = 2             # pieces that wait for the encoder
GO_ON = "run the same command again to go on"


@dataclass(frozen=True)
class Embedded:
    """A video's features: vectors (n, C) float32, one, or one of every clip; starts (n,) int64: the clips' first
    frames, of a single vector that of the first; frames: of the video; state: as Item's."""

    id: str
    state: str
    frames: int
    starts: np.ndarray
    vectors: np.ndarray


Outcomes = list[Embedded | FailureRow]      # of a video: features, a failure, or, where it is damaged, both


def embed_all(encoder: Encoder, videos: Videos, items: Sequence[Item], view: Transform, per_clip: bool,
              run: RunEvaluation, world: World, keep: Callable[[Outcomes], None]) -> None:
    """Hand what becomes of every item to `keep`, on rank 0, as it comes. Every rank computes its share.

    Raises, on all ranks alike, RequestError for features that are not finite, Stopped for a damaged store and where
    another rank is gone.
    """
    progress = Progress("embedding", len(items)) if world.main else None
    done, clips, began = 0, 0, time.monotonic()
    stream = embed(encoder, videos, items[world.rank::world.size], view, per_clip, run, world.device)
    with contextlib.closing(stream):
        while done < len(items):
            try:
                shares = every(_some(stream, EXCHANGE_S if world.size > 1 else 0, videos.place), world)
            except RuntimeError as error:
                if lost_peer(error, world):
                    raise Stopped(f"another process of this run ended ({str(error).splitlines()[0]}); "
                                  f"{GO_ON}") from error
                raise
            done += sum(share.items for share in shares)
            clips += sum(share.clips for share in shares)
            if progress:
                keep([one for share in shares for one in share.outcomes])
                progress.update(done + sum(share.begun for share in shares), f"{done:,} of {len(items):,} videos, "
                                f"{clips / (time.monotonic() - began):.3g} clips/s")
            raise_first([share.trouble for share in shares])
    if progress:
        progress.close(text=f"{done:,} videos, {clips:,} clips")


@dataclass
class _Share:
    """What a rank has to say in an exchange. items: that are done; begun: the shares of others, added up; trouble: the
    kind and the text of what it stops for."""

    outcomes: Outcomes = field(default_factory=list)
    items: int = 0
    clips: int = 0
    begun: float = 0.0
    trouble: tuple[str, str] | None = None


def _some(stream: Iterator[tuple[Outcomes, int, float]], seconds: float, place: Place) -> _Share:
    """What comes within so many seconds, or the next one."""
    share, until = _Share(), time.monotonic() + seconds
    try:
        with damage_stops(place):
            for outcomes, clips, share.begun in stream:
                share.outcomes += outcomes
                share.items += bool(outcomes)
                share.clips += clips
                if time.monotonic() >= until:
                    break
    except (RequestError, Stopped) as error:
        share.trouble = type(error).__name__, str(error)
    return share


def embed(encoder: Encoder, videos: Videos, items: Sequence[Item], view: Transform, per_clip: bool, run: RunEvaluation,
          device: torch.device) -> Iterator[tuple[Outcomes, int, float]]:
    """(what becomes of a video, clips looked at, how much of how many others is done): for every item once, in the
    order in which they are done, and between them without outcomes.

    Raises RequestError for features that are not finite, StoreError for a damaged store.
    """
    begun: dict[str, _Begun] = {}
    with contextlib.closing(_side_by_side(videos, items, view, run)) as arriving:
        for item, what in arriving:
            if isinstance(what, Piece):
                if item.id not in begun or begun[item.id].attempt != what.attempt:
                    begun[item.id] = _Begun(what.attempt, what.count)
                images = view.images(torch.from_numpy(what.frames).to(device))
                begun[item.id].add(what, clip_vectors(encoder, images, what.places, run.batch).cpu().numpy())
                yield [], len(what.places), sum(one.share for one in begun.values())
                continue
            found, outcomes = begun.pop(item.id, None), []
            if isinstance(what, VideoError):
                outcomes.append(FailureRow(item.id, item.path, what.reason, what.stage))
            else:
                outcomes.append(found.finish(item, per_clip))
                if not np.isfinite(outcomes[0].vectors).all():
                    refuse_features(encoder, item.id)
                outcomes += [FailureRow(item.id, item.path, what, "decode")] * bool(what)
            yield outcomes, 0, sum(one.share for one in begun.values())


class _Begun:
    """A video of `count` frames of which some clips are encoded."""

    def __init__(self, attempt: int, count: int):
        self.attempt, self.count, self.share = attempt, count, 0.0
        self.starts, self.weights, self.vectors = [], [], []

    def add(self, piece: Piece, vectors: np.ndarray) -> None:
        self.share = piece.share
        self.starts.append(piece.starts)
        self.weights.append(piece.weights)
        self.vectors.append(vectors)

    def finish(self, item: Item, per_clip: bool) -> Embedded:
        starts, weights, vectors = (np.concatenate(parts) for parts in (self.starts, self.weights, self.vectors))
        if not per_clip:
            starts, vectors = starts[:1], (weights @ vectors / weights.sum())[None]
        with np.errstate(over="ignore"):            # what becomes infinite is refused
            return Embedded(item.id, item.state, self.count, starts, vectors.astype(np.float32))


def _side_by_side(videos: Videos, items: Sequence[Item], view: Transform,
                  run: RunEvaluation) -> Iterator[tuple[Item, Piece | VideoError | str]]:
    """The pieces of every item, then what is to say of its damage ("" for nothing) or why it cannot be used; several
    items at a time, a thread each, with little waiting: memory does not grow with the length of a video."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = run.workers if run.workers >= 0 else max(1, min(8, len(os.sched_getaffinity(0)) // local))
    todo, turn, stop = iter(items), threading.Lock(), threading.Event()
    arriving: queue.Queue = queue.Queue(AHEAD)
    readers = []

    def pieces(reader, item: Item) -> Iterator[Piece | VideoError | str]:
        try:
            damage = yield from videos.read(reader, item, view, run.batch)
            yield damage
        except VideoError as error:
            yield error

    def put(what) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return arriving.put(what, timeout=0.2)

    def work() -> None:
        try:
            with videos.opened() as reader:
                readers.append(reader)
                while not stop.is_set():
                    with turn:
                        item = next(todo, None)
                    if item is None:
                        break
                    for piece in pieces(reader, item):
                        put((item, piece))
                        if stop.is_set():
                            break
            put((None, None))
        except BaseException as error:
            put((None, error))

    if not threads:
        with videos.opened() as reader:
            for item in items:
                for piece in pieces(reader, item):
                    yield item, piece
        return
    crew = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    try:
        for thread in crew:
            thread.start()
        left = threads
        while left:
            item, what = arriving.get()
            if item is not None:
                yield item, what
            elif what is not None:
                raise what
            else:
                left -= 1
    finally:
        stop.set()
        for thread in crew:
            while thread.is_alive():
                for reader in readers:
                    videos.interrupt(reader)
                thread.join(0.2)
