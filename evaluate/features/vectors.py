"""Vectors of numbered things, from the cache or computed: shared out over all ranks, read ahead by threads.

n things, C numbers a vector.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluate.features.cache import FeatureCache, Known
from evaluate.settings import RunEvaluation
from shared.cli import Progress, plural
from shared.nn.distributed import World, gather
from shared.store.reader import StoreReader

BLOCK = 16            # things a rank between two exchanges of several: the most that a stop can lose
PART_S = 300          # a long extraction keeps what it has every so many seconds


@dataclass(frozen=True)
class Collected:
    """vectors (n, C) float32, None on all ranks but rank 0; clips, seconds: what computing them took, 0 where they were
    there."""

    vectors: np.ndarray | None
    clips: int = 0
    seconds: float = 0.0


def collect(key: dict, positions: np.ndarray, width: int, cache: FeatureCache, world: World,
            produce: Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray, int]]]) -> Collected:
    """Vectors of `width` numbers for `positions` (n,), from the cache or produced, all ranks together.

    key: what they depend on; positions: what is encoded, by number, the same under the same key but for its split;
    produce(missing): (positions, vectors, clips looked at), block after block, on every rank. What is stopped keeps
    what it has; what is killed loses the last minutes.
    """
    whole, known = _look_up(cache, key, positions) if world.main else (None, {})
    there, missing = from_main((whole is not None, [i for i in positions.tolist() if i not in known]), world)
    if there:
        return Collected(whole)
    started, clips = time.monotonic(), 0
    fresh, saved = [], started         # computed here and not yet on disk

    def keep() -> None:
        part = cache.put({**key, "part": fresh[0]}, known, fresh, width)
        known.update((position, (part, row)) for row, position in enumerate(fresh))
        fresh.clear()

    try:
        for some, vectors, count in produce(np.asarray(missing, np.int64)):
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
    vectors = None
    if world.main:
        vectors = cache.put(key, known, positions.tolist(), width)
        cache.drop_parts(key)
    return Collected(vectors, clips, time.monotonic() - started if clips else 0.0)


def _look_up(cache: FeatureCache, key: dict, positions: np.ndarray) -> tuple[np.ndarray | None, Known]:
    """The vectors, if all are held as one; else where each one is that other splits or parts hold."""
    wanted, known = set(positions.tolist()), {}
    for held, vectors in cache.find(key):
        if len(held) == len(positions) and (held == positions).all():
            return vectors, {}
        known.update((position, (vectors, row)) for row, position in enumerate(held.tolist()) if position in wanted)
    return None, known


def from_main(value, world: World):
    """Rank 0's value on every rank: what a cache holds is read on one machine only."""
    if world.size == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=world.device)
    return box[0]


def share_out(positions: np.ndarray, width: int, encode: Callable[[np.ndarray], Iterator[torch.Tensor]],
              clips_of: Callable[[int], int], world: World,
              label: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(positions, their vectors (n, width) float32, clips looked at), a block after the other, on every rank.

    encode(positions): a generator of (width,) on the device for each; every rank is given its share of all blocks.
    """
    if not len(positions):
        return
    progress = Progress(f"features {label or 'all'}", len(positions)) if world.main else None
    done, clips, started = 0, 0, time.monotonic()
    size = BLOCK * world.size if world.size > 1 else 1
    blocks = [positions[first:first + size] for first in range(0, len(positions), size)]
    shares = [-(-len(block) // world.size) for block in blocks]
    mine = [block[world.rank * share:(world.rank + 1) * share] for block, share in zip(blocks, shares)]
    with contextlib.closing(encode(np.concatenate(mine))) as stream:       # what reads ahead goes on between blocks
        for block, share, own in zip(blocks, shares, mine):
            vectors = torch.zeros(share, width, device=world.device)
            counts = [clips_of(int(item)) for item in block]
            for row in range(len(own)):
                vectors[row] = next(stream)
                if progress:
                    videos = min(done + (row + 1) * world.size, len(positions))
                    rate = (clips + world.size * sum(counts[:row + 1])) / (time.monotonic() - started)
                    progress.update(videos, f"{plural(videos, 'sample')}, {rate:.3g} clips/s")
            done += len(block)
            clips += sum(counts)
            yield block, gather(vectors, world)[:len(block)].cpu().numpy(), sum(counts)
    if progress:
        progress.close(text=f"{plural(done, 'sample')}, {clips / (time.monotonic() - started):.3g} clips/s")


def in_order(reader: StoreReader, items: Sequence, read: Callable[[StoreReader, Any], Any],
             run: RunEvaluation) -> Iterator[Any]:
    """read(reader, item) of every item, in order, by threads (decoding releases the interpreter's lock), each with a
    reader of its own; those that follow are read while the caller works."""
    local, readers = threading.local(), []
    threads = run.workers if run.workers >= 0 else min(8, len(os.sched_getaffinity(0)))

    def work(item):
        if not hasattr(local, "reader"):
            local.reader = StoreReader(reader.store, max_open=8, index=reader.index)
            readers.append(local.reader)
        return read(local.reader, item)

    try:
        if not threads:
            yield from map(work, items)
            return
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque = deque()
            try:
                for item in items:
                    ahead.append(pool.submit(work, item))
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
