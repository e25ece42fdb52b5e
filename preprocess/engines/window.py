"""What the engines of clusters share: what workers tell of tasks, the window of tasks in flight, the quarantine."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from preprocess.engines import EngineError, Outcome, Resources
from shared.cli import duration, plural, size


@dataclass
class Story:
    """What is known of a task: tries that began, host:pid of the last one, and why that was ended, where it was told.

    began: time.monotonic() of the last beginning, on the clock of whoever keeps the ledger.
    """

    attempts: int = 0
    worker: str = ""
    reason: str = ""
    began: float = 0.0


class Ledger:
    """Stories by task number. Workers tell `began` before they run a task, and a limit's name before they end."""

    def __init__(self):
        self.stories: dict[int, Story] = {}
        self.lock = threading.Lock()

    def note(self, number: int, event: str, worker: str) -> int:
        """Enter what a worker tells; returns the number of tries so far."""
        with self.lock:
            story = self.stories.setdefault(number, Story())
            if event == "began":
                story.attempts, story.worker, story.reason = story.attempts + 1, worker, ""
                story.began = time.monotonic()
            elif worker == story.worker:
                story.reason = event
            return story.attempts

    def close(self, number: int) -> tuple[Story, float]:
        """The story so far, which is forgotten, and the seconds since its last try began."""
        with self.lock:
            story = self.stories.pop(number, Story(began=time.monotonic()))
            return story, time.monotonic() - story.began


@dataclass(frozen=True)
class Ended:
    """A task that came to its end. sure: nothing but the task itself is to blame. seconds: since its last try began."""

    outcome: Outcome
    sure: bool = True
    seconds: float = 0.0


def fit(count: float, share: float) -> int:
    """Tasks that take `share` devices each and fit `count` of them: a fraction is a part of one device."""
    return int(count) * int(round(1 / share, 6)) if share < 1 else int(count / share)


def lost(task: Any, story: Story, seconds: float, retries: int, kind: str = "died") -> Ended:
    """A task that the engine gave up because its processes were lost: for the reason that was told, or else `kind`.

    Not sure where no reason was told, or where some of the losses were those of its neighbours.
    """
    outcome = Outcome(task, kind=story.reason or kind, attempts=story.attempts, worker=story.worker)
    return Ended(outcome, bool(story.reason) and story.attempts > retries, seconds)


def unordered(tasks: Iterable, limits: Resources, slots: Callable[[], int], start: Callable[[int, Any], None],
              finish: Callable[[], Ended]) -> Iterator[Outcome]:
    """One Outcome a task, with never more than slots() of them in flight.

    start(number, task) sends a task off, finish() waits for the next to end. Those that were lost for no sure reason
    are tried again once all others are done, each alone, so that none is blamed for a neighbour's death.
    """
    numbers, suspects = itertools.count(), []
    for ended in _window(tasks, slots, numbers, start, finish):
        if ended.sure:
            yield _explained(ended.outcome, limits)
        else:
            suspects.append(ended.outcome)
    for suspect in suspects:
        for ended in _window([suspect.task], lambda: 1, numbers, start, finish):
            outcome = replace(ended.outcome, attempts=suspect.attempts + ended.outcome.attempts)
            if outcome.kind == "died" and 0 < limits.timeout <= ended.seconds:
                outcome = replace(outcome, kind="timeout")   # it held the GIL, and could not tell
            yield _explained(outcome, limits)


def _window(tasks, slots, numbers, start, finish) -> Iterator[Ended]:
    tasks, more, flying = iter(tasks), True, 0
    while more or flying:
        while more and flying < slots():
            try:
                task = next(tasks)
            except StopIteration:
                more = False
            else:
                start(next(numbers), task)
                flying += 1
        if flying:
            ended = finish()
            flying -= 1
            yield ended


def _explained(outcome: Outcome, limits: Resources) -> Outcome:
    reasons = {"died": "its worker died", "timeout": f"over its time limit of {duration(limits.timeout)}",
               "memory": f"over its memory limit of {size(limits.memory)}" if limits.memory else "out of memory"}
    if outcome.kind not in reasons:
        return outcome
    return replace(outcome, error=EngineError(f"{reasons[outcome.kind]}; tried {plural(outcome.attempts, 'time')}"))
