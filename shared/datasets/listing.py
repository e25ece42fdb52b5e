"""What a layout's reader returns, and how annotation files are found and read: text, JSON, CSV, every fault named."""

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from shared.cli import RequestError, plural

NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?")
UNLABELLED = re.compile(r"(-1(\.0*)?|nan)?", re.IGNORECASE)
ENDINGS = frozenset("." + ending for ending in """
    3g2 3gp asf avi divx f4v flv m1v m2ts m2v m4v mjpeg mjpg mkv mov mp4 mpe mpeg mpg mts mxf nut ogm ogv qt rm rmvb ts
    vob webm wmv y4m""".split())
BINS = frozenset(("#recycle", "@recycle", "$recycle.bin", "@eadir", "#snapshot", "__macosx",
                  "system volume information"))     # of NAS boxes, Windows and macOS
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "spaces"}


@dataclass(frozen=True)
class Listed:
    """What the annotations say of one video; an empty class_name is unlabelled."""

    id: str
    class_name: str
    group: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """classes in label order; videos by the key that `key(path relative to the root)` gives for a file on disk;
    replaces: whether the file at such a path is taken in place of others of its key; columns: of a folder's CSV."""

    classes: tuple[str, ...]
    videos: dict[str, Listed]
    key: Callable[[str], str]
    notes: tuple[str, ...] = ()
    replaces: Callable[[str], bool] = lambda path: False
    columns: tuple[str, ...] = ()


def is_video(path: str) -> bool:
    """Whether a path below a root is that of a video, by its ending; what is hidden or thrown away is none."""
    *folders, name = path.split("/")
    return os.path.splitext(name)[1].lower() in ENDINGS and not any(part.startswith(".") for part in (*folders, name)) \
        and not any(folder.casefold() in BINS for folder in folders)


def within(path: str) -> str:
    """The path without the archives that it leads into: what stands in an archive is read as if it were unpacked."""
    *folders, name = path.split("/")
    return "/".join([*(folder for folder in folders if not folder.lower().endswith((".tar", ".zip"))), name])


def stem_of(path: str) -> str:
    """The file's name without its folders and its ending."""
    return path.rpartition("/")[2].rpartition(".")[0]


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """The classes in label order: by value where all are numbers, else as text; the empty name is none."""
    found = set(names) - {""}
    numbers = all(NUMBER.fullmatch(name) for name in found)
    return tuple(sorted(found, key=(lambda name: (Decimal(name), name)) if numbers else None))


def unlabelled(label: str) -> bool:
    """Whether a cell of a CSV says that there is no label: empty, -1, or the nan that data frames write."""
    return bool(UNLABELLED.fullmatch(label))


def missing_lists(missing: list[str], lists: Path) -> tuple[str, ...]:
    if not missing:
        return ()
    return (f"{plural(len(missing), 'split list is', 'split lists are')} not in {lists} (first {missing[0]}): "
            f"{'its split is' if len(missing) == 1 else 'their splits are'} empty",)


def find_lists(given: Path | None, candidates: Sequence[Path], pattern: str) -> Path:
    """The first folder that holds a file like `pattern`; raises RequestError naming where it looked."""
    looked = [given] if given is not None else candidates
    for path in looked:
        if path.is_dir() and next(iter(path.glob(pattern)), None) is not None:
            return path
    raise RequestError(f"no {pattern} in {' nor '.join(map(str, looked))}; expected the dataset's official lists, "
                       "give their folder as --annotations DIR")


def lines_of(file: Path) -> Iterator[tuple[int, str]]:
    """(line number, stripped text) of every line that is not blank."""
    for line, text in enumerate(read_text(file).split("\n"), 1):
        if text.strip():
            yield line, text.strip()


def read_text(file: Path) -> str:
    """Raises RequestError for a file that cannot be read or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise RequestError(f"cannot read {file}: {error.strerror}; give an existing file as --annotations") from None


def read_document(file: Path, kind: type):
    """The JSON document of an official file, a list or a dict as `kind` says. Raises RequestError for another."""
    try:
        document = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise RequestError(f"{file} line {error.lineno} is no JSON ({error.msg}); download the official file anew") \
            from None
    if not isinstance(document, kind):
        raise RequestError(f"{file} holds a JSON {type(document).__name__}; expected a {kind.__name__}, as in the "
                           "official file")
    return document


def rows_of(file: Path, known: Sequence[str], required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, known column -> stripped cell) of every row of a CSV with a header; other columns are left alone.

    A known column that is missing while an unknown one nearly bears its name is a misspelling and refused.
    """
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(header) == 1 and header[0] not in known and (separator := _separator(header[0])):
            raise RequestError(f"{file.name} line 1: {header[0]!r} is separated by {separator}; expected commas "
                               "between the cells, save it as a comma-separated CSV")
        for name in header:
            close = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.7)
            if name not in known and close and close[0] not in header:
                raise RequestError(f"{file.name} line 1: column {name!r} is unknown; did you mean {close[0]!r}?")
        for name in required:
            if name not in header:
                raise RequestError(f"{file.name} line 1: columns {', '.join(header) or 'none'}; "
                                   f"{name!r} is missing, expected {', '.join(known)}")
        twice = [name for name in known if header.count(name) > 1]
        if twice:
            raise RequestError(f"{file.name} line 1: column {twice[0]!r} stands there twice; expected it once")
        columns = [(name, header.index(name)) for name in known if name in header]
        for row in reader:
            while len(row) > len(header) and not row[-1].strip():      # as spreadsheets fill rows up
                row.pop()
            if not any(map(str.strip, row)):
                continue
            if len(row) != len(header):
                separator = _separator(row[0]) if len(row) == 1 else ""
                raise RequestError(f"{file.name} line {reader.line_num}: {plural(len(row), 'cell')}"
                                   + (f", separated by {separator}; expected {len(header)} with commas between them"
                                      if separator else f"; expected {len(header)}, quote cells that hold commas"))
            yield reader.line_num, {name: row[at].strip() for name, at in columns}
    except csv.Error as error:
        raise RequestError(f"{file.name} line {reader.line_num}: {error}; expected a comma-separated file") from None


def _separator(line: str) -> str:
    """What stands between the cells of a line that has no comma; empty where nothing does."""
    return next((name for mark, name in SEPARATORS.items() if mark in line), "")
