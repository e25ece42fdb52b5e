"""The same run serially, on Dask and on Ray: are the packs the same bytes, and what do two workers bring over one?

    python tests/bench/clusters.py [VIDEOS] [--rounds N] [--videos-per-pack N] [--engines serial dask:1 dask:2 ...]

Every worker computes in one thread, so that two of them have twice the cores of one. The runs of a round follow one
another; medians over the rounds. `make` is the time in which packs are made: the record's, without planning and start.
VIDEOS is a folder of <class>/<video>; default: the real videos beside the repository, else synthetic ones.
"""

import argparse
import hashlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from floors import tell

from preprocess.machine import device, versions
from preprocess.synthetic import make_videos
from shared.store.record import read_records

REAL = Path(__file__).resolve().parents[3] / "shared/data/videos/surv_fight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--videos-per-pack", type=int, default=8)
    parser.add_argument("--engines", nargs="*", default=["serial", "dask:1", "dask:2", "ray:1", "ray:2"])
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()
    print(device("cpu"), versions())
    temporary = Path(tempfile.mkdtemp(prefix="motionpack-bench-"))
    seconds, digests = {engine: [] for engine in args.engines}, set()
    try:
        root = args.videos or (REAL if REAL.is_dir() else temporary / "videos")
        if not root.is_dir():
            make_videos(root, videos=48, seed=0, backgrounds=4, textures=4, frames=64, height=240, width=320)
        for number in range(args.rounds):
            for engine in args.engines:
                store = temporary / f"{engine.replace(':', '-')}-{number}"
                whole, made, frames = run(root, store, engine, args)
                seconds[engine].append((whole, made))
                digests.add(arrays_digest(store))
                print(f"round {number + 1} {engine:8} {whole:7.1f} s, packs in {made:7.1f} s, "
                      f"{frames / made:6.1f} frames/s", flush=True)
                shutil.rmtree(store)
    finally:
        shutil.rmtree(temporary)
    same = "identical" if len(digests) == 1 else "DIFFERENT"
    print(f"\narrays: {same} in all {args.rounds * len(args.engines)} stores")
    print("medians      whole command   packs made")
    median = {engine: [statistics.median(column) for column in zip(*rows)] for engine, rows in seconds.items()}
    for engine, (whole, made) in median.items():
        print(f"{engine:10}   {whole:9.1f} s   {made:8.1f} s")
    for name in ("dask", "ray"):
        one, two = median.get(f"{name}:1"), median.get(f"{name}:2")
        if one and two:
            tell(f"clusters: two workers over one, {name}", one[1] / two[1])
            print(f"{name}: two workers make the packs {one[1] / two[1]:.2f} times as fast as one, "
                  f"the whole command {one[0] / two[0]:.2f} times")


def run(root: Path, store: Path, engine: str, args: argparse.Namespace) -> tuple[float, float, int]:
    """Seconds of the whole command, seconds in which packs were made, and frames."""
    name, _, workers = engine.partition(":")
    command = [sys.executable, "-m", "preprocess.run", "--dataset", "folder", "--videos", str(root), "--store",
               str(store), "--engine", name, "--set", "threads=1", "--set", f"packs.videos={args.videos_per_pack}"]
    command += ["--workers", workers] if workers else []
    command += [word for setting in args.settings for word in ("--set", setting)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    whole = time.perf_counter() - began
    if done.returncode not in (0, 1):
        raise SystemExit(f"{engine}: exit code {done.returncode}: {done.stderr.splitlines()[-1:]}")
    record, = read_records(store).values()
    return whole, record["making_s"], record["counts"]["frames"]


def arrays_digest(store: Path) -> str:
    """Of every array file of every pack, by name."""
    total = hashlib.sha256()
    for path in sorted(store.glob("packs/*/*/**/*")):
        if path.is_file() and path.name != "zarr.json":
            total.update(f"{path.relative_to(store)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


if __name__ == "__main__":
    main()
