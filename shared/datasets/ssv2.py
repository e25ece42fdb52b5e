"""Something-Something v2: its official JSON lists, and what they say of a video.

labels.json {class: number as text}; train.json and validation.json [{id, label, template, placeholders}], the class
being the template without its brackets (which some copies of labels.json keep); test.json [{id}] and, in newer
downloads, test-answers.csv (`id;class`). Older downloads call them something-something-v2-labels.json and so on. Files
are `<id>.webm`.
"""

from collections.abc import Sequence
from pathlib import Path

from shared.cli import RequestError, nearest, plural
from shared.datasets.listing import Listed, Listing, find_lists, missing_lists, read_document, read_text, stem_of

PREFIX = "something-something-v2-"
LISTS = {"train": "train", "validation": "val", "test": "test"}    # the file's name -> the split


def listing(root: Path, annotations: Path | None, paths: Sequence[str]) -> Listing:
    """Every video of the lists that are there, classes in the order of labels.json, test videos without answers
    unlabelled. Raises RequestError for lists that are missing or wrong."""
    lists = find_lists(annotations, (root.parent / "labels", root.parent / "annotations", root / "labels", root),
                       "*labels.json")
    prefix = PREFIX if (lists / f"{PREFIX}labels.json").is_file() else ""
    labels = lists / f"{prefix}labels.json"
    if not labels.is_file():
        raise RequestError(f"no labels.json nor {labels.name} in {lists}; expected the official lists")
    classes = _classes(labels)
    known = {_bare(name): name for name in classes}
    if len(known) < len(classes):
        raise RequestError(f"{labels} names a class twice, with brackets and without; download the official file anew")
    answers = _answers(lists / f"{prefix}test-answers.csv", known)
    videos, files, missing = {}, {}, []
    for name, split in LISTS.items():
        file = lists / f"{prefix}{name}.json"
        if not file.is_file():
            missing.append(file.name)
            continue
        for number, entry in enumerate(read_document(file, list), 1):
            video = entry.get("id") if isinstance(entry, dict) else None
            if not isinstance(video, str) or not video:
                raise RequestError(f"{file.name} entry {number}: {str(entry)[:80]!r}; expected an object with an 'id'")
            if video in videos:
                raise RequestError(f"{file.name} entry {number}: the id {video!r} stands in {files[video]} already; "
                                   "expected one entry a video")
            videos[video] = Listed(video, _class_of(entry, file, number, known, answers), "", (split,))
            files[video] = file.name
    if not videos:
        raise RequestError(f"no {prefix}train.json, {prefix}validation.json or {prefix}test.json with a video in "
                           f"{lists}; expected the official lists")
    return Listing(tuple(classes), videos, stem_of, missing_lists(missing, lists))


def _classes(file: Path) -> list[str]:
    numbers = {}
    for name, number in read_document(file, dict).items():
        if not str(number).isdecimal() or int(number) in numbers:
            raise RequestError(f"{file.name}: class {name!r} has number {number!r}; expected a number of its own")
        numbers[int(number)] = name
    if sorted(numbers) != list(range(len(numbers))) or not numbers:
        raise RequestError(f"{file.name}: {plural(len(numbers), 'class', 'classes')} with numbers to "
                           f"{max(numbers, default=-1)}; expected 0, 1, 2, ... without gaps")
    return [numbers[i] for i in range(len(numbers))]


def _bare(name: str) -> str:
    """A template or class without what lists write in two ways: the brackets around `something`, case, blanks."""
    return " ".join(name.replace("[", "").replace("]", "").casefold().split())


def _class_of(entry: dict, file: Path, number: int, classes: dict[str, str], answers: dict[str, str]) -> str:
    if "template" not in entry:
        return answers.get(entry["id"], classes.get(_bare(str(entry.get("label", ""))), ""))
    name = _bare(str(entry["template"]))
    if name not in classes:
        raise RequestError(f"{file.name} entry {number}: template {entry['template']!r} is no class of labels.json"
                           f"{nearest(str(entry['template']), classes.values())}")
    return classes[name]


def _answers(file: Path, classes: dict[str, str]) -> dict[str, str]:
    """Classes of the test videos; none where the file is not there. The class is what follows the first semicolon."""
    found = {}
    for line, text in enumerate(read_text(file).splitlines() if file.is_file() else (), 1):
        video, semicolon, name = text.partition(";")
        if text.strip() and (not semicolon or _bare(name) not in classes):
            raise RequestError(f"{file.name} line {line}: {text[:80]!r}; expected '<id>;<class of labels.json>'")
        if text.strip():
            found[video.strip()] = classes[_bare(name)]
    return found
