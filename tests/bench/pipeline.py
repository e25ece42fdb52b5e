"""Where preprocessing's CPU time goes: the share of flow, and the rest by name.

    python tests/bench/pipeline.py [VIDEOS] [--limit N]
    python tests/bench/pipeline.py [VIDEOS] [--limit N] --threads 1 2 [--rounds N]

VIDEOS is a folder of <class>/<video>; default: the real videos beside the repository, else synthetic ones. With
--threads: one pack by so many threads on as many cores, in turns, over the first (medians of wall seconds).
"""

import argparse
import os
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from preprocess.machine import device, versions
from preprocess.plan import make_plan, tasks_of
from preprocess.run import resolve
from preprocess.synthetic import make_videos
from preprocess.task import PackTask, make_pack
from shared.datasets.catalog import open_catalog
from shared.recipes.preprocessing import load_pipeline

REAL = Path(__file__).resolve().parents[3] / "shared/data/videos/surv_fight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="?", type=Path)
    parser.add_argument("--limit", type=int, default=12, help="videos, evenly chosen (default 12)")
    parser.add_argument("--threads", nargs="*", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", nargs="*", default=["default", "fast", "half", "reference"])
    args = parser.parse_args()
    print(device("cpu"), versions())
    temporary = Path(tempfile.mkdtemp(prefix="motionpack-bench-"))
    try:
        root = videos_root(args.videos, temporary, args.limit)
        for preset in args.preset:
            tasks = pack_tasks(root, temporary / preset, preset, args.limit)
            if args.threads:
                compare(preset, tasks[0], args.threads, args.rounds)
            else:
                report(preset, [make_pack(task) for task in tasks])
    finally:
        shutil.rmtree(temporary)


def videos_root(asked: Path | None, temporary: Path, count: int) -> Path:
    """The folder asked for, else that of real videos, else `count` synthetic ones made for it."""
    root = asked or (REAL if REAL.is_dir() else temporary / "videos")
    if not root.is_dir():
        make_videos(root, videos=count, seed=0, backgrounds=4, textures=4, frames=64, height=240, width=320)
    return root


def pack_tasks(root: Path, store: Path, preset: str, limit: int) -> list[PackTask]:
    """Packs of `limit` of the videos, evenly chosen, the longest first, all of it on the CPU by one thread."""
    pipeline = resolve(load_pipeline("folder", settings=["flow.backend=cpu", f"flow.preset={preset}", "run.threads=1"]))
    catalog = open_catalog("folder", root)
    ids = [v.id for v in catalog.videos]
    plan = make_plan(catalog, pipeline.recipe, set(ids[::max(1, len(ids) // limit)][:limit]))
    tasks = tasks_of(plan.packs, catalog, store, pipeline.recipe, "", pipeline.run, {}, {})
    return sorted(tasks, key=lambda task: -task.frames)


def compare(preset: str, task: PackTask, threads: list[int], rounds: int) -> None:
    """The pack by each number of threads on as many cores, in turns."""
    cores = sorted(os.sched_getaffinity(0))
    walls = {count: [] for count in threads}
    make_pack(replace(task, sample_frames=2, trial=True))   # loads and compiles what it needs
    for _ in range(rounds):
        for count in threads:
            os.sched_setaffinity(0, cores[:count])
            done = make_pack(replace(task, run=replace(task.run, threads=count), trial=True))
            walls[count].append(done.wall_s)
    os.sched_setaffinity(0, cores)
    first = statistics.median(walls[threads[0]])
    ratios = ", ".join(f"{count}: {statistics.median(of):.1f} s, {first / statistics.median(of):.2f}x"
                       for count, of in walls.items())
    print(f"preset {preset}, {len(task.videos)} videos, {done.frames} frames, by threads: {ratios}; load "
          f"{os.getloadavg()[0]:.1f}", flush=True)


def report(preset: str, reports: list) -> None:
    frames = sum(r.frames for r in reports)
    wall = sum(r.wall_s for r in reports)
    stages = {}
    for r in reports:
        for stage, seconds in r.seconds.items():
            stages[stage] = stages.get(stage, 0) + seconds
    total = sum(stages.values())
    print(f"\npreset {preset}: {frames} frames in {wall:.1f} s ({frames / wall:.1f} frames/s), CPU {total:.1f} s")
    for stage, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        print(f"  {stage:8} {seconds / total:6.1%}  {1000 * seconds / frames:7.2f} ms/frame")
    print(f"  everything but flow: {1 - stages['flow'] / total:.1%} of the CPU time")


if __name__ == "__main__":
    main()
