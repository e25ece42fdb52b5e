"""Scripted faults: what the tests and the benchmark of the engines send to workers, which import this file."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SEEN = []   # lives as long as the worker process


@dataclass(frozen=True)
class Fault:
    """kind: what `act` does.   folder: where every call leaves an empty file, so that calls are counted."""

    number: int
    kind: str
    folder: str


class Unportable(Exception):
    """Cannot be unpickled: its constructor takes two arguments, and hands on one."""

    def __init__(self, first, second):
        super().__init__(first)


def act(task: Fault) -> int:
    """Ten times the task's number, where the script lets it get there."""
    Path(task.folder, f"{task.number}-{time.time_ns()}-{os.getpid()}").touch()
    first = calls(task.folder, task.number) == 1
    if task.kind == "raise" or task.kind == "raise-once" and first:
        raise ValueError(f"scripted {task.number}")
    if task.kind == "unportable":
        raise Unportable(task.number, "two")
    if task.kind == "kill" or task.kind == "kill-once" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if task.kind == "hang":
        time.sleep(3600)
    if task.kind == "hang-in-c":
        sys.set_int_max_str_digits(0)
        str(7 ** 10 ** 8)   # holds the GIL for hours
    if task.kind == "grow":
        held = []
        while True:
            held.append(bytearray(os.urandom(1 << 20) * 16))
            time.sleep(0.001)
    if task.kind == "slow":
        time.sleep(0.5)
    if task.kind == "stay":
        time.sleep(60)
    return task.number * 10


def calls(folder: str, number: int) -> int:
    """How often `act` was called for a task."""
    return sum(1 for path in Path(folder).iterdir() if path.name.startswith(f"{number}-"))


def remember(task: int) -> tuple[int, int]:
    """(process, tasks that this process has had by now)."""
    SEEN.append(task)
    return os.getpid(), len(SEEN)


def nothing(task) -> None:
    """The task of the overhead benchmark."""
