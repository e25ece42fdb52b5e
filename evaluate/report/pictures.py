"""Figures of the evaluation's report, from arrays alone; what surrounds their data is the house's (shared/pictures).

K classes, HxW pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluate.report.words import Measure
from shared.pictures.figures import CHOSEN, PLAIN, QUIET, SHOWN, bare, new_figure
from shared.pictures.fonts import short, text_width

RIGHT = "#2b8a3e"
NAMED, COUNTED = 40, 14       # classes up to which names, and shares in the cells, can be read
LONGEST = 40                  # columns of a class's name beside its row
LONGEST_METRIC = 70           # of a metric's above its own
COLOURS = (SHOWN, CHOSEN, "#e8a33d", "#2b8a3e", "#7a5195", "#00838f", "#8d6e63", "#b5523b")


@dataclass(frozen=True)
class Tile:
    """The middle frame (H, W, 3) uint8 of a video, its class by name and number."""

    frame: np.ndarray
    class_name: str
    label: int


def confusion_figure(table: np.ndarray, names: Sequence[str]) -> Figure:
    """(K, K) counts as shares of each row; row = true class, K at most NAMED. A class without counts is said so."""
    count = len(names)
    total = table.sum(1, keepdims=True)
    shares = np.divide(table, total, out=np.zeros(table.shape), where=total > 0)
    side = float(np.clip(0.45 * count, 3.6, 9.0))
    names = [short(name, LONGEST) for name in names]
    size = 10 if count <= 20 else 8
    margin = 0.2 + 0.0082 * size * max(map(text_width, names))
    figure = new_figure(margin + side + 0.95, margin + side + 0.12)
    across, down = figure.get_size_inches()
    axes = figure.add_axes((margin / across, margin / down, side / across, side / down))
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(count), names, rotation=90, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    axes.tick_params(length=0)
    for i in np.flatnonzero(total == 0):
        axes.axhspan(i - 0.5, i + 0.5, facecolor="#f1f3f5", edgecolor="#cfd6dc", hatch="///", linewidth=0)
        axes.text((count - 1) / 2, i, "no test videos", ha="center", va="center", fontsize=size, color=QUIET)
    if count <= COUNTED:
        for i, j in zip(*np.nonzero(table)):
            axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=10,
                      color="white" if shares[i, j] > 0.55 else "black")
    bar = figure.add_axes(((margin + side + 0.15) / across, margin / down, 0.15 / across, side / down))
    figure.colorbar(drawn, cax=bar, ticks=[0, 0.5, 1]).set_ticklabels(["0", "50", "100 %"], fontsize=10)
    return figure


def classes_figure(shares: np.ndarray) -> Figure:
    """How much of each class was recognised, (K,) percent, hardest first: of more classes than can be named."""
    shares = np.sort(shares)
    figure = new_figure(7, 3.6)
    axes = figure.add_axes((0.1, 0.17, 0.87, 0.78))
    axes.fill_between(np.arange(1, len(shares) + 1), shares, step="mid", color=PLAIN)
    axes.axhline(shares.mean(), color=CHOSEN, linestyle="--", linewidth=1.3)
    axes.set_xlim(0.5, len(shares) + 0.5)
    axes.set_ylim(0, 100)
    axes.set_xlabel("class, the hardest first", fontsize=10)
    axes.set_ylabel("recognised, %", fontsize=10)
    axes.tick_params(labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def neighbours_figure(rows: Sequence[tuple[Tile, Sequence[Tile], np.ndarray]]) -> Figure:
    """A line a query: its frame, then its neighbours, nearest first, with their cosines."""
    columns = max(len(neighbours) for _, neighbours, _ in rows)
    width, height, gap = 1.75, 1.32, 0.42
    figure = new_figure(0.2 + width * 1.12 * (columns + 1) + 0.2, 0.35 + len(rows) * (height + gap))
    across, down = figure.get_size_inches()

    def place(tile: Tile, i: int, j: int, title: str, colour: str) -> None:
        left = 0.1 + j * width * 1.12 + (0.2 if j else 0)
        axes = bare(figure.add_axes((left / across, 1 - (0.35 + i * (height + gap) + height) / down, width / across,
                                     height / down)))
        axes.imshow(middle(tile.frame, width / height), aspect="auto")
        axes.set_title(title, fontsize=9, pad=3, color=QUIET if j == 0 else colour, parse_math=False)
        for side in axes.spines.values():
            side.set(visible=True, edgecolor=colour, linewidth=3)

    for i, (query, neighbours, scores) in enumerate(rows):
        place(query, i, 0, f"query: {short(query.class_name, 18)}", QUIET)
        for j, (tile, score) in enumerate(zip(neighbours, scores), 1):
            same = tile.label == query.label
            place(tile, i, j, f"{score:.2f} {short(tile.class_name, 16)}", RIGHT if same else CHOSEN)
    return figure


def middle(frame: np.ndarray, aspect: float) -> np.ndarray:
    """The middle of a frame at the tile's aspect, width over height, so that nothing is squeezed."""
    height, width = frame.shape[:2]
    wide, high = min(width, round(height * aspect)), min(height, round(width / aspect))
    top, left = (height - high) // 2, (width - wide) // 2
    return frame[top:top + high, left:left + wide]


def curves_figure(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Learning curves of a training: losses and accuracies over the steps, of MaCLR those of each term; running means
    above the raw lines."""
    terms = [term for term in ("vv", "vm", "mv", "mm") if any(term in row for row in rows)]
    accuracies = {name: name.replace("_", " ") for name in ("accuracy", "in_batch_accuracy", "queue_accuracy")}
    panels = (("loss", {name: name for name in ("loss", "inter", "intra", "order", "mal", *terms)}),
              ("in-batch accuracy", {f"in_batch_accuracy_{term}": term for term in terms}) if terms else
              ("accuracy", accuracies))
    figure = new_figure(11, 3.4)
    for number, (title, names) in enumerate(panels):
        axes = figure.add_axes((0.06 + 0.5 * number, 0.16, 0.43, 0.72))
        for name, label in names.items():
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if not points:
                continue
            colour = COLOURS[len(axes.lines) // 2 + (number if terms else 0)]      # a term's is the same in both
            steps, values = np.array(points, np.float64).T
            axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
            axes.plot(steps, _smooth(values), color=colour, linewidth=1.6, label=label)
        axes.set_title(title, fontsize=12, loc="left")
        axes.set_xlabel("step", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(labelsize=9)
        if axes.lines:
            axes.legend(fontsize=9, frameon=False, ncols=len(axes.lines), loc="lower right", columnspacing=1.2,
                        bbox_to_anchor=(1.02, 0.98), handlelength=1.4, borderaxespad=0.2)
        if number:
            axes.set_ylim(0, 1)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a fiftieth of the steps."""
    reach = max(1, len(values) // 50)
    total = np.cumsum(np.concatenate([[0.0], values]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - reach)
    return (total[last] - total[first]) / (last - first)


def unit_panels(labels: Sequence[str], kinds: Sequence[Measure], room: Sequence[float],
                top: float) -> tuple[Figure, list[tuple[Axes, dict[int, float], float]]]:
    """A figure with a panel of the shares and, below it, one of the correlations, which have no unit in common.

    labels, kinds: of the metrics, each above its own, so that a phone can hold them; room: inches that each takes below
    its label; top: inches above, for a legend. Of every panel: its axes, whose y is inches from its top, {metric's
    number: where its room begins}, and what turns a value of metrics.json into x.
    """
    across, line, below = 6.4, 0.24, 0.6
    groups = [some for share in (True, False) if (some := [i for i, kind in enumerate(kinds) if kind.share == share])]
    tall = top + sum(room) + line * len(room) + below * len(groups)
    figure, panels, at = new_figure(across, tall), [], top
    for some in groups:
        ends = np.cumsum([line + room[i] for i in some])
        places = {i: end - room[i] for i, end in zip(some, ends)}
        axes = figure.add_axes((0.2 / across, 1 - (at + ends[-1]) / tall, 1 - 0.45 / across, ends[-1] / tall))
        at += ends[-1] + below
        axes.set_ylim(ends[-1], 0)
        axes.set_yticks([])
        for i, begins in places.items():
            axes.text(0.0, begins - 0.04, short(labels[i], LONGEST_METRIC), transform=axes.get_yaxis_transform(),
                      ha="left", va="bottom", fontsize=10, parse_math=False,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        share = kinds[some[0]].share
        axes.set_xlabel("%" if share else "correlation", fontsize=10)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", color="#e8ecef", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        panels.append((axes, places, 1.0 if share else 0.01))
    return figure, panels


def compare_figure(names: Sequence[str], labels: Sequence[str], kinds: Sequence[Measure], values: np.ndarray,
                   spreads: np.ndarray, chance: np.ndarray, grey: Sequence[bool] = ()) -> Figure:
    """Bars of each metric, one below the other: (runs, metrics) as in metrics.json, NaN for none; whiskers: one spread;
    dots: chance; grey: whether a run is a baseline. A metric takes the room of those that have it."""
    have, bar = np.isfinite(values), 0.21
    legend = 0.24 * -(-len(names) // 2) * (len(names) > 1)
    figure, panels = unit_panels(labels, kinds, bar * (have.sum(0) + 0.3), legend + 0.1)
    for axes, places, scale in panels:
        coloured = iter(COLOURS * len(names))
        for i, name in enumerate(names):
            some = [j for j in places if have[i, j]]
            y = np.array([places[j] + bar * (have[:i, j].sum() + 0.5) for j in some])
            x, spread, dots = (scale * one[i, some] for one in (values, spreads, chance))
            axes.barh(y, x, 0.92 * bar, color=PLAIN if i < len(grey) and grey[i] else next(coloured),
                      label=short(name, 34))
            known = np.isfinite(spread)
            axes.errorbar(x[known], y[known], xerr=spread[known], fmt="none", ecolor="black", elinewidth=1, capsize=2)
            known = np.isfinite(dots)
            axes.vlines(dots[known], y[known] - bar / 2, y[known] + bar / 2, color="black", linestyle=":")
        axes.set_xlim(min(0.0, 1.1 * scale * float(np.nanmin(values[:, list(places)]))), 100 * scale)
    if legend:
        first = panels[0][0]
        drawn = first.legend(fontsize=9, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0),
                             borderaxespad=0.1)
        for text in drawn.get_texts():
            text.set_parse_math(False)
    return figure
