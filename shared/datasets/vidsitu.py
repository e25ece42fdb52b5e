"""VidSitu: its official JSON files, which videos they list and which verbs they give to the five events of each.

split_files/vseg_split_<part>_lb.json: ids `v_<YouTube id>_seg_<start>_<end>` of clips of 10 seconds, files `<id>.mp4`;
vseg_ann_files/vsann_<part>_lb.json: annotations {Ev1..Ev5: {vid_seg_int, VerbID, Verb, ...}}, one a training clip,
several a validation clip; vinfo_files/vinfo_<part>_lb.json: [{vid_seg_int, ..., vbid_lst: {Ev1..Ev5: ten verb ids}}],
the verbs that annotators named, for validation clips only (the test clips' are kept by the leaderboard).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.cli import RequestError
from shared.datasets.listing import Listed, Listing, find_lists, missing_lists, read_document, stem_of

PARTS = {"train": "train", "valid": "val", "testvb": "test", "testsrl": "test2", "testevrel": "test3"}
EVENTS = tuple(f"Ev{number}" for number in range(1, 6))
EVENT_S = 2.0         # seconds of an event; they follow one another from the clip's first frame
ANNOTATORS = 10       # whose verbs are asked at most
SEGMENT = re.compile(r"v_(.+)_seg_\d+_\d+")


@dataclass(frozen=True)
class Verbs:
    """learnt: clip id -> its five verb ids (the annotations' most frequent one); judged: clip id -> for each of its
    five events the verb ids that up to ten annotators named."""

    learnt: dict[str, tuple[str, ...]]
    judged: dict[str, tuple[tuple[str, ...], ...]]


def listing(root: Path, annotations: Path | None, paths: Sequence[str]) -> Listing:
    """The clips of the split files, unlabelled: a clip has five verbs, which `evaluate.run --protocol verbs` reads.

    The group is the YouTube video. testvb is `test`, testsrl `test2`, testevrel `test3`. Raises RequestError for split
    files that are missing or wrong.
    """
    lists = _folder(root, annotations) / "split_files"
    videos, missing = {}, []
    for part, split in PARTS.items():
        file = lists / f"vseg_split_{part}_lb.json"
        if not file.is_file():
            missing.append(file.name)
            continue
        for number, video in enumerate(read_document(file, list), 1):
            match = SEGMENT.fullmatch(video) if isinstance(video, str) else None
            if not match:
                raise RequestError(f"{file.name} entry {number}: {str(video)[:80]!r}; expected "
                                   "v_<YouTube id>_seg_<start>_<end>")
            splits = videos[video].splits if video in videos else ()
            if split in splits:
                raise RequestError(f"{file.name} entry {number}: {video} is listed already; expected one entry a clip")
            videos[video] = Listed(video, "", match[1], (*splits, split))
    return Listing((), videos, lambda path: stem_of(path).removesuffix("_trimmed"), missing_lists(missing, lists))


def read_verbs(annotations: Path) -> Verbs:
    """The verbs of every clip that the annotation and info files name. annotations: the folder of the official files.

    Raises RequestError for files that are missing or wrong, naming file and clip.
    """
    folder, said, judged = _folder(None, annotations), defaultdict(list), {}
    for file in sorted((folder / "vseg_ann_files").glob("vsann_*_lb.json")):
        if "noann" in file.name:
            continue
        for number, entry in enumerate(read_document(file, list), 1):
            try:
                clip = entry["Ev1"]["vid_seg_int"]
                said[clip].append([str(entry[event]["VerbID"]) for event in EVENTS])
            except (KeyError, TypeError) as error:
                raise RequestError(f"{file.name} entry {number} ({type(error).__name__} {error}); expected Ev1 to Ev5, "
                                   "each with vid_seg_int and VerbID") from None
    for file in sorted((folder / "vinfo_files").glob("vinfo_*_lb.json")):
        for number, entry in enumerate(read_document(file, list), 1):
            try:
                if "vbid_lst" in entry:
                    judged[entry["vid_seg_int"]] = tuple(
                        tuple(map(str, entry["vbid_lst"][event][:ANNOTATORS])) for event in EVENTS)
            except (KeyError, TypeError) as error:
                raise RequestError(f"{file.name} entry {number} ({type(error).__name__} {error}); expected vid_seg_int "
                                   "and vbid_lst with Ev1 to Ev5") from None
    if not said:
        raise RequestError(f"no verb in {folder / 'vseg_ann_files'}; expected vsann_train_lb.json and "
                           "vsann_valid_lb.json, as in the official download")
    learnt = {clip: tuple(Counter(column).most_common(1)[0][0] for column in zip(*rows)) for clip, rows in said.items()}
    return Verbs(learnt, judged)


def _folder(root: Path | None, annotations: Path | None) -> Path:
    """The folder that holds split_files, vseg_ann_files and vinfo_files."""
    beside = () if root is None else (root.parent / "vidsitu_annotations", root / "vidsitu_annotations")
    return find_lists(annotations, beside, "split_files/vseg_split_*_lb.json")
