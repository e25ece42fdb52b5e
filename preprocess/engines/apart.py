"""An engine in a process of its own: what ends that process, or writes to its terminal, does not reach the run."""

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from preprocess.engines import RETRIES, Outcome, Resources
from preprocess.engines.guard import portable
from shared.cli import RequestError, Stopped
from shared.videos.isolate import out_of_reach

PR_SET_PDEATHSIG = 1   # prctl(2)
PATIENCE_S = 30.0      # until an engine that does not close is killed


class Apart:
    """The contract by proxy. `make(*args)` is called in the child and gives the engine there.

    Raises what it raises; Stopped, saying `lost`, where the child ends by itself.
    """

    def __init__(self, make: Callable, args: tuple, lost: str):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.lost, self.running = lost, False
        self.process = context.Process(target=_serve, args=(theirs, os.getpid(), make, args))
        with out_of_reach():
            self.process.start()
        theirs.close()
        try:
            self.slots, self.facts = self._hear()
        except BaseException:
            self.close()
            raise

    def map_unordered(self, fn: Callable, tasks: Iterable, resources: Resources = Resources(),
                      retries: int = RETRIES) -> Iterator[Outcome]:
        for _ in self._outcomes(iter(())):
            pass   # of a caller that left early
        self._say((fn, resources, retries))
        self.running = True
        yield from self._outcomes(iter(tasks))

    def _outcomes(self, tasks: Iterator) -> Iterator[Outcome]:
        while self.running:
            message = self._hear()
            if message == "task":
                self._say([task for _, task in zip(range(1), tasks, strict=False)])
            elif message == "end":
                self.running = False
            else:
                yield message

    def describe(self) -> dict:
        return self.facts

    def close(self) -> None:
        """Ends the engine and its process. A second call does nothing."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(PATIENCE_S)
            self.process.kill()
        self.process.join()
        self.pipe.close()

    def _say(self, message: Any) -> None:
        try:
            self.pipe.send(message)
        except ConnectionError:
            raise Stopped(self.lost) from None

    def _hear(self) -> Any:
        try:
            message, error = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise Stopped(self.lost) from None
        if error is not None:
            raise error
        return message


def _serve(pipe: Connection, parent: int, make: Callable, args: tuple) -> None:
    """The child: makes the engine, then serves maps until SIGTERM, or until the parent has gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _leave)
    if os.getppid() != parent:
        return
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)

    def tasks() -> Iterator:
        while True:
            pipe.send(("task", None))
            got = pipe.recv()
            if not got:
                return
            yield got[0]

    try:
        engine = make(*args)
        try:
            pipe.send(((engine.slots, engine.describe()), None))
            while True:
                fn, resources, retries = pipe.recv()
                for outcome in engine.map_unordered(fn, tasks(), resources, retries):
                    pipe.send((outcome, None))
                pipe.send(("end", None))
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            engine.close()
    except (EOFError, ConnectionError):
        return   # the parent has gone
    except Exception as error:
        if not isinstance(error, (RequestError, Stopped)):
            error.add_note(traceback.format_exc())   # the way to the parent takes it off
        pipe.send((None, portable(error)))


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(0)
