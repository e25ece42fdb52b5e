"""The overview of a store, from arrays alone: counts, motion, lengths, sizes, splits, classes, failures.

C clips, V videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared.pictures.figures import CHOSEN, PLAIN, QUIET, RATE, bare, new_figure, short


@dataclass(frozen=True)
class StorePicture:
    """What `store_figure` draws of a store.

    facts: (name, value) lines; scores (C,) of all clips and medians (V,) of all videos with clips, px/frame per px;
    frames (V,): lengths; span: frames of a clip; sizes, splits, classes, reasons: (name, count), largest first.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    scores: np.ndarray
    medians: np.ndarray
    frames: np.ndarray
    span: int
    sizes: Sequence[tuple[str, int]]
    splits: Sequence[tuple[str, int]]
    classes: Sequence[tuple[str, int]]
    reasons: Sequence[tuple[str, int]]


def store_figure(picture: StorePicture) -> Figure:
    """Counts, motion, lengths, sizes, splits, classes and failures of a store."""
    figure = new_figure(15, 9.6)
    figure.text(0.02, 0.965, short(picture.title, 100), fontsize=15, weight="bold", va="center", parse_math=False)
    grid = figure.add_gridspec(2, 3, left=0.075, right=0.985, bottom=0.04, top=0.9, wspace=0.34, hspace=0.36)
    facts = bare(figure.add_subplot(grid[0, 0]))
    for i, (name, value) in enumerate(picture.facts):
        facts.text(-0.12, 0.98 - i * 0.083, name, transform=facts.transAxes, fontsize=11, color=QUIET, va="top")
        facts.text(0.3, 0.98 - i * 0.083, short(value, 40), transform=facts.transAxes, fontsize=11, va="top",
                   parse_math=False)
    _motion_histogram(figure.add_subplot(grid[0, 1]), picture)
    _length_histogram(figure.add_subplot(grid[0, 2]), picture)
    left = grid[1, 0].subgridspec(2, 1, hspace=0.75)
    _bars(figure.add_subplot(left[0]), picture.sizes, "videos by frame size (height x width)", PLAIN, 4)
    _bars(figure.add_subplot(left[1]), picture.splits, "videos by split", PLAIN, 4)
    _bars(figure.add_subplot(grid[1, 1]), picture.classes, "videos by class", PLAIN, 12)
    _bars(figure.add_subplot(grid[1, 2]), picture.reasons, "failed videos by reason", CHOSEN, 6, names_above=True)
    return figure


def _motion_histogram(axes: Axes, picture: StorePicture) -> None:
    axes.set_title("motion of clips", fontsize=12, loc="left")
    moving = picture.scores[picture.scores > 0]
    if not len(moving):
        _say(axes, "no clips" if not len(picture.scores) else "every clip is still")
        return
    bins = np.geomspace(moving.min() * 0.999, moving.max() * 1.001, 41)
    axes.hist(moving, bins, weights=np.full(len(moving), 100 / len(picture.scores)), color=PLAIN,
              label=f"clip scores ({len(picture.scores):,})")
    medians = picture.medians[picture.medians > 0]
    axes.hist(medians, bins, weights=np.full(len(medians), 100 / len(picture.medians)), color=CHOSEN, histtype="step",
              linewidth=1.8, label=f"medians of videos ({len(picture.medians):,})")
    still = len(picture.scores) - len(moving)
    if still:
        axes.plot([], [], " ", label=f"{still:,} clips without any motion")
    axes.set_xscale("log")
    axes.set_xlabel(f"score ({RATE})", fontsize=11)
    axes.set_ylabel("share (%)", fontsize=11)
    _legend(axes)


def _length_histogram(axes: Axes, picture: StorePicture) -> None:
    axes.set_title("length of videos", fontsize=12, loc="left")
    if not len(picture.frames):
        _say(axes, "no videos")
        return
    low, high = picture.frames.min(), picture.frames.max()
    bins = np.geomspace(low * 0.999, high * 1.001, 41) if high > 20 * low else np.linspace(low - 0.5, high + 0.5, 41)
    axes.hist(picture.frames, bins, color=PLAIN)
    if high > 20 * low:
        axes.set_xscale("log")
    short = int((picture.frames < picture.span).sum())
    axes.axvline(picture.span, color=CHOSEN, linestyle="--", linewidth=1.3,
                 label=f"a clip's span, {picture.span} frames;\n{short:,} videos are shorter")
    axes.set_xlabel("frames", fontsize=11)
    axes.set_ylabel("videos", fontsize=11)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """The legend at the top left, above the tallest bar."""
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(fontsize=10, edgecolor="none", framealpha=0.9, loc="upper left")
    axes.tick_params(labelsize=10)


def _bars(axes: Axes, counts: Sequence[tuple[str, int]], title: str, colour: str, most: int,
          names_above: bool = False) -> None:
    """Horizontal bars, largest first; what exceeds `most` is summed in the last one."""
    axes.set_title(title, fontsize=12, loc="left")
    if not counts:
        _say(axes, "none")
        return
    shown = list(counts)
    if len(shown) > most:
        rest = shown[most - 1:]
        shown = shown[:most - 1] + [(f"{len(rest):,} others", sum(count for _, count in rest))]
    places = np.arange(len(shown))
    axes.barh(places, [count for _, count in shown], color=colour, height=0.42 if names_above else 0.75)
    axes.set_ylim(most - 0.5, -0.6)
    largest = max(count for _, count in shown)
    axes.set_xlim(0, 1.18 * largest)
    for place, (name, count) in zip(places, shown):
        axes.text(count + 0.015 * largest, place, f"{count:,}", fontsize=10, va="center")
        if names_above:
            axes.text(0, place - 0.27, short(name, 50), fontsize=10, va="bottom", parse_math=False)
    axes.set_yticks(places, [] if names_above else [short(name, 22) for name, _ in shown], fontsize=10)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def _say(axes: Axes, words: str) -> None:
    bare(axes).text(0.5, 0.5, words, transform=axes.transAxes, fontsize=12, color=QUIET, ha="center", va="center")
