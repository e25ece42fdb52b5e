"""Pictures of `controls`: every method's scores side by side, and what the dense probe says of test videos."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from matplotlib.figure import Figure

from evaluate.motion.control_scores import Scene
from evaluate.motion.map_pictures import Compared
from evaluate.motion.probes import Motion
from evaluate.report.pictures import COLOURS, unit_panels
from evaluate.report.words import measure
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


def probed(reader: StoreReader, scene: Scene, said: Mapping[str, Motion]) -> list[Compared]:
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
        rows.append(Compared(index.class_name[position], frame[down, across],
                             [scene.asked.motion[row, clip, time], *(one.dense[row, clip, time]
                                                                     for one in said.values())]))
    return rows
