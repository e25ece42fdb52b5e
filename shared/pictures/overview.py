"""The overview of a store, from arrays alone: counts, motion, lengths, sizes, splits, classes, failures.

C clips, V videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from shared.cli import plural
from shared.pictures.figures import CHOSEN, PLAIN, QUIET, RATE, bare, new_figure, place, words
from shared.pictures.fonts import short

NAMED = 40            # classes up to which each has a line of its own
WIDE_RANGE = 20       # from the least to the largest value; beyond it an axis is logarithmic
TICKS = 6             # on an axis
LEFT, WIDE = (1.125, 6.095, 11.065), 3.71      # inches: of the three columns
UPPER, LOWER, PANEL, ROW = 0.96, 5.72, 3.5, 0.19   # inches: the rows' tops, a panel's height, a class's line


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
    few = len(picture.classes) <= NAMED
    tall = max(PANEL, ROW * len(picture.classes) + 0.2) if few else PANEL
    figure = new_figure(15, LOWER + tall + (0.38 if few else 0.7))
    words(figure, 0.3, 0.34, short(picture.title, 100), fontsize=15, weight="bold")
    facts = bare(place(figure, LEFT[0], UPPER, WIDE, PANEL))
    for i, (name, value) in enumerate(picture.facts):
        facts.text(-0.12, 0.98 - i * 0.083, name, transform=facts.transAxes, fontsize=11, color=QUIET, va="top")
        facts.text(0.3, 0.98 - i * 0.083, short(value, 40), transform=facts.transAxes, fontsize=11, va="top",
                   parse_math=False)
    _motion_histogram(place(figure, LEFT[1], UPPER, WIDE, PANEL), picture)
    _length_histogram(place(figure, LEFT[2], UPPER, WIDE, PANEL), picture)
    half = (PANEL - 0.75) / 2
    _bars(place(figure, LEFT[0], LOWER, WIDE, half), picture.sizes, "videos by frame size (height x width)", PLAIN, 6)
    _bars(place(figure, LEFT[0], LOWER + half + 0.75, WIDE, half), picture.splits, "videos by split", PLAIN, 6)
    classes = place(figure, LEFT[1], LOWER, WIDE, tall)
    if few:
        _bars(classes, picture.classes, "videos by class", PLAIN, max(12, len(picture.classes)))
    else:
        _sizes_curve(classes, picture.classes)
    _bars(place(figure, LEFT[2], LOWER, WIDE, PANEL), picture.reasons, "failed videos by reason", CHOSEN, 6,
          names_above=True)
    return figure


def bins(values: np.ndarray, *beside: float) -> tuple[np.ndarray, bool]:
    """Edges of about 40 bins of values above 0 and of what is drawn `beside` them, and whether they are logarithmic, as
    for a wide range. Bins of integers are whole numbers wide; there are some ten where all values are equal. Other
    equal values, or nearly equal ones, stand in the middle."""
    low, high = float(min([values.min(), *beside])), float(max([values.max(), *beside]))
    if high > WIDE_RANGE * low:
        return np.geomspace(0.999 * low, 1.001 * high, 41), True
    if np.issubdtype(values.dtype, np.integer):
        low, high = min(low, (low + high) / 2 - 5), max(high, (low + high) / 2 + 5)
        step = -(-(high - low + 1) // 40)
        return np.arange(np.floor(low) - 0.5, high + step, step), False
    margin = 0.01 * (high - low) if high > 1.05 * low else 0.2 * low
    return np.linspace(low - margin, high + margin, 41), False


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """A logarithmic axis from low to high with ticks 1, 2, 5 of each decade, fewer where those are many, in words."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0 ** decade for decade in decades for step in steps if low <= step * 10.0 ** decade <= high]
        if len(ticks) <= TICKS:
            break
    axis.set_major_locator(FixedLocator(ticks[::-(-len(ticks) // TICKS) or 1]))
    axis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:,.0f}" if at >= 1 else f"{at:.9f}".rstrip("0")))
    axis.set_minor_formatter(NullFormatter())


def _motion_histogram(axes: Axes, picture: StorePicture) -> None:
    axes.set_title("motion of clips", fontsize=12, loc="left")
    moving = picture.scores[picture.scores > 0]
    if not len(moving):
        _say(axes, "no clips" if not len(picture.scores) else "every clip is still")
        return
    edges, log = bins(moving)
    axes.hist(moving, edges, weights=np.full(len(moving), 100 / len(picture.scores)), color=PLAIN,
              label=f"scores of {plural(len(picture.scores), 'clip')}")
    medians = picture.medians[picture.medians > 0]
    axes.hist(medians, edges, weights=np.full(len(medians), 100 / len(picture.medians)), color=CHOSEN, histtype="step",
              linewidth=1.8, label=f"medians of {plural(len(picture.medians), 'video')}")
    still = len(picture.scores) - len(moving)
    if still:
        axes.plot([], [], " ", label=f"{plural(still, 'clip')} without any motion")
    if log:
        axes.set_xscale("log")
        log_ticks(axes.xaxis, edges[0], edges[-1])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(TICKS - 1))
    axes.set_xlabel(f"score ({RATE})", fontsize=11)
    axes.set_ylabel("share (%)", fontsize=11)
    _legend(axes)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= min(100, axes.get_ylim()[1])])


def _length_histogram(axes: Axes, picture: StorePicture) -> None:
    axes.set_title("length of videos", fontsize=12, loc="left")
    if not len(picture.frames):
        _say(axes, "no videos")
        return
    low, high = int(picture.frames.min()), int(picture.frames.max())
    edges, log = bins(picture.frames, picture.span)
    axes.hist(picture.frames, edges, color=PLAIN,
              label=f"{plural(len(picture.frames), 'video')} of {low:,}{f' to {high:,}' * (high > low)} frames")
    if log:
        axes.set_xscale("log")
        log_ticks(axes.xaxis, edges[0], edges[-1])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(TICKS, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    shorter = int((picture.frames < picture.span).sum())
    axes.axvline(picture.span, color=CHOSEN, linestyle="--", linewidth=1.3,
                 label=f"a clip's span, {plural(picture.span, 'frame')};\n"
                       f"{plural(shorter, 'video is', 'videos are')} shorter")
    axes.set_xlabel("frames", fontsize=11)
    _count_axis(axes)
    _legend(axes)


def _count_axis(axes: Axes) -> None:
    """The y axis counts videos: whole numbers, with separators."""
    axes.set_ylabel("videos", fontsize=11)
    axes.yaxis.set_major_locator(MaxNLocator(TICKS, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _legend(axes: Axes) -> None:
    """The legend at the top left, above the tallest bar."""
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(fontsize=10, edgecolor="none", framealpha=0.9, loc="upper left")
    axes.tick_params(labelsize=10)


def _bars(axes: Axes, counts: Sequence[tuple[str, int]], title: str, colour: str, most: int,
          names_above: bool = False) -> None:
    """Horizontal bars, largest first; what exceeds `most` is one line in words, whose bar would dwarf the others."""
    axes.set_title(title, fontsize=12, loc="left")
    if not counts:
        _say(axes, "none")
        return
    shown = list(counts)
    if len(shown) > most:
        rest = shown[most - 1:]
        shown = shown[:most - 1] + [(plural(len(rest), "other"), sum(count for _, count in rest))]
    drawn = len(shown) - (len(counts) > most)
    largest = max(count for _, count in shown[:drawn])
    axes.barh(range(drawn), [count for _, count in shown[:drawn]], color=colour, height=0.42 if names_above else 0.75)
    axes.set_ylim(most - 0.5, -0.6)
    axes.set_xlim(0, 1.18 * largest)
    for at, (name, count) in enumerate(shown):
        axes.text((count if at < drawn else 0) + 0.015 * largest, at, f"{count:,}" + " in all" * (at >= drawn),
                  fontsize=10, va="center", color="black" if at < drawn else QUIET)
        if names_above:
            axes.text(0, at - 0.27, short(name, 46), fontsize=10, va="bottom", parse_math=False)
    axes.set_yticks(range(len(shown)), [] if names_above else [short(name, 22) for name, _ in shown], fontsize=10)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def _sizes_curve(axes: Axes, counts: Sequence[tuple[str, int]]) -> None:
    """How large the classes are, largest first, where they are too many to be named; the ends by name."""
    axes.set_title(f"videos by class, {len(counts):,} of them", fontsize=12, loc="left")
    sizes = np.array([count for _, count in counts])
    axes.fill_between(np.arange(1, len(sizes) + 1), sizes, step="mid", color=PLAIN)
    axes.set_xlim(0.5, len(sizes) + 0.5)
    axes.set_xlabel("class, the largest first", fontsize=11)
    _count_axis(axes)
    axes.set_ylim(0, 1.9 * sizes.max())
    ends = [*((name, count) for name, count in counts[:3]), ("\u2026", None), *counts[-3:]]
    for line, (name, count) in enumerate(ends):
        axes.text(0.97, 0.97 - 0.062 * line, short(name, 44) + (f"  {count:,}" if count is not None else ""),
                  transform=axes.transAxes, fontsize=9, ha="right", va="top", color=QUIET, parse_math=False)
    axes.tick_params(labelsize=10)


def _say(axes: Axes, text: str) -> None:
    bare(axes).text(0.5, 0.5, text, transform=axes.transAxes, fontsize=12, color=QUIET, ha="center", va="center")
