"""medianBlur of 3x3 and 5x5 pixels for TV-L1 on the CPU: selection networks on whole vectors of pixels.

`w` is the flat float32 workspace; every other number that names a place is an offset into it.
"""

from numba import njit

from preprocess.flow.cpu_iterate import STATE
from preprocess.flow.simd import LANES, keep, load, maximum, minimum, store


@njit(inline="always")
def _order(a, b):
    return minimum(a, b), maximum(a, b)


@njit(inline="always")
def _sort5(a, b, c, d, e):
    a, b = _order(a, b)
    d, e = _order(d, e)
    c, e = _order(c, e)
    c, d = _order(c, d)
    b, e = _order(b, e)
    a, d = _order(a, d)
    a, c = _order(a, c)
    b, d = _order(b, d)
    b, c = _order(b, c)
    return a, b, c, d, e


@njit(inline="always")
def _sorted_taps(w, at):
    return _sort5(load(w, at), load(w, at + 1), load(w, at + 2), load(w, at + 3), load(w, at + 4))


@njit(inline="always")
def _merge22(a, b, c, d):
    a, c = _order(a, c)
    b, d = _order(b, d)
    b, c = _order(b, c)
    return a, b, c, d


@njit(inline="always")
def _median25(w, at, step):
    """Median of 5 columns that are sorted already: rank r of column x + i lies at `at + r * step + i`.

    Sorting each rank's row too leaves 13 candidates, of which the 7th is the median: the others have 12 values
    certainly above or below. The candidates come as sorted runs, which are merged.
    """
    _, _, _, a0, a1 = _sorted_taps(w, at)
    _, _, b0, b1, b2 = _sorted_taps(w, at + step)
    _, c0, c1, c2, _ = _sorted_taps(w, at + 2 * step)
    d0, d1, d2, _, _ = _sorted_taps(w, at + 3 * step)
    e0, e1, _, _, _ = _sorted_taps(w, at + 4 * step)
    a0, a1, e0, e1 = _merge22(a0, a1, e0, e1)
    # 3 + 3 -> 6: b0 <= b1 <= b2 <= d0 <= d1 <= d2
    b0, x0, x1, d2 = _merge22(b0, b2, d0, d2)
    b1, d1 = _order(b1, d1)
    b1, b2 = _order(b1, x0)
    d0, d1 = _order(d1, x1)
    # 4 + 3 -> 7: a0 <= c0 <= a1 <= c1 <= e0 <= c2 <= e1
    even0, even1, even2, even3 = _merge22(a0, e0, c0, c2)
    odd0, odd1 = _order(a1, c1)
    odd1, odd2 = _order(odd1, e1)
    c0, a1 = _order(odd0, even1)
    c1, e0 = _order(odd1, even2)
    c2, e1 = _order(odd2, even3)
    # The 7th of two sorted runs s (7) and t (6): min over i of max(s[i], t[6 - i]).
    best = minimum(e1, maximum(even0, d2))
    best = minimum(best, maximum(c0, d1))
    best = minimum(best, maximum(a1, d0))
    best = minimum(best, maximum(c1, b2))
    best = minimum(best, maximum(e0, b1))
    return minimum(best, maximum(c2, b0))


@njit(inline="always")
def _sort3(a, b, c):
    a, b = _order(a, b)
    b, c = _order(b, c)
    a, b = _order(a, b)
    return a, b, c


@njit(inline="always")
def _median9(w, at, step):
    """Median of 3 sorted columns: the middle of the largest low, the middle one and the smallest high."""
    low = maximum(maximum(load(w, at), load(w, at + 1)), load(w, at + 2))
    _, middle, _ = _sort3(load(w, at + step), load(w, at + step + 1), load(w, at + step + 2))
    at += 2 * step
    high = minimum(minimum(load(w, at), load(w, at + 1)), load(w, at + 2))
    _, median, _ = _sort3(low, middle, high)
    return median


@njit(nogil=True, error_model="numpy")
def median(w, plane, height, width, size, padded, ranks):
    """medianBlur of size 3 or 5 with replicated border, of one plane of the state, in place.

    plane: offset of its first vector, STATE floats from block to block; padded, ranks: scratch of
    (height + 4) * (pitch + 2 LANES) and 5 * (pitch + 2 LANES) floats.
    """
    blocks = (width + LANES - 1) // LANES
    tail = width - (blocks - 1) * LANES
    step = (blocks + 2) * LANES
    radius = size // 2
    for y in range(height):
        row = padded + (y + radius) * step
        for block in range(blocks):
            store(w, row + LANES + block * LANES, load(w, plane + (y * blocks + block) * STATE))
        for x in range(radius):
            w[row + LANES - 1 - x] = w[row + LANES]
            w[row + LANES + width + x] = w[row + LANES + width - 1]
    for y in range(radius):
        for x in range(step):
            w[padded + y * step + x] = w[padded + radius * step + x]
            w[padded + (height + radius + y) * step + x] = w[padded + (height + radius - 1) * step + x]
    for y in range(height):
        # Sorted columns from column -radius on: rank r of column x at ranks + r * step + x + radius.
        row = padded + y * step + LANES - radius
        for at in range(ranks, ranks + width + 2 * radius, LANES):
            if size == 5:
                a, b, c, d, e = _sort5(load(w, row), load(w, row + step), load(w, row + 2 * step),
                                       load(w, row + 3 * step), load(w, row + 4 * step))
                store(w, at + 3 * step, d)
                store(w, at + 4 * step, e)
            else:
                a, b, c = _sort3(load(w, row), load(w, row + step), load(w, row + 2 * step))
            store(w, at, a)
            store(w, at + step, b)
            store(w, at + 2 * step, c)
            row += LANES
        for block in range(blocks):
            at = ranks + block * LANES
            value = _median25(w, at, step) if size == 5 else _median9(w, at, step)
            store(w, plane + (y * blocks + block) * STATE, keep(value, tail if block == blocks - 1 else LANES))
