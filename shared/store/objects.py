"""Packs on object storage: uploaded under a prefix of their own, and fetched into a local folder to be verified.

A task writes and verifies its pack in a local folder, then uploads it as packs/HxW/<pack>-<unique>/, its root's
zarr.json last. A prefix that the index does not list is read by nobody, so a task whose driver has died harms no other.
"""

import fcntl
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath

from shared.cli import writing
from shared.store.chunks import crc32c
from shared.store.layout import StoreError
from shared.store.lease import held
from shared.store.place import ObjectPath, Place, side_by_side
from shared.store.record import fsync_directory, hidden_name
from shared.store.tables import PackRow
from shared.store.verify import ROOT

PART = 16 << 20   # bytes of a part; larger objects go up in several, so that memory stays flat
PARTS = 9_000     # of one object; S3 takes 10,000
SCRATCH = "motionpack-scratch-"
FRESH_S = 60      # a scratch folder so young may not have its lock yet


class Scratch:
    """A folder in TMPDIR for a pack on its way, until `close`. Those of processes that were killed go first."""

    def __init__(self):
        for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
            _remove_abandoned(folder)
        self.folder = Path(tempfile.mkdtemp(prefix=SCRATCH))
        self.lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # the kernel lets go of it when the process ends

    def close(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
            os.close(self.lock)


def _remove_abandoned(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # gone, or another user's
    try:
        if time.time() - os.fstat(lock).st_mtime > FRESH_S:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # at work
    finally:
        os.close(lock)


@contextmanager
def whole(target: Place) -> Iterator[Path]:
    """A local file to write: when the block ends it becomes `target`, all of it at once; an error changes nothing."""
    if isinstance(target, ObjectPath):
        with closing(Scratch()) as scratch:
            local, crc = scratch.folder / target.name, 0
            with writing(local):
                yield local
            with open(local, "rb") as file:
                while data := file.read(PART):
                    crc = crc32c(data, crc)
            _upload(local, target, local.stat().st_size, crc)
        return
    hidden = hidden_name(target)
    try:
        with writing(target):
            yield hidden
            with open(hidden, "rb") as file:
                os.fsync(file.fileno())
        os.replace(hidden, target)
    finally:
        hidden.unlink(missing_ok=True)
    fsync_directory(target.parent)


@contextmanager
def fetched(store: Place, path: str, without: Iterable[str] = ()) -> Iterator[Path]:
    """A folder that holds the store's pack at `path`: a local store itself, else a copy that lasts as the block does.

    without: arrays whose data files stay where they are.
    """
    if isinstance(store, Path):
        yield store
        return
    with closing(Scratch()) as scratch:
        skipped = tuple(f"{array}/c" for array in without)
        names = [name for name in (store / path).find() if not name.startswith(skipped)] if skipped else \
            list((store / path).find())
        for name in names:
            if ".." in PurePosixPath(name).parts:
                raise StoreError(f"{store}/{path}/{name}: does not belong to the pack")
            (scratch.folder / path / name).parent.mkdir(parents=True, exist_ok=True)
        side_by_side(lambda name: (store / path / name).fetch(scratch.folder / path / name), names)
        yield scratch.folder


def unique_path(path: str) -> str:
    """A prefix for one attempt at the pack `path`, unlike any other."""
    return f"{path}-{uuid.uuid4().hex[:16]}"


def upload_pack(folder: Path, store: ObjectPath, path: str, files: dict[str, tuple[int, int]]) -> None:
    """Put the files of the whole pack in `folder` below store/path, each compared with its size and CRC-32C there.

    The root's zarr.json comes last: where it stands, all else is there. Raises StoreError for what did not arrive.
    """
    rest = sorted((name for name in files if name != ROOT), key=lambda name: -files[name][0])
    side_by_side(lambda name: _upload(folder / name, store / path / name, *files[name]), rest)
    _upload(folder / ROOT, store / path / ROOT, *files[ROOT])


def _upload(file: Path, target: ObjectPath, size: int, crc: int) -> None:
    if target.s3 and size > 2 * PART:
        compared = target.put_parts(file, max(PART, -(-size // PARTS)), crc)
    else:
        data = file.read_bytes()
        if crc32c(data) != crc:
            raise StoreError(f"{file}: changed before it was uploaded")
        compared = target.put(data)
    if not compared:
        found = 0
        for start in range(0, size, PART):
            found = crc32c(target.read_range(start, min(start + PART, size)), found)
        if found != crc:
            raise StoreError(f"what was written to {target} does not read back")


def pack_prefixes(store: ObjectPath) -> dict[str, set[str]]:
    """{path relative to the store: names of its objects} of every prefix that is or was to become a pack."""
    found = {}
    for name in (store / "packs").find():
        size, _, rest = name.partition("/")
        prefix, _, file = rest.partition("/")
        if file:
            found.setdefault(f"packs/{size}/{prefix}", set()).add(file)
    return found


def pack_of(path: str) -> str:
    """The pack's name in the path of its prefix."""
    return path.rpartition("/")[2].rpartition("-")[0]


def committed_prefixes(store: ObjectPath, listed: dict[str, str]) -> list[tuple[str, str]]:
    """(name, path) of the prefixes that have a root: first those that the index lists, then those of other packs.

    listed: {name: path} of the index. A pack of the second kind was uploaded and never published, by a run that was
    killed or a task that went on after its driver, even more than once; only its bytes tell if it is whole.
    """
    rooted = sorted(path for path, files in pack_prefixes(store).items() if ROOT in files)
    known = [(name, path) for name, path in sorted(listed.items()) if path in rooted]
    taken = {name for name, _ in known}
    return known + [(pack_of(path), path) for path in rooted if pack_of(path) not in taken]


def sweep_prefixes(store: ObjectPath, packs: Iterable[PackRow], superseded: bool) -> list[str]:
    """Remove the prefixes under packs/ that no row of `packs` lists; returns their paths.

    superseded: only those whose pack is listed under another prefix, as a task leaves it that was tried again.
    A task that still uploads to one of them finds no reader: what it leaves is swept by the next run.
    """
    listed = {row.path: row.pack for row in packs}
    names = set(listed.values())
    swept = [path for path in sorted(pack_prefixes(store))
             if path not in listed and (not superseded or pack_of(path) in names)]
    for path in swept:
        held(store)
        (store / path).remove_tree()
    return swept
