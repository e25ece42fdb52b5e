"""TV-L1 on this machine's GPU: correctness against the CPU backend, pairs a second, bytes moved, cost of Kinetics-400.

Times are medians of CUDA events. The ceiling is the measured copy bandwidth over 64 B a pixel-iteration: what one fused
pass over memory an iteration could reach. Dry run: the CPU backend against what kit.py stored of it.
"""

import sys

import numpy as np
from stage import Stage

from preprocess.flow import PRESETS, _at_scale, cuda, flow_window, parameters
from preprocess.flow.batch import STEPS, BatchSolver

SIZE = 256, 340
KINETICS_PAIRS = 66e6
BYTES_A_PIXEL_ITERATION = 64          # 40 read, 24 written


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


def frames_of(kit, count):
    """(count, H, W) uint8: the kit's frames of real videos, to and fro."""
    frames = kit["frames"]
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    return np.stack([frames[order[n % len(order)]] for n in range(count)])


def correctness(stage, kit):
    """Every preset against the CPU backend of this machine, and both against what the CPU gave where the kit was made:
    bits may differ from processor to processor by numba's choice of instructions, but not by more than rounding."""
    frames = kit["frames"][:int(kit["pairs"]) + 1]
    for preset in PRESETS:
        settings, stored = parameters(preset), kit[f"flow_{preset}"].astype(np.float32)
        here = flow_window(frames, settings, "cpu")
        theirs = cuda.to_host(flow_window(frames, settings, "cuda")) if stage.device == "cuda" else here
        for name, other in (("cpu", here), ("kit", stored)):
            distance = np.hypot(*(theirs - other).swapaxes(0, 1))
            stage.put(f"{preset}.epe_to_{name}", float(distance.mean()), "px")
            stage.put(f"{preset}.largest_to_{name}", float(distance.max()), "px")
        stage.put(f"{preset}.pairs_with_the_cpus_bits", float((theirs == here).all(axis=(1, 2, 3)).mean()), "share")


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


def inner_loop(stage, cupy, bandwidth, frames, batch=64):
    """iterate alone, for every halo and both builds."""
    settings = parameters("default", scales=1)
    for name, options in (("exact", cuda.OPTIONS), ("approximate", cuda.OPTIONS + cuda.APPROXIMATE)):
        device = cuda.Device(options)
        for steps in (1, 2, 4, 6, 8):
            solver = BatchSolver(device, *SIZE, settings, batch, batch + 1, steps)
            with device.stream:
                solver.images[0][:] = cupy.asarray(frames[:batch + 1])
                solver.run(batch, batch + 1, 1)
                rate = batch * SIZE[0] * SIZE[1] * 30 / seconds(cupy, lambda: solver._fixed(SIZE[1], SIZE[0], batch))
            moved = bytes_moved([SIZE], device.tile, steps, settings) / settings.warps / (30 * SIZE[0] * SIZE[1])
            stage.put(f"iterate.{name}.{steps}_a_launch", rate / 1e9, "G pixel-iterations/s")
            stage.put(f"iterate.{name}.{steps}_a_launch.over_64_B_ceiling", rate * BYTES_A_PIXEL_ITERATION / bandwidth,
                      "share")
            stage.put(f"iterate.{name}.{steps}_a_launch.of_copy_bandwidth", rate * moved / bandwidth, "share")


def throughput(stage, cupy, bandwidth, frames):
    """Whole pairs of frames that lie on the device."""
    device = cuda.Device()
    for preset in ("default", "fast", "half", "reference"):
        settings, grey = _at_scale(parameters(preset), frames)
        size = grey.shape[1:]
        for batch in (1, 8, 64, 256) if settings.fixed else (64,):
            for graphs in (False, True) if settings.fixed else (False,):      # the last gives kinetics400
                solve = cuda.Batches(device, *size, settings, batch, batch + 1, graphs)
                there = cupy.asarray(grey[:batch + 1])
                flow = cupy.empty((batch, 2, *size), np.float32)
                with device.stream:
                    rate = batch / seconds(cupy, lambda: solve(there, batch, 1, flow), 7 if settings.fixed else 3)
                how = f"{preset}.batch_{batch}.{'graph' if graphs else 'launches'}"
                stage.put(f"{how}.pairs_a_second", rate, "pairs/s")
                if settings.fixed and graphs:
                    stage.put(f"{how}.of_copy_bandwidth", bytes_moved(solve.solver.sizes, device.tile, STEPS, settings)
                              * rate / bandwidth, "share")
        stage.put(f"{preset}.kinetics400", KINETICS_PAIRS / rate / 3600, "hours of flow")


def main():
    stage = Stage("flow", __doc__)
    kit = np.load(stage.kit / "flow.npz")
    correctness(stage, kit)
    if stage.device == "cpu":
        return
    import cupy
    frames = frames_of(kit, 257)
    bandwidth = copy_bandwidth(cupy)
    stage.put("copy_bandwidth", bandwidth / 1e9, "GB/s, read and written")
    throughput(stage, cupy, bandwidth, frames)
    inner_loop(stage, cupy, bandwidth, frames)


if __name__ == "__main__":
    sys.exit(main())
