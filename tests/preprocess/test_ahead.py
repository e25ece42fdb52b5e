"""Working ahead: in order, in bounded memory, with every error where it belongs, and no thread left."""

import threading
import time
from contextlib import contextmanager

import pytest

from preprocess.ahead import Ahead


class Lines:
    """Openers of lines of one-frame items (line, number); of them `held` are made and not yet read."""

    def __init__(self, lengths, broken=()):
        self.lengths, self.broken, self.lock = lengths, dict(broken), threading.Lock()
        self.made = self.read = self.most = self.open = self.most_open = 0

    def __call__(self, line):
        @contextmanager
        def opener():
            if self.broken.get(line) == 0:
                raise KeyError(line)
            with self.lock:
                self.open += 1
                self.most_open = max(self.most_open, self.open)
            try:
                yield self.items(line)
            finally:
                with self.lock:
                    self.open -= 1
        return opener

    def items(self, line):
        for number in range(self.lengths[line]):
            if self.broken.get(line) == number:
                raise KeyError(line)
            with self.lock:
                self.made += 1
                self.most = max(self.most, self.made - self.read)
            yield [(line, number)]

    def took(self):
        with self.lock:
            self.read += 1


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("threads, room", [(1, 0), (1, 3), (3, 0), (3, 5), (8, 100)])
def test_lines_come_whole_and_in_order_whatever_the_threads(threads, room):
    lines, seen = Lines([4, 0, 7, 1, 9]), []
    with Ahead([lines(n) for n in range(5)], threads, room) as ahead:
        for number in range(5):
            with ahead.open(number) as line:
                for item in line:
                    seen += item
                    lines.took()
    assert seen == [(line, n) for line, length in enumerate(lines.lengths) for n in range(length)]
    # Those that have room, one of the line that is read, and one in the hands of every thread.
    assert lines.most <= room + 1 + threads and lines.open == 0


def test_threads_work_on_as_many_lines_while_there_is_room():
    lines = Lines([6] * 5)
    with Ahead([lines(n) for n in range(5)], 3, 12) as ahead:
        deadline = time.monotonic() + 30
        while lines.made < 15 and time.monotonic() < deadline:   # 12 that wait, and one in the hands of each
            time.sleep(0.001)
        time.sleep(0.05)
        assert lines.made == 15 and lines.most_open == 3
        with ahead.open(0) as line:
            assert sum(line, []) == [(0, n) for n in range(6)]


def test_an_error_comes_after_the_items_before_it_and_ends_its_line_only():
    lines = Lines([3, 3, 3, 3], broken={1: 2, 2: 0})
    with Ahead([lines(n) for n in range(4)], 2, 10) as ahead:
        seen = []
        with ahead.open(0) as line:
            seen += sum(line, [])
        with ahead.open(1) as line, pytest.raises(KeyError, match="1"):
            for item in line:
                seen += item
        with pytest.raises(KeyError, match="2"), ahead.open(2):
            pass
        with ahead.open(3) as line:
            seen += sum(line, [])
    assert seen == [(line, n) for line, length in enumerate([3, 2, 0, 3]) for n in range(length)]


def test_a_line_that_is_left_early_holds_up_no_other():
    lines = Lines([1000, 5, 1000])
    with Ahead([lines(n) for n in range(3)], 1, 2) as ahead:
        with ahead.open(0) as line:
            assert next(iter(line)) == [(0, 0)]
        with ahead.open(1) as line:
            assert sum(line, []) == [(1, n) for n in range(5)]
    assert lines.open == 0 and lines.made < 20
