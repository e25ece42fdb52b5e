"""The index from the packs themselves: what a run publishes, and the way back when an index is lost."""

from pathlib import Path

from shared.store.chunks import crc32c
from shared.store.committed import committed_packs, load_pack, rootless_packs
from shared.store.index import Index, read_failures
from shared.store.layout import StoreError
from shared.store.objects import committed_prefixes
from shared.store.place import ObjectPath, Place, as_place, read_all
from shared.store.tables import DROPPED, FailureRow, PackRow, VideoRow
from shared.store.verify import ROOT, parse_root, root_rows


def lost_packs(store: Place, known: Index) -> list[str]:
    """Names of the packs that `known` lists and that are not there, or without their root's zarr.json."""
    return sorted(set(known.packs) - {name for name, _ in _found(as_place(store), known)})


def _found(store: Place, known: Index | None) -> list[tuple[str, str]]:
    """(name, path relative to the store) of the packs that are there; on object storage also of what may be one."""
    if isinstance(store, ObjectPath):
        return committed_prefixes(store, {row.pack: row.path for row in known.pack_rows()} if known else {})
    return list(committed_packs(store).items())


def build_index(store: Place, known: Index | None = None,
                drop_lost: bool = False) -> tuple[list[PackRow], list[VideoRow], list[FailureRow]]:
    """Rows for `publish` and `write_failures` from the packs on disk; packs that `known` lists are not hashed again.

    A video may stand in two packs, when a second run decoded more of it: the pack that does not list it as a failure
    wins, then the one with more of its frames. A failure is dropped when the winning pack does not list it. Failures
    that no pack lists (a video that could not be probed) are not here. Raises StoreError for a damaged pack, and for a
    lost one: listed by `known` and not on disk, or a folder without its root. With drop_lost those are left out, with
    their videos, for a run to make again.
    """
    store = as_place(store)
    if not drop_lost:
        for path in rootless_packs(store) if isinstance(store, Path) else ():
            raise StoreError(f"{store}/{path}: has no {ROOT}")
        for name in lost_packs(store, known) if known else ():
            raise StoreError(f"{store}/{known.pack_row(name).path}: is missing")
    known_packs = set(known.packs) if known else set()
    packs, best, failed = {}, {}, {}
    found = _found(store, known)
    for (name, path), root in zip(found, read_all(store / path / ROOT for _, path in found)):
        if name in packs:
            continue  # a task that was tried again left it
        row = known.pack_row(name) if name in known_packs else None
        listed = row is not None and row.path == path
        # A pack that got another clip geometry has another root than the index knows.
        if listed and row.files[ROOT] == (len(root), crc32c(root)):
            videos, failures = root_rows(parse_root(root, store / path / ROOT))
        else:
            try:
                row, videos, failures = load_pack(store, path)
            except StoreError:
                if isinstance(store, ObjectPath) and not listed:
                    continue  # uploaded or swept by half, and read by nobody
                raise
        packs[name] = row
        failures = {failure.video: failure for failure in failures}
        for video in videos:
            rank = (video.id not in failures, video.frames)
            if video.id not in best or rank > best[video.id][0]:
                best[video.id] = rank, video
        for failure in failures.values():
            past = failed.get(failure.video)
            if past is None or failure.attempts >= past.attempts:
                failed[failure.video] = failure
    videos = [video for _, video in best.values()]
    failures = [failure for id, failure in failed.items() if id not in best or not best[id][0][0]]
    return list(packs.values()), videos, failures


def with_unpacked(store: Place, videos: list[VideoRow], failures: list[FailureRow]) -> list[FailureRow]:
    """The failures of the packs and of failures.csv. Where both know a video, the later attempt counts, and what was
    dropped stays so; a video that a pack holds whole has not failed."""
    merged, packed = {row.video: row for row in failures}, {row.id for row in videos}
    for row in read_failures(store):
        past = merged.get(row.video)
        if row.video not in packed if past is None else past.stage != DROPPED and (
                row.stage == DROPPED or row.attempts >= past.attempts):
            merged[row.video] = row
    return list(merged.values())
