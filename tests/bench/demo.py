"""Does what `make demo` shows hold from other seeds, of videos and trainings both?

    python tests/bench/demo.py [--seeds 10] [--first-seed 1000] [--out DIR]
    python tests/bench/demo.py --presets default fast --seeds 5 --first-seed 2000

Runs the demo's own commands from every seed. Holds where in every seed the features of mcl-v1 say better where it
moves (`dense`) than those of moco and of an untrained net: what the demo's first figure shows. Exit 1 where it does not
hold. What moves when (`energy`) and which motion it is (`knn`) are told beside it, as they come. OUT keeps everything;
the same command goes on with what is missing. With --presets: what mcl-v1 learns from packs of each flow preset, from
the same videos, weights and clips, and whether it loses by the later ones (docs/experiments.md, section 6).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

from preprocess.machine import device, versions

ROOT = Path(__file__).resolve().parents[2]
ROWS, OURS = ("untrained", "moco", "mcl-v1"), "mcl-v1"
SCORES = "dense", "energy", "knn"
HELD = SCORES[0]
MARGIN = 5.0   # points of HELD that count as a loss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--presets", nargs="+", help="of flow; the first is what the others are compared with")
    parser.add_argument("--out", type=Path, help="default: a temporary folder, removed at the end")
    args = parser.parse_args()
    print(device("cpu"), versions())
    ask = compare if args.presets else hold
    if args.out:
        return ask(args.out, args)
    with tempfile.TemporaryDirectory(prefix="motionpack-demo-") as folder:
        return ask(Path(folder), args)


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


def compare(out: Path, args: argparse.Namespace) -> int:
    """A line a seed, then the paired differences of every score with their 95 % intervals; 1 where a preset loses."""
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    print(f"{OURS}, packs by {', '.join(args.presets)}\n{'seed':>6}" + "".join(f"{name:>24}" for name in SCORES))
    scores = np.empty((len(seeds), len(args.presets), len(SCORES)))
    for row, seed in enumerate(seeds):
        for column, preset in enumerate(args.presets):
            found = demo(out / f"{seed}-{preset}", seed, f"ROWS={OURS}", f"PRESET={preset}")
            scores[row, column] = [found[OURS, name] for name in SCORES]
        print(f"{seed:>6}" + "".join(f"{'  '.join(f'{value:.1f}' for value in scores[row, :, at]):>24}"
                                     for at in range(len(SCORES))), flush=True)
    code = 0
    for column, preset in enumerate(args.presets[1:], 1):
        for at, name in enumerate(SCORES):
            differences = scores[:, column, at] - scores[:, 0, at]
            low, high = stats.t.interval(.95, len(seeds) - 1, differences.mean(), stats.sem(differences))
            print(f"{preset} - {args.presets[0]}, {name}: {differences.mean():+.1f} ({low:+.1f} to {high:+.1f})")
            if name == HELD:
                code |= high < 0 or low < -MARGIN
                print(f"  {'loses' if high < 0 else 'cannot be told' if low < -MARGIN else 'loses nothing'}")
    return int(code)


def demo(folder: Path, seed: int, *variables: str) -> dict[tuple[str, str], float]:
    """`make demo` from a seed: (row, score) -> percent, of the rows that ran. variables: of make, NAME=value.
    What it says is kept in demo.log, and ends this where it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "demo.log", "w") as log:
        code = subprocess.run(["make", "demo", f"PY={sys.executable}", f"DEMO={folder}", f"SEED={seed}", *variables],
                              cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"exit code {code}, see {folder / 'demo.log'}")
    document = json.loads((folder / "results/ablation.json").read_text(encoding="utf-8"))
    return {(row, name): value for row in ROWS for name in SCORES
            if (value := document["metrics"].get(f"{row}/controls/{name}")) is not None}


def cpu_s() -> float:
    """User and system seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
