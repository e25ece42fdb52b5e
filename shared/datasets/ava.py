"""AVA actions v2.2: its official CSVs and label map, and which persons they show at which second doing what.

ava_<train|val>_v2.2.csv, without a header: video, second of the movie, x1, y1, x2, y2 (shares of the frame's width and
height, from its top left corner), action id, person id: a row an action of a person; or video and second alone, for a
keyframe that shows nobody. ava_<part>_excluded_timestamps_v2.2.csv: video, second.
ava_action_list_v2.2_for_activitynet_2019.pbtxt: the 60 of the 80 actions that count. Movies are `<video>.mp4`, `.mkv`
or `.webm`, whole or cut to minutes 15 to 30; keyframes stand at seconds 902 to 1798.

P persons, each at one second of one video; K actions.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.cli import RequestError, plural
from shared.datasets.listing import Listed, Listing, find_lists, missing_lists, read_text, stem_of

PARTS = ("train", "val")
NOBODY, PERSON = 2, 8       # cells of a row
LABEL_MAP = "ava_action_list_v2.2_for_activitynet_2019.pbtxt"
ITEM = re.compile(r"\b(?:item|label)\s*\{([^}]*)\}")


@dataclass(frozen=True)
class Persons:
    """video: ids, a list of P; second (P,) int64; box (P, 4) float64 x1, y1, x2, y2, shares of the frame; acts (P, K)
    bool: which actions of the label map each does; score (P,) float64 of a detector's boxes, 1 of annotated ones."""

    video: list[str]
    second: np.ndarray
    box: np.ndarray
    acts: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.video)

    def take(self, rows: np.ndarray) -> "Persons":
        """The persons of `rows`, positions or a mask."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows, np.int64)
        return Persons([self.video[i] for i in rows], self.second[rows], self.box[rows], self.acts[rows],
                       self.score[rows])

    def at(self, keyframes: Set[tuple[str, int]]) -> np.ndarray:
        """(P,) bool: who stands at one of these (video, second) pairs."""
        return np.array([key in keyframes for key in zip(self.video, self.second.tolist())], bool)


@dataclass(frozen=True)
class Annotations:
    """actions: names of the K actions that count; persons: of all CSVs, those at excluded seconds left out; keyframes:
    the (video, second) pairs that have a row, whatever it says, but the excluded ones; excluded: those."""

    actions: tuple[str, ...]
    persons: Persons
    keyframes: frozenset[tuple[str, int]]
    excluded: frozenset[tuple[str, int]]


def listing(root: Path, annotations: Path | None, paths: Sequence[str]) -> Listing:
    """The videos of the CSVs, unlabelled: what their persons do is what `evaluate.run --protocol detection` reads.

    Raises RequestError for CSVs that are missing or wrong.
    """
    folder = find_lists(annotations, (root.parent / "annotations", root / "annotations", root), "ava_*_v2.2.csv")
    splits, missing = {}, []
    for part in PARTS:
        file = folder / f"ava_{part}_v2.2.csv"
        if not file.is_file():
            missing.append(file.name)
            continue
        for video in dict.fromkeys(cells[0] for _, cells in _records(file, NOBODY, PERSON)):
            splits[video] = (*splits.get(video, ()), part)
    if not splits:
        raise RequestError(f"no ava_train_v2.2.csv or ava_val_v2.2.csv with a person in {folder}; expected the "
                           "official CSVs")
    videos = {video: Listed(video, "", "", said) for video, said in splits.items()}
    return Listing((), videos, stem_of, missing_lists(missing, folder))


def read_annotations(folder: Path) -> Annotations:
    """Every person of the training and validation CSVs there, without the excluded seconds.

    Actions that the label map does not name are no actions; their persons stay. Raises RequestError for files that are
    missing or wrong, naming file and line.
    """
    find_lists(folder, (), "ava_*_v2.2.csv")
    if not (folder / LABEL_MAP).is_file():
        raise RequestError(f"no {LABEL_MAP} in {folder}; expected the official label map of the actions that count")
    names, numbers = read_label_map(folder / LABEL_MAP)
    parts, keyframes, excluded = [], set(), set()
    for part in PARTS:
        file, out = folder / f"ava_{part}_v2.2.csv", folder / f"ava_{part}_excluded_timestamps_v2.2.csv"
        if file.is_file():
            if not out.is_file():
                raise RequestError(f"no {out.name} beside {file}; expected the official list of seconds that do not "
                                   "count (an empty file: all count)")
            persons, there = _read(file, numbers, scored=False)
            parts.append(persons)
            keyframes |= there
            excluded |= {(cells[0], _second(cells[1], out, line)) for line, cells in _records(out, NOBODY)}
    if not parts:
        raise RequestError(f"no ava_train_v2.2.csv nor ava_val_v2.2.csv in {folder}; expected the official CSVs")
    persons = Persons([video for part in parts for video in part.video],
                      *(np.concatenate([getattr(part, name) for part in parts])
                        for name in ("second", "box", "acts", "score")))
    return Annotations(names, persons.take(~persons.at(excluded)), frozenset(keyframes - excluded), frozenset(excluded))


def read_label_map(file: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names of the actions that count, by id, and their ids -> 0 to K - 1. Raises RequestError."""
    found = {}
    for body in ITEM.findall(read_text(file)):
        name, number = re.search(r'name:\s*"([^"]*)"', body), re.search(r"\b(?:label_)?id:\s*(\d+)", body)
        if not name or not number or int(number[1]) in found:
            raise RequestError(f"{file.name}: {' '.join(body.split())!r}; expected a name and an id of its own")
        found[int(number[1])] = name[1]
    if not found:
        raise RequestError(f'{file} names no action; expected item {{ name: "walk" id: 14 }} and so on, as the '
                           'official label map has them')
    return tuple(found[number] for number in sorted(found)), {number: k for k, number in enumerate(sorted(found))}


def read_persons(file: Path, numbers: dict[int, int], scored: bool = False) -> Persons:
    """The persons of a CSV: rows of one second and one box are one person with several actions.

    numbers: action id -> 0 to K - 1, others are left alone; scored: a detector's boxes, whose last cell is their score
    and whose action cell may be empty. Raises RequestError naming file and line.
    """
    return _read(file, numbers, scored)[0]


def _read(file: Path, numbers: dict[int, int], scored: bool) -> tuple[Persons, set[tuple[str, int]]]:
    """The persons of a CSV, and the (video, second) pairs of all its rows."""
    rows, found, keyframes = {}, [], set()
    for line, cells in _records(file, NOBODY, PERSON):
        keyframe = cells[0], _second(cells[1], file, line)
        keyframes.add(keyframe)
        if len(cells) == NOBODY:
            continue
        try:
            box = tuple(map(float, cells[2:6]))
            action = int(cells[6]) if cells[6].strip() else 0
            score = float(cells[7]) if scored else 1.0
        except ValueError:
            raise RequestError(f"{file.name} line {line}: {','.join(cells)!r}; expected video, second, x1, y1, x2, y2, "
                               f"action id, {'score' if scored else 'person id'}") from None
        # Detectors' boxes reach a little beyond the frame; pixels would reach far.
        if not (-0.5 <= box[0] <= box[2] <= 1.5 and -0.5 <= box[1] <= box[3] <= 1.5):
            raise RequestError(f"{file.name} line {line}: box {', '.join(cells[2:6])}; expected x1, y1, x2, y2 as "
                               "shares of the frame, from 0 to 1")
        # Two persons may share a box; a detector's rows are one box each.
        key = (*keyframe, box, None if scored else cells[7].strip())
        if key not in rows:
            rows[key] = len(found)
            found.append((set(), score))
        if action in numbers:
            found[rows[key]][0].add(numbers[action])
    acts = np.zeros((len(found), len(numbers)), bool)
    for row, (actions, _) in enumerate(found):
        acts[row, list(actions)] = True
    keys = list(rows)
    return Persons([key[0] for key in keys], np.array([key[1] for key in keys], np.int64),
                   np.array([key[2] for key in keys], np.float64).reshape(-1, 4), acts,
                   np.array([score for _, score in found], np.float64)), keyframes


def _records(file: Path, *widths: int) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every row. Raises RequestError where one has another number of cells."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""))
    for cells in reader:
        if cells and len(cells) not in widths:
            raise RequestError(f"{file.name} line {reader.line_num}: {plural(len(cells), 'cell')}; expected "
                               f"{' or '.join(map(str, widths))}, as in the official CSV, which has commas between "
                               "the cells and no header")
        if cells:
            yield reader.line_num, cells


def _second(text: str, file: Path, line: int) -> int:
    if not text.strip().isdecimal():
        raise RequestError(f"{file.name} line {line}: second {text!r}; expected a whole number, as in 0902")
    return int(text)
