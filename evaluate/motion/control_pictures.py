"""Pictures of `controls`: every method's scores side by side, and what the dense probe says of test videos.

n clips, HxW pixels, h'xw' positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from matplotlib.figure import Figure

from evaluate.motion.control_scores import Scene
from evaluate.motion.probes import Motion
from evaluate.report.pictures import COLOURS, unit_panels
from evaluate.report.words import measure
from shared.pictures.figures import QUIET, bare, new_figure
from shared.pictures.fonts import short
from shared.store.reader import StoreReader

VIDEOS = 6            # in the probe's figure


def scores_figure(names: Sequence[str], methods: Mapping[str, Mapping[str, float]],
                  chance: Mapping[str, float],
                  spans: Mapping[str, tuple[float, float]] = MappingProxyType({})) -> Figure:
    """A row a score, a dot a method, values as in metrics.json; a bar across where chance is. spans: intervals of the
    first method's, percent."""
    kinds = [measure(name) for name in names]
    figure, panels = unit_panels([kind.words for kind in kinds], kinds, [0.3] * len(names), 0.5)
    for axes, places, scale in panels:
        for i, top in places.items():
            axes.plot([scale * chance[names[i]]] * 2, [top + 0.03, top + 0.27], color="black", linewidth=1.2,
                      zorder=1, label=None if i else "chance")
        for i, top in places.items():
            if names[i] in spans:
                axes.plot([scale * end for end in spans[names[i]]], [top + 0.15 - 0.036 * (len(methods) / 2)] * 2,
                          color=COLOURS[0], linewidth=2, zorder=2)
        for number, (method, values) in enumerate(methods.items()):
            beside = 0.036 * (number - len(methods) / 2)              # so that equals are all seen
            there = [(scale * values[names[i]], top + 0.15 + beside) for i, top in places.items()
                     if names[i] in values]
            axes.plot(*np.array(there).reshape(-1, 2).T, marker="o" if not number else "D", linestyle="none",
                      markersize=8 if not number else 5, color=COLOURS[number % len(COLOURS)],
                      label=short(method, 30), zorder=3 if not number else 2)
        lowest = min(0.0, *(values[names[i]] for values in methods.values() for i in places if names[i] in values))
        axes.set_xlim(scale * (lowest - 2), scale * 102)
    drawn = panels[0][0].legend(fontsize=9, frameon=False, ncols=3, loc="lower left",
                                bbox_to_anchor=(0, 1.0), columnspacing=1.2, handletextpad=0.3, borderaxespad=0.1)
    for text in drawn.get_texts():
        text.set_parse_math(False)
    return figure


@dataclass(frozen=True)
class Probed:
    """A clip of a test video: its class, the middle frame (s, s, 3) uint8 of what is seen, and maps (h', w') at that
    time: the true motion, then what each method's features say of it."""

    class_name: str
    frame: np.ndarray
    maps: Sequence[np.ndarray]


def probed(reader: StoreReader, scene: Scene, said: Mapping[str, Motion]) -> list[Probed]:
    """The clip that moves most of videos spread evenly over those that move."""
    energy = scene.asked.motion.mean((2, 3, 4))
    moving = np.flatnonzero(energy.max(1) > 0)
    rows = []
    for row in moving[np.unique(np.linspace(0, len(moving) - 1, VIDEOS).round().astype(int))]:
        clip, position, index = int(energy[row].argmax()), int(scene.test[row]), reader.index
        distinct, places, weights = scene.probe.frames(int(index.frames[position]))
        numbers = distinct[np.repeat(places, weights, axis=0)[clip]]
        frame = reader.frames(index.id[position], [int(numbers[len(numbers) // 2])])[0]
        down, across = scene.probe.crop(*frame.shape[:2])
        time = scene.asked.motion.shape[2] // 2
        rows.append(Probed(index.class_name[position], frame[down, across],
                           [scene.asked.motion[row, clip, time], *(one.dense[row, clip, time]
                                                                   for one in said.values())]))
    return rows


def keep_probed(path: Path, rows: Sequence[Probed]) -> None:
    """Write the rows as an npz, for a figure of several checkpoints."""
    np.savez_compressed(path, class_name=[row.class_name for row in rows], frame=[row.frame for row in rows],
                        maps=[row.maps for row in rows])


def kept_probed(path: Path) -> list[Probed]:
    """The rows that `keep_probed` wrote. Raises FileNotFoundError where it has written none."""
    with np.load(path) as kept:
        return [Probed(*row) for row in zip(kept["class_name"].tolist(), kept["frame"], kept["maps"])]


def probe_figure(rows: Sequence[Probed], methods: Mapping[str, float]) -> Figure:
    """A line a clip: its frame, the true motion, what each method's features say of it. methods: name -> `dense`,
    percent, which stands as a correlation under the name."""
    titles = ["frame", "true motion", *(f"{short(name, 18)}\nr {dense / 100:z.2f}" for name, dense in methods.items())]
    side, gap = 1.3, 0.1
    figure = new_figure(1.1 + len(titles) * (side + gap), 0.5 + len(rows) * (side + gap))
    across, down = figure.get_size_inches()
    for i, row in enumerate(rows):
        for j, title in enumerate(titles):
            axes = bare(figure.add_axes(((1.0 + j * (side + gap)) / across,
                                         1 - (0.45 + i * (side + gap) + side) / down, side / across, side / down)))
            if j:
                axes.imshow(row.maps[j - 1], cmap="magma", interpolation="nearest")
            else:
                axes.imshow(row.frame)
                axes.text(-0.06, 0.5, short(row.class_name, 14), transform=axes.transAxes, ha="right", va="center",
                          fontsize=10, color=QUIET, parse_math=False)
            if not i:
                axes.set_title(title, fontsize=10, pad=4, parse_math=False)
    return figure
