"""What the processes of one run decide together: errors, interruptions, when to save. Rank 0 speaks for all."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from shared.cli import RequestError, Stopped, told_to_stop
from shared.nn.distributed import World

PATIENCE_S = 5      # a second Ctrl-C within these is the same one, which torchrun hands on
ERRORS = {"RequestError": RequestError, "Stopped": Stopped}


def every(value, world: World, group=None) -> list:
    """The value of every rank, in order of ranks; plain objects that pickle."""
    if world.size == 1:
        return [value]
    values = [None] * world.size
    dist.all_gather_object(values, value, group)
    return values


def agree(flags: Sequence[bool], world: World, group) -> list[bool]:
    """Each flag, true where it is true on any rank. group: of gloo, so that no device waits."""
    if world.size == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(votes, dist.ReduceOp.MAX, group)
    return votes.bool().tolist()


def raise_first(troubles: Sequence[tuple[str, str] | None]) -> None:
    """Raise, on every rank alike, the first trouble that any rank has had."""
    for trouble in troubles:
        if trouble is not None:
            raise ERRORS[trouble[0]](trouble[1])


@contextmanager
def together(world: World) -> Iterator[None]:
    """A RequestError or Stopped of any rank becomes one of every rank. The block itself exchanges nothing."""
    trouble = None
    try:
        yield
    except (RequestError, Stopped) as error:
        if world.size == 1:
            raise
        trouble = type(error).__name__, str(error)
    raise_first(every(trouble, world))


def lost_peer(error: RuntimeError, world: World) -> bool:
    """Whether a collective failed because another process is gone."""
    return world.size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


class Interrupt:
    """Ctrl-C and SIGTERM while the loop runs: kept as `reason`, so that the step is finished and saved first.

    A second one, later than `PATIENCE_S`, interrupts at once. A context manager; the handlers before it come back.
    """

    def __init__(self, world: World):
        self.reason, self.since, self.speaks = None, 0.0, world.main

    def __enter__(self) -> "Interrupt":
        self.before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame) -> None:
        reason = "interrupted" if number == signal.SIGINT else "SIGTERM"
        if self.reason and time.monotonic() - self.since > PATIENCE_S:
            raise KeyboardInterrupt(reason)
        if not self.reason:
            self.reason, self.since = reason, time.monotonic()
            told_to_stop(reason)
            if self.speaks:
                print("\nstopping after this step ...", flush=True)
