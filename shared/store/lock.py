"""One writing run a store at a time: a lock of the kernel's on a folder, a lease on object storage."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from shared.cli import RequestError, flock
from shared.store.lease import LOCK, Busy, is_leased, store_lease
from shared.store.place import ObjectPath, Place, as_place

PATIENCE_S = 1.0  # a check holds the lock, shared, for an instant
POLL_S = 0.5      # at most, between two looks at a lock that is held
UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
            errno.ELOOP}


def store_lock(store: Place, patience_s: float = 0.0) -> AbstractContextManager[None]:
    """Hold STORE/.lock while writing. Raises Busy, a RequestError, when another run holds it for longer than that."""
    store = as_place(store)
    return store_lease(store, patience_s) if isinstance(store, ObjectPath) else _folder_lock(store, patience_s)


@contextmanager
def _folder_lock(store: Path, patience_s: float) -> Iterator[None]:
    """The kernel lets go of the lock when the process ends, however it ends.

    Makes the folder where there is none. Where it holds nothing but the lock at the end, the lock and the folders that
    were made go again. Raises Busy when another run holds the lock, RequestError when the folder cannot be used.
    """
    made = []
    fd = None
    try:
        fd = _acquire(store, made, max(patience_s, PATIENCE_S))
        yield
    except OSError as error:
        if fd is not None or error.errno not in UNUSABLE:
            raise
        raise RequestError(f"--store {store}: {error.filename or store}: {error.strerror}; expected a folder, or a "
                           "place where one can be made and written; choose another") from error
    finally:
        if fd is not None:
            with suppress(FileNotFoundError):  # the folder is gone already
                if os.listdir(store) == [LOCK]:
                    (store / LOCK).unlink()
        with suppress(OSError):  # whatever holds something by now stays
            for folder in reversed(made):
                folder.rmdir()
        if fd is not None:
            os.close(fd)


def _acquire(store: Path, made: list[Path], patience_s: float) -> int:
    """The descriptor that holds the lock; the folders that had to be made are added to `made`."""
    deadline, wait = time.monotonic() + patience_s, 0.02
    while True:
        try:
            make_folders(store, made)
            fd = os.open(store / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError as error:     # a run that was refused has just removed the folder
            if time.monotonic() > deadline:    # or the file system takes no new folders
                raise RequestError(f"--store {store}: {error.filename}: cannot be made here ({error.strerror}, again "
                                   "and again); check the path and that its disk is mounted") from error
            time.sleep(0.02)
            continue
        try:
            held = _try_lock(fd, store / LOCK)
        except BaseException:
            os.close(fd)
            raise
        if held:
            return fd
        os.close(fd)
        if time.monotonic() > deadline:
            raise Busy(f"another run is writing {store}; wait until it ends, or stop it")
        time.sleep(wait)
        wait = min(2 * wait, POLL_S)


def make_folders(store: Path, made: list[Path]) -> None:
    for folder in (*reversed(store.parents), store):
        try:
            folder.mkdir()
        except OSError:
            if not folder.is_dir():
                raise
        else:
            made.append(folder)


def _try_lock(fd: int, path: Path) -> bool:
    """Whether `fd` holds the lock of the file that bears the name now: its past holder may have removed the file."""
    try:
        flock(fd, fcntl.LOCK_EX, f"--store {path.parent}")
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def is_locked(store: Place) -> bool:
    """Whether a run is writing the store now. The shared lock it takes for an instant refuses no run."""
    store = as_place(store)
    if isinstance(store, ObjectPath):
        return is_leased(store)
    try:
        fd = os.open(store / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        flock(fd, fcntl.LOCK_SH, str(store))
    except BlockingIOError:
        return True
    except RequestError:        # without locks nobody can hold one
        return False
    finally:
        os.close(fd)
    return False
