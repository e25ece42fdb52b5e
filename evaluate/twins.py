"""`--twins STORE2`: the protocol on appearance-free twins too (preprocess.twins), and what they keep of accuracy."""

from collections.abc import Sequence

import numpy as np

from evaluate import metrics
from evaluate.protocol import Result
from evaluate.report.words import PERCENT, measure
from shared.cli import RequestError, plural
from shared.recipes.preprocessing import read_description
from shared.store.index import Index
from shared.store.layout import damage_stops
from shared.store.place import Place

NAME = "appearance-free twins"
COLUMNS = ("score", "videos, %", "twins, %", "chance, %", "lost, points", "95 %, paired by video",
           "kept of what is above chance, %", "95 %, paired by video")


def check_twins(index: Index, twins: Place, drawn: bool = False) -> dict:
    """What metrics.json says of the twins' store. drawn: training or test videos are drawn from all. Raises
    RequestError where it holds no twins of the index's videos, of the same class, group and splits, and where videos
    that are drawn from lack theirs."""
    with damage_stops(twins):
        document, found = read_description(twins), Index.load(twins)
    seed = document["recipe"]["packs"].get("twin_seed")
    if seed is None:
        raise RequestError(f"--twins {twins} holds no twins; expected the --out of preprocess.twins for {index.store}")
    for row in found.rows():
        own = index.row(row.id) if row.id in index else None
        if own is None or any(getattr(own, name) != getattr(row, name) for name in ("class_name", "group", "splits")):
            raise RequestError(f"--twins {twins}: {row.id} is not in {index.store}, or of another class, group or "
                               "split there; expected its own twins, labelled as it is")
    labelled = [video for video, label in zip(index.id, index.label) if label >= 0]
    if drawn and (alone := [video for video in labelled if video not in found]):
        raise RequestError(f"--twins {twins}: {len(alone):,} of {plural(len(labelled), 'labelled video')} of "
                           f"{index.store} without a twin, {alone[0]} among them, and --holdout and --samples would "
                           "draw others from the twins; give --train-split and --test-split instead, or make the "
                           "twins that are missing")
    return {"store": str(twins), "index": found.generation, "recipe_hash": document["recipe_hash"], "seed": seed}


def add_twins(summary: dict, store: dict, pairs: Sequence[tuple[Result, Result]]) -> None:
    """Add to the content of metrics.json what runs on the same test videos found on these and on their twins (`pairs`):
    `twins`, in percent with paired intervals, a table, a row of `beside`, and notes. store: of `check_twins`."""
    scores, rows, own = {}, [], pairs[0][0]
    for name in (name for name in own.right if all(name in twin.right for _, twin in pairs)):
        kind, cells = measure(name), paired_cells(name, pairs)
        found = metrics.kept_above_chance(cells, own.chance[name] / 100)
        values = {"videos": cells[1].sum() / cells.sum(), "twins": cells[:, 1].sum() / cells.sum(),
                  "chance": own.chance[name] / 100, "lost": found.lost, "lost_interval": found.lost_interval,
                  "kept": found.kept, "kept_interval": found.kept_interval}
        said = {key: None if value is None else (100 * np.asarray(value)).tolist() for key, value in values.items()}
        scores[name] = said
        rows.append([kind.words, *(said[key] for key in ("videos", "twins", "chance", "lost")),
                     PERCENT.span(said["lost_interval"]), said["kept"], PERCENT.span(said["kept_interval"])])
        if found.kept is None:
            summary["notes"].append(f"{kind.words}: on the videos themselves it is not above chance beyond its "
                                    "interval, so that no share of it can be said to be kept by the twins.")
    if alone := len(set(own.tested) - set(pairs[0][1].tested)):
        summary["notes"].append(f"{plural(alone, 'test video has', 'test videos have')} no twin, and no part in what "
                                "is paired.")
    if len(pairs) > 1:
        summary["notes"].append(f"Intervals of what twins lose and keep are over videos, of the mean of {len(pairs)} "
                                "runs, and not over seeds.")
    summary["twins"] = {**store, "scores": scores}
    summary["beside"][NAME] = {name: float(np.mean([twin.metrics[name] for _, twin in pairs]))
                               for name in summary["metrics"] if all(name in twin.metrics for _, twin in pairs)}
    summary["tables"].insert(0, {"title": "Without appearance: each video as noise that moves as it does",
                                 "columns": list(COLUMNS), "rows": rows})


def kept_line(summary: dict) -> str:
    """What the twins keep, in one line for the terminal."""
    return "kept by twins of what is above chance: " + ", ".join(
        f"{name} " + ("cannot be said" if one["kept"] is None else f"{one['kept']:.1f} % "
                      f"(95 % {PERCENT.span(one['kept_interval'])})")
        for name, one in summary["twins"]["scores"].items())


def paired_cells(name: str, pairs: Sequence[tuple[Result, Result]]) -> np.ndarray:
    """(2, 2) videos, the mean over the runs: wrong or right on the video, wrong or right on its twin."""
    cells = np.zeros((2, 2))
    for own, twin in pairs:
        right = dict(zip(twin.tested, twin.right[name]))
        for video, was in zip(own.tested, own.right[name]):
            if video in right:
                cells[int(was), int(right[video])] += 1 / len(pairs)
    return cells
