"""The index of a store: which videos and packs are in force, and which videos failed.

index/<generation>/ holds videos.csv, packs.csv and `crc32c`, the checksums of both; a generation's name ends in the
checksum of that file, and `current` names the generation in force. So every byte of an index is checked.
"""

import os
import re
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared.cli import RequestError
from shared.store.chunks import crc32c
from shared.store.layout import StoreError, crc_text
from shared.store.lease import held
from shared.store.place import ObjectPath, Place, as_place, read_all, remove_tree
from shared.store.record import fsync_directory, hidden_name, write_atomic, write_synced
from shared.store.tables import (
    FAILURE_COLUMNS,
    PACK_COLUMNS,
    VIDEO_COLUMNS,
    FailureRow,
    PackRow,
    VideoRow,
    file_start,
    parse_files,
    table_bytes,
    table_columns,
    table_numbers,
)

SUMS = "crc32c"
FAILURE_TABLE, FAILURE_SUMS = "failures.csv", "failures.crc32c"
SUM_LINES = re.compile(r"((absent|[0-9a-f]{8} \d+) failures\.csv\n){1,2}")
PACK_PATH = re.compile(r"packs/[1-9]\d{0,4}x[1-9]\d{0,4}/[^/.][^/]*")
FILES = re.compile(r"(?!/|\.\.?/)(?:[^:;]+:\d{1,18}:[0-9a-f]{8})(?:;[^:;]+:\d{1,18}:[0-9a-f]{8})*")
GENERATION = re.compile(r"(\d{6,})-([0-9a-f]{8})")


class Index:
    """One generation, in columns of equal length, sorted by id.

    id, path, pack, class_name, group, split_text, note: lists of str; first_frame, frames: int64; label,
    source_height, source_width: int32; fps: float64, frames/s. `packs`: names of the packs.
    """

    def __init__(self, store: Place, generation: str, videos: list[list[str]], packs: list[list[str]]):
        self.store, self.generation = as_place(store), generation
        folder = self.store / "index" / generation
        file = folder / "videos.csv"
        (self.id, self.path, self.pack, first, frames, label, self.class_name, self.group, self.split_text, fps,
         height, width, self.note) = videos
        self.first_frame = table_numbers(first, "first_frame", file, self.id)
        self.frames = table_numbers(frames, "frames", file, self.id)
        self.label = table_numbers(label, "label", file, self.id, np.int32, least=-1)
        self.fps = table_numbers(fps, "fps", file, self.id, np.float64)
        self.source_height = table_numbers(height, "source_height", file, self.id, np.int32)
        self.source_width = table_numbers(width, "source_width", file, self.id, np.int32)
        self._packs = {cells[0]: cells for cells in zip(*packs)}
        self._check_packs(folder / "packs.csv", packs)
        self._check_order(file)

    def _check_packs(self, file: Place, columns: list[list[str]]) -> None:
        """Raises StoreError, naming the row, for what no pack is: a path that leads out of the store among them."""
        names, paths, frames, videos, _, files = columns
        if len(self._packs) < len(names):
            raise StoreError(f"{file}: a pack comes twice")
        table_numbers(frames, "frames", file, names), table_numbers(videos, "videos", file, names)
        for row, path in enumerate(paths):
            if not PACK_PATH.fullmatch(path):
                raise StoreError(f"{file}: row {row + 1} ({names[row]!r}): path {path[:200]!r}, expected "
                                 "packs/<H>x<W>/<pack>")
        for row, text in enumerate(files):
            if not FILES.fullmatch(text):
                raise StoreError(f"{file}: row {row + 1} ({names[row]!r}): files are no list of name:bytes:crc32c")

    def _check_order(self, file: Place) -> None:
        """Raises StoreError, naming the row, where ids do not rise, or a video lies outside of its pack."""
        ends = {name: int(cells[2]) for name, cells in self._packs.items()}
        past = self.first_frame + self.frames > np.array([ends.get(pack, -1) for pack in self.pack], np.int64)
        if past.any():
            row = int(past.argmax())
            pack = self.pack[row]
            raise StoreError(f"{file}: row {row + 1} ({self.id[row]!r}): frames {self.first_frame[row]} to "
                             f"{self.first_frame[row] + self.frames[row] - 1} of pack {pack!r}, which "
                             + (f"has {ends[pack]}" if pack in ends else "packs.csv does not list"))
        for row, (one, two) in enumerate(zip(["", *self.id], self.id)):
            if one >= two:
                raise StoreError(f"{file}: row {row + 1} ({two!r}): ids do not rise, or one is empty or comes twice")

    @classmethod
    def load(cls, store: Place) -> "Index":
        """The generation in force. Raises RequestError for what is no store, StoreError for damage."""
        store = as_place(store)
        generation = current_generation(store)
        videos, packs = read_generation(store, generation)
        folder = store / "index" / generation
        return cls(store, generation, table_columns(videos, VIDEO_COLUMNS, folder / "videos.csv"),
                   table_columns(packs, PACK_COLUMNS, folder / "packs.csv"))

    def __len__(self) -> int:
        return len(self.id)

    def __contains__(self, video: str) -> bool:
        position = bisect_left(self.id, video)
        return position < len(self.id) and self.id[position] == video

    def position(self, video: str) -> int:
        """Where the video stands in the columns. Raises StoreError for an id that the index does not hold."""
        position = bisect_left(self.id, video)
        if position == len(self.id) or self.id[position] != video:
            raise StoreError(f"{self.store} holds no video {video!r}")
        return position

    def row(self, video: str | int) -> VideoRow:
        """The row of a video by id or by position."""
        i = self.position(video) if isinstance(video, str) else video
        return VideoRow(self.id[i], self.path[i], self.pack[i], int(self.first_frame[i]), int(self.frames[i]),
                        int(self.label[i]), self.class_name[i], self.group[i], _splits(self.split_text[i]),
                        float(self.fps[i]), int(self.source_height[i]), int(self.source_width[i]), self.note[i])

    def file_start(self, position: int) -> int:
        """The number in its file of the video's first frame: what counts in the file's time counts from there."""
        return file_start(self.note[position])

    def rows(self) -> list[VideoRow]:
        return [self.row(i) for i in range(len(self))]

    @property
    def splits(self) -> list[str]:
        """Names of all splits, sorted."""
        return sorted({name for text in set(self.split_text) for name in _splits(text)})

    def in_split(self, split: str) -> np.ndarray:
        """Positions (n,) int64 of the split's videos. Raises StoreError for a split that no video is in."""
        having = {text for text in set(self.split_text) if split in _splits(text)}
        if not having:
            raise StoreError(f"{self.store} has no split {split!r}; it has {', '.join(self.splits) or 'none'}")
        return np.flatnonzero(np.fromiter((text in having for text in self.split_text), bool, len(self)))

    @property
    def packs(self) -> list[str]:
        return list(self._packs)

    def pack_row(self, pack: str) -> PackRow:
        """Raises StoreError for a pack that the index does not list."""
        if pack not in self._packs:
            raise StoreError(f"{self.store}: the index lists no pack {pack!r}")
        name, path, frames, videos, backend, files = self._packs[pack]
        return PackRow(name, path, int(frames), int(videos), backend, parse_files(files))

    def pack_rows(self) -> list[PackRow]:
        return [self.pack_row(pack) for pack in self._packs]


def _splits(text: str) -> tuple[str, ...]:
    return tuple(text.split(";")) if text else ()


def current_generation(store: Place) -> str:
    """The name in `current`. Raises RequestError where there is none, StoreError where it is damaged."""
    path = as_place(store) / "current"
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(f"{store} is no store: it has no file `current`; expected a folder that preprocess.run "
                           "has finished or begun to fill") from None
    name = text[:-1].decode("ascii", "replace")
    if text[-1:] != b"\n" or not GENERATION.fullmatch(name) or not (path.parent / "index" / name).is_dir():
        raise StoreError(f"{path}: {text[:60]!r} names no generation of the index")
    return name


def generations(store: Place) -> list[str]:
    """Names of the generations that are there, oldest first; on object storage, those uploaded in part among them."""
    folder = as_place(store) / "index"
    names = [entry.name for entry in folder.iterdir() if GENERATION.fullmatch(entry.name)] if folder.is_dir() else []
    return sorted(names, key=lambda name: int(name.split("-")[0]))


def read_generation(store: Place, generation: str) -> tuple[bytes, bytes]:
    """videos.csv and packs.csv, both checked. Raises StoreError."""
    folder = as_place(store) / "index" / generation
    try:
        sums, videos, packs = read_all(folder / name for name in (SUMS, "videos.csv", "packs.csv"))
    except FileNotFoundError as error:
        raise StoreError(f"{error.filename}: is missing") from error
    if crc_text(crc32c(sums)) != generation.split("-")[1]:
        raise StoreError(f"{folder / SUMS}: does not match the generation's name")
    lines = sums.decode("ascii", "replace").splitlines()
    for number, expected in enumerate((_sum("videos.csv", videos), _sum("packs.csv", packs))):
        if lines[number:number + 1] != [expected]:
            raise StoreError(f"{folder / expected.split()[-1]}: does not match its checksum")
    return videos, packs


def _sum(name: str, data: bytes) -> str:
    return f"{crc_text(crc32c(data))} {len(data)} {name}"


def contents(generation: str) -> str:
    """What generations of the same rows share: the checksum in their names."""
    return generation.rpartition("-")[2]


def publish(store: Place, packs: Sequence[PackRow], videos: Sequence[VideoRow]) -> str:
    """Put a new generation in force, atomically; returns its name. The one before it stays, older ones go.

    Only the run that holds the store's lock may publish. Raises ValueError for an id or a pack that comes twice and
    for a video whose pack is not among `packs`.
    """
    store = as_place(store)
    videos, packs = sorted(videos, key=lambda row: row.id), sorted(packs, key=lambda row: row.pack)
    names = {row.pack for row in packs}
    for one, two in zip(videos, videos[1:]):
        if one.id == two.id:
            raise ValueError(f"video {one.id!r} comes twice, in packs {one.pack!r} and {two.pack!r}")
    if len(names) < len(packs) or not names.issuperset(row.pack for row in videos):
        raise ValueError("a pack comes twice, or a video's pack is not among the packs")
    tables = {"videos.csv": table_bytes(VIDEO_COLUMNS, videos), "packs.csv": table_bytes(PACK_COLUMNS, packs)}
    sums = "".join(_sum(name, data) + "\n" for name, data in tables.items()).encode()

    past = generations(store)
    number = int(past[-1].split("-")[0]) + 1 if past else 1
    generation = f"{number:06d}-{crc_text(crc32c(sums))}"
    current = store / "current"
    before = current.read_bytes().decode("ascii", "replace").strip() if current.exists() else ""
    if isinstance(store, ObjectPath):
        lease = held(store)
        for name, data in (*tables.items(), (SUMS, sums)):
            (store / "index" / generation / name).put(data)
        lease.publish(generation)
    else:
        _write_generation(store / "index", generation, {**tables, SUMS: sums})
        write_atomic(current, f"{generation}\n".encode())
    for name in past:
        # Readers that opened the generation before this one may still be at work.
        if name != before:
            remove_tree(store / "index" / name)
    return generation


def _write_generation(folder: Path, generation: str, tables: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    hidden = hidden_name(folder / generation)
    hidden.mkdir()
    for name, data in tables.items():
        write_synced(hidden / name, data)
    fsync_directory(hidden)
    os.rename(hidden, folder / generation)
    fsync_directory(folder)


def write_failures(store: Place, failures: Sequence[FailureRow]) -> None:
    """Replace failures.csv, sorted by id.

    Its checksum lives in failures.crc32c; while the two are replaced one after the other, that file lists the old
    state and the new one, so a crash between them leaves a pair that agrees.
    """
    store = as_place(store)
    if isinstance(store, ObjectPath):
        held(store)
    data = table_bytes(FAILURE_COLUMNS, sorted(failures, key=lambda row: row.video))
    new, sums = _sum(FAILURE_TABLE, data), store / FAILURE_SUMS
    write_atomic(sums, f"{_failures_sum(store)[0]}\n{new}\n".encode())
    write_atomic(store / FAILURE_TABLE, data)
    write_atomic(sums, f"{new}\n".encode())


def _failures_sum(store: Place) -> tuple[str, bytes]:
    """The line that failures.crc32c should hold for the failures.csv that is there, and its bytes."""
    try:
        data = (store / FAILURE_TABLE).read_bytes()
    except FileNotFoundError:
        return f"absent {FAILURE_TABLE}", b""
    return _sum(FAILURE_TABLE, data), data


def read_failures(store: Place) -> list[FailureRow]:
    """The rows of failures.csv, none where there never was such a file. Raises StoreError for damage."""
    store = as_place(store)
    line, data = _failures_sum(store)
    try:
        known = (store / FAILURE_SUMS).read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        known = f"absent {FAILURE_TABLE}\n"
    if not SUM_LINES.fullmatch(known) or line not in known.split("\n"):
        raise StoreError(f"{store / FAILURE_TABLE}: does not match its checksum in {FAILURE_SUMS}, or is missing")
    if not data:
        return []
    columns = table_columns(data, FAILURE_COLUMNS, store / FAILURE_TABLE)
    table_numbers(columns[-1], "attempts", store / FAILURE_TABLE, columns[0])
    return [FailureRow(*cells[:-1], int(cells[-1])) for cells in zip(*columns)]
