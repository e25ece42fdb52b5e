"""A folder of one's own: `<class>/<video>`, `<split>/<class>/<video>`, or what a CSV says of it."""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from shared.cli import RequestError, plural, typed
from shared.datasets.listing import Listed, Listing, class_order, rows_of, unlabelled, within
from shared.store.place import Place

SPLIT = re.compile(r"(train|val|test)[0-9]*")
COLUMNS = ("path", "label", "split", "group")
SPLIT_FOLDER = re.compile(r"(?:videos?[-_ ]?)?"
                          r"(?:(train(?:ing)?)|(val(?:id(?:at(?:e|ion))?)?|dev)|(test(?:ing)?|eval(?:uation)?))([0-9]*)"
                          r"(?:[-_ ]?(?:set|split|videos?|data))?", re.IGNORECASE)

Reading = Callable[[str], tuple[str, str]]    # a path -> its class, empty for none, and its split
Stored = Mapping[str, tuple[str, tuple[str, ...]]]
Told = Mapping[str, Mapping[str, str]]        # path -> those of label, split and group that an archive's fields say


def listing(root: Place, annotations: Path | None, paths: Sequence[str], stored: Stored,
            told: Told = MappingProxyType({})) -> Listing:
    """The videos of `paths` with what the folders say of class and split, or what a CSV (path, label, split, group)
    says.

    Without `annotations`, an annotations.csv in the root is taken. Where the CSV has no label or no split column, and
    without a CSV, `told` decides, what an archive's fields say by path, and where it is silent the folders
    (`choose_reading`); a video that lies in no split folder is in `train`.
    stored: of the store that is to grow, class and splits by video id.
    """
    if annotations is None and not (root / "annotations.csv").is_file():
        reading, notes = choose_reading(paths, stored, root, tuple(
            name for name in ("label", "split") if not any(name in said for said in told.values())))
        videos = {}
        for path in paths:
            (class_name, split), said = reading(path), told.get(path, {})
            videos[path] = Listed(path, said.get("label", class_name), said.get("group", ""),
                                  _told_splits(path, said["split"]) if "split" in said else (split,))
        return Listing(class_order(video.class_name for video in videos.values()), videos, str, notes)
    file = annotations or root / "annotations.csv"
    rows = _read(file, root)
    missing = [name for name in ("label", "split") if not all(name in row for row in rows.values())]
    reading, notes = choose_reading(rows, stored, root, missing) if missing else (_first_folder, ())
    notes = (f"annotations: {file}", *(f"{file.name} has no column {' nor '.join(missing)}: {note}" for note in notes))
    held, videos, negative = {name for name, _ in stored.values()}, {}, 0
    for path, row in rows.items():
        (class_name, split), said = reading(path), told.get(path, {})
        row = {name: said[name] for name in ("label", "group") if name in said} | row
        label = row.get("label", class_name)
        if "label" in row and unlabelled(label) and label not in held:
            negative, label = negative + bool(label), ""
        videos[path] = Listed(path, label, row.get("group", ""), _splits(row["split"]) if "split" in row else
                              _told_splits(path, said["split"]) if "split" in said else (split,))
    if negative:
        notes += (f"read as unlabelled: {plural(negative, 'label')} -1 or nan of {file.name}",)
    # A list that was written on a Mac may spell an accent as two characters where the disk has one, or the reverse.
    spelt = {unicodedata.normalize("NFC", path): path for path in videos}
    # And one of a folder serves the archives that were made of it.
    return Listing(class_order(video.class_name for video in videos.values()), videos,
                   lambda path: path if path in videos else next(
                       (key for one in (path, within(path))
                        if (key := spelt.get(unicodedata.normalize("NFC", one)))), path), notes,
                   columns=tuple(next(iter(rows.values()), ())))


def _read(file: Place, root: Place) -> dict[str, dict[str, str]]:
    """path -> the cells of its row. Raises RequestError naming the line."""
    rows, lines = {}, {}
    for line, row in rows_of(file, COLUMNS, required=("path",)):
        posix = PurePosixPath(row["path"])
        if not posix.name or posix.is_absolute() or ".." in posix.parts:
            raise RequestError(f"{file.name} line {line}: path {row['path']!r}; expected one relative to {root}")
        path = str(posix)
        if path in rows:
            raise RequestError(f"{file.name} line {line}: {path!r} stands in line {lines[path]} already; "
                               "expected one row a path")
        for split in _splits(row.get("split", "")):
            if not SPLIT.fullmatch(split):
                close = difflib.get_close_matches(split.casefold(), ("train", "val", "test"), n=1)
                raise RequestError(f"{file.name} line {line}: split {split!r}; expected train, val or test, several "
                                   "joined by semicolons as in train;val"
                                   + (f"; did you mean {close[0]!r}?" if close else ""))
        rows[path], lines[path] = row, line
    return rows


def _splits(cell: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(split.strip() for split in cell.split(";"))) if cell else ()


def _told_splits(path: str, text: str) -> tuple[str, ...]:
    """Of a split field, spelt as folders may be. Raises RequestError for what names no split."""
    splits = tuple(dict.fromkeys(split_name(one.strip()) for one in text.split(";")))
    if "" in splits:
        raise RequestError(f"{path}: its field for the split says {text[:80]!r}; expected train, val or test, several "
                           "joined by semicolons as in train;val")
    return splits


def choose_reading(paths: Iterable[str], stored: Stored, root: Place,
                   decides: Sequence[str] = ("label", "split")) -> tuple[Reading, tuple[str, ...]]:
    """How class and split follow from a path here, and what to say of it.

    Folders are splits where every video below the root lies in one that is named as one (train, validation, testing,
    ...), above the classes or right below them. Otherwise the first folder is the class, as where somebody's class is
    `train`. A store that holds some of the videos is read on as it was: its rows tell. decides: what is asked.
    """
    paths = list(paths)
    folders = [within(path).split("/")[:-1] for path in paths if "/" in within(path)]
    reading = _first_folder
    if _splits_above(folders):
        reading = _split_above
    elif folders and all(len(names) == 2 and split_name(names[1]) for names in folders):
        reading = _split_below

    def agree(one: Reading, path: str) -> bool:
        (class_name, split), (class_before, splits_before) = one(path), stored[path]
        return ("label" not in decides or class_name == class_before) and \
            ("split" not in decides or (split,) == splits_before)

    held = [path for path in paths if path in stored]
    before = max((reading, _first_folder, _split_above, _split_below), key=lambda one: sum(agree(one, p) for p in held))
    if before is not reading:      # max takes the first of equals: the folders' own
        return before, (f"the videos that the store holds were read with {_words(before)}, and so are these; a new "
                        f"--store takes {_words(reading)}",)
    return reading, _doubts(folders, root) if reading is _first_folder else \
        (f"read with {_words(reading)}: {_shares(paths, reading)}",)


def _splits_above(folders: Sequence[Sequence[str]]) -> bool:
    """Whether every folder path begins with a split's name, and not just because one flat class bears it."""
    tops = {split_name(names[0]) if names else "" for names in folders}
    return bool(tops) and "" not in tops and (len(tops) > 1 or any(len(names) > 1 for names in folders))


def split_name(folder: str) -> str:
    """The split that a folder's name stands for: train for Training, val for valid_set, test2 for test2; else none."""
    found = SPLIT_FOLDER.fullmatch(folder)
    return "" if not found else ("train" if found[1] else "val" if found[2] else "test") + found[4]


def _first_folder(path: str) -> tuple[str, str]:
    first, slash, _ = within(path).partition("/")
    return first if slash else "", "train"


def _split_above(path: str) -> tuple[str, str]:
    first, *rest = within(path).split("/")
    if not rest or not split_name(first):
        return _first_folder(path)
    return rest[0] if len(rest) > 1 else "", split_name(first)


def _split_below(path: str) -> tuple[str, str]:
    class_name, *rest = within(path).split("/")
    return _first_folder(path) if len(rest) < 2 or not split_name(rest[0]) else (class_name, split_name(rest[0]))


def _words(reading: Reading) -> str:
    return {_first_folder: "the first folder as the class", _split_above: "the first folder as the split, the next as "
            "the class", _split_below: "the first folder as the class, the next as the split"}[reading]


def _shares(paths: Sequence[str], reading: Reading) -> str:
    counts, bare = Counter(), 0
    for path in paths:
        class_name, split = reading(path)
        counts[split] += 1
        bare += not class_name
    said = ", ".join(f"{split} {plural(count, 'video')}" for split, count in sorted(counts.items()))
    return said + (f", {bare:,} of them in no class folder and unlabelled" if bare else "")


def _doubts(folders: Sequence[Sequence[str]], root: Place) -> tuple[str, ...]:
    """Folders that look like splits and are not read as such."""
    if len({names[0] for names in folders}) == 1 and _splits_above([names[1:] for names in folders]):
        inner = root / folders[0][0]
        return (f"every video lies in {inner.name}/, which is read as its class; --videos {typed(inner)} takes "
                f"{_words(_split_above)}",)
    odd = next(("/".join(names[:at + 1]) for names in folders for at in (0, 1)
                if len(names) > 1 and split_name(names[at])), "")
    return () if not odd else (f"{odd}/ is named as a split and is read as a class or a part of one, since not every "
                               "video lies in such a folder; to have splits, give each one, or an --annotations CSV "
                               "with a column split",)
