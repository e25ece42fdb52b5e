"""`lookalikes`: is the same motion in another look nearer than another motion in the same look?

A query stands against a positive, which has its motion and another look, and distractors, which have its look and
another motion. Features that know the look alone find a distractor, features that know the motion find the positive;
nothing is learnt. Motions and looks are names in the dataset's annotations (evaluate/motion/looks.py).
"""

import numpy as np

from evaluate.features.extract import View, choose, extract
from evaluate.frozen.retrieval import nearest
from evaluate.metrics import interval
from evaluate.motion.control_pictures import scores_figure
from evaluate.motion.looks import NAME, Looks, Summary, Trial, ask, read_looks, trials
from evaluate.protocol import Figure, Request, Result, Table
from evaluate.report.pictures import Tile, neighbours_figure
from evaluate.report.words import PERCENT
from shared.cli import RequestError, plural
from shared.pictures import figures
from shared.store.index import Index
from shared.store.reader import StoreReader

SHOWN, NEAREST = 5, 4      # queries in the figure, and how many of the nearest of each
TRAIL = 9                  # frames of a video that one picture holds


def run(request: Request) -> Result | None:
    """How often the positive is nearest, over all queries and under each factor; a figure of queries, a table.

    None on all ranks but rank 0. Raises RequestError for annotations without motions and looks, and where no video has
    look-alikes.
    """
    index, settings = Index.load(request.store), request.settings.lookalikes
    positions = choose(index, request.test_split, "--test-split")
    looks = read_looks(index, settings, request.annotations).take(positions)
    if next(trials(looks), None) is None:
        where = f"split {request.test_split!r}" if request.test_split else str(request.store)
        raise RequestError(f"lookalikes: no video of {where} has both another of its motion ({settings.motion}) in "
                           f"another look ({settings.look}) and another of its look with another motion; choose other "
                           "columns or another --test-split")
    view = View.of(request.settings.features, request.encoder)
    found = extract(request.encoder, request.store, request.test_split, view, request.settings.run, request.cache,
                    request.world, "--test-split")
    if not request.world.main:
        return None
    summary, unnamed = ask(found.vectors, looks, settings.distractors), int((~looks.named).sum())
    counts = {"test_videos": len(positions), "queries": summary.queries[NAME], "unnamed": unnamed,
              "motions": len(set(looks.motion) - {""}), "looks": len(set(looks.look) - {""}),
              "clips_per_video": view.clips, "looped": found.looped, "features": found.vectors.shape[1]}
    notes = [f"A query's positive has its motion ({settings.motion}) and another look ({settings.look}). The "
             f"{settings.distractors} distractors, or all where there are fewer, have its look and another motion; all "
             "draws of them count. It is a success where the positive is nearer than every distractor, by cosine.",
             "Features that know nothing score at chance. Features that know the look alone score below it, since the "
             "distractors share the query's look.",
             "Intervals are of as many independent trials as would vary as much as the families of videos do that "
             "share a motion or a look.", *summary.notes]
    if unnamed:
        notes.append(f"{plural(unnamed, 'video without motion or look is', 'videos without motion or look are')} in no "
                     "trial.")
    return Result(metrics=summary.values, chance=summary.chance, trials=summary.trials, counts=counts,
                  figures=_figures(request, found.ids, found.vectors, looks, summary), tables=[_table(summary)],
                  notes=notes)


def _spans(summary: Summary) -> dict[str, tuple[float, float]]:
    """The 95 % intervals, percent."""
    return {name: tuple(100 * end for end in interval(value / 100, summary.trials[name]))
            for name, value in summary.values.items()}


def _table(summary: Summary) -> Table:
    spans = _spans(summary)
    return Table("By what tells the positive's look from the query's", ("what changes", "queries", "success, %", "95 %",
                                                                        "chance, %"),
                 [(summary.factors[name] or "all together", summary.queries[name], value,
                   PERCENT.span(spans[name]), summary.chance[name])
                  for name, value in summary.values.items()])


def _figures(request: Request, ids, vectors: np.ndarray, looks: Looks, summary: Summary) -> list[Figure]:
    bars, path = request.out / "lookalikes.png", request.out / "queries.png"
    figures.save(scores_figure(list(summary.values), {"this checkpoint": summary.values}, summary.chance,
                               _spans(summary)), bars)
    reader = StoreReader(request.store)
    rows = [_row(reader, ids, vectors, looks, trial, factor) for trial, factor in _chosen(looks, summary)]
    reader.close()
    figures.save(neighbours_figure(rows), path)
    return [Figure(bars, "How often the same motion in another look is nearest; whiskers: 95 % interval, bars across: "
                         "chance.", wide=False),
            Figure(path, f"Queries (left, with what changes) and the nearest of their look-alikes with the cosine; "
                         "framed green: the same motion in another look, red: another motion in the same look. "
                         f"A picture shows {TRAIL} frames at once: at every pixel the one that differs most from what "
                         "stands there mostly.")]


def _chosen(looks: Looks, summary: Summary) -> list[tuple[Trial, str]]:
    """A trial of each factor, or several where factors have no names, evenly over the queries."""
    every = list(trials(looks))
    factors = [factor for factor in summary.factors.values() if factor][:SHOWN] or [""] * SHOWN
    chosen = []
    for number, factor in enumerate(factors):
        some = [trial for trial in every if factor in trial.factors] if factor else every
        chosen.append((some[(2 * number + 1) * len(some) // (2 * len(factors))], factor))
    return chosen


def _row(reader: StoreReader, ids, vectors: np.ndarray, looks: Looks, trial: Trial, factor: str):
    positives = trial.positives[trial.factors == factor] if factor else trial.positives
    rows = np.concatenate([positives[:1], trial.others])
    order, cosines = nearest(vectors[[trial.query]], vectors[rows], min(NEAREST, len(rows)))
    return (Tile(trail(reader, ids[trial.query]), factor or str(looks.motion[trial.query]), 1),
            [Tile(trail(reader, ids[row]), "same motion" if row in positives else "other motion", int(row in positives))
             for row in rows[order[0]]], cosines[0])


def trail(reader: StoreReader, video: str) -> np.ndarray:
    """(H, W, 3) uint8: the video's moving things at several times in one picture: at every pixel the frame that differs
    most from the median over time."""
    count = int(reader.index.frames[reader.index.position(video)])
    frames = reader.frames(video, np.linspace(0, count - 1, min(TRAIL, count)).round().astype(int))
    away = np.abs(frames - np.median(frames, axis=0)).sum(-1)
    return np.take_along_axis(frames, away.argmax(0)[None, :, :, None], axis=0)[0]
