"""metrics.json of an evaluation: what its runs found, on what, and what a reader has to know of the numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from evaluate import metrics
from evaluate.features.encoders import Encoder
from evaluate.features.extract import choose
from evaluate.folds import same_videos
from evaluate.protocol import Figure, Result, find_protocol
from evaluate.report.words import measure, pairs_and_runs
from shared.cli import RequestError, plural
from shared.nn.checkpoint import FINETUNED
from shared.nn.distributed import World
from shared.store.index import Index
from shared.store.record import write_atomic

METRICS = "metrics.json"
PACKAGES = "motionpack", "torch", "numpy", "scikit-learn"


@dataclass(frozen=True)
class Run:
    """One run of a protocol: which checkpoint (as it was asked for), splits and seed, and what it found."""

    checkpoint: str
    train_split: str | None
    test_split: str | None
    seed: int
    result: Result


def summarise(protocol: str, runs: Sequence[Run], settings: Mapping, checkpoints: Sequence[Mapping], store: Mapping,
              notes: Sequence[str] = ()) -> dict:
    """The content of metrics.json.

    `metrics`: the headline, percent: the mean over the runs of the first pair of splits. `mean` and `spread` (sample
    standard deviation; null for one run): over all runs. `interval`: 95 %, of the headline, over its test samples and,
    where there are several runs, over these too.
    A metric that some runs lack (R@10 where the gallery holds nine) stands in `runs` alone.
    """
    first = runs[0]
    headline = [run for run in runs if (run.train_split, run.test_split) == (first.train_split, first.test_split)]
    names = [name for name in first.result.metrics if all(name in run.result.metrics for run in runs)]
    some = dict.fromkeys(name for run in runs for name in run.result.metrics if name not in names)
    over_all = {name: metrics.mean_spread([run.result.metrics[name] for run in runs]) for name in names}
    return {
        "protocol": protocol,
        "metrics": {name: metrics.mean_spread([run.result.metrics[name] for run in headline])[0] for name in names},
        "mean": {name: mean for name, (mean, _) in over_all.items()},
        "spread": {name: spread for name, (_, spread) in over_all.items()},
        "chance": {name: value for name, value in first.result.chance.items() if name not in some},
        "beside": {method: {name: metrics.mean_spread([run.result.beside[method][name] for run in headline])[0]
                            for name in values if name not in some} for method, values in first.result.beside.items()},
        "interval": {name: interval([run.result.metrics[name] for run in headline], first.result.trials[name])
                     for name in names if name in first.result.trials},
        "seeds": sorted({run.seed for run in runs}),
        "splits": {"train": list(dict.fromkeys(run.train_split for run in runs)),
                   "test": list(dict.fromkeys(run.test_split for run in runs)),
                   "leave_out": "group" if first.test_split is None and find_protocol(protocol).learns else None},
        "counts": dict(first.result.counts),
        "runs": [{"checkpoint": run.checkpoint, "train_split": run.train_split, "test_split": run.test_split,
                  "seed": run.seed, "metrics": dict(run.result.metrics), "counts": dict(run.result.counts)}
                 for run in runs],
        "settings": dict(settings),
        "checkpoint": dict(checkpoints[0]),
        "checkpoints": [dict(one) for one in checkpoints],
        "store": dict(store),
        "tables": [{"title": table.title + (f" (first of {len(runs)} runs)" if len(runs) > 1 else ""),
                    "columns": list(table.columns), "rows": [list(row) for row in table.rows]}
                   for table in first.result.tables],
        "notes": list(dict.fromkeys([*notes, *(note for run in runs for note in run.result.notes),
                                     *(f"{name} is left out: not all runs have measured it." for name in some)])),
        "versions": {name: version(name) for name in PACKAGES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def interval(values: Sequence[float], trials: int) -> list[float]:
    """The 95 % interval, percent, of the mean of shares (percent) that several runs had on the same `trials`.

    Runs add their variance to that of the trials: the interval is of as many trials as would vary so.
    """
    mean, spread = metrics.mean_spread([value / 100 for value in values])
    if spread and 0 < mean < 1:
        trials /= 1 + trials * spread ** 2 / (len(values) * mean * (1 - mean))
    return [100 * end for end in metrics.interval(mean, trials)]


def write_metrics(out: Path, document: dict) -> Path:
    """OUT/metrics.json, whole or not at all. Raises ValueError for numbers that are not finite."""
    path = out / METRICS
    write_atomic(path, (json.dumps(document, indent=1, allow_nan=False, default=plain) + "\n").encode())
    return path


def plain(value):
    """numpy's numbers and paths, for JSON."""
    if isinstance(value, Path):
        return str(value)
    return value.item()


def read_metrics(folder: Path) -> dict:
    """The metrics.json of an evaluation's folder. Raises RequestError where there is none, or another file."""
    path = Path(folder) / METRICS if Path(folder).is_dir() else Path(folder)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        document["protocol"], document["metrics"].items(), document["spread"], document["chance"]
    except FileNotFoundError:
        raise RequestError(f"{folder} holds no {METRICS}; expected the --out folder of an evaluation") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} is no result of evaluate.run ({type(error).__name__}); expected its --out "
                           "folder") from None
    return document


def summary_line(document: Mapping, path: Path) -> str:
    """One line: protocol, every metric of the first pair of splits, chance and what stands beside it, mean and spread
    over all, how many videos and runs, where the report is."""
    parts, (pairs, _) = [], pairs_and_runs(document)
    for name, value in document["metrics"].items():
        spread, chance = document["spread"].get(name), document["chance"].get(name)
        say = measure(name).say
        known = ", ".join(f"{method} {say(number)}" for method, number in
                          (("chance", chance), *beside(document, name)) if number is not None)
        over = f" ± {say(spread)}" if spread is not None else ""
        parts.append(f"{name} {say(value)}{over if pairs == 1 else ''}{f' ({known})' if known else ''}"
                     + (f", over {pairs} pairs of splits {say(document['mean'][name])}{over}" if pairs > 1 else ""))
    runs, tested = len(document["runs"]), document["counts"].get("test_videos")
    return (f"{document['protocol']}: {', '.join(parts)}"
            + (f"; {plural(tested, 'test video')}" if tested else "")
            + (f"; {plural(runs, 'run')}" if runs > 1 else "") + f"; {path}")


def beside(document: Mapping, name: str) -> list[tuple[str, float]]:
    """(method, percent) of what stands beside a metric."""
    return [(method, values[name]) for method, values in document.get("beside", {}).items() if name in values]


def listed(out: Path, figures: Sequence[Figure]) -> list[dict]:
    """The figures for metrics.json, so that a comparison finds them: `file` under OUT, `caption`, `wide`."""
    return [{"file": Path(figure.path).relative_to(out).as_posix(), "caption": figure.caption, "wide": figure.wide}
            for figure in figures]


def read_rows(path: Path) -> list[dict]:
    """The rows of a training's metrics.jsonl; a last line that a kill has torn is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else ():
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def origin(encoder: Encoder) -> dict:
    """The checkpoint's provenance for the page."""
    return {"checkpoint": encoder.text, "sha256": encoder.sha256, **encoder.provenance}


def notes(encoders: Sequence[Encoder], index: Index, document: dict, pairs, world: World) -> list[str]:
    """What the numbers depend on and a reader would not expect."""
    out = []
    for encoder in encoders:
        for trained in encoder.provenance.get("stores", []):
            if not same_videos(index, document["dataset"], trained):
                continue
            try:
                learnt = choose(index, trained["split"])
            except RequestError:      # a split that this store has not
                continue
            seen = {position for position in learnt.tolist()
                    if index.group[position] not in trained.get("left_out", ())}
            for train, test in pairs:
                asked = test or train                      # every video of `train` in turn, with --leave-out
                both = len(seen & set(choose(index, asked).tolist()))
                tested = f"{plural(both, 'test video')} of {asked or 'the store'} {'was' if both == 1 else 'were'}"
                if both and trained.get("labels"):
                    out.append(f"{tested} in the training list "
                               f"{trained['split']!r} of this checkpoint, WITH their labels: the numbers are no test.")
                elif both:
                    out.append(f"{tested} in the pre-training list "
                               f"{trained['split']!r}, which saw them without labels.")
        out += encoder.provenance.get("remarks", [])
        recipe = encoder.provenance.get("recipe") if encoder.provenance["kind"] != FINETUNED else None
        if recipe and "maclr" not in recipe and not encoder.provenance.get("init") and \
                recipe["model"]["backbone"] != "r2plus1d_tiny":
            out.append("Pre-trained without ImageNet weights (--init); the paper's numbers start from them.")
    if world.device.type == "cuda":
        out.append("Features were computed on CUDA, where convolutions may use TF32.")
    return list(dict.fromkeys(out))
