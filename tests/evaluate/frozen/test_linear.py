"""The linear classifiers: on what they must solve, on noise, against scikit-learn, from disk as from memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from evaluate import metrics
from evaluate.frozen import linear, softmax
from evaluate.protocol import load_settings
from shared.cli import RequestError

SETTINGS = load_settings("linear", [])
CLASSES = 5


def blobs(seed, count, spread=0.3, features=12):
    """(count, C) float32 around one centre a class, (count,) labels."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, features))
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    return (centres[labels] + spread * rng.normal(size=(count, features))).astype(np.float32), labels


def svm(train, labels, test, **changes):
    groups = changes.pop("groups", ())
    return linear.svm_scores(train, labels, test, replace(SETTINGS.linear, **changes), groups=groups)


def softmax_of(train, labels, test, normalise=False, seed=0, **changes):
    return softmax.softmax_scores(train, labels, test, replace(SETTINGS.softmax, **changes), normalise, seed)


@pytest.mark.parametrize("scores", [lambda *a: svm(*a).scores, lambda *a: svm(*a, normalise=True).scores,
                                    lambda *a: softmax_of(*a, epochs=20), lambda *a: softmax_of(*a, True, epochs=20)])
def test_what_is_linearly_separable_is_separated(scores):
    (train, labels), (test, truth) = blobs(1, 100), blobs(2, 60)
    assert metrics.top_k(scores(train, labels, test), truth, 1) == 1


@pytest.mark.parametrize("scores", [lambda *a: svm(*a).scores, lambda *a: softmax_of(*a, epochs=10)])
def test_random_features_score_at_chance(scores):
    rng = np.random.default_rng(11)
    train, test = (rng.normal(size=(300, 16)).astype(np.float32) for _ in range(2))
    labels = np.arange(300) % CLASSES
    hits = metrics.top_k(scores(train, labels, test), labels, 1) * 300
    low, high = binom.interval(0.9999, 300, 1 / CLASSES)
    assert low <= hits <= high


def test_the_svm_is_liblinears(monkeypatch):
    (train, labels), (test, _) = blobs(1, 60, spread=2), blobs(2, 30, spread=2)
    expected = LinearSVC(C=1.0, dual=False, max_iter=20000).fit(train, labels).decision_function(test)
    np.testing.assert_allclose(svm(train, labels, test).scores, expected, atol=2e-3)


def test_two_classes_have_two_columns():
    (train, labels), (test, truth) = blobs(1, 100), blobs(2, 60)
    answer = svm(train, labels % 2, test)
    assert answer.scores.shape == (60, 2) and metrics.top_k(answer.scores, truth % 2, 1) > 0.5


def test_c_is_searched_among_the_training_videos_only():
    (train, labels), (test, _) = blobs(1, 100, spread=1.5), blobs(2, 40)
    answer = svm(train, labels, test, search=True)
    again = svm(train, labels, test[:1], search=True)
    assert answer.c == again.c in linear.SEARCHED
    np.testing.assert_allclose(answer.scores, svm(train, labels, test, c=answer.c).scores, atol=1e-6)


def test_search_keeps_groups_together():
    rng = np.random.default_rng(3)
    labels, groups = np.arange(60) % 3, [f"g{i // 6}" for i in range(60)]
    folds = list(linear._folds(labels, groups, 0).split(rng.normal(size=(60, 2)), labels, groups))
    assert len(folds) == 5
    for train, test in folds:
        assert not {groups[i] for i in train} & {groups[i] for i in test}


def test_search_needs_two_videos_of_a_class():
    with pytest.raises(RequestError, match="a class has one training video"):
        svm(np.eye(3, dtype=np.float32), np.array([0, 0, 1]), np.eye(3, dtype=np.float32), search=True)


def test_an_svm_that_does_not_converge_says_so(monkeypatch):
    monkeypatch.setattr(linear, "STEPS", 1)
    (train, labels), (test, _) = blobs(1, 100, spread=2), blobs(2, 10)
    assert "without having converged" in svm(train * 1000, labels, test).notes[0]


def test_softmax_is_the_convex_optimum():
    (train, labels), (test, _) = blobs(1, 200, spread=1.5), blobs(2, 50, spread=1.5)
    logits = softmax_of(train, labels, test, epochs=400, batch=200, weight_decay=0.01, lr=0.5)
    scaler = StandardScaler().fit(train)

    def with_bias(vectors):     # which our weight decay takes like any other weight
        return np.concatenate([scaler.transform(vectors), np.ones((len(vectors), 1))], 1)
    # Decay 0.01 on the mean loss of N = 200 is C = 1 / (0.01 N) on its sum.
    oracle = LogisticRegression(C=1 / (0.01 * 200), max_iter=5000, tol=1e-8, fit_intercept=False)
    expected = oracle.fit(with_bias(train), labels).predict_proba(with_bias(test))
    np.testing.assert_allclose(torch.softmax(torch.from_numpy(logits), 1), expected, atol=1e-4)


def test_a_softmax_that_diverges_is_refused():
    train, labels, test = np.eye(8, dtype=np.float32), np.arange(8) % 2, np.eye(8, dtype=np.float32)
    with pytest.raises(RequestError, match="diverged at lr=100000, weight_decay=0.5: .*; lower softmax.lr"):
        softmax_of(train, labels, test, lr=1e5, weight_decay=0.5)


def test_softmax_from_disk_is_softmax_from_memory(tmp_path):
    (train, labels), (test, _) = blobs(1, 700), blobs(2, 30)
    np.save(tmp_path / "train.npy", train)
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    logits = softmax_of(train, labels, test, epochs=3)
    np.testing.assert_array_equal(logits, softmax_of(mapped, labels, test, epochs=3))
    assert not np.array_equal(logits, softmax_of(train, labels, test, epochs=3, seed=1))


def test_a_feature_that_never_varies_tells_nothing():
    (train, labels), (test, truth) = blobs(1, 100), blobs(2, 60)
    train, test = (np.concatenate([part, np.full((len(part), 1), 1e4, np.float32)], 1) for part in (train, test))
    test[:, -1] = -1e6
    assert metrics.top_k(softmax_of(train, labels, test, epochs=20), truth, 1) == 1


@pytest.mark.parametrize("count, size", [(1, 1), (5, 8), (64, 8), (1000, 256), (40_000, 256)])
def test_batches_hold_every_row_once_and_mix_the_file(count, size):
    found = list(softmax.batches(count, size, np.random.default_rng(0)))
    rows = np.concatenate(found)
    assert sorted(rows.tolist()) == list(range(count)) and all(len(batch) == size for batch in found[:-1])
    if count > 20_000:
        spans = [np.ptp(batch) for batch in found]
        assert np.median(spans) > count / 2              # each batch comes from everywhere
