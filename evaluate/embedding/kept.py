"""What OUT holds: parts while the work goes on, then features.npy, videos.csv and embed.json, which says what they are.

N rows, C features. OUT is a folder or a prefix on object storage. embed.json comes last, with the checksums of the
other two; what does not match it, or a part that is not whole, counts as not there. A video whose bytes have not
changed is not computed again: a run that was stopped goes on, and one over more videos computes the new ones.
"""

import contextlib
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.embedding.sources import Item
from evaluate.embedding.work import Embedded, Outcomes
from evaluate.features.cache import checksum, new_vectors
from shared.cli import RequestError
from shared.recipes.settings import differences
from shared.store.chunks import crc32c
from shared.store.layout import StoreError
from shared.store.objects import Scratch, whole
from shared.store.place import ObjectPath, Place, remove_tree
from shared.store.record import PARTIAL, read_json, write_atomic, write_json_atomic
from shared.store.tables import FAILURE_COLUMNS, FailureRow, table_bytes, table_columns

RECORD, FEATURES, TABLE, FAILURES, PARQUET, PARTS = ("embed.json", "features.npy", "videos.csv", "failures.csv",
                                                     "features.parquet", "parts")
FORMAT = 1
PART_S = 60           # between two parts: the most that a killed run loses
COLUMNS = ("id", "path", "label", "split", "frames")
START = "start"
BLOCK = 4096          # rows moved at a time


@dataclass(frozen=True)
class Row:
    """A line of videos.csv; start: of a clip, None for a whole video."""

    item: Item
    frames: int
    start: int | None

    def cells(self) -> list[str]:
        item = self.item
        return [item.id, item.path, item.label, item.splits, str(self.frames),
                *([] if self.start is None else [str(self.start)])]


@dataclass(frozen=True)
class Finished:
    """What a finished OUT holds: embed.json's document, the columns of videos.csv, and features.npy (N, C)."""

    out: Place
    document: dict
    columns: list[list[str]]
    vectors: np.ndarray
    scratch: Scratch | None

    ids = property(lambda self: self.columns[0])
    labels = property(lambda self: self.columns[2])

    def rows(self) -> Iterator[tuple[str, str, int, list[int]]]:
        """(id, state, frames, starts) of every video."""
        starts = map(int, self.columns[-1]) if self.document["request"]["per"] == "clip" else [0] * len(self.ids)
        videos: dict[str, tuple[int, list[int]]] = {}
        for video, frames, start in zip(self.ids, map(int, self.columns[4]), starts):
            videos.setdefault(video, (frames, []))[1].append(start)
        return ((video, state, *held) for (video, held), state in zip(videos.items(), self.document["states"],
                                                                     strict=True))

    def close(self) -> None:
        if self.scratch:
            self.scratch.close()


def read_finished(out: Place) -> Finished:
    """Raises RequestError where OUT holds no features, or not whole ones."""
    scratch = Scratch() if isinstance(out, ObjectPath) else None
    try:
        document, table = read_json(out / RECORD), (out / TABLE).read_bytes()
        vectors = _load(out / document["features"], scratch)
        if (checksum(vectors), crc32c(table)) != (document["crc32c_features"], document["crc32c_videos"]):
            raise StoreError(f"{FEATURES} or {TABLE} is not what {RECORD} says")
        columns = table_columns(table, COLUMNS + (START,) * (document["request"]["per"] == "clip"), out / TABLE)
        return Finished(out, document, columns, vectors, scratch)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, StoreError) as error:
        if scratch:
            scratch.close()
        raise RequestError(f"{out} holds no finished features ({getattr(error, 'strerror', None) or error}); make them "
                           "with --checkpoint and --store or --videos") from error


def _load(path: Place, scratch: Scratch | None) -> np.ndarray:
    if isinstance(path, ObjectPath):
        local = scratch.folder / path.name
        path.fetch(local)
        path = local
    return np.load(path, mmap_mode="r")


class Kept:
    """OUT, for one request: what decides a vector of C = `width` numbers (checkpoint, view, ...), a plain dictionary.

    known: what is there already, by id; its vectors lie on disk. Raises RequestError for an OUT that holds anything
    else.
    """

    def __init__(self, out: Place, request: dict, width: int):
        self.out, self.request, self.width = out, request, width
        self.known: dict[str, Embedded] = {}
        self.failures: dict[str, FailureRow] = {}
        self.fresh: Outcomes = []
        self.saved, self.number = time.monotonic(), 0
        self.scratch = Scratch() if isinstance(out, ObjectPath) else None
        self._refuse_others()
        with contextlib.suppress(RequestError):
            self._take_finished(read_finished(out))
        for path in sorted((out / PARTS).glob("*.json")):
            with contextlib.suppress(FileNotFoundError, ValueError, StoreError):
                self._take_part(path)
            self.number = int(path.stem) + 1

    def _refuse_others(self) -> None:
        """Raises RequestError for a folder of something else, or of other features; removes what was half-written."""
        here = list(self.out.iterdir()) if self.out.is_dir() else []
        partial = [path for path in here if PARTIAL.fullmatch(path.name)]
        names = {path.name for path in here} - {path.name for path in partial} - {".lock"}
        if names and not names & {RECORD, PARTS}:
            raise RequestError(f"--out {self.out} holds {sorted(names)[0]} and no {RECORD}; choose a folder that is "
                               "new, or of an earlier run of this command")
        for path in [self.out / RECORD, *sorted((self.out / PARTS).glob("*.json"))]:
            try:
                before = read_json(path)["request"]
            except FileNotFoundError:
                continue
            except (KeyError, StoreError) as error:
                raise RequestError(f"{path} is not what this command wrote, or is damaged ({error}); remove it, or "
                                   "choose another folder") from None
            if found := differences(before, self.request):
                raise RequestError(f"--out {self.out} holds other features: {'; '.join(found)}; choose another folder")
        for path in partial:
            path.unlink()

    def _take_finished(self, found: Finished) -> None:
        self._take(found.rows(), np.asarray(found.vectors))
        with contextlib.suppress(FileNotFoundError, StoreError):
            columns = table_columns((self.out / FAILURES).read_bytes(), FAILURE_COLUMNS, self.out / FAILURES)
            self._take_failures(zip(*columns))

    def _take_part(self, path: Place) -> None:
        document = read_json(path)
        vectors = _load(path.parent / document["features"], self.scratch)
        if checksum(vectors) == document["crc32c_features"]:
            self._take(document["rows"], vectors)
            self._take_failures(document["failures"])

    def _take(self, rows: Iterable, vectors: np.ndarray) -> None:
        at = 0
        for video, state, frames, starts in rows:
            self.known[video] = Embedded(video, state, frames, np.asarray(starts, np.int64),
                                         vectors[at:at + len(starts)])
            at += len(starts)

    def _take_failures(self, rows: Iterable[Sequence[str]]) -> None:
        self.failures |= {cells[0]: FailureRow(*cells[:4], int(cells[4])) for cells in rows}

    def missing(self, items: Iterable[Item]) -> list[Item]:
        """Those of which nothing is known, or of which the bytes have changed; what failed before is tried again."""
        items = list(items)
        missing = [item for item in items if item.id not in self.known or self.known[item.id].state != item.state]
        there = {item.id for item in items} - {item.id for item in missing}
        self.failures = {video: row for video, row in self.failures.items() if video in there}
        return missing

    def add(self, outcomes: Outcomes) -> None:
        """Take what has become of some videos; every PART_S seconds it goes to disk."""
        self.fresh += outcomes
        self.failures |= {one.video: one for one in outcomes if isinstance(one, FailureRow)}
        if time.monotonic() - self.saved > PART_S:
            self.save()

    def save(self) -> None:
        """Put what is not yet on disk there, as a part."""
        if self.fresh:
            good = [one for one in self.fresh if isinstance(one, Embedded)]
            vectors = np.concatenate([np.empty((0, self.width), np.float32), *(one.vectors for one in good)])
            path = self.out / PARTS / f"{self.number:06d}.npy"
            if isinstance(path, Path):
                path.parent.mkdir(parents=True, exist_ok=True)
            data = io.BytesIO()                 # of a full disk numpy's own writing says no errno
            np.save(data, vectors)
            with whole(path) as local, open(local, "wb") as file:
                file.write(data.getbuffer())
            write_json_atomic(path.parent / f"{path.stem}.json", {
                "format": FORMAT, "request": self.request, "features": path.name, "crc32c_features": checksum(vectors),
                "rows": [[one.id, one.state, one.frames, one.starts.tolist()] for one in good],
                "failures": [one.cells() for one in self.fresh if isinstance(one, FailureRow)]})
            self.known |= {one.id: one for one in good}
            self.fresh, self.number = [], self.number + 1
        self.saved = time.monotonic()

    def finish(self, items: Sequence[Item], details: dict, parquet: bool) -> dict:
        """Write the features of the items in their order, and what goes with them; returns embed.json's document."""
        self.save()
        found = [(item, self.known[item.id]) for item in items
                 if item.id in self.known and self.known[item.id].state == item.state]
        per_clip = self.request["per"] == "clip"
        rows = [Row(item, one.frames, start if per_clip else None) for item, one in found for start in
                one.starts.tolist()]
        with whole(self.out / FEATURES) as local:
            vectors = new_vectors(local, len(rows), self.width)
            at = 0
            for _, one in found:
                vectors[at:at + len(one.vectors)] = one.vectors
                at += len(one.vectors)
            vectors.flush()
            sum_of_vectors = checksum(vectors)
            if parquet:
                with whole(self.out / PARQUET) as file:
                    write_parquet(file, rows, vectors)
        table = table_bytes(COLUMNS + (START,) * per_clip, rows)
        write_atomic(self.out / TABLE, table)
        if self.failures or (self.out / FAILURES).exists():
            write_atomic(self.out / FAILURES, table_bytes(FAILURE_COLUMNS, sorted(self.failures.values(),
                                                                                  key=lambda row: row.video)))
        document = {
            "format": FORMAT, "request": self.request, **details, "features": FEATURES, "videos": TABLE,
            "shape": [len(rows), self.width], "dtype": "float32",
            "order": f"row i of {FEATURES} belongs to line i of {TABLE}, counted from the line after the names; videos "
                     "stand in the order of their ids, clips in the order of their starts",
            "counts": {"videos": len(found), "rows": len(rows), "failures": len(self.failures)},
            "crc32c_features": sum_of_vectors, "crc32c_videos": crc32c(table),
            "states": [one.state for _, one in found]}
        write_json_atomic(self.out / RECORD, document)
        if (self.out / PARTS).is_dir():
            remove_tree(self.out / PARTS)
        return document

    def close(self) -> None:
        if self.scratch:
            self.scratch.close()


def write_parquet(path: Path, rows: Sequence[Row], vectors: np.ndarray) -> None:
    """The table with a column `features`, a list of C float32 a row, which whatever reads Parquet can open."""
    import pyarrow as arrow
    from pyarrow import parquet

    text, whole_number = arrow.string(), arrow.int64()
    per_clip = bool(rows) and rows[0].start is not None
    schema = arrow.schema([*((name, text) for name in COLUMNS[:4]), (COLUMNS[4], whole_number),
                           *([(START, whole_number)] if per_clip else []),
                           ("features", arrow.list_(arrow.float32(), vectors.shape[1]))])
    with parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, len(rows), BLOCK):
            cells = [row.cells() for row in rows[first:first + BLOCK]]
            columns = [list(column) for column in zip(*cells)]
            arrays = [arrow.array([cell.encode("utf-8", "replace").decode() for cell in column]) for column in
                      columns[:4]]
            arrays += [arrow.array(list(map(int, column)), whole_number) for column in columns[4:]]
            flat = arrow.array(np.ascontiguousarray(vectors[first:first + BLOCK]).reshape(-1))
            arrays.append(arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
