"""A smoke test of learning: does the alignment learnt on training videos hold on videos that training never saw?

    python tests/bench/learning.py [--seeds 5] [--first-seed 10] [--jobs 2] [--out DIR]      # or: make learn

Makes a synthetic store, pre-trains `moco-ta-sa-tiny` and `mcl-moco-tiny` from every seed (the same net, clips, crops
and steps: the alignment loss alone differs) and scores all of them on the test split. Holds where every run ends at an
in-batch accuracy of at least 0.6 (mean of the last 50 steps; chance 0.06) and where in every seed the aligned map's
correlation with the S-motion of its own clip, minus that with other clips', is higher with the alignment than without.
Exit 1 where it does not hold. OUT keeps store, runs and scores; the same command goes on with what is missing.

It shows that the alignment generalises. Whether features improve is another question: `python -m evaluate.ablation`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluate.ablation.children import Children, Command, Ended
from preprocess.machine import device, versions

TRAINER = Path(__file__).resolve().parents[2] / "train" / "main.py"
ROWS = WITHOUT, WITH = "moco-ta-sa-tiny", "mcl-moco-tiny"
DIALS = ("generate.videos=480", "backgrounds=60", "textures=40", "generate.frames=48", "height=96", "width=96",
         "short_side=96")
RECIPE = ("steps=400", "bn_group=16")
REACHED, LAST = 0.6, 50             # in-batch accuracy, and the steps over which it is averaged
SCORE = "aligned_own_minus_other"   # of protocol saliency, percent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--out", type=Path, help="default: a temporary folder, removed at the end")
    args = parser.parse_args()
    print(device("cpu"), versions())
    if args.out:
        return learn(args.out, args)
    with tempfile.TemporaryDirectory(prefix="motionpack-learning-") as folder:
        return learn(Path(folder), args)


def learn(out: Path, args: argparse.Namespace) -> int:
    """Store, trainings, scores, table; the exit code."""
    started, seeds = time.monotonic(), range(args.first_seed, args.first_seed + args.seeds)
    children, runs = Children(args.jobs), {(name, seed): out / f"{name}-{seed}" for seed in seeds for name in ROWS}
    children.run([lambda slot: make_store(out)], lambda: None)
    print(f"store made after {time.monotonic() - started:.0f} s", flush=True)
    children.run([lambda slot, key=key: train(*key, out, runs[key], started) for key in runs], lambda: None)
    children.run([lambda slot, name=name: score(name, [runs[name, seed] for seed in seeds], out) for name in ROWS],
                 lambda: None)
    holds = table(seeds, out, runs)
    print(f"{time.monotonic() - started:.0f} s in all. {'Holds' if holds else 'DOES NOT HOLD'}: an in-batch accuracy "
          f"of {REACHED} in every run, and in every seed a higher score with the alignment.\nThis says that the "
          "alignment generalises to videos that training never saw. It does not say that features improve.")
    return 0 if holds else 1


def make_store(out: Path) -> Iterator[Command]:
    """Synthetic videos and their packs."""
    yield from checked([sys.executable, "-m", "preprocess.run", "--dataset", "synthetic", "--videos", out / "videos",
                        "--store", out / "store", *settings(DIALS)], out / "store.log")


def train(name: str, seed: int, out: Path, folder: Path, started: float) -> Iterator[Command]:
    """One training, from where it was left."""
    yield from checked([sys.executable, TRAINER, "--pipeline", name, "--store", out / "store", "--out", folder,
                        "--resume", "auto", *settings((*RECIPE, f"seed={seed}", "threads=1", "workers=0"))],
                       out / f"{folder.name}.log")
    print(f"{name} trained from seed {seed}: in-batch accuracy {accuracy(folder):.2f}, after "
          f"{time.monotonic() - started:.0f} s", flush=True)


def score(name: str, folders: Sequence[Path], out: Path) -> Iterator[Command]:
    """The saliency of all seeds on the test split."""
    yield from checked([sys.executable, "-m", "evaluate.run", "--protocol", "saliency", "--checkpoint",
                        *(folder / "last.pt" for folder in folders), "--store", out / "store", "--out",
                        out / f"saliency-{name}", *settings(("threads=1", "workers=1"))],
                       out / f"saliency-{name}.log")


def checked(argv: Sequence, log: Path) -> Iterator[Command]:
    """One command. Ends this one with its last line where it fails."""
    ended: Ended = yield Command([str(word) for word in argv], log)
    if ended.code:
        raise SystemExit(f"exit code {ended.code}, see {log}: {ended.said}")


def settings(values: Sequence[str]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def accuracy(folder: Path) -> float:
    """In-batch accuracy at a training's end."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return sum(row["in_batch_accuracy"] for row in rows[-LAST:]) / LAST


def table(seeds: range, out: Path, runs: dict[tuple[str, int], Path]) -> bool:
    """Print what was found; whether all of it holds."""
    documents = [json.loads((out / f"saliency-{name}" / "metrics.json").read_text(encoding="utf-8")) for name in ROWS]
    print(f"\n{'':>6}{'in-batch accuracy':>26}{'own minus other, percent':>30}\n"
          f"{'seed':>6}" + f"{'without':>14}{'with':>12}" + f"{'without':>18}{'with':>12}")
    holds = True
    for row, seed in enumerate(seeds):
        reached = [accuracy(runs[name, seed]) for name in ROWS]
        scores = [document["runs"][row]["metrics"][SCORE] for document in documents]
        good = min(reached) >= REACHED and scores[1] > scores[0]
        holds &= good
        print(f"{seed:>6}{reached[0]:>14.2f}{reached[1]:>12.2f}{scores[0]:>18.1f}{scores[1]:>12.1f}"
              f"{'' if good else '   fails'}")
    return holds


if __name__ == "__main__":
    sys.exit(main())
