"""`background`: what is lost when motion, order, direction or what moves is taken away from the test videos?

A linear classifier learns from the training videos as they are, and retrieval finds them as they are; the test videos
are asked as they are and in every variant of evaluate/features/variants.py. N training videos, M test videos.
"""

import dataclasses

import numpy as np
from matplotlib.figure import Figure as Drawing

from evaluate import metrics
from evaluate.features.extract import View, read_ahead
from evaluate.features.variants import BACKGROUND, REVERSED, SHUFFLED, STILL, VARIANTS, moving_cells
from evaluate.folds import gather_features
from evaluate.frozen.linear import classify
from evaluate.frozen.retrieval import nearest
from evaluate.motion.control_pictures import scores_figure
from evaluate.motion.maps import clip_numbers
from evaluate.protocol import Figure, Request, Result, Table
from evaluate.recognition import check_classes
from evaluate.report.words import PERCENT
from shared.cli import RequestError, plural
from shared.pictures import figures
from shared.pictures.figures import bare, new_figure, place, words
from shared.store.index import Index
from shared.store.reader import StoreReader

ASKED = {"top1": "top-1", "r@1": "R@1"}
TAKEN = {STILL: ("motion", "the middle frame of each clip, repeated"),
         SHUFFLED: ("the order of frames", "each clip's frames, shuffled"),
         REVERSED: ("the direction of time", "each clip's frames, last first"),
         BACKGROUND: ("what moves", "moving cells replaced by the video's temporal median")}
LOOKED_AT = 50        # test videos, at most, whose moving cells are counted
FRAMES = 6            # of a clip in the figure


def run(request: Request) -> Result | None:
    """top1 and r@1 of the test videos, and VARIANT_top1, VARIANT_r@1; a table of what is lost, with paired intervals.

    None on all ranks but rank 0. Raises RequestError as `linear` does, and for clips of a single frame.
    """
    view = View.of(request.settings.features, request.encoder)
    if view.geometry.length < 2:
        raise RequestError(f"background: the clip is {view.geometry}, and one frame has neither motion nor order; "
                           "expected two frames or more")
    found = {name: gather_features(request, name) for name in ("", *VARIANTS)}
    if not request.world.main:
        return None
    plain, right = found[""], {name: [] for name in ASKED}      # metric -> (1 + variants, M) bool, by fold
    labels, chance_r, notes = [], 0.0, dict.fromkeys(plain.notes)
    for number, fold in enumerate(plain.folds):
        classes = check_classes(fold.train.labels, fold.test.labels, plain.classes, fold.train_name, fold.test_name)
        asked = np.concatenate([one.folds[number].test.vectors for one in found.values()])
        answer = classify(request, fold.train, np.searchsorted(classes, fold.train.labels), asked)
        rows, _ = nearest(asked, fold.train.vectors, 1, request.settings.retrieval.block)
        for name, said in (("top1", classes[answer.scores.argmax(1)]), ("r@1", fold.train.labels[rows[:, 0]])):
            right[name].append(said.reshape(len(found), -1) == fold.test.labels)
        labels.append(fold.test.labels)
        chance_r += metrics.chance_recall(fold.test.labels, fold.train.labels, 1) * len(fold.test)
        notes.update(dict.fromkeys(answer.notes))
    right, labels = {name: np.concatenate(some, axis=1) for name, some in right.items()}, np.concatenate(labels)
    chance = {"top1": 100 * metrics.chance_top(labels, 1), "r@1": 100 * chance_r / len(labels)}
    values = {f"{variant}_{name}" if variant else name: 100 * float(right[name][row].mean())
              for row, variant in enumerate(found) for name in ASKED}
    chances = {name: chance[name.rpartition("_")[2]] for name in values}
    index = Index.load(request.store)
    tested = np.array([index.position(video) for fold in plain.folds for video in fold.test.ids])
    sample = tested[np.unique(np.linspace(0, len(tested) - 1, LOOKED_AT).round().astype(int))]
    moving = 100 * replaced(request, sample, view)
    notes = [*notes, "The classifier learns from, and retrieval finds, training videos as they are; only the test "
                     "videos are altered. Intervals of what is lost are of differences within a video (Newcombe 1998).",
             f"Of the cells of {plural(len(sample), 'test video')}, {moving:.0f} % move at some time of a clip; there "
             "its frames are replaced by the video's median. Where the camera moves, nearly everything does."]
    return Result(metrics=values, chance=chances, trials=dict.fromkeys(values, len(labels)), counts=dict(plain.counts),
                  figures=_figures(request, view, sample, values, chances, len(labels)),
                  tables=[lost_table(words, right[name], chance[name]) for name, words in ASKED.items()], notes=notes)


def lost_table(words: str, right: np.ndarray, chance: float) -> Table:
    """What each variant costs. right: (1 + variants, M) bool, of the videos as they are first; chance: percent."""
    rows = [("nothing", "test videos as they are", 100 * float(right[0].mean()), None, None, chance)]
    for variant, row in zip(VARIANTS, right[1:], strict=True):
        lost = [100 * end for end in metrics.paired_interval(right[0], row)]
        rows.append((*TAKEN[variant], 100 * float(row.mean()), 100 * float(right[0].mean() - row.mean()),
                     PERCENT.span(lost), chance))
    return Table(f"What is lost when ... is taken away: {words}",
                 ("taken away", "how", f"{words}, %", "lost, points", "95 %", "chance, %"), rows)


def replaced(request: Request, positions: np.ndarray, view: View) -> float:
    """The share of cells that move in a clip, the mean over the clips of the videos at these positions."""
    reader, shares = StoreReader(request.store), []
    for position in positions.tolist():
        motion = reader.motion(reader.index.id[position], 0, int(reader.index.frames[position]))
        shares += [moving_cells(motion[numbers]).mean() for numbers in clip_numbers(view, reader.index, position)]
    reader.close()
    return float(np.mean(shares))


def _figures(request: Request, view: View, sample: np.ndarray, values: dict[str, float], chance: dict[str, float],
             trials: int) -> list[Figure]:
    spans = {name: tuple(100 * end for end in metrics.interval(value / 100, trials)) for name, value in values.items()}
    bars, clips = request.out / "background.png", request.out / "variants.png"
    figures.save(scores_figure(list(values), {"this checkpoint": values}, chance, spans), bars)
    reader = StoreReader(request.store)
    position = max(sample.tolist(), key=lambda one: float(reader.t_motion(reader.index.id[one]).mean()))
    titles = {"": "as it is", **{variant: f"without\n{what}" for variant, (what, _) in TAKEN.items()}}
    figures.save(variants_figure({title: _clip(reader, position, dataclasses.replace(view, clips=1, variant=variant),
                                               request) for variant, title in titles.items()}), clips)
    reader.close()
    return [Figure(bars, "Accuracy of the test videos as they are and in every variant; whiskers: 95 % interval, bars "
                         "across: chance.", wide=False),
            Figure(clips, f"The middle clip of the test video {reader.index.id[position]} as it is, and altered: "
                          + "; ".join(how for _, how in TAKEN.values()) + ".")]


def _clip(reader: StoreReader, position: int, view: View, request: Request) -> np.ndarray:
    """(FRAMES at most, h, w, 3) uint8, evenly over the video's middle clip as the view gives it."""
    frames, places, _ = next(read_ahead(reader, np.array([position]), view, request.settings.run))
    chosen = np.linspace(0, places.shape[1] - 1, min(FRAMES, places.shape[1])).round().astype(int)
    return frames[places[0, chosen]]


def variants_figure(rows: dict[str, np.ndarray]) -> Drawing:
    """A line of frames, (n, h, w, 3) uint8, under each name."""
    side, left = 1.4, 1.75
    figure = new_figure(left + (side + 0.08) * max(map(len, rows.values())), (side + 0.08) * len(rows))
    for i, (name, frames) in enumerate(rows.items()):
        words(figure, 0.1, (i + 0.5) * (side + 0.08), name, fontsize=11)
        for j, frame in enumerate(frames):
            bare(place(figure, left + j * (side + 0.08), i * (side + 0.08), side, side)).imshow(frame)
    return figure
