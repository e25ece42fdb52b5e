"""Pictures of videos, from arrays alone; what they show is computed by whoever draws. overview.py draws whole stores.

T frames, n frames shown, HxW pixels, hxw motion cells, C clips. Matplotlib's object interface with its Agg canvas:
no global state, no display. Names from outside are never read as formulas.
"""

import os
import textwrap
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from shared.cli import writing
from shared.clips.index import Box, ClipIndex, above
from shared.pictures.fonts import families, short

CHOSEN, PLAIN, SHOWN, QUIET = "#d1495b", "#9aa5b1", "#1f5a94", "#5a6570"
BOX_COLOURS = ("#ffd400", "#00c8ff", "#ff4fd8", "#7cff6b")
WHEEL = (15, 6, 4, 11, 13, 6)  # hues from red to yellow, green, cyan, blue, magenta, red (Baker et al. 2011)
RATE = "px/frame per px"
TILES_LEFT, GAP, ROW_GAP = 1.2, 0.05, 0.17  # inches


@dataclass(frozen=True)
class VideoPicture:
    """What `video_figure` draws of one video.

    number (n,): frame numbers shown; frames (n,H,W,3) uint8; motion (n,h,w) and t_motion (T,) float32, px/frame per px.
    clips: those of one geometry, `span` frames long each; shown: start of the clip that the frames come from, None
    where the video has no clip. s_motion (h,w) float32; hot (h,w) bool; boxes: crops drawn for it. flow (n,2,H,W)
    float32, px/frame; boundary (n,2,H,W) float32, |grad u| and |grad v|, px/frame per px.
    """

    title: str
    facts: str
    number: np.ndarray
    frames: np.ndarray
    motion: np.ndarray
    t_motion: np.ndarray
    clips: ClipIndex
    span: int
    shown: int | None
    s_motion: np.ndarray
    hot: np.ndarray
    boxes: Sequence[Box]
    flow: np.ndarray | None = None
    boundary: np.ndarray | None = None


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG; the file appears complete or not at all. Raises OSError where it cannot be written.

    Names get fonts that have their characters: they went through `short`, which escapes what no font has.
    """
    ticks = [label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()]
    for text in (*figure.findobj(Text), *ticks):
        if len(needed := families(text.get_text())) > 1:
            text.set_family(needed)
    path = Path(path)
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with writing(path):
            figure.savefig(hidden, format="png")
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def flow_colours(flow: np.ndarray, longest: float | None = None) -> np.ndarray:
    """Colour-coded flow: hue is direction, saturation length; white is rest (Baker et al. 2011, Middlebury).

    flow: (..., 2, H, W) float, px/frame.   longest: length of full saturation, px/frame; default: the longest vector.
    Returns (..., H, W, 3) uint8; vectors beyond `longest` are darkened.
    """
    u, v = np.moveaxis(np.asarray(flow, np.float64), -3, 0)
    length = np.hypot(u, v)
    radius = length / max(longest if longest is not None else float(length.max()), 1e-9)
    wheel = _wheel()
    place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = place.astype(int)
    share = (place - low)[..., None]
    hue = (1 - share) * wheel[low] + share * wheel[(low + 1) % len(wheel)]
    radius = radius[..., None]
    colour = np.where(radius <= 1, 1 - radius * (1 - hue), 0.75 * hue)
    return (255 * colour).astype(np.uint8)


def _wheel() -> np.ndarray:
    """(55, 3) float64 in [0, 1]: the hues around the circle."""
    wheel, at = np.zeros((sum(WHEEL), 3)), 0
    for part, steps in enumerate(WHEEL):
        full, moving = (part + 1) // 2 % 3, (1, 0, 2)[part % 3]
        ramp = np.floor(255 * np.arange(steps) / steps) / 255
        wheel[at:at + steps, full] = 1
        wheel[at:at + steps, moving] = 1 - ramp if part % 2 else ramp
        at += steps
    return wheel


def video_figure(picture: VideoPicture, lines: Sequence[str] = ()) -> Figure:
    """Frames, flow, motion boundary, motion map (MCL Fig. 2); T-motion with its clips; S-motion, hot cells, crops; and
    lines of text below."""
    height, width = picture.frames.shape[1:3]
    tile_w = min(2.3, 2.2 * width / height)
    tile_h = tile_w * height / width
    across = max(TILES_LEFT + len(picture.frames) * (tile_w + GAP) + 1.0, 12.0)
    tiles, curve = 0.95, 0.95 + 5 * (tile_h + ROW_GAP) + 0.35
    lines = folded(lines, across)
    figure = new_figure(across, curve + 2.55 + 2.5 + 0.3 * len(lines))
    words(figure, 0.15, 0.22, short(picture.title, int(8 * across)), fontsize=14, weight="bold")
    words(figure, 0.15, 0.5, short(picture.facts, int(11 * across)), fontsize=12)
    _tiles(figure, picture, tiles, tile_w, tile_h)
    _curve(place(figure, TILES_LEFT, curve, across - TILES_LEFT - 0.3, 1.6), picture)
    _space(figure, picture, curve + 2.6)
    report(figure, lines, curve + 2.55 + 2.5)
    return figure


def folded(lines: Sequence[str], across: float) -> list[str]:
    """The lines, folded to what fits so many inches."""
    return [part for line in lines for part in textwrap.wrap(line, int(11 * across), subsequent_indent="    ")]


def report(figure: Figure, lines: Sequence[str], top: float) -> None:
    """Lines of text, the first one's middle so many inches below the figure's upper edge."""
    for number, line in enumerate(lines):
        words(figure, 0.15, top + 0.3 * number, short(line, 400), fontsize=11)


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, sides in inches."""
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def words(figure: Figure, left: float, top: float, text: str, **style) -> None:
    """A line of text whose middle is at a place in inches from the figure's upper left corner; no formula."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - top / down, text, va="center", parse_math=False, **style)


def bare(axes: Axes) -> Axes:
    """The axes without ticks and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def _scale(figure: Figure, drawn, left: float, top: float, height: float, high: float) -> None:
    figure.colorbar(drawn, cax=place(figure, left, top, 0.13, height), ticks=[0, high], format="%.2g")
    drawn.colorbar.ax.tick_params(labelsize=10)


def _tiles(figure: Figure, picture: VideoPicture, top: float, width: float, height: float) -> None:
    """Five rows of n pictures, each row on one scale, with the scale at its right end."""
    longest = upper_end(np.hypot(picture.flow[:, 0], picture.flow[:, 1]))
    steep = upper_end(picture.boundary)
    rows = [("frame", picture.frames, None), ("flow", flow_colours(picture.flow, longest), None),
            ("boundary\n|grad u|", picture.boundary[:, 0], steep),
            ("boundary\n|grad v|", picture.boundary[:, 1], steep),
            ("motion map\n(stored)", picture.motion, upper_end(picture.motion))]
    end = TILES_LEFT + len(picture.frames) * (width + GAP)
    for i, (name, pictures, high) in enumerate(rows):
        y = top + i * (height + ROW_GAP)
        for j, shown in enumerate(pictures):
            axes = bare(place(figure, TILES_LEFT + j * (width + GAP), y, width, height))
            drawn = axes.imshow(shown, aspect="auto", cmap="magma", vmin=0, vmax=high)
            if i == 0:
                axes.set_title(f"frame {picture.number[j]}", fontsize=11, pad=3)
        words(figure, 0.15, y + height / 2, name, fontsize=12)
        if high is not None:
            _scale(figure, drawn, end + 0.03, y, height, high)
        elif name == "flow":
            y, x = np.mgrid[-1:1:101j, -1:1:101j]
            disc = flow_colours(np.where(np.hypot(x, y) <= 1, np.stack([x, y]), 0), 1.0)
            wheel = bare(place(figure, end + 0.05, top + height + ROW_GAP + height / 2 - 0.35, 0.8, 0.8))
            wheel.imshow(disc)
            wheel.set_title(f"{longest:.2g} px/frame", fontsize=10, pad=2)


def upper_end(values: np.ndarray) -> float:
    """A row's upper end: the 99.5th percentile, so that one wild pixel does not turn the rest dark."""
    high = float(np.percentile(values, 99.5))
    return high if high > 0 else 1e-3


def _curve(axes: Axes, picture: VideoPicture) -> None:
    """T-motion, every clip as a bar of its span at its score, the median, the chosen clips and the clip shown."""
    clips, span = picture.clips, picture.span
    axes.plot(picture.t_motion, color="#333333", linewidth=1, label="T-motion of the frame")
    if len(clips.start):
        chosen = above(clips.score, clips.median)
        for mask, colour, name in ((~chosen, PLAIN, "other clips"), (chosen, CHOSEN, "clips above the median")):
            bars = [((start, score), (start + span - 1, score))
                    for start, score in zip(clips.start[mask], clips.score[mask])]
            axes.add_collection(LineCollection(bars, colors=colour, linewidths=2, alpha=0.7,
                                               label=f"{name} ({int(mask.sum())})"))
        axes.axhline(clips.median, color=CHOSEN, linestyle="--", linewidth=1, label=f"median {clips.median:.3g}")
    if picture.shown is not None:
        axes.axvspan(picture.shown, picture.shown + span - 1, color=SHOWN, alpha=0.12, label="clip shown")
    axes.plot(picture.number, picture.t_motion[picture.number], "v", color=SHOWN, markersize=6, clip_on=False,
              label="frames shown")
    axes.set_xlim(0, max(len(picture.t_motion) - 1, 1))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("frame", fontsize=11)
    axes.set_ylabel(f"motion\n({RATE})", fontsize=11)
    axes.tick_params(labelsize=10)
    axes.legend(fontsize=10, ncols=6, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, handlelength=1.6,
                columnspacing=1.2, borderaxespad=0.2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _space(figure: Figure, picture: VideoPicture, top: float) -> None:
    """S-motion, its hot cells and crops on a frame, and the crops themselves."""
    height, width = picture.frames.shape[1:3]
    cell = height // picture.hot.shape[0]
    middle, outline = picture.frames[len(picture.frames) // 2], cell_outline(picture.hot, cell)
    tile_w = min(2.7, 2.0 * width / height)
    tile_h = tile_w * height / width
    axes = bare(place(figure, 0.2, top, tile_w, tile_h))
    high = upper_end(picture.s_motion)
    drawn = axes.imshow(picture.s_motion, cmap="magma", vmin=0, vmax=high, aspect="auto",
                        extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    _scale(figure, drawn, 0.25 + tile_w, top, tile_h, high)
    axes.set_title("S-motion, hot cells" if picture.hot.any() else "S-motion", fontsize=11)
    axes.add_collection(LineCollection(outline, colors="#5ce1ff", linewidths=1.3))
    left = 0.2 + tile_w + 0.85
    axes = bare(place(figure, left, top, tile_w, tile_h))
    axes.imshow(middle, aspect="auto")
    axes.set_title("crops drawn for it" if picture.boxes else "no clip, no crops", fontsize=11)
    axes.add_collection(LineCollection(outline, colors="white", linewidths=1, alpha=0.8))
    left += tile_w + 0.25
    most = (figure.get_figwidth() - left - 0.1) / max(len(picture.boxes), 1) - 0.15
    for i, box in enumerate(picture.boxes):
        colour = BOX_COLOURS[i % len(BOX_COLOURS)]
        axes.add_patch(Rectangle((box.x - 0.5, box.y - 0.5), box.w, box.h, fill=False, edgecolor=colour, linewidth=2.5))
        crop_w = min(most, tile_h * box.w / box.h)
        crop = bare(place(figure, left, top, crop_w, crop_w * box.h / box.w))
        left += crop_w + 0.15
        crop.imshow(middle[box.y:box.y + box.h, box.x:box.x + box.w], aspect="auto")
        crop.set_title(f"crop {i + 1}: {box.h}x{box.w}", fontsize=11)
        for side in crop.spines.values():
            side.set(visible=True, edgecolor=colour, linewidth=3)


def cell_outline(mask: np.ndarray, cell: int) -> list:
    """Line segments, in pixels, around the true cells of (h, w)."""
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])  # between a cell and the one above it
    segments = [((x * cell, y * cell), ((x + 1) * cell, y * cell)) for y, x in zip(rows, columns)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    segments += [((x * cell, y * cell), (x * cell, (y + 1) * cell)) for y, x in zip(rows, columns)]
    return [tuple((x - 0.5, y - 0.5) for x, y in ends) for ends in segments]
