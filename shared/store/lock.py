"""One writing run a store at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.cli import RequestError


@contextmanager
def store_lock(store: Path) -> Iterator[None]:
    """Hold STORE/.lock while writing. The kernel lets go of it when the process ends, however it ends.

    Raises RequestError when another run holds it.
    """
    store = Path(store)
    store.mkdir(parents=True, exist_ok=True)
    fd = os.open(store / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(f"another run is writing {store}; wait until it ends, or stop it") from None
        yield
    finally:
        os.close(fd)


def is_locked(store: Path) -> bool:
    """Whether a run is writing the store now."""
    try:
        fd = os.open(Path(store) / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
