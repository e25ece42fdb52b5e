"""TV-L1 on this machine's GPU: correctness against the CPU backend, pairs a second, bytes moved, cost of Kinetics-400.

python tests/bench/gpu_flow.py     (make gpu runs it after the GPU tests)
Times are medians of CUDA events. The ceiling is the measured copy bandwidth over 64 B a pixel-iteration: what one fused
pass over memory an iteration could reach.
"""

import platform
import sys
from pathlib import Path

import cv2
import numpy as np

from preprocess.flow import PRESETS, cuda, flow_window, parameters
from preprocess.flow.batch import STEPS, BatchSolver

SIZE = 256, 340
KINETICS_PAIRS = 66e6
BYTES_A_PIXEL_ITERATION = 64          # 40 read, 24 written


def table(title, header, rows):
    cells = [list(map(str, header)), *[[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        print("  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))))
    sys.stdout.flush()


def seconds(cupy, work, repeats=7):
    """Median time of work() between two events on the current stream, after two runs to warm up."""
    for _ in range(2):
        work()
    times = []
    for _ in range(repeats):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop) / 1e3)
    return float(np.median(times))


def frames_of(count, size=SIZE):
    """(count, H, W) uint8: real frames where ../shared/data is there, else moving noise, repeated to and fro."""
    folder = Path(__file__).resolve().parents[3] / "shared/data/videos/kinetics"
    frames = []
    for file in sorted(folder.glob("*/*.mp4")):
        video = cv2.VideoCapture(str(file))
        for _ in range(16):
            good, frame = video.read()
            if good:
                grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
                frames.append(cv2.resize(grey, size[::-1], interpolation=cv2.INTER_AREA))
    if not frames:
        noise = cv2.GaussianBlur(np.random.default_rng(0).uniform(0, 255, size).astype(np.float32), (0, 0), 2)
        frames = [np.roll(noise, (n, 2 * n), (0, 1)).astype(np.uint8) for n in range(32)]
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    return np.stack([frames[order[n % len(order)]] for n in range(count)])


def correctness():
    frames = frames_of(17)
    rows = []
    for preset in PRESETS:
        settings = parameters(preset)
        ours, theirs = cuda.to_host(flow_window(frames, settings, "cuda")), flow_window(frames, settings, "cpu")
        distance = np.hypot(*(ours - theirs).swapaxes(0, 1))
        same = (ours == theirs).all(axis=(1, 2, 3)).mean()
        rows.append((preset, float(distance.mean()), float(distance.max()), f"{same:.0%}"))
    table("against the cpu backend, 16 pairs", ("preset", "mean EPE, px", "largest, px", "pairs with the same bits"),
          rows)


def copy_bandwidth(cupy):
    a = cupy.zeros(1 << 28, np.float32)
    b = cupy.empty_like(a)
    return 2 * a.nbytes / seconds(cupy, lambda: cupy.copyto(b, a))


def bytes_moved(sizes, tile, steps, parameters_):
    """Of all iterate launches of a pair: the tiles' reads, halo included, and the image's writes."""
    total = 0
    for height, width in sizes:
        left = parameters_.iterations
        while left:
            taken = min(steps, left)
            tiles = -(-width // (tile[0] - 2 * taken)) * -(-height // (tile[1] - 2 * taken))
            total += min(tiles * tile[0] * tile[1], 4 * height * width) * 40 + height * width * 24
            left -= taken
    return total * parameters_.warps * parameters_.outer


def inner_loop(cupy, bandwidth, batch=64):
    """iterate alone, for every halo and both builds."""
    rows = []
    settings = parameters("default", scales=1)
    for name, options in (("exact", cuda.OPTIONS), ("approximate", cuda.OPTIONS + cuda.APPROXIMATE)):
        device = cuda.Device(options)
        for steps in (1, 2, 3, 4, 5, 6, 8):
            solver = BatchSolver(device, *SIZE, settings, batch, batch + 1, steps)
            solver.images[0][:] = cupy.asarray(frames_of(batch + 1))
            solver.run(batch, batch + 1, 1)
            rate = batch * SIZE[0] * SIZE[1] * 30 / seconds(cupy, lambda: solver._fixed(SIZE[1], SIZE[0], batch))
            moved = bytes_moved([SIZE], device.tile, steps, settings) / settings.warps / (30 * SIZE[0] * SIZE[1])
            used = " (used)" if steps == STEPS and name == "exact" else ""
            rows.append((f"{name}, {steps} a launch{used}", rate / 1e9,
                         f"{rate * BYTES_A_PIXEL_ITERATION / bandwidth:.0%}", moved, f"{rate * moved / bandwidth:.0%}"))
    table(f"inner iterations, {batch} pairs of {SIZE[0]}x{SIZE[1]}",
          ("build", "G pixel-iterations/s", "of the 64 B ceiling", "B moved each", "of the copy bandwidth"), rows)


def throughput(cupy, bandwidth):
    rows = []
    device = cuda.Device()
    for preset in ("default", "fast", "reference"):
        settings = parameters(preset)
        for batch in (1, 8, 64, 256) if settings.fixed else (64,):
            for graphs in (True, False) if settings.fixed else (False,):
                solve = cuda.Batches(device, *SIZE, settings, batch, batch + 1, graphs)
                frames = cupy.asarray(frames_of(batch + 1))
                flow = cupy.empty((batch, 2, *SIZE), np.float32)
                with device.stream:
                    rate = batch / seconds(cupy, lambda: solve(frames, batch, 1, flow), 7 if settings.fixed else 3)
                moved = bytes_moved(solve.solver.sizes, device.tile, STEPS, settings) * rate / bandwidth
                rows.append((f"{preset}, batch {batch}", "graph" if graphs else "launches", rate,
                             f"{moved:.0%}" if settings.fixed else "-", KINETICS_PAIRS / rate / 3600))
    table(f"whole pairs, {SIZE[0]}x{SIZE[1]}, frames on the device",
          ("preset", "by", "pairs/s", "inner loop's bytes over the copy bandwidth", "hours for Kinetics-400 (66 M)"),
          rows)


def main():
    reason = cuda.unavailable()
    if reason:
        print(f"error: {reason}; this benchmark needs a GPU", file=sys.stderr)
        return 2
    import cupy
    device = cupy.cuda.runtime.getDeviceProperties(0)
    print(f"{device['name'].decode()}, CuPy {cupy.__version__}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}, "
          f"driver {cupy.cuda.runtime.driverGetVersion()}, Python {platform.python_version()}")
    correctness()
    bandwidth = copy_bandwidth(cupy)
    print(f"\ncopy bandwidth {bandwidth / 1e9:.0f} GB/s: at 64 B a pixel-iteration at most "
          f"{bandwidth / BYTES_A_PIXEL_ITERATION / 1e9:.1f} G pixel-iterations/s")
    inner_loop(cupy, bandwidth)
    throughput(cupy, bandwidth)
    return 0


if __name__ == "__main__":
    sys.exit(main())
