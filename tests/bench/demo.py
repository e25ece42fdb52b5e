"""Does what `make demo` shows hold from other seeds, of videos and trainings both?

    python tests/bench/demo.py [--seeds 10] [--first-seed 1000] [--out DIR]

Runs the demo's own commands from every seed. Holds where in every seed the features of mcl-v1 say better where it
moves (`dense`) than those of moco and of an untrained net: what the demo's first figure shows. Exit 1 where it does not
hold. What moves when (`energy`) and which motion it is (`knn`) are told beside it, as they come. OUT keeps everything;
the same command goes on with what is missing.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from preprocess.machine import device, versions

ROOT = Path(__file__).resolve().parents[2]
ROWS, OURS = ("untrained", "moco", "mcl-v1"), "mcl-v1"
SCORES = "dense", "energy", "knn"
HELD = SCORES[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="default: a temporary folder, removed at the end")
    args = parser.parse_args()
    print(device("cpu"), versions())
    if args.out:
        return hold(args.out, args)
    with tempfile.TemporaryDirectory(prefix="motionpack-demo-") as folder:
        return hold(Path(folder), args)


def hold(out: Path, args: argparse.Namespace) -> int:
    """A line a seed, then in how many mcl-v1 is above the others; the exit code."""
    print(f"percent: {', '.join(ROWS)}\n{'seed':>6}" + "".join(f"{name:>24}" for name in SCORES) + f"{'CPU s':>8}")
    above = dict.fromkeys(SCORES, 0)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        before = cpu_s()
        found = demo(out / str(seed), seed)
        for name in SCORES:
            above[name] += all(found[OURS, name] > found[row, name] for row in ROWS if row != OURS)
        print(f"{seed:>6}" + "".join(f"{'  '.join(f'{found[row, name]:.1f}' for row in ROWS):>24}" for name in SCORES)
              + f"{cpu_s() - before:>8.0f}", flush=True)
    print(f"{OURS} above the others: " + ", ".join(f"{name} {above[name]} of {args.seeds}" for name in SCORES))
    print(f"{HELD}: {'holds' if above[HELD] == args.seeds else 'DOES NOT HOLD'} in all seeds")
    return 0 if above[HELD] == args.seeds else 1


def demo(folder: Path, seed: int) -> dict[tuple[str, str], float]:
    """`make demo` from a seed: (row, score) -> percent. What it says is kept in demo.log, and ends this where it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "demo.log", "w") as log:
        code = subprocess.run(["make", "demo", f"PY={sys.executable}", f"DEMO={folder}", f"SEED={seed}"], cwd=ROOT,
                              stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"exit code {code}, see {folder / 'demo.log'}")
    document = json.loads((folder / "results/ablation.json").read_text(encoding="utf-8"))
    return {(row, name): document["metrics"][f"{row}/controls/{name}"] for row in ROWS for name in SCORES}


def cpu_s() -> float:
    """User and system seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
