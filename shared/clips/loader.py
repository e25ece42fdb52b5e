"""Batches of clip samples: a seeded order cut over ranks, worker processes, crops in a ring of shared memory.

B queries on this rank, V views (query first, then its keys), L frames, hxw motion cells. A worker writes a part of a
batch, a few samples, into a slot of the ring and sends only where each array lies: a clip of 2.4 MB sent through the
stock queue costs more than reading it (tests/bench/loader.py).
"""

import ctypes
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shared.cli import RequestError, Stopped, plural
from shared.clips.data import ClipData
from shared.clips.ring import ALIGN, Place, Ring, SlotWriter
from shared.clips.sampling import generator
from shared.store.layout import StoreError, damage_stops, unreached

PART = 4         # samples a slot holds: a large batch is built by all workers at once
PREFETCH = 2     # parts that each worker builds ahead
PR_SET_PDEATHSIG = 1


def fitting(batch: int, group: int, videos: int, ranks: int) -> tuple[int, int]:
    """The batch nearest below `batch` that `videos` fill, with whole BN groups on every rank, and their size: `group`,
    or what a rank has where that is less. group: 1 where BN is not split, else 2 at least, which may take a larger
    batch. (0, 0) where nothing fits."""
    share = max(min(batch, videos) // ranks, min(group, 2))
    group = min(group, share)
    return (share // group * group * ranks, group) if share * ranks <= videos else (0, 0)


class Sampler:
    """Which videos the next global batch holds: every epoch a seeded permutation of all, cut into batches, and those
    into ranks. The global batches are the same for every world size. What is left of an epoch's last batch is dropped.

    videos: how many; batch: queries of all ranks. `epoch` and `step` (within it) are the next batch's.
    Raises RequestError for a batch that the ranks do not divide or that exceeds the videos.
    """

    def __init__(self, videos: int, batch: int, seed: int = 0, rank: int = 0, world: int = 1):
        if batch % world:
            raise RequestError(f"optimise.batch is {batch} over {plural(world, 'rank')}; expected a multiple of "
                               f"{world}")
        if videos < batch:
            raise RequestError(f"optimise.batch is {batch}, and {plural(videos, 'video is', 'videos are')} long enough "
                               "for a clip; expected at most that many")
        self.videos, self.batch, self.seed, self.rank, self.world = videos, batch, seed, rank, world
        self.epoch = self.step = 0
        self._order = None, None

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return self.videos // self.batch

    def numbers(self, epoch: int, step: int) -> np.ndarray:
        """(batch / world,) int64: this rank's videos of a global batch."""
        if self._order[0] != epoch:
            self._order = epoch, generator(self.seed, epoch).permutation(self.videos)
        share = self.batch // self.world
        first = step * self.batch + self.rank * share
        return self._order[1][first:first + share]

    def after(self, epoch: int, step: int) -> tuple[int, int]:
        """The position that follows."""
        return (epoch, step + 1) if step + 1 < self.steps else (epoch + 1, 0)

    def state_dict(self) -> dict[str, int]:
        """Where to go on, and what the order depends on; the world size does not matter."""
        return {"epoch": self.epoch, "step": self.step, "videos": self.videos, "batch": self.batch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken. Raises RequestError where the order would be another."""
        for what in ("videos", "batch", "seed"):
            if state[what] != getattr(self, what):
                raise RequestError(f"the checkpoint's order is of {what} {state[what]}, this run has "
                                   f"{getattr(self, what)}; expected the same data, batch and seed")
        if any(type(state[what]) is not int or not 0 <= state[what] < 2 ** 31 for what in ("epoch", "step")):
            raise RequestError(f"the checkpoint's order is at epoch {state['epoch']!r}, step {state['step']!r}; "
                               "expected whole numbers: take another checkpoint")
        self.epoch, self.step = state["epoch"], state["step"]


@dataclass
class Part:
    """What a worker sends of a few samples: everything but the pixels and maps, which lie in the part's slot.

    number: of the part, decides the slot; used: bytes; views (n, V) of `sampling.VIEW`; order (n,); crops[i][v],
    motion[i], inputs[i][v]: places.
    """

    number: int
    used: int
    views: np.ndarray
    order: np.ndarray
    crops: list[list[Place]]
    motion: list[Place] | None
    inputs: list[list[Place]] | None


@dataclass(frozen=True)
class Damage:
    """A StoreError on its way out of a worker; unreached: see `layout.unreached`."""

    store: str
    message: str
    unreached: bool


class _Parts(Dataset):
    """A worker's side: builds parts in the ring."""

    def __init__(self, data: ClipData, ring: Ring):
        self.data, self.ring = data, ring

    def __getitem__(self, task: tuple[int, int, np.ndarray]) -> Part | Damage:
        number, epoch, videos = task
        writer = SlotWriter(self.ring.slot(number))
        samples, crops, motion, inputs = [], [], [], []
        for video in videos.tolist():
            try:
                sample = self.data.sample(video, epoch, writer.allocate)
            except StoreError as error:
                return Damage(str(self.data.stores[self.data.videos[video, 0]]), str(error), unreached(error))
            samples.append(sample)
            places = writer.take()
            if sample.motion is not None:
                motion.append(places.pop())
            crops.append(places[:len(sample.crops)])
            if sample.inputs:
                inputs.append(places[len(sample.crops):])
        return Part(number, writer.used, np.stack([sample.views for sample in samples]),
                    np.array([sample.order for sample in samples]), crops, motion or None, inputs or None)


@dataclass
class Batch:
    """B queries with their keys as the workers left them; good until the loader is asked for the next batch.

    epoch, step: which batch this is; ids (B,) int64 video numbers (`ClipData.name`); order (B,) int64: 1 where the
    query comes after k2 and k3; views (B, V) of `sampling.VIEW`: starts, boxes, colours, flips.
    """

    epoch: int
    step: int
    ids: torch.Tensor
    order: torch.Tensor
    views: np.ndarray
    parts: list[tuple[Part, torch.Tensor]]
    copied: list = field(default_factory=list)

    def arrays(self, device="cpu") -> tuple[list[list[torch.Tensor]], list[torch.Tensor] | None,
                                            list[list[torch.Tensor]] | None]:
        """crops[b][v] (L, h, w, 3) uint8, motion[b] (L, H/8, W/8) float16 or None, and inputs[b][v] of the motion
        pathway (`shared.clips.motion_clips`) or None, on a device; one copy a slot."""
        crops, motion, inputs = [], [], []
        for part, slot in self.parts:
            memory = slot[:part.used].to(device, non_blocking=slot.is_pinned())
            crops += [[place.view(memory) for place in places] for places in part.crops]
            motion += [place.view(memory) for place in part.motion or ()]
            inputs += [[place.view(memory) for place in places] for places in part.inputs or ()]
        if torch.device(device).type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self.copied.append(event)
        return crops, motion or None, inputs or None

    def release(self) -> None:
        """Wait until copies to the device are done: the slots may then be written again."""
        for event in self.copied:
            event.synchronize()


class Loader:
    """Yields this rank's batches from the sampler's position on, without end, and moves that position along.

    workers: processes, 0 = this one; device: of the training, whose kind decides whether the ring's pages are locked.
    Workers ignore Ctrl-C and SIGTERM, die with this process, and open the stores themselves. One iteration at a time;
    `close`, or leaving the `with` block, ends the workers.
    Iterating raises Stopped for a store that is damaged or out of reach, naming pack and video, and for a worker that
    was killed.
    """

    def __init__(self, data: ClipData, sampler: Sampler, workers: int = 0, device="cpu"):
        self.data, self.sampler, self.workers, self.device = data, sampler, workers, torch.device(device)
        share = sampler.batch // sampler.world
        self.parts = -(-share // PART)  # a batch
        largest = sum(size + ALIGN for size in data.largest())
        # A batch in hand, and what the workers build ahead: part n may overwrite part n - slots only.
        self.ring = Ring(self.parts + workers * PREFETCH, min(PART, share) * largest)
        self._running = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        running = self._running = self._start()
        try:
            if self.device.type == "cuda" and not self.ring.pinned:
                self.ring.pin()
            while True:
                epoch, step = self.sampler.epoch, self.sampler.step
                parts = [self._part(running) for _ in range(self.parts)]
                batch = Batch(epoch, step, torch.from_numpy(self.sampler.numbers(epoch, step).astype(np.int64)),
                              torch.from_numpy(np.concatenate([part.order for part in parts]).astype(np.int64)),
                              np.concatenate([part.views for part in parts]),
                              [(part, self.ring.slot(part.number)) for part in parts])
                self.sampler.epoch, self.sampler.step = self.sampler.after(epoch, step)
                yield batch
                batch.release()
        finally:
            if running is self._running:
                self.close()

    def _tasks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """What the workers are to do: part number, epoch, videos. Runs ahead of the sampler's position."""
        epoch, step, number = self.sampler.epoch, self.sampler.step, 0
        while True:
            videos = self.sampler.numbers(epoch, step)
            for first in range(0, len(videos), PART):
                yield number, epoch, videos[first:first + PART].copy()
                number += 1
            epoch, step = self.sampler.after(epoch, step)

    def _start(self):
        # A generator of its own: the iterator would draw its workers' seed from the global one, which checkpoints hold.
        loader = DataLoader(_Parts(self.data, self.ring), sampler=self._tasks(), batch_size=None, collate_fn=_same,
                            num_workers=self.workers, prefetch_factor=PREFETCH if self.workers else None,
                            multiprocessing_context="fork" if self.workers else None,
                            worker_init_fn=_Worker(os.getpid()), generator=torch.Generator())
        # Workers inherit the mask and never see Ctrl-C, nor the SIGTERM of torchrun and of `timeout`; both reach the
        # whole process group. This process, which has a step to finish and to save, ends them.
        # torch's handler would raise a worker's death anywhere in the training step; without it `_part` finds it.
        on_child = signal.getsignal(signal.SIGCHLD)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            running = iter(loader)
            if on_child is not signal.getsignal(signal.SIGCHLD):
                signal.signal(signal.SIGCHLD, on_child)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return running

    def _part(self, running) -> Part:
        try:
            part = next(running)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise Stopped(f"a loader worker died: {str(error).splitlines()[0]}; if memory ran out, lower --set "
                          "workers") from error
        if isinstance(part, Damage):
            if part.unreached:
                raise Stopped(part.message)
            with damage_stops(part.store):
                raise StoreError(part.message)
        return part

    def close(self) -> None:
        """End the workers, and wait for them."""
        running, self._running = self._running, None
        if running is not None and self.workers:
            running._shutdown_workers()  # its __del__ would do so, once no traceback holds it any more
            for worker in running._workers:
                worker.kill()  # one that is still at a sample after torch's 5 s; SIGTERM does not reach it
                worker.join()
        self.ring.close()


def worker_count(asked: int) -> int:
    """Loader processes of this rank: as asked, or for -1 one a core that training leaves, at most 8."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return asked if asked >= 0 else max(0, min(8, cores - 1))


@dataclass(frozen=True)
class _Worker:
    """Runs first in every worker: it is to die with its parent, even one that was killed."""

    parent: int

    def __call__(self, number: int) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self.parent:
            os._exit(1)


def _same(part):
    return part
