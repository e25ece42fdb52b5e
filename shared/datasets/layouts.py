"""What the annotation files of a dataset say: ids, classes, groups, splits. One reader a layout.

A reader takes the videos root, the annotations the user gave (or None) and the videos found on disk (paths relative
to the root), and returns a Listing; `shared.datasets.catalog`, which knows all layouts by name, joins the two. A new
layout is a new reader; those whose annotations say more than a class a video have modules of their own (ssv2,
diving48, vidsitu, ava), and so has the user's own folder.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from shared.cli import RequestError, nearest
from shared.datasets.listing import (
    Listed,
    Listing,
    class_order,
    find_lists,
    lines_of,
    missing_lists,
    rows_of,
    stem_of,
    unlabelled,
)

KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
KINETICS_SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
HMDB51_SPLITS = {"1": "train", "2": "test"}


def ucf101(root: Path, annotations: Path | None, paths: Sequence[str]) -> Listing:
    """classInd.txt, trainlist01-03.txt, testlist01-03.txt. Names match without case: the official lists and folders
    spell HandstandPushups in two ways."""
    lists = find_lists(annotations, (root.parent / "ucfTrainTestlist", root / "ucfTrainTestlist"), "classInd.txt")
    classes = []
    for line, text in lines_of(lists / "classInd.txt"):
        number, _, name = text.partition(" ")
        if number != str(len(classes) + 1) or not name.strip():
            raise RequestError(f"classInd.txt line {line}: {text!r}; expected '{len(classes) + 1} <class>'")
        classes.append(name.strip())
    labels = {name.casefold(): label for label, name in enumerate(classes)}

    found, splits, missing = {}, {}, []
    for split in (f"{part}{number}" for number in "123" for part in ("train", "test")):
        file = lists / f"{split[:-1]}list0{split[-1]}.txt"
        if not file.is_file():
            missing.append(file.name)
            continue
        opposite = ("test" if split.startswith("train") else "train") + split[-1]
        for line, text in lines_of(file):
            match = re.fullmatch(r"(.+)/(.+)\.\w+(?:\s+(\d+))?", text)
            if not match:
                raise RequestError(f"{file.name} line {line}: {text!r}; expected '<class>/<video>.avi', "
                                   "in training lists followed by its number")
            label, stem, key = labels.get(match[1].casefold()), match[2], match[2].casefold()
            if label is None:
                raise RequestError(f"{file.name} line {line}: class {match[1]!r} is not in classInd.txt"
                                   f"{nearest(match[1], classes)}")
            if match[3] and int(match[3]) != label + 1:
                raise RequestError(f"{file.name} line {line}: number {match[3]}; classInd.txt says {label + 1}")
            taken = splits.setdefault(key, [])
            if split in taken or opposite in taken:
                raise RequestError(f"{file.name} line {line}: {stem!r} is listed in "
                                   f"{split if split in taken else opposite} already; expected one line a video")
            taken.append(split)
            group = re.search(r"_(g\d+)_c\d+$", stem)
            found[key] = (stem, classes[label], group[1] if group else "")
    if not found:
        raise RequestError(f"no trainlist01.txt or testlist01.txt with a video in {lists}; expected the official lists")
    videos = {key: Listed(*said, tuple(splits[key])) for key, said in found.items()}
    return Listing(tuple(classes), videos, lambda path: stem_of(path).casefold(), missing_lists(missing, lists))


def hmdb51(root: Path, annotations: Path | None, paths: Sequence[str]) -> Listing:
    """`<class>_test_split{1,2,3}.txt` with lines `<video>.avi <1 train | 2 test | 0 neither>`.

    The group is the source video: what stands before the class in the file name. A name that two classes share becomes
    `<class>/<name>`.
    """
    name = "testTrainMulti_7030_splits"
    lists = find_lists(annotations, (root.parent / name, root / name), "*_test_split?.txt")
    found, classes, files = {}, set(), set()
    for file in sorted(lists.glob("*_test_split?.txt")):
        match = re.fullmatch(r"(.+)_test_split([123])\.txt", file.name)
        if not match:
            raise RequestError(f"{file}; expected <class>_test_split1.txt, 2 or 3")
        class_name, number = match[1], match[2]
        classes.add(class_name)
        files.add((class_name, number))
        seen = set()
        for line, text in lines_of(file):
            row = re.fullmatch(r"(.+)\.\w+\s+([012])", text)
            if not row:
                raise RequestError(f"{file.name} line {line}: {text!r}; expected '<video>.avi' and 0, 1 or 2")
            key = f"{class_name}/{row[1]}"
            if key in seen:
                raise RequestError(f"{file.name} line {line}: {row[1]!r} is listed already; expected one line a video")
            seen.add(key)
            splits = found.setdefault(key, [])
            if row[2] in HMDB51_SPLITS:
                splits.append(HMDB51_SPLITS[row[2]] + number)
    missing = [f"{c}_test_split{n}.txt" for c in sorted(classes) for n in "123" if (c, n) not in files]
    stems = Counter(key.partition("/")[2] for key in found)
    videos = {}
    for key, splits in found.items():
        class_name, _, stem = key.partition("/")
        source, marked, _ = stem.partition(f"_{class_name}_")
        videos[key] = Listed(key if stems[stem] > 1 else stem, class_name, source if marked else "",
                             tuple(sorted(splits, key=lambda split: (split[-1], split != "train" + split[-1]))))
    return Listing(tuple(sorted(classes)), videos, lambda path: f"{PurePosixPath(path).parent.name}/{stem_of(path)}",
                   missing_lists(missing, lists))


def kinetics400(root: Path, annotations: Path | None, paths: Sequence[str]) -> Listing:
    """train.csv, val.csv or validate.csv, test.csv (test may have no labels); files `<id>_<start>_<end>`, %06d seconds.

    A row that several files repeat joins their splits; `annotations` may also be one CSV. The public mirror brings good
    copies of broken files in a folder `replacement...`: they are taken.
    """
    if annotations is not None and annotations.is_file():
        files = [annotations]
    else:
        lists = find_lists(annotations, (root.parent / "annotations", root / "annotations", root), "*.csv")
        files = [file for file in sorted(lists.glob("*.csv")) if _kinetics_split(file)]
        if not files:
            raise RequestError(f"no train.csv, val.csv, validate.csv or test.csv in {lists}; "
                               "expected the official Kinetics-400 lists")
    videos, origin = {}, {}
    for file in files:
        rows = rows_of(file, KINETICS_COLUMNS, required=("youtube_id", "time_start", "time_end"))
        for line, row in rows:
            try:
                start, end = float(row["time_start"]), float(row["time_end"])
                stem = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
            except (ValueError, OverflowError):
                raise RequestError(f"{file.name} line {line}: time_start {row['time_start']!r}, time_end "
                                   f"{row['time_end']!r}; expected seconds") from None
            said = row.get("split") or _kinetics_split(file)
            if said not in KINETICS_SPLITS:
                raise RequestError(f"{file.name} line {line}: split {said!r}{nearest(said, KINETICS_SPLITS)}")
            split, label = KINETICS_SPLITS[said], row.get("label", "")
            label = "" if unlabelled(label) else label
            before = videos.get(stem)
            if before and before.class_name != label:
                raise RequestError(f"{file.name} line {line}: {stem} is {label!r}, but {before.class_name!r} in "
                                   f"{origin[stem]}; expected one label a video")
            splits = (*before.splits, split) if before else (split,)
            videos[stem] = Listed(stem, label, row["youtube_id"], tuple(dict.fromkeys(splits)))
            origin[stem] = f"{file.name} line {line}"
    return Listing(class_order(video.class_name for video in videos.values()), videos, stem_of,
                   replaces=lambda path: any(name.startswith("replacement") for name in path.split("/")[:-1]))


def _kinetics_split(file: Path) -> str:
    """`train` of train.csv or kinetics_400_train.csv; empty for other files."""
    last = re.split(r"[-_]", file.stem)[-1]
    return last if last in KINETICS_SPLITS else ""
