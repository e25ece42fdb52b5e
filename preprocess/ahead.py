"""Iterables worked off ahead of their reader by threads: several at a time, handed over in order, in bounded memory."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any


class Ahead:
    """`with Ahead(openers, ...) as ahead: with ahead.open(number) as line: for item in line`, number by number from 0.

    openers: each a context manager's, which gives an iterable.   threads: iterables worked off at a time, each by one
    of them, so that what comes does not depend on their number.   room: of items that wait, by `size`. A thread holds
    one item more while it waits for room; for the line that is being read there is always room for one.
    seconds: CPU seconds of the threads by line, at its end.
    """

    def __init__(self, openers: Sequence[Callable[[], AbstractContextManager]], threads: int = 1, room: int = 0,
                 size: Callable[[Any], int] = len):
        self.lines: list[Line | None] = [Line(self, number, opener) for number, opener in enumerate(openers)]
        self.room, self.size, self.seconds = room, size, [0.0] * len(openers)
        self.changed = threading.Condition()   # guards all that changes, the lines' too
        self.next = self.front = 0             # line to be taken by a thread; line that is read, or will be next
        self.closed = False
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(min(threads, len(openers)))]

    def __enter__(self):
        try:
            for thread in self.threads:
                thread.start()
        except BaseException:      # an interrupt while they start: no exit will follow
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        for thread in self.threads:
            if thread.is_alive():
                thread.join()

    @contextmanager
    def open(self, number: int) -> Iterator["Line"]:
        """The line, once it is opened; those before it are given up. Raises what its opener raised."""
        line = self.lines[number]
        with self.changed:
            self._give_up(number)
            self._wait(lambda: line.opened or line.done)
        if not line.opened:
            raise line.failure
        try:
            yield line
        finally:
            with self.changed:
                self._give_up(number + 1)

    def _give_up(self, end: int) -> None:
        for number in range(self.front, end):
            self.room += sum(map(self.size, self.lines[number].items))
            self.lines[number] = None          # what it holds, by an error's traceback too, goes with its reader
        self.front = max(self.front, end)
        self.changed.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> bool:
        """Until it is so; False where all has come to an end before."""
        return self.changed.wait_for(lambda: self.closed or ready()) and not self.closed

    def _run(self) -> None:
        while True:
            with self.changed:
                self.next = max(self.next, self.front)
                if self.closed or self.next >= len(self.lines):
                    return
                line, self.next = self.lines[self.next], self.next + 1
            began = time.thread_time()
            try:
                with line.opener() as line.source:
                    with self.changed:
                        line.opened = True
                        self.changed.notify_all()
                    for item in line.source:
                        if not self._put(line, item):
                            break
            except BaseException as failure:   # raised where the line is read
                line.failure = failure
            with self.changed:
                self.seconds[line.number] = time.thread_time() - began
                line.done = True
                self.changed.notify_all()
            line = item = None

    def _put(self, line: "Line", item) -> bool:
        """False where nobody reads the line any more."""
        size = self.size(item)
        with self.changed:
            if not self._wait(lambda: line.number < self.front or self.room >= size
                              or line.number == self.front and not line.items) or line.number < self.front:
                return False
            self.room -= size
            line.items.append(item)
            self.changed.notify_all()
        return True


class Line:
    """Iterates once over the items of one opener's iterable, `source`, and raises what that has raised after them."""

    def __init__(self, ahead: Ahead, number: int, opener: Callable[[], AbstractContextManager]):
        self.ahead, self.number, self.opener = ahead, number, opener
        self.source = self.failure = None
        self.opened = self.done = False
        self.items: deque = deque()

    def __iter__(self) -> Iterator:
        while True:
            with self.ahead.changed:
                if not self.ahead._wait(lambda: self.items or self.done):
                    return
                if not self.items:
                    break
                item = self.items.popleft()
                self.ahead.room += self.ahead.size(item)
                self.ahead.changed.notify_all()
            yield item
            item = None
        if self.failure:
            raise self.failure
