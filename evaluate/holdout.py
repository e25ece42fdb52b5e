"""Splits made on the spot from a store's labelled videos, named for what they are: `--holdout 0.2`, by a seed;
`--leave-out group=NAME`, of one group; `--samples N`, so many of a training split."""

import re

import numpy as np

from shared.cli import RequestError, nearest, plural, typed
from shared.store.index import Index
from shared.store.place import Place

NAME = re.compile(r"holdout (0\.\d+) by (video|group), seed (\d+): (train|test)")
SAMPLES = re.compile(r"(.+): (\d+) samples, seed (\d+)", re.DOTALL)
GROUP = re.compile(r"leave-out group (.+): (train|test)", re.DOTALL)


def holdout_names(share: float, by: str, seed: int) -> tuple[str, str]:
    """Names of the two splits, which `held_out` reads."""
    return tuple(f"holdout {share:g} by {by}, seed {seed}: {part}" for part in ("train", "test"))


def group_split_names(group: str) -> tuple[str, str]:
    """Names of the splits of all other groups and of this one, which `held_out` reads."""
    return tuple(f"leave-out group {group}: {part}" for part in ("train", "test"))


def sample_name(split: str, count: int, seed: int) -> str:
    """Name of so many samples of a split, be it one of `holdout_names` or `group_split_names`; `held_out` reads it."""
    return f"{split}: {count} samples, seed {seed}"


def is_sample(name: str | None) -> bool:
    return name is not None and SAMPLES.fullmatch(name) is not None


def relabelling(store: Place) -> str:
    """The command that gives a store's videos labels, groups and splits, as a message names it."""
    return f"`python -m preprocess.reindex {typed(store)} --annotations CSV`"


def held_out(index: Index, name: str) -> np.ndarray | None:
    """Positions (V,) of the split that `holdout_names`, `group_split_names` or `sample_name` named, sorted; None for
    any other name.

    By video: of every class the share, one video at least and all but one at most; of a class of one video none. By
    group: whole groups, as many as come nearest to the share of the videos. Raises RequestError where nothing would be
    left for one of the two, for a group that is not there, and for videos without a group.
    """
    if match := SAMPLES.fullmatch(name):
        return _sampled(index, match[1], int(match[2]), int(match[3]))
    if match := GROUP.fullmatch(name):
        return _of_group(index, match[1], match[2] == "test")
    match = NAME.fullmatch(name)
    if not match:
        return None
    share, by, rng = float(match[1]), match[2], np.random.default_rng(int(match[3]))
    positions = np.flatnonzero(index.label >= 0)
    if by == "video":
        test = np.concatenate([np.empty(0, np.int64), *(
            rng.permutation(own)[:min(max(1, round(share * len(own))), len(own) - 1)]
            for own in (positions[index.label[positions] == label] for label in np.unique(index.label[positions])))])
    else:
        groups = _groups(index, positions, "--by group")
        names, counts = np.unique(groups, return_counts=True)
        order = rng.permutation(len(names))
        taken = int(np.abs(np.cumsum(counts[order]) - share * len(groups)).argmin()) + 1 if len(names) else 0
        test = positions[np.isin(groups, names[order[:taken]])]
    train = np.setdiff1d(positions, test)
    if not len(test) or not len(train):
        raise RequestError(f"--holdout {share:g} of {plural(len(positions), 'labelled video')} of {index.store} by "
                           f"{by} leaves {len(train)} to learn from and {len(test)} to ask; expected some of each")
    return np.sort(test) if match[4] == "test" else train


def _sampled(index: Index, split: str, count: int, seed: int) -> np.ndarray:
    """Positions of `count` labelled videos of the split, sorted: of every class its share of them (largest remainder),
    one at least. Raises RequestError for more than there are and fewer than the classes."""
    positions = held_out(index, split)
    positions = index.in_split(split) if positions is None else positions
    positions = positions[index.label[positions] >= 0]
    classes, own = np.unique(index.label[positions], return_inverse=True)
    if not len(classes) <= count <= len(positions):
        raise RequestError(f"--samples {count}: {split} of {index.store} has "
                           f"{plural(len(positions), 'labelled video')} of {plural(len(classes), 'class', 'classes')}; "
                           "expected one of each class at least, and no more than there are")
    there = np.bincount(own)
    wanted = count * there / len(positions)
    taken = np.maximum(1, np.floor(wanted)).astype(int)
    while step := int(np.sign(count - taken.sum())):
        possible = (0 < taken + step) & (taken + step <= there)
        taken[np.where(possible, step * (wanted - taken), -np.inf).argmax()] += step
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(positions[own == label])[:taken[label]]
                                   for label in range(len(classes))]))


def _of_group(index: Index, group: str, tested: bool) -> np.ndarray:
    """Positions of the labelled videos of the group (tested), or of all others."""
    positions = np.flatnonzero(index.label >= 0)
    own = _groups(index, positions, "--leave-out group") == group
    if not own.any():
        raise RequestError(f"--leave-out group={group}: no labelled video of {index.store} is of that group"
                           f"{nearest(group, filter(None, index.group))}")
    if own.all():
        raise RequestError(f"--leave-out group={group}: every labelled video of {index.store} is of that group; "
                           "expected another to learn from")
    return positions[own if tested else ~own]


def _groups(index: Index, positions: np.ndarray, flag: str) -> np.ndarray:
    """The group of each video (V,). Raises RequestError for videos without one."""
    groups = np.array([index.group[i] for i in positions], str)
    if bare := int((groups == "").sum()):
        raise RequestError(f"{flag}: {plural(bare, 'video')} of {len(groups):,} of {index.store} without a group; give "
                           f"every one a group: {relabelling(index.store)}")
    return groups
