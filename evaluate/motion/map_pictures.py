"""Pictures of maps, from arrays alone: of the saliency protocol (Fig. 4 of MCL), and of several methods side by side.

HxW pixels of a crop, h'xw' positions of a map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from shared.pictures.figures import QUIET, bare, cell_outline, new_figure, place
from shared.pictures.fonts import short

SIDE, GAP, LINE = 1.55, 0.1, 0.3         # inches: of a tile, between tiles, of the words above a row
HOT = "#5ce1ff"
ACROSS = 10                              # tiles side by side that a page can hold


@dataclass(frozen=True)
class Row:
    """One clip. frame (H, W, 3) uint8: its first, cropped; motion (h', w'): S-motion; hot (h', w') bool; maps: (h', w')
    each, >= 0, of any scale and of their own grids; agreement: r of each with the motion; prior (h', w'): the fixed map
    that stands beside it."""

    title: str
    frame: np.ndarray
    motion: np.ndarray
    hot: np.ndarray
    maps: Sequence[np.ndarray]
    agreement: Sequence[float]
    prior: np.ndarray


def saliency_figure(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """A line a clip: first frame, S-motion, every map over the frame, the fixed prior; `names` are the maps'."""
    columns = ["first frame", "S-motion", *names, "fixed prior"]
    figure = new_figure(GAP + len(columns) * (SIDE + GAP), LINE + len(rows) * (SIDE + LINE) + GAP)
    for j, name in enumerate(columns):
        _words(figure, j, -1, name, fontsize=10, weight="bold")
    for i, row in enumerate(rows):
        _words(figure, 0, i, short(row.title, 24), fontsize=9, color=QUIET)
        bare(_tile(figure, i, 0)).imshow(row.frame, aspect="auto")
        _map(_tile(figure, i, 1), row.motion, row)
        for j, (values, r) in enumerate(zip(row.maps, row.agreement), 2):
            _map(_tile(figure, i, j), values, row)
            _words(figure, j, i, f"r {r:.2f}", fontsize=9, color=QUIET)
        _map(_tile(figure, i, len(columns) - 1), row.prior, row)
    return figure


def _map(axes: Axes, values: np.ndarray, row: Row) -> None:
    """The map, from dark at its least to bright at its largest, over the frame in grey; hot positions outlined."""
    bare(axes)
    height, width = row.hot.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(row.frame.mean(2), cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
    low, high = float(values.min()), float(values.max())
    values = (values - low) / (high - low if high > low else 1)      # gradients are far below what a colour map takes
    axes.imshow(values, cmap="inferno", vmin=0, vmax=1, alpha=0.65, extent=extent, aspect="auto",
                interpolation="bilinear")
    axes.add_collection(LineCollection(cell_outline(row.hot, 1), colors=HOT, linewidths=1.4))
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])


def _tile(figure: Figure, i: int, j: int) -> Axes:
    return place(figure, GAP + j * (SIDE + GAP), LINE + i * (SIDE + LINE) + LINE, SIDE, SIDE)


def _words(figure: Figure, j: int, i: int, text: str, **style) -> None:
    """Just above the tile of row i and column j; above all for i = -1."""
    across, down = figure.get_size_inches()
    left, top = GAP + j * (SIDE + GAP), LINE + (i * (SIDE + LINE) + LINE if i >= 0 else 0)
    figure.text(left / across, 1 - (top - 0.07) / down, text, va="bottom", parse_math=False, **style)


@dataclass(frozen=True)
class Compared:
    """A clip of a test video: its class, a frame (s, s, 3) uint8 of what is seen, None where none is shown, and maps
    (h', w') of any scale: its motion, then what each method says of it."""

    class_name: str
    frame: np.ndarray | None
    maps: Sequence[np.ndarray]


def keep_compared(path: Path, rows: Sequence[Compared]) -> None:
    """Write the rows, all with a frame or none, as an npz, for a figure of several checkpoints."""
    frames = {} if rows[0].frame is None else {"frame": [row.frame for row in rows]}
    np.savez_compressed(path, class_name=[row.class_name for row in rows], maps=[row.maps for row in rows], **frames)


def kept_compared(path: Path) -> list[Compared]:
    """The rows that `keep_compared` wrote. Raises FileNotFoundError where it has written none."""
    with np.load(path) as kept:
        names = kept["class_name"].tolist()
        frames = kept["frame"] if "frame" in kept else [None] * len(names)
        return [Compared(*row) for row in zip(names, frames, kept["maps"])]


def compared_figure(rows: Sequence[Compared], motion: str, methods: Sequence[tuple[str, str]]) -> Figure:
    """Of every clip its frame, its motion, headed `motion`, what each method says of it. methods: name and a few words
    under it. A line a clip; a line a method where they are too many to stand side by side on a page."""
    framed = rows[0].frame is not None
    titles = ["frame"] * framed + [motion, *(f"{short(name, 18)}\n{words}" for name, words in methods)]
    tiles = [[row.frame] * framed + list(row.maps) for row in rows]
    above, beside = titles, [short(row.class_name, 14) for row in rows]
    if len(titles) > ACROSS:
        above, beside, tiles = beside, above, list(zip(*tiles))
    side, gap, left = 1.3, 0.1, 1.0 if above is titles else 1.8
    figure = new_figure(left + gap + len(above) * (side + gap), 0.5 + len(beside) * (side + gap))
    for i, line in enumerate(tiles):
        for j, shown in enumerate(line):
            axes = bare(place(figure, left + j * (side + gap), 0.45 + i * (side + gap), side, side))
            axes.imshow(shown, cmap="magma", interpolation="nearest" if shown.ndim == 2 else None)
            if not i:
                axes.set_title(above[j], fontsize=10, pad=4, parse_math=False)
            if not j:
                axes.text(-0.06, 0.5, beside[i], transform=axes.transAxes, ha="right", va="center",
                          fontsize=10, color=QUIET, parse_math=False)
    return figure
