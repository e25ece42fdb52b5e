"""Exact cosine neighbours: against the whole matrix, in any blocks, at chance on noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.neighbors import NearestNeighbors

from evaluate import metrics
from evaluate.frozen.retrieval import nearest, unit


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(0, 2 ** 32 - 1), st.integers(1, 40), st.integers(1, 60), st.integers(1, 17), st.data())
def test_any_blocks_give_the_whole_matrix(seed, queries, gallery, block, data):
    rng = np.random.default_rng(seed)
    # Few distinct values, so that equals happen often: they must stand in the gallery's order.
    q, g = (rng.integers(-1, 2, (n, 3)).astype(np.float32) for n in (queries, gallery))
    k = data.draw(st.integers(1, gallery))
    cosine = (unit(q) @ unit(g).T)
    rows, scores = nearest(q, g, k, block)
    np.testing.assert_allclose(scores, -np.sort(-cosine, 1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cosine, rows, 1), scores, atol=1e-6)
    assert all(len(set(line)) == k for line in rows.tolist())


def test_equals_stand_in_the_gallerys_order():
    gallery = np.array([[2, 0], [0, 1], [1, 0], [3, 0]], np.float32)
    for block in (1, 2, 3, 4):
        rows, scores = nearest(np.array([[5, 0]], np.float32), gallery, 3, block)
        assert rows.tolist() == [[0, 2, 3]] and scores.tolist() == [[1, 1, 1]]


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(50, 20)).astype(np.float32), rng.normal(size=(300, 20)).astype(np.float32)
    distance, rows = NearestNeighbors(n_neighbors=20, metric="cosine").fit(g).kneighbors(q)
    found, scores = nearest(q, g, 20, 64)
    np.testing.assert_array_equal(found, rows)
    np.testing.assert_allclose(1 - scores, distance, atol=1e-5)


def test_length_does_not_matter_and_zeros_are_like_nothing():
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(9, 4)), rng.normal(size=(30, 4))
    np.testing.assert_array_equal(nearest(q, g, 5)[0], nearest(q * 1e6, g * rng.uniform(0.001, 9, (30, 1)), 5)[0])
    assert (nearest(np.zeros((1, 4)), g, 5)[1] == 0).all()


@pytest.mark.parametrize("k", [0, 31])
def test_more_neighbours_than_there_are(k):
    with pytest.raises(ValueError, match=f"{k} neighbours among 30"):
        nearest(np.zeros((1, 4)), np.zeros((30, 4)), k)


def test_random_features_find_their_class_as_often_as_chance():
    rng = np.random.default_rng(5)
    labels, gallery = np.arange(400) % 20, np.arange(1000) % 20
    rows, _ = nearest(rng.normal(size=(400, 16)), rng.normal(size=(1000, 16)), 20)
    recall = metrics.recall_at(labels, gallery[rows], (1, 5, 10, 20))
    for k, share in recall.items():
        low, high = binom.interval(0.9999, 400, metrics.chance_recall(labels, gallery, k))
        assert low <= share * 400 <= high
