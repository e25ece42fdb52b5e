"""Flow at half the size: means and bilinear taps against loops and OpenCV, and what the flow itself becomes."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.flow import flow_window, parameters, tvl1
from preprocess.flow.scale import enlarged, halved
from shared.cli import RequestError
from tests.preprocess.flow.test_backends import textured

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def slow_means(frames):
    """Means of 2x2 pixels by loops, in float64; what an odd side lacks is its last row or column again."""
    n, height, width = frames.shape
    out = np.zeros((n, -(-height // 2), -(-width // 2)))
    for y in range(out.shape[1]):
        for x in range(out.shape[2]):
            pixels = [frames[:, min(j, height - 1), min(i, width - 1)].astype(float)
                      for j in (2 * y, 2 * y + 1) for i in (2 * x, 2 * x + 1)]
            out[:, y, x] = sum(pixels) / 4
    return out


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from([np.uint8, np.float32]), st.integers(0, 2**32 - 1))
def test_halved_is_the_mean_of_four(size, kind, seed):
    frames = np.random.default_rng(seed).uniform(0, 256, (2, *size)).astype(kind)
    got = halved(frames)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_means(frames), rtol=0 if kind == np.uint8 else 1e-6)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_enlarged_is_bilinear_in_the_frames_own_pixels(size, seed):
    height, width = size
    flow = np.random.default_rng(seed).normal(size=(2, 2, -(-height // 2), -(-width // 2))).astype(np.float32)
    whole = np.stack([[2 * cv2.resize(plane, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR) for plane in pair]
                      for pair in flow])
    got = enlarged(flow, height, width)
    assert got.dtype == np.float32 and got.shape == (2, 2, height, width)
    np.testing.assert_allclose(got, whole[:, :, :height, :width], atol=1e-5)


@pytest.mark.parametrize("size", [(96, 128), (97, 127), (31, 64)])
def test_half_is_fast_on_the_means_and_finds_a_shift(size):
    first = textured(5, *size)
    second = np.roll(first, (2, -3), (0, 1))
    small = flow_window(np.stack([first, second]), parameters("half"), "cpu")
    means = slow_means(np.stack([first, second])).astype(np.float32)
    assert small.shape == (1, 2, -(-size[0] // 2), -(-size[1] // 2))
    np.testing.assert_allclose(small, flow_window(means, parameters("fast"), "cpu"), atol=1e-3)
    flow = tvl1(first, second, "half", "cpu")
    np.testing.assert_array_equal(flow, enlarged(small, *size)[0])
    np.testing.assert_array_equal(flow, tvl1(first, second, "fast", "cpu", scale=0.5))
    assert np.abs(np.median(flow, axis=(1, 2)) - (-3, 2)).max() < 0.15
    assert not np.array_equal(flow, tvl1(first, second, "fast", "cpu"))
    np.testing.assert_array_equal(tvl1(first, second, "half", "cpu", scale=1), tvl1(first, second, "fast", "cpu"))


def test_a_gradient_keeps_its_value_per_pixel():
    """A texture that is stretched by 1 % a frame: du/dx is 0.01 per px at either size."""
    first = textured(3, 128, 160)
    x, y = np.meshgrid(np.arange(160, dtype=np.float32), np.arange(128, dtype=np.float32))
    second = cv2.remap(first, 80 + (x - 80) / np.float32(1.01), y, cv2.INTER_CUBIC)
    small = flow_window(np.stack([first, second]), parameters("half"), "cpu")[0]
    for u in (small[0], tvl1(first, second, "half", "cpu")[0]):
        slope = np.gradient(u, axis=1)[16:-16, 16:-16]
        assert np.median(slope) == pytest.approx(0.01, rel=0.15)


def test_halves_under_16_px_are_refused():
    frames = np.zeros((2, 30, 64), np.uint8)
    for call in (lambda: tvl1(frames, frames, "half", "cpu"), lambda: flow_window(frames, parameters("half"), "cpu")):
        with pytest.raises(RequestError, match="2x30x64 uint8; expected sides of at least 31 pixels, 16 at half the "
                                               r"size \(scale 0.5\)$"):
            call()
    assert tvl1(frames[:, :16], frames[:, :16], "fast", "cpu").shape == (2, 2, 16, 64)
