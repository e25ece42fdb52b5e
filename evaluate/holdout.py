"""`--holdout 0.2` and `--leave-out group=NAME`: a test split made on the spot from a store's labelled videos, by a seed
or of one group, named for what it is."""

import re

import numpy as np

from shared.cli import RequestError, nearest, plural, typed
from shared.store.index import Index
from shared.store.place import Place

NAME = re.compile(r"holdout (0\.\d+) by (video|group), seed (\d+): (train|test)")
GROUP = re.compile(r"leave-out group (.+): (train|test)", re.DOTALL)


def holdout_names(share: float, by: str, seed: int) -> tuple[str, str]:
    """Names of the two splits, which `held_out` reads."""
    return tuple(f"holdout {share:g} by {by}, seed {seed}: {part}" for part in ("train", "test"))


def group_split_names(group: str) -> tuple[str, str]:
    """Names of the splits of all other groups and of this one, which `held_out` reads."""
    return tuple(f"leave-out group {group}: {part}" for part in ("train", "test"))


def relabelling(store: Place) -> str:
    """The command that gives a store's videos labels, groups and splits, as a message names it."""
    return f"`python -m preprocess.reindex {typed(store)} --annotations CSV`"


def held_out(index: Index, name: str) -> np.ndarray | None:
    """Positions (V,) of the split that `holdout_names` or `group_split_names` named, sorted; None for any other name.

    By video: of every class the share, one video at least and all but one at most; of a class of one video none. By
    group: whole groups, as many as come nearest to the share of the videos. Raises RequestError where nothing would be
    left for one of the two, for a group that is not there, and for videos without a group.
    """
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
