"""Files that appear whole or not at all, JSON that carries its own checksum, and the record that each run leaves."""

import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from shared.cli import writing
from shared.store.chunks import crc32c
from shared.store.layout import StoreError, crc_text
from shared.store.lease import held
from shared.store.object_path import Conflict
from shared.store.place import ObjectPath, Place, as_place, side_by_side

PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
PARTIAL_CLIPS = re.compile(r"\..+\.\d+x\d+\.partial")  # preprocess.reindex, beside a pack
OTHERS = "archives.", "life-", "plan-"     # how names in records/ begin that are no run's
_TAIL = re.compile(rb',\n "crc32c": "([0-9a-f]{8})"\n}\n')
_TAIL_SIZE = len(b',\n "crc32c": "00000000"\n}\n')


def hidden_name(path: Path) -> Path:
    """A name beside `path` for what is not finished, unlike any other; `partials` finds it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def partials(store: Place) -> list[Path]:
    """What is half-written in a local store, or was when its writer died; an object is never half-written."""
    if isinstance(store, ObjectPath):
        return []
    store = Path(store)
    found = {path for pattern in (".*", "index/.*", "records/.*", "packs/*/.*", "packs/*/[!.]*/.zarr.json.*")
             for path in store.glob(f"{pattern}.partial") if PARTIAL.fullmatch(path.name)}
    return sorted(found | {path for path in store.glob("packs/*/.*.partial") if PARTIAL_CLIPS.fullmatch(path.name)})


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes) -> None:
    """A new file, flushed to disk; its directory is the caller's to flush."""
    with writing(path), open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Place, data: bytes) -> None:
    """Replace `path`: readers see the old bytes or the new ones, also after a crash."""
    path = as_place(path)
    if isinstance(path, ObjectPath):
        path.put(data)
        return
    hidden = hidden_name(path)
    try:
        write_synced(hidden, data)
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)
    fsync_directory(path.parent)


def write_exclusive(path: Place, document: dict) -> bool:
    """Write a JSON file that nobody has written before; False, and nothing changed, where somebody has.

    On disk by a hard link, which network file systems make exclusively too; on object storage by a conditional PUT.
    """
    data = json_bytes(document)
    if isinstance(path, ObjectPath):
        with suppress(Conflict):
            path.put_if(data, None)
            return True
        return False
    hidden = hidden_name(path)
    try:
        write_synced(hidden, data)
        try:
            os.link(hidden, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP) or path.exists():
                raise
            os.rename(hidden, path)   # a file system without hard links: the store's lock has to do
    finally:
        hidden.unlink(missing_ok=True)
    fsync_directory(path.parent)
    return True


def json_bytes(document: dict) -> bytes:
    """JSON text whose last key `crc32c` is the checksum of all bytes before it. Raises ValueError for NaN."""
    if not document or "crc32c" in document:
        raise ValueError("expected a non-empty document without the key 'crc32c'")
    body = json.dumps(document, indent=1, allow_nan=False)[:-2].encode("ascii")
    return body + b',\n "crc32c": "%s"\n}\n' % crc_text(crc32c(body)).encode()


def parse_json(data: bytes, name) -> dict:
    """What `json_bytes` wrote, without its checksum. Raises StoreError naming `name`."""
    tail = _TAIL.fullmatch(data[-_TAIL_SIZE:])
    if not tail or crc_text(crc32c(data[:-_TAIL_SIZE])) != tail[1].decode():
        raise StoreError(f"{name}: does not match its checksum; it was damaged or edited by hand")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:        # a number of 10,000 digits, brackets a thousand deep
        raise StoreError(f"{name}: holds no JSON that can be read ({type(error).__name__})") from error
    del document["crc32c"]
    return document


def write_json_atomic(path: Place, document: dict) -> None:
    """Replace a JSON file (store.json, a record) atomically, with its checksum as the last key."""
    write_atomic(path, json_bytes(document))


def read_json(path: Place) -> dict:
    """What `write_json_atomic` wrote. Raises FileNotFoundError, or StoreError when the checksum does not match."""
    return parse_json(as_place(path).read_bytes(), path)


def run_name(who: str) -> str:
    """A record's name: when the run began, to the microsecond, so that names are in order of time, and who it is."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{who}"


def write_record(store: Place, name: str, document: dict) -> Place:
    """records/<name>.json: what a run did (versions, device, engine, counts, timings in seconds, per worker)."""
    folder = as_place(store) / "records"
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
    else:
        held(as_place(store))
    path = folder / f"{name}.json"
    write_json_atomic(path, document)
    return path


def each_record(store: Place, *kinds: str | None) -> Iterator[tuple[Place, dict | StoreError]]:
    """The JSON files of records/ of these kinds, in order of names; None, as if none is asked for, is that of runs.

    Other files are named KIND-... A damaged file comes as the StoreError that says so; one that goes meanwhile, as
    signs of life do, not at all.
    """
    kinds = kinds or (None,)
    folder = as_place(store) / "records"
    paths = sorted({path for kind in kinds for path in folder.glob(f"{kind}-*.json" if kind else "[!.]*.json")
                    if kind or not path.name.startswith(OTHERS)})
    for path, document in zip(paths, side_by_side(_record, paths)):
        if document is not None and (isinstance(document, StoreError) or document.get("kind") in kinds):
            yield path, document


def _record(path: Place) -> dict | StoreError | None:
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except StoreError as error:
        return error


def read_records(store: Place) -> dict[str, dict]:
    """Every run's record by name, in order of their names. Raises StoreError for a damaged file."""
    records = {}
    for path, document in each_record(store):
        if isinstance(document, StoreError):
            raise document
        records[path.stem] = document
    return records
