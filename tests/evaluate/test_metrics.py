"""Metrics against hand-made arrays, scikit-learn, and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from evaluate import metrics


def test_top_k_of_a_hand_made_matrix():
    scores = np.array([[3, 2, 1, 0], [0, 3, 2, 1], [1, 0, 3, 2], [0, 1, 2, 3.0]])
    labels = np.array([0, 0, 0, 0])                       # first, last, third, last
    assert metrics.ranks(scores, labels).tolist() == [0, 3, 2, 3]
    assert [metrics.top_k(scores, labels, k) for k in (1, 2, 3, 4)] == [0.25, 0.25, 0.5, 1.0]


def test_a_tie_counts_against_the_sample():
    assert metrics.top_k(np.zeros((5, 4)), np.arange(5) % 4, 3) == 0
    assert metrics.top_k(np.zeros((5, 4)), np.arange(5) % 4, 4) == 1


@pytest.mark.parametrize("scores, labels", [(np.zeros((2, 3)), [0]), (np.full((1, 3), np.nan), [0]),
                                            (np.zeros((1, 3)), [3]), (np.zeros((1, 3)), [-1])])
def test_what_has_no_rank_is_refused(scores, labels):
    with pytest.raises(ValueError):
        metrics.ranks(scores, labels)


@pytest.mark.filterwarnings("ignore:A single label", "ignore:y_pred contains")
@given(st.integers(0, 2 ** 32 - 1), st.integers(2, 9), st.integers(1, 60))
def test_against_scikit_learn(seed, classes, count):
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(count, classes)), rng.integers(0, classes, count)
    said = scores.argmax(1)
    for k in range(1, classes):
        if classes > 2:                                   # of two classes scikit-learn wants one column
            expected = top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
            assert metrics.top_k(scores, labels, k) == pytest.approx(expected)
    table = metrics.confusion(labels, said, classes)
    np.testing.assert_array_equal(table, confusion_matrix(labels, said, labels=range(classes)))
    assert metrics.mean_class(table) == pytest.approx(balanced_accuracy_score(labels, said))
    assert np.isnan(metrics.per_class(table)).sum() == classes - len(np.unique(labels))


def test_recall_of_hand_made_neighbours():
    neighbours = np.array([[1, 0, 2], [1, 1, 1], [2, 0, 0]])
    assert metrics.recall_at([0, 1, 1], neighbours, (1, 2, 3)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 2 / 3})
    with pytest.raises(ValueError, match="R@4 of 3"):
        metrics.recall_at([0, 1, 1], neighbours, (4,))


@given(st.integers(0, 2 ** 32 - 1), st.integers(1, 30), st.integers(1, 12))
def test_chance_of_retrieval_is_the_hypergeometric_one(seed, size, k):
    rng = np.random.default_rng(seed)
    gallery, labels = rng.integers(0, 4, size), rng.integers(0, 4, 5)
    k = min(k, size)
    expected = [1 - math.comb(size - int((gallery == label).sum()), k) / math.comb(size, k) for label in labels]
    assert metrics.chance_recall(labels, gallery, k) == pytest.approx(np.mean(expected))


def test_chance_of_classification():
    assert metrics.chance_top([0, 1, 2, 3], 1) == 0.25
    assert metrics.chance_top([0, 0, 0, 1], 1) == 0.75 and metrics.chance_top([0, 0, 0, 1], 5) == 1


def test_mean_and_spread():
    assert metrics.mean_spread([1, 2, 3, 6]) == pytest.approx((3, np.std([1, 2, 3, 6], ddof=1)))
    assert metrics.mean_spread([4.0]) == (4.0, None)


def test_interval_is_wilsons():
    assert metrics.interval(0.1, 100) == pytest.approx((0.05523, 0.17437), abs=1e-5)     # a textbook's example
    assert all(metrics.interval(0, n)[0] == 0 and metrics.interval(1, n)[1] == 1 for n in range(1, 400))


@given(st.integers(1, 200), st.data())
def test_interval_holds_the_share(count, data):
    share = data.draw(st.integers(0, count)) / count
    low, high = metrics.interval(share, count)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1


@given(st.integers(1, 12), st.integers(1, 12))
def test_beating_all_that_are_drawn_is_hypergeometric(distractors, drawn):
    taken = min(drawn, distractors)
    expected = [math.comb(beaten, taken) / math.comb(distractors, taken) for beaten in range(distractors + 1)]
    np.testing.assert_allclose(metrics.beats_all(np.arange(distractors + 1), distractors, drawn), expected)


def test_trials_that_belong_together_count_as_one():
    rng = np.random.default_rng(0)
    single = (rng.random(400) < 0.3).astype(float)
    assert metrics.effective_trials(single, np.arange(400)) == pytest.approx(400, abs=1.01)     # n - 1 of n
    assert metrics.effective_trials(single.repeat(5), np.arange(400).repeat(5)) == pytest.approx(400, abs=1.01)
    assert metrics.effective_trials(np.tile([0.0, 1.0], 50), np.arange(100) // 2) == 100         # they even out
    assert metrics.effective_trials(np.ones(100), np.arange(100) // 10) == 10
    assert metrics.effective_trials(rng.random(30), np.zeros(30)) == 1


def test_paired_interval_is_newcombes():
    both, first, second = np.ones(36, bool), np.arange(14) < 12, np.arange(14) >= 12
    found = metrics.paired_interval(np.concatenate([both, first]), np.concatenate([both, second]))
    assert found == pytest.approx((0.0569, 0.3404), abs=1e-4)                                    # his example
    assert metrics.paired_interval(both, both)[0] == -metrics.paired_interval(both, both)[1] < 0
    low, high = metrics.paired_interval(both, ~both)
    assert 0.8 < low < 1 and high == pytest.approx(1)


def test_paired_interval_holds_the_difference_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(500):
        shared = rng.random(40)
        low, high = metrics.paired_interval(shared < 0.8, 0.7 * shared + 0.3 * rng.random(40) < 0.5)
        held += low <= 0.3 <= high
    assert held / 500 > 0.93


def test_kept_above_chance():
    """90 of 100 right, 70 on the counterparts, 60 on both: two thirds of what is above a chance of 30 %."""
    found = metrics.kept_above_chance([[0, 10], [30, 60]], 0.3)
    assert found.lost == pytest.approx(0.2) and found.kept == pytest.approx(2 / 3)
    difference = 1.96 * np.sqrt((0.1 + 0.3 - 0.2 ** 2) / 100)            # of paired shares, the normal approximation
    np.testing.assert_allclose(found.lost_interval, [0.2 - difference, 0.2 + difference], atol=0.015)
    low, high = found.kept_interval
    assert 0.4 < low < 2 / 3 < high < 0.9
    whole = metrics.kept_above_chance([[0, 0], [0, 40]], 0.5)            # nothing differs, and still nothing is certain
    assert whole.lost == 0 and whole.kept == 1 and whole.kept_interval[0] < 0.95 and whole.lost_interval[1] > 0.02
    none = metrics.kept_above_chance([[20, 0], [20, 0]], 0.5)
    assert none.kept is None and none.kept_interval is None and none.lost == 0.5
