"""Which videos are learnt from and which are asked: two splits, or one group after the other left out."""

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluate.features.encoders import Encoder
from evaluate.features.extract import Features, View, choose, extract
from evaluate.holdout import held_out, is_sample, relabelling
from evaluate.protocol import Request
from shared.cli import RequestError, plural
from shared.store.index import Index, contents

TRAIN = "train", "train1"     # what a store's training splits are called
OWN = "folder", "synthetic"   # datasets of people's own videos: each store holds others
INSTEAD = LEAVE_OUT, HOLDOUT = "--leave-out group", "--holdout 0.2"     # of splits


@dataclass(frozen=True)
class Samples:
    """What is learnt from: videos, or windows of videos.

    name: as a message names them; positions (N,) int64 in the store's index; first, stop (N,) int64: frames of the
    window, stop not among them; labels (N,) int64, numbers of `classes`; unlabelled: how many were left out.
    """

    name: str
    positions: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]
    unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def digest(self) -> str:
        """SHA-256 over all of it but the name."""
        table = np.stack([self.positions, self.first, self.stop, self.labels]).astype("<i8")
        return hashlib.sha256(table.tobytes() + "\n".join(self.classes).encode()).hexdigest()

    @classmethod
    def of_split(cls, index: Index, split: str | None, flag: str = "--train-split") -> "Samples":
        """The labelled videos of a split, whole; classes: theirs, by name. Raises RequestError where there are none."""
        every = choose(index, split, flag)
        positions = every[index.label[every] >= 0]
        name = f"split {split!r}" if split else "the store"
        if not len(positions):
            raise RequestError(f"{index.store}: no video of {name} has a label; this protocol needs classes: choose a "
                               "split that has them, or "
                               f"label the videos: {relabelling(index.store)}")
        classes, labels = np.unique([index.class_name[i] for i in positions], return_inverse=True)
        return cls(name, positions, np.zeros_like(positions), index.frames[positions].astype(np.int64),
                   labels.astype(np.int64), classes.tolist(), len(every) - len(positions))


@dataclass(frozen=True)
class Fold:
    """train_name, test_name: as a message names them."""

    train: Features
    test: Features
    train_name: str
    test_name: str


@dataclass(frozen=True)
class Found:
    """folds: one, or one a group; classes: names by label; counts and notes: for the Result."""

    folds: Sequence[Fold]
    classes: Sequence[str]
    counts: dict[str, int | float]
    notes: Sequence[str]


def gather_features(request: Request, variant: str = "") -> Found | None:
    """Features of the request's splits as folds, unlabelled videos left out; None on all ranks but rank 0.

    variant: in which the test videos are seen, of evaluate/features/variants.py; training videos are as they are.
    Raises RequestError for a split that is not there, two that share videos, videos without labels or without groups.
    """
    view = View.of(request.settings.features, request.encoder)
    index = Index.load(request.store)
    _check(index, request)

    def features(split: str | None, flag: str, view: View = view) -> Features | None:
        # Of a split made on the spot the features are taken from those of all videos, of few samples alone.
        held = None if split is None or is_sample(split) else held_out(index, split)
        found = extract(request.encoder, request.store, split if held is None else None, view, request.settings.run,
                        request.cache, request.world, flag)
        return found if held is None or found is None else found.take(held)

    train = features(request.train_split, "--train-split")
    test, altered = train, replace(view, variant=variant)
    if not request.leave_out:
        test = features(request.test_split, "--test-split", altered)
    elif variant:
        test = features(request.train_split, "--train-split", altered)
    if not request.world.main:
        return None
    parts = [train] if test is train else [train, test]
    counts = {"clips_per_video": view.clips, "looped": sum(part.looped for part in parts),
              "features": train.vectors.shape[1]}
    clips, seconds = sum(part.clips for part in parts), sum(part.seconds for part in parts)
    if clips:
        counts |= {"clips_extracted": clips, "extraction_s": seconds, "clips_per_s": clips / seconds}
    unlabelled = sum(int((part.labels < 0).sum()) for part in parts)
    labelled = [part.take(part.labels >= 0) if (part.labels < 0).any() else part for part in parts]
    if request.leave_out:
        folds = LeaveOut(labelled[0], labelled[-1], group_names(labelled[0].groups, request))
    else:
        folds = [Fold(*labelled, _name(request.train_split), _name(request.test_split))]
    counts |= {"train_videos": max(len(fold.train) for fold in folds),
               "test_videos": sum(len(fold.test) for fold in folds), "unlabelled": unlabelled, "folds": len(folds),
               "classes": len(np.unique(np.concatenate([part.labels for part in labelled])))}
    notes = []
    if counts["looped"]:
        short = plural(counts["looped"], "video is", "videos are")
        notes.append(f"{short} shorter than a clip of {view.geometry}; the frames repeat.")
    if unlabelled:
        notes.append(f"{plural(unlabelled, 'video without a label is', 'videos without a label are')} left out.")
    return Found(folds, train.classes, counts, notes)


def _check(index: Index, request: Request) -> None:
    """Raises RequestError for videos without labels or groups, before hours are spent on their features."""
    train = Samples.of_split(index, request.train_split)
    if request.leave_out:
        group_names([index.group[position] for position in train.positions], request)
    else:
        Samples.of_split(index, request.test_split, "--test-split")


@dataclass(frozen=True)
class LeaveOut(Sequence[Fold]):
    """A fold a group of `names`, made when it is asked for: each holds a copy of nearly all vectors."""

    features: Features
    asked: Features
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Fold:
        name, groups = self.names[number], np.asarray(self.features.groups)
        return Fold(self.features.take(groups != name), self.asked.take(groups == name),
                    f"the groups other than {name!r}", f"group {name!r}")


def group_names(groups: Sequence[str], request: Request) -> list[str]:
    """The groups to be left out in turn. Raises RequestError for a single one and for videos (of `groups`) without."""
    if not all(groups):
        bare = plural(sum(not group for group in groups), "video")
        raise RequestError(f"--leave-out group: {bare} of {len(groups):,} of {request.store} without a group; give "
                           f"every one a group: {relabelling(request.store)}")
    names = sorted(set(groups))
    if len(names) < 2:
        raise RequestError(f"--leave-out group: every video is of group {names[0]!r}; expected two groups or more: "
                           f"name a --test-split instead, or give them groups: {relabelling(request.store)}")
    return names


def _name(split: str | None) -> str:
    return "the store" if split is None else f"split {split!r}"


def default_split(index: Index, asked: str | None, names: Sequence[str], flag: str, instead: Sequence[str]) -> str:
    """The split asked for, or the first of the usual names that the store has, one with labels before one without:
    the answers to official tests are often not public. instead: of INSTEAD, what the command takes in the place of
    splits. Raises RequestError for none."""
    if asked is not None:
        return asked
    there = [name for name in names if name in index.splits]
    labelled = [name for name in there if (index.label[index.in_split(name)] >= 0).any()]
    found = next(iter([*labelled, *there]), None)
    if found is None:
        labelled = np.flatnonzero(index.label >= 0)
        groups = {index.group[i] for i in labelled}
        able = {LEAVE_OUT: len(groups) > 1 and "" not in groups,
                HOLDOUT: np.unique(index.label[labelled], return_counts=True)[1].max(initial=0) > 1}
        ways = [f"choose with {flag}"] * bool(index.splits) + [f"use {way}" for way in instead if able[way]]
        raise RequestError(f"{index.store} has no split {' nor '.join(map(repr, names))}; it has "
                           f"{', '.join(index.splits) or 'none'}: {', or '.join([*ways, relabelling(index.store)])}")
    return found


def check_apart(index: Index, train: str, test: str) -> None:
    """Raises RequestError where a video is in both splits."""
    shared = sum(train in splits and test in splits for splits in (text.split(";") for text in index.split_text))
    if shared:
        raise RequestError(f"--train-split {train!r} and --test-split {test!r} share {plural(shared, 'video')} of "
                           f"{index.store}; expected splits that share none, such as train1 and test1")


def left_out(asked: Sequence[str]) -> tuple[str | None, list[str]]:
    """Of `--leave-out group` and `--leave-out group=NAME`: `group` or None, and the NAMEs. Raises RequestError."""
    names = [text.partition("=")[2] for text in asked if text != "group"]
    for text in asked:
        if text != "group" and (text.partition("=")[0] != "group" or not text.partition("=")[2]):
            raise RequestError(f"--leave-out {text}; expected `group`, every group in turn, or group=NAME")
    if len(set(asked)) < len(asked) or names and "group" in asked:
        raise RequestError(f"--leave-out {' '.join(asked)}; expected `group` alone, or each group=NAME once")
    return ("group" if "group" in asked else None), names


def same_videos(index: Index, dataset: str, trained: Mapping) -> bool:
    """Whether a store that a checkpoint was trained on (an entry of its provenance) has this one's videos: lists of a
    published set are the same in every store, people's own stores share no more than names."""
    return trained["dataset"] == dataset and (
        dataset not in OWN or contents(index.generation) == contents(trained["index"])
        or Path(str(index.store)).resolve() == Path(trained["store"]).resolve())


def check_unseen(index: Index, dataset: str, encoder: Encoder, asked: Sequence[str | None]) -> None:
    """Raises RequestError where a checkpoint whose pre-training left groups out is asked about one that it trained on.

    dataset: of the store; asked: names of splits, None for all videos. Groups are known by their names.
    """
    for trained in encoder.provenance.get("stores", ()):
        groups = set(trained.get("groups", ())) - {""} if same_videos(index, dataset, trained) else ()
        for split in asked if groups else ():
            seen = sorted(groups.intersection(index.group[i] for i in choose(index, split)))
            if seen:
                named = " ".join(f"--leave-out {shlex.quote(f'group={name}')}" for name in trained["left_out"])
                raise RequestError(f"checkpoint {encoder.text} left out group {', '.join(trained['left_out'])} and was "
                                   f"trained on {', '.join(seen[:5])}{', ...' if len(seen) > 5 else ''}, which the "
                                   f"test asks about; ask with {named}, or pre-train another without them: add --set "
                                   f"leave_out={shlex.quote(','.join(seen))}")
