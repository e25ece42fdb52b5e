"""The nearest videos of one, by cosine of their features: a table, and a strip of pictures.

N videos, C features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from evaluate.frozen.retrieval import nearest
from evaluate.report.pictures import RIGHT, middle
from shared.pictures.figures import QUIET, SHOWN, bare, new_figure, short

ACROSS = 8                       # neighbours a line of the strip
WIDTH, HEIGHT, STEP = 1.9, 1.43, 2.0         # of a picture, and from one to the next, inches
WORDS = 0.42                     # below each, inches


@dataclass(frozen=True)
class Neighbour:
    """A video near the query. label: "" without one; cosine: of the two features."""

    id: str
    label: str
    cosine: float


def of_videos(ids: Sequence[str], vectors: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Distinct ids in their order, and the mean (N, C) float32 of the rows of each, which stand together."""
    distinct = list(dict.fromkeys(ids))
    if len(distinct) == len(ids):
        return distinct, vectors
    firsts = np.flatnonzero([one != two for one, two in zip(ids, ["", *ids])])
    counts = np.diff([*firsts, len(ids)])
    return distinct, (np.add.reduceat(vectors, firsts, dtype=np.float64) / counts[:, None]).astype(np.float32)


def neighbours(query: np.ndarray, ids: Sequence[str], labels: Sequence[str], vectors: np.ndarray, k: int,
               leave_out: str | None = None) -> list[Neighbour]:
    """The k nearest of N videos to the query (C,), nearest first; fewer where there are fewer. leave_out: an id."""
    wanted = min(len(ids), k + (leave_out is not None))
    rows, cosines = nearest(query[None], vectors, wanted)
    found = [Neighbour(ids[row], labels[row], float(cosine)) for row, cosine in zip(rows[0], cosines[0])]
    return [one for one in found if one.id != leave_out][:k]


def strip(query: Neighbour, frame: np.ndarray, found: Sequence[Neighbour], frames: Sequence[np.ndarray]) -> Figure:
    """The query (its cosine is not shown) and its neighbours, nearest first, each the middle frame (H, W, 3) uint8 of
    its video with id, label and cosine; framed green where the label is the query's."""
    lines = max(1, -(-len(found) // ACROSS))
    across = min(len(found), ACROSS)
    figure = new_figure(0.2 + STEP * (across + 1) + 0.15, 0.3 + lines * (HEIGHT + WORDS))
    wide, high = figure.get_size_inches()

    def place(column: int, line: int, one: Neighbour, picture: np.ndarray, title: str, colour: str) -> None:
        left = 0.1 + column * STEP + 0.15 * (column > 0)
        top = 0.26 + line * (HEIGHT + WORDS)
        axes = bare(figure.add_axes((left / wide, 1 - (top + HEIGHT) / high, WIDTH / wide, HEIGHT / high)))
        axes.imshow(middle(picture, WIDTH / HEIGHT), aspect="auto")
        axes.set_title(title, fontsize=9, pad=3, color=colour, parse_math=False)
        axes.set_xlabel(_end(one.id, 30), fontsize=7.5, labelpad=3, parse_math=False)
        for side in axes.spines.values():
            side.set(visible=True, edgecolor=colour, linewidth=3)

    place(0, 0, query, frame, f"query{': ' * bool(query.label)}{short(query.label, 20)}", QUIET)
    for i, (one, picture) in enumerate(zip(found, frames)):
        same = one.label and one.label == query.label
        place(1 + i % ACROSS, i // ACROSS, one, picture, f"{one.cosine:.3f} {short(one.label, 18)}",
              RIGHT if same else SHOWN)
    return figure


def _end(text: str, longest: int) -> str:
    """The end of an id, where ids of one folder differ."""
    text = short(text, len(text))
    return text if len(text) <= longest else "\u2026" + text[1 - longest:]
