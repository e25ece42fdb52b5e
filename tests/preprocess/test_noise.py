"""Noise that moves: always the same noise, moved where the flow leads, no value twice."""

import numpy as np
import pytest
from scipy import stats
from sklearn.svm import LinearSVC

from preprocess.noise import Grains

SIZE = 48, 64
ROWS, COLUMNS = np.indices(SIZE, np.float32) - np.float32([24, 32])[:, None, None]
FLOWS = {"still": lambda t: np.zeros((2, *SIZE)), "slow": lambda t: np.full((2, *SIZE), 0.3),
         "zoom": lambda t: 0.06 * np.stack([COLUMNS, ROWS]), "shrink": lambda t: -0.06 * np.stack([COLUMNS, ROWS]),
         "turn": lambda t: 0.08 * np.stack([-ROWS, COLUMNS]),
         "object": lambda t: np.where(np.hypot(ROWS, COLUMNS - t) < 12, 2.6, 0) * np.float32([1, -0.5])[:, None, None],
         "storm": lambda t: np.random.default_rng(t).normal(0, 3, (2, *SIZE))}


class Numbered(Grains):
    """Every value that is drawn is a new number."""

    drawn = 0

    def _draw(self):
        first, self.drawn = self.drawn, self.drawn + SIZE[0] * SIZE[1]
        return np.arange(first, self.drawn).reshape(SIZE)


def moved(name, count, kind=Grains, seed=0):
    grains = kind(SIZE, np.random.default_rng(seed))
    for t in range(count):
        grains.move(FLOWS[name](t).astype(np.float32))
    return grains


@pytest.mark.parametrize("name", FLOWS)
def test_every_frame_is_uniform_and_independent_noise(name):
    assert len(np.unique(moved(name, 12, Numbered).values)) == SIZE[0] * SIZE[1]      # no value stands twice
    values = moved(name, 25).values.astype(np.float64)
    counts = np.bincount(values.astype(int).ravel() // 16, minlength=16)
    assert stats.chisquare(counts).pvalue > 1e-4
    for one, other in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(one.size)


def test_values_go_where_the_flow_leads():
    grains = Numbered(SIZE, None)
    before = grains.values
    grains.move(np.float32([3, -2])[:, None, None] + np.zeros((2, *SIZE), np.float32))
    np.testing.assert_array_equal(grains.values[:-2, 3:], before[2:, :-3])
    assert grains.values[-2:].min() >= before.size and grains.values[:, :3].min() >= before.size    # what came in
    grains = Numbered(SIZE, None)
    before = grains.values
    for _ in range(8):      # a quarter of a pixel a frame: one frame of four, all pixels at once
        grains.move(np.float32([0.25, 0])[:, None, None] + np.zeros((2, *SIZE), np.float32))
    np.testing.assert_array_equal(grains.values[:, 6:], before[:, 4:-2])


def test_where_two_come_the_faster_stays():
    grains = Numbered(SIZE, None)
    before, flow = grains.values, np.zeros((2, *SIZE), np.float32)
    flow[0, 10, 20] = 5
    grains.move(flow)
    assert grains.values[10, 25] == before[10, 20] and grains.values[10, 20] >= before.size
    assert (grains.values != before).sum() == 2


def test_a_frame_says_nothing_of_the_motion_and_two_say_all():
    """A linear classifier of single frames, and of what two frames differ by."""
    names, rng = ["zoom", "shrink", "turn", "object"], np.random.default_rng(1)
    labels = np.arange(240) % len(names)
    single, differ = [], []
    for number, label in enumerate(labels):
        grains = moved(names[label], 6, seed=number)
        before = grains.values.astype(np.float32)
        grains.move(FLOWS[names[label]](6).astype(np.float32))
        single.append(before[8:40:2, 16:48:2].ravel() / 255)
        changed = np.abs(grains.values - before).reshape(6, 8, 8, 8).mean((1, 3))
        differ.append(changed.ravel() / 255)
    order = rng.permutation(240)
    train, test = order[:160], order[160:]

    def hits(features):
        features = np.array(features)
        fitted = LinearSVC(dual="auto").fit(features[train], labels[train])
        return (fitted.predict(features[test]) == labels[test]).sum()

    low, high = stats.binom.interval(0.999, 80, 1 / 4)
    assert low <= hits(single) <= high
    assert hits(differ) > 60
