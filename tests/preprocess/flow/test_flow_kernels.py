"""The GPU kernels without a GPU: their arithmetic, tiles and sequence run as C++; for GPUs they must compile."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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


GUARDED = """
import ctypes, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from conftest import HostDevice
from preprocess.flow import _at_scale, parameters
from preprocess.flow.batch import BatchSolver
device = HostDevice(ctypes.CDLL(sys.argv[1]), guarded=True)
rng = np.random.default_rng(0)
for preset, overrides, size in [("default", {"warps": 1}, (33, 58)), ("fast", {"warps": 1, "median": 3}, (57, 130)),
                                ("half", {"warps": 1}, (64, 72)), ("reference", {"warps": 1, "outer": 2,
                                "iterations": 3}, (16, 17))]:
    settings, frames = _at_scale(parameters(preset, **overrides), rng.uniform(0, 255, (3, *size)).astype(np.float32))
    solver = BatchSolver(device, *frames.shape[1:], settings, 2, 3)
    solver.images[0][:] = frames
    flow = solver.run(2, 3, 1)
    assert np.isfinite(flow).all() and flow.any()
print(device.launches, "launches")
if sys.argv[3:]:
    device.library.split(ctypes.c_void_p(device.libc.malloc(256)), ctypes.c_void_p(device.libc.malloc(252)), 8, 4, 1)
"""


@pytest.mark.slow
def test_no_kernel_reads_or_writes_outside_its_buffers(tmp_path, build_kernels):
    """Every kernel in its order, under the address sanitizer, each buffer as long as the kernel may go; then one that
    is a value too short, which must be found."""
    library = build_kernels(tmp_path, "-fsanitize=address", "-fno-omit-frame-pointer")
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("no address sanitizer")
    def run(*more):
        return subprocess.run([sys.executable, "-c", GUARDED, library, Path(__file__).parent, *more], text=True,
                              capture_output=True, env={**os.environ, "LD_PRELOAD": runtime,
                                                        "ASAN_OPTIONS": "detect_leaks=0"})
    whole, short = run(), run("short")
    assert whole.returncode == 0 and "launches" in whole.stdout, whole.stderr[-3000:]
    assert short.returncode and "heap-buffer-overflow" in short.stderr


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
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
    # Two blocks of iterate a multiprocessor, as TILED_KERNEL asks: 64 Ki registers and 100 KiB shared hold both.
    registers, shared = re.search(r"'iterate' for .*?Used (\d+) registers.*? (\d+) bytes smem", report.stderr,
                                  re.DOTALL).groups()
    assert 2 * int(registers) * np.prod(cuda.TILE_THREADS) <= 65536 and 2 * int(shared) <= 100 << 10


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
