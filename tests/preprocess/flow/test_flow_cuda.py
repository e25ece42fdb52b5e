"""The GPU backend on a GPU."""

import numpy as np
import pytest

from preprocess.flow import cuda, flow_window, parameters, tvl1
from shared import motion

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def device():
    reason = cuda.unavailable()
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("preset", ["default", "fast", "reference"])
def test_same_flow_as_cpu(real_frames, preset):
    settings = parameters(preset)
    for frames in real_frames[:4]:
        ours, theirs = cuda.to_host(flow_window(frames, settings, "cuda")), flow_window(frames, settings, "cpu")
        assert np.hypot(*(ours - theirs).swapaxes(0, 1)).mean() <= 0.005


def test_same_bits_whatever_the_batch_and_with_graphs(real_frames):
    frames = np.stack([f[n, 20:116, 10:143] for f in real_frames for n in range(3)])
    settings = parameters("default")
    flow = cuda.to_host(flow_window(frames, settings, "cuda"))
    for _ in range(3):          # launched, captured, replayed
        np.testing.assert_array_equal(cuda.to_host(flow_window(frames, settings, "cuda")), flow)
    np.testing.assert_array_equal(tvl1(frames[:-1], frames[1:], backend="cuda"), flow)
    for n in range(3):
        np.testing.assert_array_equal(tvl1(frames[n], frames[n + 1], backend="cuda"), flow[n])


def test_batches_split_by_memory(real_frames, monkeypatch):
    frames = np.concatenate(real_frames[:1])
    frames = np.concatenate([frames, frames[::-1]])
    settings = parameters("fast")
    whole = cuda.to_host(flow_window(frames, settings, "cuda"))
    monkeypatch.setattr(cuda, "BATCH", 2)
    np.testing.assert_array_equal(cuda.to_host(flow_window(frames, settings, "cuda")), whole)
    np.testing.assert_array_equal(tvl1(frames[:-1], frames[1:], "fast", "cuda"), whole)


def test_motion_maps_follow_on_the_device(real_frames):
    frames = real_frames[0][:, :64, :80]
    flow = flow_window(frames, parameters("default"), "cuda")
    maps = motion.pool(motion.motion_map(flow))
    assert type(maps) is type(flow)
    np.testing.assert_allclose(cuda.to_host(maps), motion.pool(motion.motion_map(cuda.to_host(flow))), atol=1e-5)
