"""Diving48, version 2: its official JSON lists, and what they say of a video.

Diving48_vocab.json [[take-off, somersaults, twists, position]], a class each, by its number; Diving48_V2_train.json and
Diving48_V2_test.json [{vid_name, label, start_frame, end_frame}]. Files are `<vid_name>.mp4`, one dive each, from its
first frame to its last, so that the frames of the lists say nothing more.
"""

from collections.abc import Sequence
from pathlib import Path

from shared.cli import RequestError, plural
from shared.datasets.listing import Listed, Listing, find_lists, missing_lists, read_document, stem_of

VOCABULARY = "Diving48_vocab.json"
LISTS = {"Diving48_V2_train.json": "train", "Diving48_V2_test.json": "test"}


def listing(root: Path, annotations: Path | None, paths: Sequence[str]) -> Listing:
    """Every video of the lists that are there, classes in the order of the vocabulary, as `Back 15som 05Twis FREE`;
    the group is the film that the dive was cut from. Raises RequestError for lists that are missing or wrong."""
    lists = find_lists(annotations, (root.parent, root.parent / "annotations", root), VOCABULARY)
    classes = []
    for number, parts in enumerate(read_document(lists / VOCABULARY, list), 1):
        if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part for part in parts):
            raise RequestError(f"{VOCABULARY} entry {number}: {str(parts)[:80]!r}; expected a list of words, such as "
                               '["Back", "15som", "05Twis", "FREE"]')
        classes.append(" ".join(parts))
    if len(set(classes)) < len(classes):
        raise RequestError(f"{lists / VOCABULARY} names a class twice; download the official file anew")
    videos, files, missing = {}, {}, []
    for name, split in LISTS.items():
        if not (lists / name).is_file():
            missing.append(name)
            continue
        for number, entry in enumerate(read_document(lists / name, list), 1):
            video, label = (entry.get("vid_name"), entry.get("label")) if isinstance(entry, dict) else (None, None)
            if not isinstance(video, str) or not video or type(label) is not int:
                raise RequestError(f"{name} entry {number}: {str(entry)[:80]!r}; expected an object with a 'vid_name' "
                                   "and a 'label'")
            if not 0 <= label < len(classes):
                raise RequestError(f"{name} entry {number}: label {label}; {VOCABULARY} has "
                                   f"{plural(len(classes), 'class', 'classes')}, from 0 on")
            if video in videos:
                raise RequestError(f"{name} entry {number}: {video!r} stands in {files[video]} already; expected one "
                                   "entry a video")
            videos[video] = Listed(video, classes[label], video.rpartition("_")[0], (split,))
            files[video] = name
    if not videos:
        raise RequestError(f"no {' or '.join(LISTS)} with a video in {lists}; expected the official lists of version 2 "
                           "(version 1 is labelled wrongly in many places)")
    return Listing(tuple(classes), videos, stem_of, missing_lists(missing, lists))
