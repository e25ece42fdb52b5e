"""TV-L1 on the GPU: the kernels through CuPy. This file alone imports CuPy, and only when it is used.

T flows of T + 1 frames, N pairs, HxW pixels. Compiled without approximations and without contraction beyond the
kernels' own fused multiply-adds, so that the arithmetic is that of the cpu backend, operation for operation.
"""

import threading
from functools import cache
from pathlib import Path

import numpy as np

from preprocess.flow.batch import BatchSolver
from preprocess.flow.parameters import TVL1Parameters

BATCH = 256                        # pairs a launch, at most
BYTES_A_PIXEL = 128                # of device memory, a pair; an upper bound over both kinds of batch
BUDGET = 4 << 30                   # bytes of device memory for a batch, at most
BLOCK = 32, 8
TILE, TILE_THREADS = (64, 32), (64, 8)      # TILE_W, TILE_H and THREADS_Y of tvl1.cu
OPTIONS = "--std=c++14", "--fmad=false"
APPROXIMATE = "--prec-sqrt=false", "--prec-div=false"      # tests/bench/gpu/flow.py measures the exact build against it


def unavailable() -> str | None:
    """Why this backend cannot run here, None where it can."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed (pip install cupy-cuda12x, or -cuda13x, by the driver's CUDA)"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no CUDA device ({error})"
    return None if count else "no CUDA device"


def device_name() -> str:
    """The current CUDA device, as its driver calls it."""
    import cupy
    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()


def source() -> str:
    """tvl1.cu with pixel.cuh in its place: CuPy's cache of compiled kernels looks at the text alone."""
    folder = Path(__file__).with_name("kernels")
    return (folder / "tvl1.cu").read_text().replace('#include "pixel.cuh"', (folder / "pixel.cuh").read_text())


class Device:
    """BatchSolver's device (batch.py) on the current CUDA device."""

    tile = TILE

    def __init__(self, options: tuple[str, ...] = OPTIONS):
        import cupy
        self.xp = cupy
        self.module = cupy.RawModule(code=source(), options=options)
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.functions = {}

    def run(self, kernel, width, height, count, *args):
        if kernel not in self.functions:
            self.functions[kernel] = self.module.get_function(kernel)
        function = self.functions[kernel]
        if kernel == "iterate":                 # width and height count tiles
            function((width, height, count), TILE_THREADS, args)
        else:
            function((-(-width // BLOCK[0]), -(-height // BLOCK[1]), count), BLOCK, args)

    def capture(self, work):
        """The launches of `work()` as one CUDA graph; nothing in it may allocate. Call on `stream`."""
        self.stream.begin_capture()
        work()
        return self.stream.end_capture()


class Batches:
    """One size and parameters: buffers for a batch, and a graph of the launches for shapes of batch that come again.

    The first batch of a shape runs launch by launch, which also compiles what it needs (a capture may not); the second
    is captured. `graphs=False` launches always: what tests/bench/gpu/flow.py measures graphs against.
    """

    def __init__(self, device: Device, height: int, width: int, parameters: TVL1Parameters, pairs: int, frames: int,
                 graphs: bool = True):
        self.device, self.seen, self.captured = device, set(), {}
        self.use_graphs = graphs and parameters.fixed       # a stop by epsilon asks the device in between
        self.solver = BatchSolver(device, height, width, parameters, pairs, frames)

    def __call__(self, frames, pairs: int, shift: int, out) -> None:
        """Flow of frames n to n + shift for n < pairs into `out` (pairs, 2, H, W), all on `device.stream`."""
        shape = pairs, len(frames), shift
        with self.device.stream:
            self.solver.images[0][:len(frames)] = self.device.xp.asarray(frames)
            if self.use_graphs and shape in self.seen:
                if shape not in self.captured:
                    self.captured[shape] = self.device.capture(lambda: self.solver.run(*shape))
                self.captured[shape].launch(stream=self.device.stream)
            else:
                self.solver.run(*shape)
                self.seen.add(shape)
            out[:] = self.solver.flow[:pairs]


_lock = threading.Lock()
_latest: dict[tuple, Batches] = {}


@cache
def _device(number: int) -> Device:
    return Device()


def _batches(height, width, parameters, pairs, frames) -> Batches:
    """The buffers of the last call, where they fit; others are let go first."""
    import cupy
    number = cupy.cuda.runtime.getDevice()
    key = number, height, width, parameters
    found = _latest.get(key)
    if found is None or found.solver.capacity[0] < pairs or found.solver.capacity[1] < frames:
        _latest.clear()
        found = _latest[key] = Batches(_device(number), height, width, parameters, pairs, frames)
    return found


def _batch_size(height: int, width: int) -> int:
    """Pairs that a batch may hold: the same for every call of one size, whatever memory happens to be free."""
    return max(1, min(BATCH, BUDGET // (BYTES_A_PIXEL * height * width)))


def solve_window(frames, parameters: TVL1Parameters):
    """Flow between neighbouring frames (T + 1, H, W), numpy or CuPy. Returns (T, 2, H, W) float32 on the device."""
    import cupy
    _, height, width = frames.shape
    flow = cupy.empty((len(frames) - 1, 2, height, width), np.float32)
    step = _batch_size(height, width)
    with _lock:
        cupy.cuda.get_current_stream().synchronize()      # frames made on the caller's stream are ready
        for start in range(0, len(flow), step):
            pairs = min(step, len(flow) - start)
            solve = _batches(height, width, parameters, pairs, pairs + 1)
            solve(frames[start:start + pairs + 1], pairs, 1, flow[start:start + pairs])
            solve.device.stream.synchronize()
    return flow


def solve_pairs(first, second, parameters: TVL1Parameters):
    """Flow of N pairs (N, H, W), numpy. Returns (N, 2, H, W) float32 on the device."""
    import cupy
    n, height, width = first.shape
    flow = cupy.empty((n, 2, height, width), np.float32)
    step = _batch_size(height, width)
    with _lock:
        cupy.cuda.get_current_stream().synchronize()
        for start in range(0, n, step):
            pairs = min(step, n - start)
            solve = _batches(height, width, parameters, pairs, 2 * pairs)
            frames = np.concatenate([first[start:start + pairs], second[start:start + pairs]])
            solve(frames, pairs, pairs, flow[start:start + pairs])
            solve.device.stream.synchronize()
    return flow


def to_device(frames):
    import cupy
    return cupy.asarray(frames)


def to_host(flow) -> np.ndarray:
    return flow.get()
