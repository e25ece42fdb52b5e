"""Where videos are looked at before the run: in a child process, which a damaged file may kill without loss."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

PR_SET_PDEATHSIG = 1  # prctl(2)


@contextmanager
def out_of_reach() -> Iterator[None]:
    """Processes and threads that are started inside, and what they start, never get a Ctrl-C, which a terminal sends to
    all: it is this process's to answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Died(Exception):
    """The process in which a function ran is gone; the message says how it ended."""


class InProcess:
    """Calls functions here: for debugging, and where no process may start."""

    def call(self, fn: Callable, *args, limit_s: float):
        return fn(*args)

    def stream(self, fn: Callable, *args, limit_s: float) -> Generator:
        return (yield from fn(*args))

    def interrupt(self) -> None:
        """Nothing runs elsewhere."""

    def close(self) -> None:
        """Nothing was started."""


class ChildProcess:
    """Calls top-level functions in one child process, started at the first call; what it has compiled stays there.

    After a death the next call starts another. It ends with `close`, and with this process however that ends.
    """

    def __init__(self):
        self.process, self.pipe = None, None

    def call(self, fn: Callable, *args, limit_s: float):
        """fn(*args) there. Raises what it raises, and Died when the child is gone or took more than `limit_s` s."""
        with self._at_work():
            self.pipe.send((fn, args))
            value, error, _ = self._receive(limit_s)
        if error is not None:
            raise error
        return value

    def stream(self, fn: Callable, *args, limit_s: float) -> Generator:
        """What the generator fn(*args) yields there, and returns. Raises as `call` does; limit_s: for each value."""
        with self._at_work():
            self.pipe.send((fn, args))
            while True:
                value, error, more = self._receive(limit_s)
                if not more:
                    break
                yield value
        if error is not None:
            raise error
        return value

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """With the child there; ended where the block is left before its answer is complete."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
            with out_of_reach():
                self.process.start()
            theirs.close()
        finished = False
        try:
            yield
            finished = True
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            raise Died(f"killed its process ({signal.Signals(-code).name})" if code < 0 else
                       f"ended its process (exit code {code})") from None
        finally:
            if not finished:
                self.close()

    def _receive(self, limit_s: float) -> tuple:
        if not self.pipe.poll(limit_s):
            raise Died(f"took more than {limit_s:g} s")
        return self.pipe.recv()

    def interrupt(self) -> None:
        """For other threads: what runs in the child comes to an end, and raises Died in its caller."""
        process = self.process
        if process is not None and process.pid:
            process.kill()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def _serve(pipe: Connection, parent: int) -> None:
    """The child: one call after another until the other end closes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    while True:
        try:
            fn, args = pipe.recv()
        except EOFError:
            return
        try:
            value = fn(*args)
            if isinstance(value, Generator):
                value = _send_all(pipe, value)
            answer = value, None, False
        except Exception as error:
            answer = None, error, False
        pipe.send(answer)


def _send_all(pipe: Connection, values: Generator):
    """What the generator yields, one message each; returns what it returns."""
    while True:
        try:
            pipe.send((next(values), None, True))
        except StopIteration as end:
            return end.value
