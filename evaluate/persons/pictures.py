"""A figure of keyframes: persons, what they do and what was said of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from evaluate.report.pictures import COLOURS
from shared.pictures.figures import QUIET, bare, new_figure
from shared.pictures.fonts import short

NAMED, TOLD = 3, 6       # actions of a person in words, persons of a keyframe


@dataclass(frozen=True)
class Scene:
    """A keyframe: frame (H, W, 3) uint8; boxes (n, 4) x1, y1, x2, y2 as shares; does: of each person the actions by
    name, or None where nobody says; said: the surest answers, (name, score in [0, 1])."""

    frame: np.ndarray
    boxes: np.ndarray
    does: Sequence[Sequence[str]] | None
    said: Sequence[Sequence[tuple[str, float]]]


def persons_figure(scenes: Sequence[Scene], columns: int = 4) -> Figure:
    """Each keyframe with its boxes, and below it, in the box's colour, what was said of a person, surest first, and in
    grey what the person does."""
    lines = max(min(len(scene.boxes), TOLD) * (1 if scene.does is None else 2) for scene in scenes)
    rows, columns = -(-len(scenes) // columns), min(columns, len(scenes))
    width, picture, line = 3.1, 2.0, 0.19
    height = picture + line * lines + 0.2
    figure = new_figure(width * columns, height * rows)
    for number, scene in enumerate(scenes):
        row, column = divmod(number, columns)
        bottom = 1 - (row * height + picture) / (height * rows)
        share = 0.98 / columns, 0.97 * picture / (height * rows)
        axes = bare(figure.add_axes((column / columns + 0.01, bottom, *share)))
        axes.imshow(scene.frame)
        high, wide = scene.frame.shape[:2]
        for person, (x1, y1, x2, y2) in enumerate(scene.boxes):
            colour = COLOURS[person % len(COLOURS)]
            axes.add_patch(Rectangle((x1 * wide, y1 * high), (x2 - x1) * wide, (y2 - y1) * high, fill=False,
                                     edgecolor=colour, linewidth=2))
            said = ", ".join(f"{short(name, 18)} {100 * score:.0f}" for name, score in scene.said[person][:NAMED])
            words = [(f"said {said}", {"color": colour, "weight": "bold"})]
            if scene.does is not None:
                words.append((f"does {', '.join(short(name, 24) for name in scene.does[person][:NAMED]) or 'nothing'}",
                              {"color": QUIET}))
            for i, (text, look) in enumerate(words if person < TOLD else ()):
                place = len(words) * person + i + 0.9
                figure.text(column / columns + 0.012, bottom - line * place / (height * rows), text, fontsize=8,
                            parse_math=False, **look)
    return figure
