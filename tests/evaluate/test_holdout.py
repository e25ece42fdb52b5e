"""Splits made on the spot: what they hold, and what a run on them says."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.holdout import held_out, holdout_names
from shared.cli import RequestError


def parts(labels, groups, share, by, seed):
    index = SimpleNamespace(store="STORE", label=np.array(labels), group=groups)
    return [held_out(index, name) for name in holdout_names(share, by, seed)]


@given(labels=st.lists(st.integers(-1, 3), min_size=2, max_size=60), share=st.sampled_from([0.1, 0.2, 0.5, 0.75]),
       seed=st.integers(0, 99))
def test_by_video_every_class_gives_its_share(labels, share, seed):
    counts = {label: labels.count(label) for label in set(labels) - {-1}}
    if max(counts.values(), default=0) < 2:
        return
    train, test = parts(labels, [""] * len(labels), share, "video", seed)
    assert sorted([*train, *test]) == [i for i, label in enumerate(labels) if label >= 0]
    for label, count in counts.items():
        took = sum(labels[i] == label for i in test)
        assert took == min(max(1, round(share * count)), count - 1)
    again = parts(labels, [""] * len(labels), share, "video", seed)
    assert all(np.array_equal(a, b) for a, b in zip((train, test), again))


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=9), share=st.sampled_from([0.1, 0.3, 0.5]),
       seed=st.integers(0, 99))
def test_by_group_no_group_is_torn(sizes, share, seed):
    groups = [f"g{g}" for g, count in enumerate(sizes) for _ in range(count)]
    try:
        train, test = parts([0] * len(groups), groups, share, "group", seed)
    except RequestError:                   # one group holds nearly all of the videos
        assert max(sizes) > share * sum(sizes)
        return
    assert sorted([*train, *test]) == list(range(len(groups)))
    assert not {groups[i] for i in train} & {groups[i] for i in test}


def test_seeds_differ_and_what_leaves_nothing_is_refused():
    first, second = (parts([0] * 50, [""] * 50, 0.2, "video", seed)[1].tolist() for seed in (0, 1))
    assert len(first) == len(second) == 10 and first != second
    with pytest.raises(RequestError, match="3 videos of 3 of STORE without a group.*preprocess.reindex STORE"):
        parts([0] * 3, ["", "", ""], 0.2, "group", 0)
    with pytest.raises(RequestError, match="by group leaves 0 to learn from and 3 to ask"):
        parts([0] * 3, ["a"] * 3, 0.2, "group", 0)
    with pytest.raises(RequestError, match="0 labelled videos"):
        parts([-1] * 3, ["a"] * 3, 0.2, "video", 0)
