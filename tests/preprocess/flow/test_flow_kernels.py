"""The GPU kernels without a GPU: their arithmetic, tiles and sequence run as C++; for GPUs they must compile."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from preprocess.flow import _at_scale, cuda, flow_window, parameters
from preprocess.flow.batch import STEPS, BatchSolver


def solve(device, frames, settings, steps=STEPS):
    settings, frames = _at_scale(settings, frames)
    solver = BatchSolver(device, *frames.shape[1:], settings, len(frames) - 1, len(frames), steps)
    solver.images[0][:] = frames
    return solver.run(len(frames) - 1, len(frames), 1)


@pytest.mark.parametrize("preset, overrides", [
    ("default", {}), ("half", {}), ("default", {"median": 3, "outer": 2, "iterations": 7, "zoom": 0.8}),
    ("default", {"median": 1, "scales": 2}), ("reference", {"scales": 3})], ids=str)
def test_the_whole_batch_has_the_cpu_backends_bits(host_device, real_frames, preset, overrides):
    frames = real_frames[2][:, 30:130, 20:145]
    settings = parameters(preset, **overrides)
    np.testing.assert_array_equal(solve(host_device, frames, settings), flow_window(frames, settings, "cpu"))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 11])
@pytest.mark.parametrize("size", [(16, 16), (33, 58), (57, 130)])
def test_every_halo_gives_the_same_bits(host_device, steps, size):
    rng = np.random.default_rng(steps)
    frames = rng.uniform(0, 255, (3, *size)).astype(np.float32)
    settings = parameters("fast", scales=2, iterations=13)
    np.testing.assert_array_equal(solve(host_device, frames, settings, steps), flow_window(frames, settings, "cpu"))


def test_pairs_and_part_filled_batches(host_device, real_frames):
    """Frames n and n + shift for any shift, in buffers made for more of them."""
    a, b, c = real_frames[3][:, :48, :70]
    settings = parameters("fast")
    expected = flow_window(np.stack([a, b, c]), settings, "cpu")
    solver = BatchSolver(host_device, 48, 70, settings, 5, 10)
    solver.images[0][:4] = a, b, b, c
    for _ in range(2):
        np.testing.assert_array_equal(solver.run(2, 4, 2), expected)


def test_pairs_stop_each_for_itself(host_device, real_frames):
    """A still pair beside a moving one ends at once and keeps its flow."""
    a, b, _ = real_frames[0][:, :64, :64]
    settings = parameters("reference", scales=2)
    flow = solve(host_device, np.stack([a, a, b]), settings)
    assert not flow[0].any()
    np.testing.assert_array_equal(flow[1], flow_window(np.stack([a, b]), settings, "cpu")[0])


def test_the_source_and_the_constants_agree():
    text = cuda.source()
    assert "#include" not in text.replace("#include <math.h>", "")
    for name, value in (("TILE_W", cuda.TILE[0]), ("TILE_H", cuda.TILE[1]), ("THREADS_Y", cuda.TILE_THREADS[1])):
        assert f"#define {name} {value}" in " ".join(text.split())
    assert cuda.TILE_THREADS[0] == cuda.TILE[0]


def test_memory_a_pair_stays_within_the_bound(host_device):
    """BYTES_A_PIXEL, by which cuda.py sizes its batches, counted on both kinds of batch."""
    height, width, pairs = 64, 80, 4
    for preset in ("default", "reference"):
        for frames in (pairs + 1, 2 * pairs):
            solver = BatchSolver(host_device, height, width, parameters(preset), pairs, frames)
            arrays = [*solver.images, *(value for value in vars(solver).values() if isinstance(value, np.ndarray))]
            total = sum(array.nbytes for array in arrays)
            assert total <= cuda.BYTES_A_PIXEL * height * width * pairs


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_kernels_compile_for_gpus(tmp_path, architecture):
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc")
    code = tmp_path / "tvl1.cu"
    code.write_text(cuda.source())
    report = subprocess.run([compiler, "--cubin", f"-arch={architecture}", *cuda.OPTIONS, "-Xptxas=-v", "-o",
                             tmp_path / "tvl1.cubin", code], capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    assert "warning" not in report.stderr, report.stderr
    spilt = [int(count) for count in re.findall(r"(\d+) bytes spill stores", report.stderr)]
    assert len(spilt) == 11 and max(spilt) <= 16, report.stderr


def test_without_cupy_auto_is_cpu_and_cuda_says_why():
    from preprocess.flow import resolve
    from shared.cli import RequestError
    reason = cuda.unavailable()
    if reason is None:
        assert resolve("auto") == "cuda"
    else:
        assert resolve("auto") == "cpu"
        with pytest.raises(RequestError, match="'cuda' cannot run here: .*; choose cpu"):
            resolve("cuda")
