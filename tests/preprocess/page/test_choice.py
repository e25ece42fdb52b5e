"""Which videos get pictures."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from preprocess.page.choice import FEATURED, choose, spread
from preprocess.page.suspects import Suspects


@given(st.lists(st.integers(0, 9), min_size=1, max_size=300), st.integers(0, 520), st.data())
def test_choice_is_fair_and_bounded(labels, most, data):
    count = len(labels)
    found = Suspects()
    for kind in ("still", "logo"):
        found.kinds[kind] = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    classes = [spread([i for i in range(count) if labels[i] == label]) for label in sorted(set(labels))]
    chosen = choose(list(range(count)), found, classes, most)
    assert len(chosen) == min(most, count) == len(set(chosen)) and set(chosen) <= set(range(count))
    if most >= 12 * FEATURED:
        assert {*range(min(count, FEATURED)), *range(max(0, count - FEATURED), count)} <= set(chosen)
        assert set(found.kinds["still"][:FEATURED]) <= set(chosen)
    if most >= 36:   # a third of them is one of each class
        assert Counter(labels[i] for i in chosen).keys() == set(labels)


@given(st.integers(0, 100))
def test_spread_takes_the_middles_first(count):
    out = spread(range(count))
    assert sorted(out) == list(range(count))
    if count > 2:
        assert out[0] == count // 2 and min(out[1:3]) < count / 2 < max(out[1:3])
