"""Loss curves of runs, one colour a pipeline and one thin line a seed, with the mean over seeds in bold.

    python tests/bench/curves.py RUN [RUN ...] --out curves.png [--terms loss inter mal in_batch_accuracy]

Also prints the means over the first and the last 50 logged steps of every run.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WINDOW = 25   # logged steps of the running mean
ENDS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--terms", nargs="+", default=["loss", "inter", "mal", "in_batch_accuracy"])
    args = parser.parse_args()
    pipelines = defaultdict(list)
    for run in args.runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        saved = torch.load(run / "last.pt", weights_only=True, map_location="cpu")
        pipelines[saved["pipeline"]].append((saved["recipe"]["optimise"]["seed"], rows))
    for name, runs in sorted(pipelines.items()):
        for seed, rows in sorted(runs, key=lambda run: run[0]):
            ends = {term: f"{mean(rows[:ENDS], term):.3f} -> {mean(rows[-ENDS:], term):.3f}"
                    for term in args.terms if term in rows[0]}
            print(f"{name} seed {seed}: " + ", ".join(f"{term} {text}" for term, text in ends.items()))
    figure, axes = plt.subplots(1, len(args.terms), figsize=(4.2 * len(args.terms), 3.4), layout="constrained")
    for axis, term in zip(np.atleast_1d(axes), args.terms):
        for number, (name, runs) in enumerate(sorted(pipelines.items())):
            lines = [smooth(rows, term) for _, rows in runs if term in rows[0]]
            for x, y in lines:
                axis.plot(x, y, color=f"C{number}", linewidth=0.7, alpha=0.5)
            if lines:
                shortest = min(len(x) for x, _ in lines)
                axis.plot(lines[0][0][:shortest], np.mean([y[:shortest] for _, y in lines], 0), color=f"C{number}",
                          linewidth=2, label=f"{name}, {len(lines)} seeds")
        axis.set(title=term.replace("_", " "), xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(args.out, dpi=120)
    print(f"look at {args.out}")


def mean(rows: list[dict], term: str) -> float:
    return float(np.mean([row[term] for row in rows]))


def smooth(rows: list[dict], term: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the running mean of a term over WINDOW rows."""
    values = np.array([row[term] for row in rows])
    width = min(WINDOW, len(values))
    return (np.array([row["step"] for row in rows])[width - 1:], np.convolve(values, np.ones(width) / width, "valid"))


if __name__ == "__main__":
    main()
