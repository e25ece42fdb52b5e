"""Other labels, groups and splits for packed videos, and videos that no longer count: rows rewritten, nothing decoded.

A pack's attributes hold the rows of its videos; each root is replaced at once, then the index is published. A dropped
video keeps its frames in its pack, stands in no table of videos, and is a failure of stage `dropped`.
"""

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from shared.cli import Progress, RequestError, plural, typed
from shared.datasets import folder
from shared.datasets.headers import read_headers
from shared.datasets.listing import unlabelled
from shared.datasets.scan import scan
from shared.datasets.sources import open_sources
from shared.recipes.preprocessing import read_description
from shared.store.chunks import crc32c
from shared.store.index import Index, publish, read_failures, write_failures
from shared.store.layout import StoreError, document_bytes, group_document
from shared.store.lease import held
from shared.store.place import ObjectPath, Place
from shared.store.rebuild import build_index, with_unpacked
from shared.store.record import each_record, run_name, write_atomic, write_json_atomic, write_record
from shared.store.tables import DROPPED, FailureRow, PackRow, VideoRow
from shared.store.verify import ROOT, attributes_crc, read_root

PUBLISH_S = 60   # seconds between publications


def annotate(store: Place, annotations: Path) -> str:
    """Rows as a CSV (path, label, split, group) has them; returns what to say. Videos that it does not name stay as
    they are, and so does what it has no column for. New classes get the numbers after the store's. Raises RequestError
    where no row is of a packed video."""
    index = Index.load(store)
    # A class -1 is of a time when the CSV's -1 was one.
    held = {row.id: ("" if unlabelled(row.class_name) else row.class_name, row.splits) for row in index.rows()}
    listing = folder.listing(annotations.parent, annotations, index.path, held)
    named = {path: listing.videos[key] for path in index.path if (key := listing.key(path)) in listing.videos}
    if not named:
        theirs, ours = next(iter(listing.videos), ""), next(iter(index.path), "")
        raise RequestError(f"{annotations} names no video of {store}; its first path is {theirs!r}, the store's "
                           f"{ours!r}: write paths as the store has them")
    document = read_description(store)
    used = {listed.class_name for listed in named.values()} - {""} if "label" in listing.columns else set()
    classes = document["classes"] + [name for name in listing.classes if name in used - set(document["classes"])]
    labels = {name: number for number, name in enumerate(classes)}
    if classes != document["classes"]:
        write_json_atomic(store / "store.json", {**document, "classes": classes})

    def change(row: VideoRow) -> VideoRow:
        if row.path not in named:
            return row
        said, new = named[row.path], {}
        if "label" in listing.columns:
            new |= {"label": labels.get(said.class_name, -1), "class_name": said.class_name}
        if "group" in listing.columns:
            new["group"] = said.group
        if "split" in listing.columns:
            new["splits"] = said.splits
        return dataclasses.replace(row, **new)

    changed = rewrite(store, "relabelling", change)
    _record(store, classes)
    rest = len(index) - len(named)
    absent = len(listing.videos) - len(named)
    lacking = [name for name in folder.COLUMNS if name not in listing.columns]
    return f"{plural(changed, 'video')} of {store} relabelled from {annotations}" + (
        f"; {plural(rest, 'video')} that it does not name stay as they were" if rest else "") + (
        f"; {plural(absent, 'row')} of it {'is' if absent == 1 else 'are'} of no packed video" if absent else "") + (
        f"; it has no column {' nor '.join(lacking)}: what the store has of that stays" if lacking else "")


def drop(store: Place, ids: Sequence[str], reason: str = "dropped by request") -> str:
    """Take videos out of the store's tables; returns what to say. Raises RequestError for an id that it lacks."""
    index, failed = Index.load(store), {row.video: row for row in read_failures(store)}
    if unknown := [id for id in ids if id not in index and id not in failed]:
        raise RequestError(f"{store} holds no video {unknown[0]!r}" + (
            f" and {len(unknown) - 1:,} more of those given" if len(unknown) > 1 else "") +
            f"; `python -m preprocess.show {typed(store)} --list` lists its ids")
    asked = set(ids)

    def change(row: VideoRow) -> VideoRow | FailureRow:
        return FailureRow(row.id, row.path, reason, DROPPED) if row.id in asked else row

    unpacked = [dataclasses.replace(failed[id], reason=reason, stage=DROPPED) for id in asked - set(index.id)]
    rewrite(store, "dropping", change, unpacked)
    first = ", ".join(sorted(asked)[:3]) + (", ..." if len(asked) > 3 else "")
    return f"{plural(len(asked), 'video')} of {store} dropped: {first}"


def missing(store: Place, videos: Sequence[str]) -> list[str]:
    """Ids of the videos, packed or failed, that are in the sources no more (`Scan.gone`), as a run counts them. Raises
    RequestError for sources that hold none of the packed ones."""
    sources = open_sources(videos, "--drop-missing")
    if away := next((place for place in sources.folders if not place.is_dir()), None):
        raise RequestError(f"--drop-missing {away} is no folder; expected the one that holds the store's videos")
    index = Index.load(store)
    failed = {row.video: row.path for row in read_failures(store) if row.stage != DROPPED}
    found = scan(sources, *read_headers(store))
    gone = found.gone((failed | dict(zip(index.id, index.path))).items())
    if len(index) and sum(id in index for id in gone) == len(index):
        raise RequestError(f"--drop-missing {sources} holds none of the {plural(len(index), 'video')} of {store}; "
                           "expected what holds them")
    return gone


def rewrite(store: Place, what: str, change: Callable[[VideoRow], VideoRow | FailureRow],
            failures: Sequence[FailureRow] = ()) -> int:
    """Give every packed video the row that `change` makes of it, or drop it where that is a failure; `failures` join
    failures.csv. Returns how many videos changed. The index is published now and then and in any case at the end."""
    rows, videos, failed = build_index(store, Index.load(store))
    failed = {row.video: row for row in [*with_unpacked(store, videos, failed), *failures]}
    packs, listed = {row.pack: row for row in rows}, {row.id: row for row in videos}
    progress, changed, published = Progress(what, len(rows)), set(), time.monotonic()

    def put_in_force() -> None:
        publish(store, list(packs.values()), list(listed.values()))
        write_failures(store, list(failed.values()))

    try:
        for number, row in enumerate(rows, 1):
            attributes = read_root(store / row.path, strict=True)
            dropped = {entry["video"] for entry in attributes["failures"] if entry["stage"] == DROPPED}
            before = [VideoRow.from_document(entry) for entry in attributes["videos"]]
            after = [old if old.id in dropped else change(old) for old in before]
            if after != before:
                packs[row.pack] = _write_root(store, row, attributes, before, after)
                for new in after:
                    if isinstance(new, FailureRow):
                        failed[new.video] = new
                        listed.pop(new.video, None)
                        changed.add(new.video)
                    elif new.id in listed and listed[new.id].pack == row.pack and listed[new.id] != new:
                        listed[new.id] = new
                        changed.add(new.id)
            progress.update(number, plural(len(changed), "video"))
            if time.monotonic() - published > PUBLISH_S:
                put_in_force()
                published = time.monotonic()
    finally:
        put_in_force()
    progress.close(text=plural(len(changed), "video"))
    return len(changed)


def _write_root(store: Place, row: PackRow, attributes: dict, before: Sequence[VideoRow],
                after: Sequence[VideoRow | FailureRow]) -> PackRow:
    """Replace a pack's attributes; returns its row. A dropped video stays among `videos`: its frames are there."""
    gone = {new.video: dataclasses.asdict(new) for new in after if isinstance(new, FailureRow)}
    rows = [old if isinstance(new, FailureRow) else new for old, new in zip(before, after)]
    failures = [entry for entry in attributes["failures"] if entry["video"] not in gone]
    attributes = {**attributes, "videos": [row.document() for row in rows], "failures": [*failures, *gone.values()]}
    attributes["crc32c"] = attributes_crc(attributes)
    data = document_bytes(group_document(attributes))
    if isinstance(store, ObjectPath):
        held(store)
    write_atomic(store / row.path / ROOT, data)
    return dataclasses.replace(row, files={**row.files, ROOT: (len(data), crc32c(data))})


def _record(store: Place, classes: list[str]) -> None:
    """A record with the classes of now, from which a lost store.json comes back."""
    for _, last in reversed(list(each_record(store))):
        if isinstance(last, StoreError):
            continue
        write_record(store, run_name(str(os.getpid())), {
            "status": "done", "started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "command": shlex.join(sys.argv),
            **{key: last[key] for key in ("versions", "device", "engine", "backend", "dataset", "recipe", "videos_root")
               if key in last}, "classes": classes})
        return
