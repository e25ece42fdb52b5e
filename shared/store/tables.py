"""Rows of videos.csv, packs.csv and failures.csv, as text and back.

The files are plain CSV (UTF-8, undecodable path bytes as surrogates, "\\n", quotes only where needed).
"""

import csv
import gc
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shared.store.layout import StoreError, crc_text

DROPPED = "dropped"   # stage of a failure that the user asked for: the video counts no more, and no retry tries it


@dataclass(frozen=True)
class VideoRow:
    """A good video. path: relative to the videos root; label: -1 unlabelled; fps: frames/s, 0 unknown;
    source_height, source_width: pixels of the source as shown. The pack writer fills pack, first_frame and frames."""

    id: str
    path: str
    pack: str = ""
    first_frame: int = 0
    frames: int = 0
    label: int = -1
    class_name: str = ""
    group: str = ""
    splits: tuple[str, ...] = ()
    fps: float = 0.0
    source_height: int = 0
    source_width: int = 0
    note: str = ""

    def cells(self) -> list[str]:
        return [self.id, self.path, self.pack, str(self.first_frame), str(self.frames), str(self.label),
                self.class_name, self.group, ";".join(self.splits), repr(float(self.fps)), str(self.source_height),
                str(self.source_width), self.note]

    def document(self) -> dict:
        """For a pack's attributes. Raises ValueError when the table could not hold the row."""
        if not self.id or not math.isfinite(self.fps) or any(";" in split for split in self.splits):
            raise ValueError(f"video {self.id!r}: fps {self.fps}, splits {self.splits}; expected an id, a finite fps "
                             "(0 for unknown) and split names without ';'")
        return {"id": self.id, "path": self.path, "pack": self.pack, "first_frame": self.first_frame,
                "frames": self.frames, "label": self.label, "class": self.class_name, "group": self.group,
                "splits": list(self.splits), "fps": self.fps, "source_height": self.source_height,
                "source_width": self.source_width, "note": self.note}

    @classmethod
    def from_document(cls, document: dict) -> "VideoRow":
        values = {("class_name" if key == "class" else key): value for key, value in document.items()}
        values["splits"] = tuple(values["splits"])
        return cls(**values)


@dataclass(frozen=True)
class PackRow:
    """A pack. path: relative to the store; backend: of its flow; files: path in the pack -> (bytes, CRC-32C)."""

    pack: str
    path: str
    frames: int
    videos: int
    backend: str
    files: dict[str, tuple[int, int]] = field(hash=False)

    def cells(self) -> list[str]:
        files = ";".join(f"{name}:{size}:{crc_text(crc)}" for name, (size, crc) in sorted(self.files.items()))
        return [self.pack, self.path, str(self.frames), str(self.videos), self.backend, files]


def file_start(note: str) -> int:
    """The number in the file of the video's first frame, which its note states where it is not 0."""
    match = re.search(r"(?:^|; )starts at frame (\d+)", note)
    return int(match[1]) if match else 0


def parse_files(text: str) -> dict[str, tuple[int, int]]:
    """The column `files` of packs.csv: `name:bytes:crc32c;...`."""
    parts = (item.rsplit(":", 2) for item in text.split(";"))
    return {name: (int(size), int(crc, 16)) for name, size, crc in parts}


@dataclass(frozen=True)
class FailureRow:
    """A failed video, or one of which only the first frames are good. video: its id."""

    video: str
    path: str
    reason: str
    stage: str
    attempts: int = 1

    def cells(self) -> list[str]:
        return [self.video, self.path, self.reason, self.stage, str(self.attempts)]


VIDEO_COLUMNS = ("id", "path", "pack", "first_frame", "frames", "label", "class", "group", "splits", "fps",
                 "source_height", "source_width", "note")
PACK_COLUMNS = ("pack", "path", "frames", "videos", "backend", "files")
FAILURE_COLUMNS = ("video", "path", "reason", "stage", "attempts")


def table_bytes(columns: Sequence[str], rows: Iterable[VideoRow | PackRow | FailureRow]) -> bytes:
    text = io.StringIO(newline="")
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(columns)
    for row in rows:
        cells = row.cells()
        # csv.writer leaves a carriage return bare, which every reader takes for the end of the line.
        (quoted if "\r" in "".join(cells) else plain).writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")


def table_numbers(cells: Sequence[str], column: str, name, ids: Sequence[str], kind: type = np.int64,
                  least: int = 0) -> np.ndarray:
    """(rows,) of `kind`. Raises StoreError, naming the row, for text that is no such number, or one out of range."""
    most = 2 ** 30 if kind == np.int32 else 2 ** 48
    try:
        values = np.array(cells, kind)
        bad = ~((values >= least) & (values <= most))
    except (ValueError, OverflowError):
        bad = np.array([not _reads(cell, kind) for cell in cells])
    if bad.any():
        row = int(bad.argmax())
        raise StoreError(f"{name}: row {row + 1} ({ids[row]!r}): {column} {cells[row][:60]!r}, expected a number from "
                         f"{least} to {most}")
    return values


def _reads(cell: str, kind: type) -> bool:
    try:
        np.array([cell], kind)
    except (ValueError, OverflowError):
        return False
    return True


def table_columns(data: bytes, columns: Sequence[str], name) -> list[list[str]]:
    """The table's columns as lists of text. Raises StoreError naming `name` when the table is not as expected."""
    text = data.decode("utf-8", "surrogateescape")
    header, count = ",".join(columns) + "\n", len(columns)
    if not text.startswith(header):
        raise StoreError(f"{name}: the first line is {text[:200].splitlines()[:1]}, expected {header.strip()!r}")
    if '"' not in text:
        # Without quotes a split is twice as fast as csv, which matters for 240,000 rows.
        cells = text[len(header):].replace("\n", ",").split(",")
        if len(cells) % count != 1 or cells[-1]:
            raise StoreError(f"{name}: a line has not {count} columns")
        return [cells[i:-1:count] for i in range(count)]
    gc_was_on = gc.isenabled()
    gc.disable()  # millions of live strings make each collection slow
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
        if any(len(row) != count for row in rows):
            raise StoreError(f"{name}: a line has not {count} columns")
        return [list(column) for column in zip(*rows)] if rows else [[] for _ in columns]
    finally:
        if gc_was_on:
            gc.enable()
