"""Parts of a run: are the packs the same bytes whoever is killed, and what do parts cost over one process?

    python tests/bench/parts.py kills [--kills 30] [--url s3://bucket]      parts are killed -9 at any time
    python tests/bench/parts.py speed [--parts 8] [--rounds 3]              two at a time on two cores, over one process

Kills come in rounds of one store each. What dead parts have left is made by the same parts run again, by another N, and
by a run without --part, by turns; every store is compared with that of one process and checked byte by byte.
"""

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clusters import arrays_digest
from floors import tell

from preprocess.machine import device, versions
from preprocess.synthetic import make_videos
from shared.store.index import Index, read_failures

COUNT = 4            # parts at a time, in the rounds of kills
FLOW = "--flow", "cpu", "--set", "preset=default"


def command(videos: Path, store: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "preprocess.run", "--dataset", "folder", "--videos", str(videos), "--store", store,
            "--set", "packs.videos=1", *FLOW, *more]


def finish(line: list[str], expected=(0,)) -> float:
    """Seconds of a command that must end well."""
    began = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode not in expected:
        raise SystemExit(f"{' '.join(line)}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def kill_round(videos: Path, store: str, wanted: int, rng: random.Random) -> tuple[int, list[str]]:
    """Parts on one store, each killed a few times and started again; how many kills hit, and the parts left dead."""
    kills, dead, left = 0, [], {number: rng.randint(1, 3) for number in range(1, COUNT + 1)}
    running = {}
    while running or left:
        for number in [number for number in left if number not in running]:
            process = subprocess.Popen(command(videos, store, "--part", f"{number}/{COUNT}", "--engine", "serial"),
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            running[number] = process, time.monotonic() + rng.uniform(0.2, 14)
        time.sleep(0.02)
        for number, (process, due) in list(running.items()):
            if process.poll() is not None:
                if process.returncode:
                    raise SystemExit(f"part {number}: exit code {process.returncode}: {process.stderr.read()[-2000:]}")
                del running[number], left[number]
            elif time.monotonic() > due:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                del running[number]
                left[number] -= 1
                if left[number] < 1 or kills >= wanted:
                    dead.append(f"{number}/{COUNT}")
                    del left[number]
        if kills >= wanted:
            left = dict.fromkeys(running, 1)
            running = {number: (process, float("inf")) for number, (process, _) in running.items()}
    return kills, dead


def kills(videos: Path, temporary: Path, args: argparse.Namespace) -> None:
    rng, one = random.Random(args.seed), str(temporary / "one")
    finish(command(videos, one, "--engine", "serial"))
    expected, index = arrays_digest(Path(one)), Index.load(one).id
    total = rounds = bad = 0
    while total < args.kills:
        store = f"{args.url or temporary}/round{rounds}"
        hit, dead = kill_round(videos, store, args.kills - total, rng)
        total += hit
        how = ("the same parts", "three parts", "a run without --part")[rounds % 3]
        for part in {0: dead, 1: ["1/3", "2/3", "3/3"], 2: []}[rounds % 3]:
            finish(command(videos, store, "--part", part, "--engine", "serial"))
        if rounds % 3 == 2:
            finish(command(videos, store, "--engine", "serial"))
        finish([sys.executable, "-m", "preprocess.check", store])
        local = fetched(store, temporary) if args.url else Path(store)
        found = Index.load(local)
        same = arrays_digest(local) == expected and found.id == index and not read_failures(local)
        bad += not same
        print(f"round {rounds + 1}: {hit} kills, finished by {how}: {'identical' if same else 'DIFFERENT'}", flush=True)
        shutil.rmtree(local)
        rounds += 1
    print(f"{total} kills of parts in {rounds} stores; {bad} stores differ from one process's")


def fetched(store: str, temporary: Path) -> Path:
    """A local copy of a store on object storage, its packs under the names that they have on disk."""
    import fsspec

    local = temporary / "copy"
    protocol, _, path = store.partition("://")
    fsspec.filesystem(protocol, use_listings_cache=False).get(path, str(local), recursive=True)
    for row in Index.load(local).pack_rows():
        (local / row.path).rename((local / row.path).with_name(row.pack))
    return local


def speed(videos: Path, temporary: Path, args: argparse.Namespace) -> None:
    """N parts, two at a time, one thread each, over one process of one thread; and over its CPU seconds.

    Beside them what this machine gives at all: two processes that share nothing, each with half of the videos.
    """
    walls, overheads, ceilings, digests = [], [], [], set()
    one_line = "--engine", "serial", "--set", "threads=1"
    # As where it is installed: bytecode and compiled kernels are there before the first run.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(temporary / "bytecode")
    finish(command(videos, str(temporary / "none"), "--plan"))
    for number in range(args.rounds):
        one, many = str(temporary / f"one{number}"), str(temporary / f"many{number}")
        before = cpu_seconds()
        alone = finish(command(videos, one, *one_line))
        alone_cpu = cpu_seconds() - before
        lines = [command(videos, many, "--part", f"{i}/{args.parts}", *one_line) for i in range(1, args.parts + 1)]
        began, before = time.perf_counter(), cpu_seconds()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(finish, lines))
        together, cpu = time.perf_counter() - began, cpu_seconds() - before
        digests |= {arrays_digest(Path(one)), arrays_digest(Path(many))}
        halves = [command(half, str(temporary / f"{half.name}{number}"), *one_line) for half in videos.iterdir()]
        began = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(finish, halves))
        ceilings.append(alone / (time.perf_counter() - began))
        walls.append(alone / together)
        overheads.append(cpu / alone_cpu - 1)
        print(f"round {number + 1}: one process {alone:.1f} s, {args.parts} parts two at a time {together:.1f} s: "
              f"{walls[-1]:.2f} times; CPU {alone_cpu:.1f} s and {cpu:.1f} s: {overheads[-1]:+.1%}; "
              f"halves that share nothing {ceilings[-1]:.2f} times; load {os.getloadavg()[0]:.1f}", flush=True)
        for store in (one, many, *(line[line.index("--store") + 1] for line in halves)):
            shutil.rmtree(store)
    tell("parts: eight, two at a time, over one process", statistics.median(walls))
    tell("parts: eight, two at a time, over halves that share nothing",
         statistics.median(wall / ceiling for wall, ceiling in zip(walls, ceilings, strict=True)))
    tell("parts: CPU time over one process", 1 + statistics.median(overheads))
    print(f"{args.parts} parts are {statistics.median(walls):.2f} times as fast as one process, for "
          f"{statistics.median(overheads):+.1%} of its CPU time; halves that share nothing are "
          f"{statistics.median(ceilings):.2f} times as fast; "
          f"arrays {'identical' if len(digests) == 1 else 'DIFFERENT'}")


def cpu_seconds() -> float:
    """Of all children of this process that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "speed"))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="object storage for the stores of the killed parts")
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--videos", type=int, help="default: 24 for kills, 96 for speed: half a minute of CPU a part")
    args = parser.parse_args()
    print(device("cpu"), versions())
    temporary = Path(tempfile.mkdtemp(prefix="motionpack-bench-"))
    try:
        videos, *size = {"kills": (24, 60, 96, 128), "speed": (96, 96, 240, 320)}[args.what]
        for seed in (0, 1):
            make_videos(temporary / "videos" / f"half{seed}", videos=-(-(args.videos or videos) // 2), seed=seed,
                        backgrounds=4, textures=4, frames=args.frames or size[0], height=size[1], width=size[2])
        {"kills": kills, "speed": speed}[args.what](temporary / "videos", temporary, args)
    finally:
        shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
