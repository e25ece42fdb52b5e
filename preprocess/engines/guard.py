"""The watch over a task inside its worker process.

A task that hangs or grows cannot be stopped, only its process can: the watch tells the driver why, then ends the
process, and the engine's own handling of a dead worker does the rest. So a worker process runs one task at a time.
"""

import faulthandler
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preprocess.engines import EngineError, Resources

POLL_S = 0.1
GRACE_S = 5.0  # after a time limit, until the interpreter's own timer ends what holds the GIL and stops the watch too
STATM = Path("/proc/self/statm")


def run(fn: Callable, task: Any, limits: Resources, tell: Callable[[str], None]) -> Any:
    """fn(task), or the end of this process when that goes over a limit: `tell("timeout" | "memory")` is called first.

    Raises what fn raises; an exception that would not survive the way to the driver becomes an EngineError naming it.
    """
    watch = _Watch(limits, tell) if limits.timeout or limits.memory else None
    try:
        return fn(task)
    except Exception as error:
        raise portable(error)  # noqa: B904  (mostly the error itself)
    finally:
        if watch:
            watch.end()


class _Watch:
    """A thread that compares this process with its task's limits every POLL_S seconds."""

    def __init__(self, limits: Resources, tell: Callable[[str], None]):
        self.limits, self.tell = limits, tell
        self.began, self.ended, self.lock = time.monotonic(), threading.Event(), threading.Lock()
        if limits.timeout:
            faulthandler.dump_traceback_later(limits.timeout + GRACE_S, exit=True, file=2)
        threading.Thread(target=self._look, daemon=True).start()

    def end(self) -> None:
        """The task came to its end in time; does not return where the watch has decided otherwise."""
        with self.lock:
            self.ended.set()
            faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        while not self.ended.wait(POLL_S):
            kind = self._over()
            if kind:
                with self.lock:
                    if self.ended.is_set():
                        return
                    try:
                        self.tell(kind)
                    finally:
                        os._exit(1)

    def _over(self) -> str:
        if self.limits.timeout and time.monotonic() - self.began > self.limits.timeout:
            return "timeout"
        if self.limits.memory and private_memory() > self.limits.memory:
            return "memory"
        return ""


def private_memory() -> int:
    """Bytes that this process holds for itself: resident pages less those of files and of memory shared with others."""
    _, resident, shared, *_ = map(int, STATM.read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def portable(error: Exception) -> Exception:
    """The error, or where it cannot be pickled and back an EngineError that names it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:   # whatever a foreign class's own methods raise
        return EngineError(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return error
