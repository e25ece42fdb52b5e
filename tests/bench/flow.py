"""TV-L1 on this machine: speed against OpenCV and scikit-image, ceilings, scaling, agreement with OpenCV, ground truth.

python tests/bench/flow.py [--only SECTION ...] [--quick] [--full]
Sections: iterations (ceilings and the inner loop), speed (256x340), sizes (the others), scaling, agreement, truth.
One thread where nothing else is said; CPU seconds of the calling thread, medians of interleaved repeats (OpenCV and
scikit-image, which take seconds, once over all pairs). `--full` adds 1080x1920 for OpenCV too (minutes). Real frames
and ground truth come from ../shared/data.
"""

import argparse
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numba
import numpy as np
from floors import tell
from numba import njit

from preprocess.flow import PRESETS, cpu, flow_window, parameters, tvl1
from preprocess.flow.cpu_iterate import sweep
from preprocess.flow.simd import LANES, fma, load, splat, sqrt, store, total
from shared import motion

DATA = Path(__file__).resolve().parents[3] / "shared/data"
SIZES = (128, 170), (240, 320), (256, 340), (480, 640), (1080, 1920)
SIZE = 256, 340
SECTIONS = "iterations", "speed", "sizes", "scaling", "agreement", "truth"


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                 platform.processor())
    return (f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, "
            f"numpy {np.__version__}, numba {numba.__version__}, OpenCV {cv2.__version__}")


def table(title, header, rows):
    cells = [list(map(str, header)), *[[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        print("  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))))
    sys.stdout.flush()


def interleaved(functions, repeats):
    """Median CPU seconds of every function, taken in turns; each is called once before."""
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.thread_time()
            function()
            times[name].append(time.thread_time() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def real_pairs(size, count):
    """Grey pairs (2, H, W) uint8 of different real videos at one size."""
    files = [f for n in ("kinetics", "ucf101", "hmdb51", "ucf11") for f in sorted((DATA / "videos" / n).glob("*/*.*"))]
    out = []
    for file in files:
        video = cv2.VideoCapture(str(file))
        video.set(cv2.CAP_PROP_POS_FRAMES, 20)
        frames = [frame for ok, frame in (video.read() for _ in range(2)) if ok]
        if len(frames) == 2:
            grey = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames]
            out.append(np.stack([cv2.resize(g, size[::-1], interpolation=cv2.INTER_AREA) for g in grey]))
    return out[::max(1, len(out) // count)][:count]


@njit(nogil=True, fastmath=False)
def _fma_chain(w, count):
    a, b = splat(w[0]), splat(w[1])
    r0 = r1 = r2 = r3 = r4 = r5 = r6 = r7 = a
    for _ in range(count):
        r0, r1, r2, r3 = fma(r0, a, b), fma(r1, a, b), fma(r2, a, b), fma(r3, a, b)
        r4, r5, r6, r7 = fma(r4, a, b), fma(r5, a, b), fma(r6, a, b), fma(r7, a, b)
    return total(r0 + r1 + r2 + r3 + r4 + r5 + r6 + r7)


@njit(nogil=True, fastmath=False)
def _root_chain(w, count):
    """Two square roots and two divisions a turn and value, as an iteration has them; eight values."""
    one = splat(w[0])
    r0 = r1 = r2 = r3 = r4 = r5 = r6 = r7 = splat(w[1])
    for _ in range(count):
        r0, r1, r2, r3 = one / sqrt(r0), one / sqrt(r1), one / sqrt(r2), one / sqrt(r3)
        r4, r5, r6, r7 = one / sqrt(r4), one / sqrt(r5), one / sqrt(r6), one / sqrt(r7)
    return total(r0 + r1 + r2 + r3 + r4 + r5 + r6 + r7)


@njit(nogil=True)
def _triad(w, n, turns):
    s = splat(w[0])
    for _ in range(turns):
        for i in range(0, n, 4 * LANES):
            for j in (0, LANES, 2 * LANES, 3 * LANES):
                store(w, i + j, fma(load(w, 2 * n + i + j), s, load(w, n + i + j)))


def ceilings():
    """Measured: ns a vector of FMA, of 1/sqrt; GB/s of the triad in each level of memory."""
    w = cpu.Solver(1080, 1920, parameters()).workspace
    w[:2] = 1, 1.5
    n = 200_000
    t = interleaved({"fma": lambda: _fma_chain(w, n), "root": lambda: _root_chain(w, n // 8)}, 7)
    vector_fma, vector_root = t["fma"] / n / 8 * 1e9, t["root"] / (n // 8) / 8 * 1e9
    rates = {}
    for name, size in (("L1 (24 kB)", 2048), ("L2 (400 kB)", 34_000), ("L3 (8 MB)", 700_000),
                       ("memory (96 MB)", 8_000_000)):
        size = size // (4 * LANES) * 4 * LANES
        turns = max(1, 20_000_000 // size)
        rates[name] = 12 * size * turns / interleaved({"t": lambda: _triad(w, size, turns)}, 5)["t"] / 1e9
    table("ceilings of one thread", ("what", "value", "unit"), [
        ("fused multiply-add", vector_fma, "ns per 16 lanes"),
        ("1/sqrt, correctly rounded", vector_root, "ns per 16 lanes"),
        *[(f"triad {name}", rate, "GB/s") for name, rate in rates.items()]])
    # An iteration of a pixel: 33 additions, multiplications and comparisons (a fused pair counts once), 2 roots, 2
    # divisions; 10 floats read, 6 written where nothing stays in a cache between iterations.
    return {"arithmetic": 33 * vector_fma / LANES, "roots": 2 * vector_root / LANES,
            "64 B from L2": 64 / rates["L2 (400 kB)"], "64 B from memory": 64 / rates["memory (96 MB)"]}


def inner_loop(floors, repeats):
    rows = []
    for height, width in SIZES:
        solver = cpu.Solver(height, width, parameters())
        pair = real_pairs((height, width), 1)[0]
        solver(*pair, np.empty((2, height, width), np.float32))
        f, o = np.float32, solver.offsets

        def run(count):
            sweep(solver.workspace, o[cpu.STATE_A], o[cpu.STATE_A], o[cpu.COEFFICIENT], height, width, count, False,
                  True, f(0.25 / 0.3), f(0.3), f(0.045), solver.errors, False)
        turns = max(1, 60 * 256 * 340 // (30 * height * width))
        t = interleaved({n: lambda n=n: [run(n) for _ in range(turns)] for n in (1, 30)}, repeats)
        per = {n: t[n] / turns / n / height / width * 1e9 for n in t}
        floor = max(floors["arithmetic"], floors["roots"])
        rows.append((f"{height}x{width}", per[30], per[1], f"{floor / per[30]:.0%}"))
    print("\nfloors, ns a pixel-iteration: " + ", ".join(f"{name} {value:.2f}" for name, value in floors.items()))
    table("inner iterations, ns a pixel-iteration",
          ("size", "30 in flight", "one at a time", "larger arithmetic floor / 30 in flight"), rows)


def whole_pairs(sizes, repeats, pairs, full):
    from skimage.registration import optical_flow_tvl1
    cv2.setNumThreads(1)
    for size in sizes:
        chosen = real_pairs(size, pairs if size[0] <= 256 else 1)
        times = {}
        for first, second in chosen:
            t = interleaved({p: lambda p=p: tvl1(first, second, p, "cpu") for p in PRESETS}, repeats)
            slow = {}
            if size[0] <= 480 or full:
                slow["cv2 defaults"] = lambda: tvl1(first, second, "reference", "opencv")
            if size == SIZE:
                slow["cv2 at `default`"] = lambda: tvl1(first, second, "default", "opencv")
                slow["skimage"] = lambda: optical_flow_tvl1(first / 255.0, second / 255.0, dtype=np.float32)
            for name, function in slow.items():
                start = time.thread_time()
                function()
                t[name] = time.thread_time() - start
            for name, value in t.items():
                times.setdefault(name, []).append(value)
        base = times.get("cv2 defaults")
        rows = []
        for name, value in times.items():
            ratios = np.array(base) / value if base else []
            rows.append((name, float(np.mean(value)) * 1e3, *(f"{f(ratios):.1f}x" if base else "-"
                                                              for f in (np.median, np.min, np.max))))
            if (size, name) == (SIZE, "default"):
                tell("flow: OpenCV's defaults over `default`, 256x340", np.median(ratios))
        table(f"whole pairs, {size[0]}x{size[1]}, real pairs: {len(chosen)}",
              ("method", "mean ms", "cv2 defaults / method: median pair", "smallest", "largest"), rows)


def _work(arguments):
    """CPU seconds of `turns` windows in this process."""
    frames, turns = arguments
    start = time.process_time()
    for _ in range(turns):
        flow_window(frames, parameters(), "cpu")
    return time.process_time() - start


def scaling(turns):
    frames = np.concatenate(real_pairs(SIZE, 9))[:17]          # 16 pairs: as many for either worker
    flow_window(frames, parameters(), "cpu")
    count = turns * (len(frames) - 1)
    wall, busy = {}, {}

    def record(name, seconds, cpu_seconds, workers):
        wall.setdefault(name, []).append(seconds / workers / count)
        busy.setdefault(name, []).append(cpu_seconds / workers / count)

    with (ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool, ThreadPoolExecutor(2) as threads):
        list(pool.map(_work, [(frames, 1)] * 4))
        for _ in range(15):
            for name, executor in (("1 thread", None), ("2 threads", threads)):
                start, start_cpu = time.perf_counter(), time.process_time()
                for _ in range(turns):
                    flow_window(frames, parameters(), "cpu", executor=executor)
                record(name, time.perf_counter() - start, time.process_time() - start_cpu, 1)
            for name, workers in (("1 process", 1), ("2 processes", 2)):
                start = time.perf_counter()
                cpu_seconds = sum(pool.map(_work, [(frames, turns)] * workers))
                record(name, time.perf_counter() - start, cpu_seconds, workers)
    rows = []
    for one, name in (("1 thread", "1 thread"), ("1 thread", "2 threads"), ("1 process", "1 process"),
                      ("1 process", "2 processes")):
        median, best = (f(wall[one]) / f(wall[name]) for f in (np.median, min))
        rows.append((name, float(np.median(wall[name])) * 1e3, f"{median:.2f}x", f"{best:.2f}x",
                     float(np.median(busy[name])) * 1e3))
    table("scaling, `default`, 256x340 (15 interleaved repeats)",
          ("workers", "median wall ms a pair", "times one: medians", "best runs", "median CPU ms a pair"), rows)


def ground_truth(side=256):
    """(name, first, second, flow (2, H, W), known (H, W)) of every pair, short side `side`."""
    for folder in sorted((DATA / "flow_gt").iterdir()):
        a, b = (cv2.imread(str(folder / f"frame{n}.png"), cv2.IMREAD_GRAYSCALE) for n in (10, 11))
        truth = cv2.readOpticalFlow(str(folder / "flow10.flo"))
        known = (np.abs(truth).max(axis=-1) < 1e6).astype(np.float32)
        truth = truth * known[..., None]
        shrink = side / min(a.shape)
        a, b, truth, known = (cv2.resize(x, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
                              for x in (a, b, truth, known))
        yield folder.name, a, b, truth.transpose(2, 0, 1) * shrink, known > 0.999


def even_pairs(videos):
    """(name, first, second) of `videos` videos a data set, evenly spaced in it: their middle, at short side 256."""
    for dataset in ("kinetics", "ucf101", "hmdb51", "gatech_ps7", "surv_fight"):
        files = sorted(file for file in (DATA / "videos" / dataset).rglob("*.*") if file.suffix in (".mp4", ".avi"))
        for file in files[::max(1, -(-len(files) // videos))][:videos]:
            video = cv2.VideoCapture(str(file))
            for _ in range(int(video.get(cv2.CAP_PROP_FRAME_COUNT)) // 2):     # seeking is not exact in all of them
                video.grab()
            grey = [cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2GRAY) for _ in range(2)]
            shrink = 256 / min(grey[0].shape)
            method = cv2.INTER_AREA if shrink < 1 else cv2.INTER_LINEAR
            yield (f"{dataset} {file.stem[:24]}",
                   *(cv2.resize(g, None, fx=shrink, fy=shrink, interpolation=method) for g in grey))


def agreement(videos):
    """Mean endpoint error of each pair to OpenCV, and OpenCV's to itself where its input moves by half a float32 step.

    TV-L1 amplifies rounding where motion is large: no order of operations but OpenCV's own does better than that.
    """
    presets = {"default": {}, "reference": {"epsilon": 0, "outer": 1}}
    rows, noise = [], np.random.default_rng(0)
    for name, *pair in even_pairs(videos):
        moved = [np.clip(g + noise.normal(0, 1e-5, g.shape), 0, 255).astype(np.float32) for g in pair]
        row = [name]
        for preset, overrides in presets.items():
            theirs = tvl1(*pair, preset, "opencv", **overrides)
            row += [float(np.hypot(*(flow - theirs)).mean()) for flow in (
                tvl1(*pair, preset, "cpu", **overrides), tvl1(*moved, preset, "opencv", **overrides))]
        rows.append(row)
    errors = np.array([row[1:] for row in rows])
    rows += [(name, *map(float, f(errors, axis=0))) for name, f in (("mean", np.mean), ("median", np.median),
                                                                    ("worst", np.max))]
    table("agreement with cv2 at a fixed count: mean endpoint error to cv2, px "
          f"({len(errors)} pairs; `reference` with epsilon 0, outer 1)",
          ("pair", *(f"{preset}: {what}" for preset in presets for what in ("cpu", "cv2, input moved 1e-5"))),
          [(row[0], *(f"{value:.5f}" for value in row[1:])) for row in rows])


def pooled_map(flow):
    maps = motion.motion_map(np.ascontiguousarray(flow[None], dtype=np.float32))
    return motion.pool(maps[:, :flow.shape[1] // 8 * 8, :flow.shape[2] // 8 * 8]).ravel()


def accuracy():
    pairs = list(ground_truth())
    methods = {"cv2 defaults": ("opencv", "reference", {}), "reference": ("cpu", "reference", {}),
               "default": ("cpu", "default", {}), "fast": ("cpu", "fast", {}),
               "zoom .65, 3 warps": ("cpu", "default", {"zoom": 0.65, "warps": 3}),
               "zoom .7, 2 warps": ("cpu", "default", {"zoom": 0.7, "warps": 2}),
               "zoom .7, 3 warps": ("cpu", "default", {"zoom": 0.7, "warps": 3}),
               "zoom .7, 2 warps x 40, 4 scales": ("cpu", "default",
                                                   {"zoom": 0.7, "warps": 2, "iterations": 40, "scales": 4}),
               "zoom .8, 3 warps": ("cpu", "default", {"zoom": 0.8, "warps": 3}),
               "zoom .5, 10 warps x 15": ("cpu", "default", {"warps": 10, "iterations": 15}),
               "zoom .5, 4 warps x 20": ("cpu", "default", {"warps": 4, "iterations": 20}),
               "zoom .5, 3 scales": ("cpu", "default", {"scales": 3})}
    rows, base = [], None
    for name, (backend, preset, overrides) in methods.items():
        errors, small, large, correlation, seconds = [], [], [], [], 0.0
        for _, a, b, truth, known in pairs:
            tvl1(a[:32], b[:32], preset, backend, **overrides)
            start = time.thread_time()
            flow = tvl1(a, b, preset, backend, **overrides)
            seconds += time.thread_time() - start
            distance, size = np.hypot(*(flow - truth)), np.hypot(*truth)
            errors.append(distance[known].mean())
            small.append(distance[known & (size < 3)])
            large.append(distance[known & (size >= 3)])
            correlation.append(np.corrcoef(pooled_map(flow), pooled_map(truth))[0, 1])
        middlebury = np.array(["Chairs" not in pair[0] for pair in pairs])
        errors, correlation = np.array(errors), np.array(correlation)
        base = base or errors[middlebury].mean()
        rows.append((name, f"{errors[middlebury].mean():.4f}", f"{errors[middlebury].mean() / base:.3f}",
                     f"{correlation[middlebury].mean():.3f}", f"{errors[~middlebury].mean():.2f}",
                     f"{correlation[~middlebury].mean():.3f}", f"{np.concatenate(small).mean():.3f}",
                     f"{np.concatenate(large).mean():.2f}", seconds / len(pairs) * 1e3))
    table(f"ground truth at short side 256 ({', '.join(pair[0] for pair in pairs)})",
          ("method", "Middlebury EPE", "over cv2", "map r", "Chairs EPE", "map r", "EPE < 3 px", "EPE >= 3 px",
           "ms a pair"), rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION",
                        help=f"of {', '.join(SECTIONS)}; all of them otherwise")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and pairs")
    parser.add_argument("--full", action="store_true", help="OpenCV at 1080x1920 too")
    args = parser.parse_args()
    if not DATA.is_dir():
        sys.exit("error: no ../shared/data beside the repository; this benchmark runs on its videos and ground truth")
    print(machine())
    repeats, pairs = (3, 3) if args.quick else (7, 8)
    run = {"iterations": lambda: inner_loop(ceilings(), repeats),
           "speed": lambda: whole_pairs([SIZE], repeats, pairs, args.full),
           "sizes": lambda: whole_pairs([size for size in SIZES if size != SIZE], repeats, pairs, args.full),
           "scaling": lambda: scaling(1 if args.quick else 2),
           "agreement": lambda: agreement(1 if args.quick else 4),
           "truth": accuracy}
    for section in SECTIONS:
        if section in args.only:
            run[section]()


if __name__ == "__main__":
    main()
