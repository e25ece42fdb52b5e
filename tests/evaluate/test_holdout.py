"""Splits made on the spot: what they hold, and what a run on them says."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.holdout import held_out, holdout_names, sample_name
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


def samples(labels, count, seed=0):
    """Of a split that holds all videos but the last."""
    index = SimpleNamespace(store="STORE", label=np.array(labels), in_split=lambda name: np.arange(len(labels) - 1))
    return held_out(index, sample_name("train", count, seed))


@given(labels=st.lists(st.integers(-1, 4), min_size=3, max_size=60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_samples_are_of_every_class_its_share(labels, share, seed):
    there = np.array(labels[:-1])
    counts = {label: int((there == label).sum()) for label in set(there.tolist()) - {-1}}
    if not counts:
        return
    count = len(counts) + round(share * (sum(counts.values()) - len(counts)))
    taken = samples(labels, count, seed)
    assert len(taken) == count and (np.diff(taken) > 0).all() and taken[-1] < len(there)
    ones = sum(count * own / sum(counts.values()) < 1 for own in counts.values())
    for label, own in counts.items():
        wanted, got = count * own / sum(counts.values()), int((there[taken] == label).sum())
        assert 1 <= got <= own and wanted - 1 - ones < got < max(wanted, 1) + 1
    np.testing.assert_array_equal(taken, samples(labels, count, seed))


def test_samples_that_cannot_be_and_those_of_other_seeds():
    assert samples([0, 1] * 20, 10).tolist() != samples([0, 1] * 20, 10, 1).tolist()
    for count in (1, 6):
        with pytest.raises(RequestError, match=f"--samples {count}: train of STORE has 5 labelled videos of 2 classes"):
            samples([0, 1, 0, 1, 0, 0], count)
