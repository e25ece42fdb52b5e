"""Every MaCLR pipeline for small machines, a few steps each, on one store: what each term's loss is, and how fast.

    python tests/bench/maclr.py [--store DIR] [--steps 30] [--out DIR]                       # or: make maclr

Without --store the synthetic set is made and packed by the recipe maclr-tiny first. One training after the other, one
thread and one loader process each; means over the last third of the steps. OUT keeps stores, runs and logs; the same
command goes on with what is missing. Too short to learn from: it shows that every pipeline runs, and what it logs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

from preprocess.machine import device, versions
from shared.recipes.settings import load_document

TRAINER = Path(__file__).resolve().parents[2] / "train" / "main.py"
TERMS = "vv", "vm", "mv", "mm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="made by preprocess.run --recipe maclr-tiny; default: one is made")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, help="default: a temporary folder, removed at the end")
    args = parser.parse_args()
    print(device("cpu"), versions())
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        return run_all(args.out, args)
    with tempfile.TemporaryDirectory(prefix="motionpack-maclr-") as folder:
        run_all(Path(folder), args)


def run_all(out: Path, args: argparse.Namespace) -> None:
    store = args.store or out / "store"
    if not args.store:
        call(out / "preprocess.log", "-m", "preprocess.run", "--dataset", "synthetic", "--recipe", "maclr-tiny",
             "--videos", out / "videos", "--store", store, "--engine", "serial")
    names = [name for name in load_document()["pipelines"] if name.startswith("maclr") and name.endswith("-tiny")]
    print(f"{len(names)} pipelines, {args.steps} steps each, on {store}\nloss and in-batch accuracy of each term")
    print(f"{'pipeline':>22} {'loss':>6}" + "".join(f"{term:>12}" for term in TERMS) + f"{'clips/s':>9} {'seconds':>8}")
    for name in names:
        started = time.monotonic()
        call(out / f"{name}.log", TRAINER, "--pipeline", name, "--store", store, "--out", out / name, "--resume",
             "auto", "--set", f"steps={args.steps}", "--set", "threads=1", "--set", "workers=1", "--set",
             "images_every=0")
        rows = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
        last = rows[-max(1, len(rows) // 3):]
        terms = [f"{mean(row[term] for row in last):.2f} {mean(row[f'in_batch_accuracy_{term}'] for row in last):.2f}"
                 if term in last[0] else "-" for term in TERMS]
        print(f"{name:>22} {mean(row['loss'] for row in last):6.2f}" + "".join(f"{text:>12}" for text in terms)
              + f"{median(row['clips_per_s'] for row in last):9.0f} {time.monotonic() - started:8.1f}", flush=True)


def call(log: Path, *command) -> None:
    """Run Python to its end, what it says in `log`; its last lines are shown where it fails."""
    with log.open("w") as file:
        code = subprocess.run([sys.executable, *map(str, command)], stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"exit code {code}, see {log}:\n" + "\n".join(log.read_text().splitlines()[-5:]))


if __name__ == "__main__":
    main()
