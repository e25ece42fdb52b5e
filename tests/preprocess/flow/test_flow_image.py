"""Resize, warp and median of the CPU backend against OpenCV's functions."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.flow import cpu, cpu_image, cpu_median, parameters
from preprocess.flow.cpu_iterate import COEFFICIENTS, STATE
from preprocess.flow.simd import LANES

SIZES = st.tuples(st.integers(16, 80), st.integers(16, 80))


class Planes:
    """A solver's workspace, with its state and coefficients as (H, W) planes."""

    def __init__(self, height, width):
        self.solver = cpu.Solver(height, width, parameters("default", scales=1))
        self.w, self.offsets = self.solver.workspace, self.solver.offsets
        self.height, self.width, self.blocks = height, width, -(-width // LANES)

    def _block(self, place, floats):
        start = self.offsets[place]
        count = self.height * self.blocks * floats
        return self.w[start:start + count].reshape(self.height, self.blocks, -1, LANES)

    def get(self, place, floats, plane):
        rows = self._block(place, floats)[:, :, plane].reshape(self.height, -1)
        assert not rows[:, self.width:].any(), "lanes past the width must stay zero"
        return rows[:, :self.width]

    def put(self, plane, values):
        padded = np.pad(values, ((0, 0), (0, self.blocks * LANES - self.width)))
        self._block(cpu.STATE_A, STATE)[:, :, plane] = padded.reshape(self.height, self.blocks, LANES)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(0, 2**32 - 1), st.sampled_from([0.3, 3.0, 60.0]))
def test_warp_is_remap(size, seed, amount):
    height, width = size
    rng = np.random.default_rng(seed)
    first, second = rng.uniform(0, 255, (2, height, width)).astype(np.float32)
    u = rng.normal(0, amount, (2, height, width)).astype(np.float32)
    p = Planes(height, width)
    level = p.solver.levels[0]
    pitch = p.blocks * LANES
    cpu_image.ingest(first, p.w, level[cpu.FIRST], pitch)
    cpu_image.ingest(second, p.w, level[cpu.SECOND], pitch)
    p.put(0, u[0])
    p.put(1, u[1])
    cpu_image.interleave(p.w, level[cpu.SECOND], height, width, p.offsets[cpu.IMAGE])
    cpu_image.warp(p.w, p.offsets[cpu.IMAGE], level[cpu.FIRST], p.offsets[cpu.STATE_A], p.offsets[cpu.COEFFICIENT],
                   height, width, p.offsets[cpu.SCRATCH], p.solver.places)
    gx, gy, inverse, rho = (p.get(cpu.COEFFICIENT, COEFFICIENTS, plane) for plane in range(4))

    edge = np.pad(second, 1, mode="edge")
    images = second, (edge[1:-1, 2:] - edge[1:-1, :-2]) / 2, (edge[2:, 1:-1] - edge[:-2, 1:-1]) / 2
    y, x = np.mgrid[:height, :width].astype(np.float32)
    warped, wx, wy = (remap(np.ascontiguousarray(image), x + u[0], y + u[1]) for image in images)
    np.testing.assert_allclose(gx, wx, atol=2e-4)
    np.testing.assert_allclose(gy, wy, atol=2e-4)
    np.testing.assert_allclose(rho, warped - wx * u[0] - wy * u[1] - first, atol=2e-3 * max(1, amount))
    square = gx * gx + gy * gy
    # The sum is fused on one side: a square next to the threshold may fall on either.
    clear = (square > 2e-7) | (square < 1e-8)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(inverse[clear], np.where(square > 2e-7, -1 / square, 0)[clear], rtol=1e-5)


def remap(image, map_x, map_y):
    """Bicubic interpolation with zero outside: cv2.remap from OpenCV 5 on (before, its coordinates are rounded)."""
    if int(cv2.__version__.split(".")[0]) >= 5:
        return cv2.remap(image, map_x, map_y, cv2.INTER_CUBIC)
    out = np.zeros_like(image)
    x0, y0 = np.floor(map_x), np.floor(map_y)
    for j, wy in enumerate(cubic(map_y - y0)):
        for i, wx in enumerate(cubic(map_x - x0)):
            x, y = (x0 + i - 1).astype(int), (y0 + j - 1).astype(int)
            inside = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
            out += np.where(inside, image[y.clip(0, image.shape[0] - 1), x.clip(0, image.shape[1] - 1)], 0) * wx * wy
    return out


def cubic(t, a=-0.75):
    far = lambda d: ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1
    return far(1 + t), near(t), near(1 - t), far(2 - t)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(SIZES, st.sampled_from([3, 5]), st.integers(0, 2**32 - 1), st.booleans())
def test_median_is_median_blur(size, side, seed, ties):
    rng = np.random.default_rng(seed)
    u = rng.normal(size=size).astype(np.float32)
    if ties:
        u = np.round(u)
    p = Planes(*size)
    p.put(0, u)
    p.put(1, -u)
    cpu_median.median(p.w, p.offsets[cpu.STATE_A], *size, side, p.offsets[cpu.PADDED], p.offsets[cpu.RANKS])
    np.testing.assert_array_equal(p.get(cpu.STATE_A, STATE, 0), cv2.medianBlur(u, side))
    np.testing.assert_array_equal(p.get(cpu.STATE_A, STATE, 1), -u)


@settings(max_examples=25, deadline=None)
@given(SIZES, st.floats(0.4, 0.95), st.integers(0, 2**32 - 1), st.booleans())
def test_resize_is_resize(size, zoom, seed, up):
    height, width = size
    image = np.random.default_rng(seed).uniform(0, 255, size).astype(np.float32)
    small = round(height * zoom), round(width * zoom)
    if up:
        target, scale = (round(height / zoom), round(width / zoom)), None
        expected = cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR)
        scale = width / target[1], height / target[0]
    else:
        target, scale = small, (1 / zoom, 1 / zoom)
        expected = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    pad = lambda count: -(-count // LANES) * LANES
    pitch, out_pitch = pad(width), pad(target[1])
    w = np.zeros(height * pitch + target[0] * out_pitch + pitch + LANES, np.float32)
    w[:height * pitch].reshape(height, pitch)[:, :width] = image
    columns = [np.pad(taps, (0, out_pitch - target[1])) for taps in cpu_image.linear_taps(width, target[1], scale[0])]
    rows = cpu_image.linear_taps(height, target[0], scale[1])
    start, scratch = height * pitch, height * pitch + target[0] * out_pitch
    for y, (upper, lower, weight) in enumerate(zip(*rows)):
        cpu_image.resize_row(w, upper * pitch, lower * pitch, weight, LANES, pitch // LANES, scratch,
                             start + y * out_pitch, LANES, out_pitch // LANES, target[1] - out_pitch + LANES,
                             *columns, 0, np.float32(1))
    got = w[start:scratch].reshape(target[0], out_pitch)
    assert expected.shape == target
    assert not got[:, target[1]:].any()
    np.testing.assert_allclose(got[:, :target[1]], expected, atol=1e-4)


@pytest.mark.parametrize("size", [(31, 45), (255, 341), (64, 64)])
def test_half_size_is_the_mean_of_four(size):
    """OpenCV's own special case of zoom 0.5, which odd sides reach too."""
    image = np.random.default_rng(1).uniform(0, 255, size).astype(np.float32)
    (first, second, weight), (top, bottom, share) = (
        cpu_image.linear_taps(side, round(side / 2), 2.0) for side in (size[1], size[0]))
    rows = image[top] * (1 - share)[:, None] + image[bottom] * share[:, None]
    np.testing.assert_allclose(rows[:, first] * (1 - weight) + rows[:, second] * weight,
                               cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_LINEAR), atol=1e-4)
