"""What every flow backend keeps. A name in BACKENDS is tested here at once; what is special to one has its own file."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from preprocess.flow import BACKENDS, flow_window, parameters, runs_here, tvl1
from shared.motion import to_host

ORACLE = "opencv"


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.gpu] * (name == "cuda")) for name in BACKENDS[1:]])
def backend(request) -> str:
    if not runs_here(request.param):
        pytest.skip(f"this machine has no {request.param}")
    return request.param


@pytest.fixture
def judged(backend) -> str:
    """A backend that the oracle judges."""
    if backend == ORACLE:
        pytest.skip("the oracle itself")
    if cv2.__version__ < "5":
        pytest.skip("OpenCV 4 samples at steps of 1/32 px, which is no oracle to .001 px")
    return backend


def window(frames, settings, backend, **more):
    return to_host(flow_window(frames, settings, backend, **more))


def textured(seed, *shape):
    return cv2.GaussianBlur(np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32), (0, 0), 2)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """(4, 64, 91) uint8: a texture that moves by other amounts from frame to frame, at last not at all."""
    frame, shifts = textured(1, 100, 130), ((20, 20), (21, 18), (23, 19), (23, 19))
    return np.stack([frame[y:y + 64, x:x + 91] for y, x in shifts]).round().astype(np.uint8)


def test_a_shift_is_found_in_px_right_and_down(backend):
    frame = textured(5, 96, 128)
    flow = tvl1(frame, np.roll(frame, (2, -3), (0, 1)), backend=backend)
    assert flow.shape == (2, 96, 128) and flow.dtype == np.float32
    inner = flow[:, 12:-12, 12:-12]
    assert np.abs(inner[0] + 3).mean() < 0.1 and np.abs(inner[1] - 2).mean() < 0.1


@pytest.mark.parametrize("preset, overrides", [("default", {}), ("fast", {}), ("half", {}),
                                               ("default", {"zoom": 0.8, "median": 3})], ids=str)
def test_fixed_counts_give_the_oracles_flow(frames, judged, preset, overrides):
    ours, theirs = (tvl1(frames[:-1], frames[1:], preset, name, **overrides) for name in (judged, ORACLE))
    assert np.hypot(*(ours - theirs).swapaxes(0, 1)).mean() <= 0.005


@pytest.mark.parametrize("shape", [(16, 16), (16, 333), (17, 31), (200, 16), (33, 48), (64, 65), (50, 97)])
def test_any_size_and_float_input(judged, shape):
    first = textured(sum(shape), *shape)
    ours, theirs = (tvl1(first, np.roll(first, 1, axis=1), backend=name) for name in (judged, ORACLE))
    assert ours.shape == (2, *shape) and ours.dtype == np.float32
    assert np.median(np.hypot(*(ours - theirs))) < 1e-3


@pytest.mark.parametrize("preset", ["default", "fast", "reference"])
def test_identical_and_constant_frames_do_not_move(frames, backend, preset):
    assert not tvl1(frames[2], frames[3], preset, backend).any()
    flat = np.full((3, 40, 50), 128, np.uint8)
    assert not tvl1(flat, flat, preset, backend).any()
    assert np.isfinite(tvl1(flat, flat + np.uint8(90), preset, backend)).all()


@pytest.mark.parametrize("scale", [1, 0.5])
def test_same_bits_whatever_the_batch_the_threads_and_the_layout(frames, backend, scale):
    settings = parameters("default", scale=scale)
    single = np.stack([tvl1(a, b, settings, backend) for a, b in zip(frames, frames[1:])])
    np.testing.assert_array_equal(tvl1(frames[:-1], frames[1:], settings, backend, threads=3), single)
    one_by_one = np.concatenate([window(frames[n:n + 2], settings, backend) for n in range(3)])
    assert scale < 1 or np.array_equal(one_by_one, single)
    np.testing.assert_array_equal(window(frames, settings, backend), one_by_one)
    with ThreadPoolExecutor(2) as pool:
        np.testing.assert_array_equal(window(frames, settings, backend, executor=pool), one_by_one)
    strided = np.asfortranarray(frames)
    strided.flags.writeable = False
    np.testing.assert_array_equal(window(strided, settings, backend), one_by_one)
    for shape in ((64, 64), (64, 91)):          # another size in between leaves no trace
        tvl1(*np.random.default_rng(0).uniform(0, 255, (2, *shape)).astype(np.float32), backend=backend)
    np.testing.assert_array_equal(window(frames, settings, backend), one_by_one)


def test_floats_are_grey_values_like_bytes(frames, backend):
    np.testing.assert_array_equal(tvl1(*frames[:2].astype(np.float32), backend=backend),
                                  tvl1(*frames[:2], backend=backend))


def test_no_pairs_no_flow(frames, backend):
    assert tvl1(frames[:0], frames[:0], backend=backend).shape == (0, 2, 64, 91)
    assert window(frames[:1], parameters(), backend).shape == (0, 2, 64, 91)
