"""Every vector operation against numpy."""

import numpy as np
import pytest
from numba import njit

from preprocess.flow import simd as s

L = s.LANES


@njit
def run_all(w, table, integers):
    """Each operation's result as one row of w from row 4 on, inputs in rows 0 to 3."""
    a, b, c, d = s.load(w, 0), s.load(w, L), s.load(w, 2 * L), s.load(w, 3 * L)
    at = 4 * L
    for value in (a + b, a - b, a * b, a / b, s.minimum(a, b), s.maximum(a, b), s.sqrt(a * a), s.floor(a),
                  s.splat(w[3]), s.repeat(w, 3), s.lane_numbers(), s.after(a, b), s.before(a, b),
                  s.keep(a, 5), s.keep(a, L), s.keep(a, 0),
                  s.if_above(a, b, c), s.fma(a, b, c), s.fold(a, b, c, d),
                  s.channel0(a, b, c, d), s.channel1(a, b, c, d), s.channel2(a, b, c, d),
                  s.zip0(a, b, c, d), s.zip1(a, b, c, d), s.zip2(a, b, c, d), s.zip3(a, b, c, d),
                  s.spread0(a), s.spread1(a), s.spread2(a), s.spread3(a), s.take(w, 1, table, 2)):
        s.store(w, at, value)
        at += L
    s.store_int(integers, 3, a)
    return s.total(a)


def test_operations_equal_numpy():
    rng = np.random.default_rng(0)
    a, b, c, d = inputs = rng.normal(0, 10, (4, L)).astype(np.float32)
    w = np.zeros((35, L), np.float32)
    w[:4] = inputs
    flat = w.ravel()
    table = rng.integers(0, 60, L + 2).astype(np.int32)
    integers = np.zeros(L + 3, np.int32)
    total = run_all(flat, table, integers)
    groups = np.stack(inputs).reshape(4, 4, 4)          # vector, group, channel
    interleaved = np.stack(inputs, axis=1)              # lane, vector
    expected = [a + b, a - b, a * b, a / b, np.minimum(a, b), np.maximum(a, b), np.sqrt(a * a), np.floor(a),
                np.full(L, a[3]), np.full(L, a[3]), np.arange(L), np.append(a[1:], b[0]), np.append(a[-1], b[:-1]),
                np.where(np.arange(L) < 5, a, 0), a, np.zeros(L), np.where(a > b, c, 0)]
    np.testing.assert_array_equal(w[4:4 + len(expected)], np.stack(expected))
    row = 4 + len(expected)
    np.testing.assert_allclose(w[row], a.astype(float) * b + c, rtol=1e-5, atol=1e-4)
    pairs = groups[:, :2] + groups[:, 2:]
    np.testing.assert_array_equal(w[row + 1].reshape(4, 4), pairs[:, 0] + pairs[:, 1])
    for channel in range(3):
        np.testing.assert_array_equal(w[row + 2 + channel], groups.reshape(16, 4)[:, channel])
    for part in range(4):
        np.testing.assert_array_equal(w[row + 5 + part], interleaved[4 * part:4 * part + 4].ravel())
        np.testing.assert_array_equal(w[row + 9 + part], a[4 * part:4 * part + 4].repeat(4))
    np.testing.assert_array_equal(w[row + 13], flat[1 + table[2:]])
    np.testing.assert_array_equal(integers[3:], np.trunc(a).astype(np.int32))
    assert total == pytest.approx(a.sum(), rel=1e-5)


def test_wrong_arrays_do_not_compile():
    @njit
    def double(w):
        return s.total(s.load(w, 0))
    with pytest.raises(Exception, match="flat contiguous float32"):
        double(np.zeros(L))
