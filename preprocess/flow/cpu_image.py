"""What TV-L1 on the CPU needs around its inner iterations: resize, image gradient, bicubic warp.

Each follows OpenCV's function of that name to rounding: `resize` INTER_LINEAR, `remap` INTER_CUBIC (a = -0.75,
zero outside; exact coordinates as from OpenCV 5 on, which rounded them to 1/32 px before).
A plane is H rows of `pitch` floats, pitch = the width rounded up to LANES; state and coefficients as in cpu_iterate.
`w` is the flat float32 workspace; every other number that names a place is an offset into it.
"""

import numpy as np
from numba import njit, types

from preprocess.flow.compiled import cached_njit
from preprocess.flow.cpu_iterate import COEFFICIENTS, GX, GY, INVERSE, RHO, STATE
from preprocess.flow.simd import (
    LANES,
    after,
    before,
    channel0,
    channel1,
    channel2,
    floor,
    fma,
    fold,
    if_above,
    keep,
    lane_numbers,
    load,
    maximum,
    minimum,
    repeat,
    splat,
    spread0,
    spread1,
    spread2,
    spread3,
    store,
    store_int,
    take,
    zip0,
    zip1,
    zip2,
    zip3,
)

MARGIN = 4                # zero pixels around the interleaved image: room for every tap of a clamped coordinate
EPSILON = np.float32(np.finfo(np.float32).eps)


def linear_taps(source, target, scale):
    """Taps of `resize` INTER_LINEAR along one axis: (target,) int32 first, second tap, float32 weight of the second."""
    position = (np.arange(target) + 0.5) * scale - 0.5
    first = np.floor(position).astype(np.int32)
    weight = (position - first).astype(np.float32)
    weight[(first < 0) | (first >= source - 1)] = 0
    first = first.clip(0, source - 1)
    return first, (first + 1).clip(0, source - 1), weight


def _ingest(frame, w, plane, pitch):
    """A frame (H, W) into the plane at offset `plane`."""
    height, width = frame.shape
    for y in range(height):
        for x in range(width):
            w[plane + y * pitch + x] = frame[y, x]


# Read-only frames are a type of their own to numba, and the one that every frame can become.
ingest = cached_njit([types.void(types.Array(kind, 2, "C", readonly=True), types.float32[::1], types.int64, types.int64)
                      for kind in (types.uint8, types.float32)], nogil=True, error_model="numpy")(_ingest)


@njit(nogil=True, error_model="numpy")
def resize_row(w, upper, lower, weight, step, source_blocks, scratch, out, out_step, blocks, tail,
               first, second, weights, at, factor):
    """One output row: two source rows lerped into `scratch`, then two columns lerped, times `factor`.

    upper, lower: the source rows, `step` floats from block to block; weight: that of `lower`; out, out_step: likewise;
    first, second, weights: the columns' taps, from entry `at` on.
    """
    part, factor_ = splat(weight), splat(factor)
    for block in range(source_blocks):
        value = load(w, upper)
        store(w, scratch + block * LANES, fma(load(w, lower) - value, part, value))
        upper, lower = upper + step, lower + step
    for block in range(blocks):
        x = at + block * LANES
        left = take(w, scratch, first, x)
        value = fma(take(w, scratch, second, x) - left, load(weights, x), left) * factor_
        store(w, out, keep(value, tail if block == blocks - 1 else LANES))
        out += out_step


@njit(nogil=True, error_model="numpy")
def interleave(w, plane, height, width, out):
    """[I, dI/dx, dI/dy, 0] per pixel at `out`, (height + 2 MARGIN, width + 2 MARGIN, 4), zero in the margin.

    Derivatives are central; at the border half the one-sided difference, as OpenCV has it.
    """
    blocks = (width + LANES - 1) // LANES
    pitch, row_step = blocks * LANES, (width + 2 * MARGIN) * 4
    half, zero = splat(np.float32(0.5)), splat(np.float32(0))
    w[out:out + MARGIN * row_step] = 0
    for y in range(height):
        row, target = plane + y * pitch, out + (y + MARGIN) * row_step
        up, down = plane + max(y - 1, 0) * pitch, plane + min(y + 1, height - 1) * pitch
        w[target:target + MARGIN * 4] = 0
        at, left, here = target + MARGIN * 4, zero, load(w, row)
        for block in range(blocks):
            right = load(w, row + (block + 1) * LANES) if block < blocks - 1 else zero
            gx = half * (after(here, right) - before(left, here))
            gy = half * (load(w, down + block * LANES) - load(w, up + block * LANES))
            store(w, at, zip0(here, gx, gy, zero))
            store(w, at + LANES, zip1(here, gx, gy, zero))
            store(w, at + 2 * LANES, zip2(here, gx, gy, zero))
            store(w, at + 3 * LANES, zip3(here, gx, gy, zero))
            at, left, here = at + 4 * LANES, here, right
        # The last block ran past the width; what it wrote there is the margin's, or the next row's to write again.
        w[target + MARGIN * 4 + 1] = np.float32(0.5) * (w[row + 1] - w[row])
        w[target + (MARGIN + width - 1) * 4 + 1] = np.float32(0.5) * (w[row + width - 1] - w[row + width - 2])
        w[target + (MARGIN + width) * 4:target + row_step] = 0
    w[out + (height + MARGIN) * row_step:out + (height + 2 * MARGIN) * row_step] = 0


@njit(inline="always")
def _cubic(t):
    """Weights of the taps at -1, 0, 1, 2 for a coordinate t in [0, 1) (a = -0.75)."""
    one, a = splat(np.float32(1)), splat(np.float32(-0.75))
    near, far = splat(np.float32(1.25)), splat(np.float32(-2.25))
    t1 = one - t
    w0 = a * t * t1 * t1
    w1 = fma(fma(near, t, far), t * t, one)
    w2 = fma(fma(near, t1, far), t1 * t1, one)
    return w0, w1, w2, one - w0 - w1 - w2


@njit(inline="always")
def _locate(position, last, places, at):
    """Whole part to `places`, fraction returned; clamped to where every tap is zero anyway."""
    position = minimum(maximum(position, splat(np.float32(-3))), splat(last))
    whole = floor(position)
    store_int(places, at, whole)
    return position - whole


@njit(inline="always")
def _vertical(w, image, row_step, rows, places, lane):
    """The 4 rows of one pixel's taps, weighted: 4 groups (one a column) of [I, dI/dx, dI/dy, 0]."""
    # Row and column -1 of the pixel at (x, y) stand MARGIN - 1 rows and columns into the interleaved image.
    at = image + (places[LANES + lane] + MARGIN - 1) * row_step + (places[lane] + MARGIN - 1) * 4
    value = load(w, at) * repeat(w, rows + lane)
    value = fma(load(w, at + row_step), repeat(w, rows + LANES + lane), value)
    value = fma(load(w, at + 2 * row_step), repeat(w, rows + 2 * LANES + lane), value)
    return fma(load(w, at + 3 * row_step), repeat(w, rows + 3 * LANES + lane), value)


@njit(inline="always")
def _four(w, image, row_step, rows, places, lane, columns):
    """Pixels lane to lane + 3 as 4 groups of [I, dI/dx, dI/dy, 0]; columns: their 4 column weights as groups."""
    return fold(_vertical(w, image, row_step, rows, places, lane) * spread0(columns),
                _vertical(w, image, row_step, rows, places, lane + 1) * spread1(columns),
                _vertical(w, image, row_step, rows, places, lane + 2) * spread2(columns),
                _vertical(w, image, row_step, rows, places, lane + 3) * spread3(columns))


@njit(nogil=True, error_model="numpy")
def warp(w, image, first, state, c, height, width, rows, places):
    """Coefficients of one warp at `c`: gradient of the warped second image, -1 / |gradient|^2, constant part of rho.

    image: `interleave` of the second image; first: plane of the first image; state: holds u, the warp;
    rows: scratch of 4 LANES floats; places: (2 LANES,) int32 scratch. OpenCV: remap x 3 and calcGradRho.
    """
    blocks = (width + LANES - 1) // LANES
    tail = width - (blocks - 1) * LANES
    row_step = (width + 2 * MARGIN) * 4
    last_x, last_y = np.float32(width + 1), np.float32(height + 1)
    minus, epsilon = splat(np.float32(-1)), splat(EPSILON)
    for y in range(height):
        row = splat(np.float32(y))
        for block in range(blocks):
            u1, u2 = load(w, state), load(w, state + LANES)
            x_part = _locate(splat(np.float32(block * LANES)) + lane_numbers() + u1, last_x, places, 0)
            y_part = _locate(row + u2, last_y, places, LANES)
            k0, k1, k2, k3 = _cubic(y_part)
            store(w, rows, k0)
            store(w, rows + LANES, k1)
            store(w, rows + 2 * LANES, k2)
            store(w, rows + 3 * LANES, k3)
            k0, k1, k2, k3 = _cubic(x_part)
            q0 = _four(w, image, row_step, rows, places, 0, zip0(k0, k1, k2, k3))
            q1 = _four(w, image, row_step, rows, places, 4, zip1(k0, k1, k2, k3))
            q2 = _four(w, image, row_step, rows, places, 8, zip2(k0, k1, k2, k3))
            q3 = _four(w, image, row_step, rows, places, 12, zip3(k0, k1, k2, k3))
            count = tail if block == blocks - 1 else LANES
            gx, gy = keep(channel1(q0, q1, q2, q3), count), keep(channel2(q0, q1, q2, q3), count)
            square = fma(gx, gx, gy * gy)
            rho = channel0(q0, q1, q2, q3) - gx * u1 - gy * u2 - load(w, first)
            store(w, c + GX, gx)
            store(w, c + GY, gy)
            store(w, c + INVERSE, if_above(square, epsilon, minus / square))
            store(w, c + RHO, keep(rho, count))
            state, c, first = state + STATE, c + COEFFICIENTS, first + LANES
