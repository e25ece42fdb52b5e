"""Tables 1 and 2 of MCL with our numbers: from scores by row and seed to tables and the figure, nothing else.

A score is as in metrics.json; a column is one metric of one protocol, such as `linear top1`, shown in words.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from evaluate.ablation.plan import ALWAYS, BARE, BESIDE, HANDMADE, MACLR, TABLE_1, TABLE_2, UNTRAINED
from evaluate.protocol import Table
from evaluate.report.pictures import COLOURS
from evaluate.report.words import Measure, label, measure
from shared.pictures.figures import QUIET, new_figure
from shared.recipes.pretraining import Pretraining

# What of each protocol stands in the tables, in this order, where it was measured; ablation.json has all.
HEADLINES = {
    "linear": ("top1",), "retrieval": ("r@1", "r@5"), "finetune": ("top1",),
    "controls": ("dense", "energy", "knn", "motion_r@1", "background_r@1", "aligned_object"),
    "saliency": ("aligned_own_minus_other", "cam_own_minus_other"),
}
# UCF101 linear SVM, top-1: Tables 1 and 2 (docs/method.md 1.7), inflated ImageNet weights for the untrained net. Of the
# alignment 2D nets take L_s alone, so that mcl and mcl-s are one row there.
PAPER = {
    "r2plus1d_50": {"seco": 77.98, "seco-ta": 78.26, "seco-sa": 79.54, "seco-ta-sa": 79.64, "mcl-t": 80.26,
                    "mcl-s": 80.83, "mcl-st": 81.47, "mcl": 81.91, "mcl-v1": 80.57, "mcl-v2": 80.99, UNTRAINED: 75.13},
    "s3d": {"seco": 76.47, "seco-ta": 76.79, "seco-sa": 77.95, "seco-ta-sa": 78.01, "mcl-t": 78.62, "mcl-s": 79.28,
            "mcl-st": 79.40, "mcl": 79.88},
    "r2d_50": {"seco": 76.51, "seco-ta": 76.47, "seco-sa": 77.32, "seco-ta-sa": 77.16, "mcl-s": 77.84,
               "mcl": 77.84},
    "i2d": {"seco": 74.39, "seco-ta": 74.22, "seco-sa": 75.02, "seco-ta-sa": 74.89, "mcl-s": 75.64, "mcl": 75.64},
}
PAPER_COLUMN = "linear top1"
OF_GROUP = " of group "
MOST = 4       # columns of scores side by side
FEW = 4        # rows that stand side by side, a line a metric
TITLE = 32     # characters of a panel's title a line
PAIRS = (("mcl", "seco-ta-sa"), ("mcl", "seco"), ("seco-ta-sa", "seco"), ("seco-ta", "seco"), ("seco-sa", "seco"),
         ("mcl-v1", "seco-ta-sa"), ("mcl-v2", "seco-ta-sa"), ("mcl-moco", "moco-ta-sa"), ("mcl-moco", "moco"),
         ("moco-ta-sa", "moco"), ("seco", "moco"), ("moco", UNTRAINED), ("mcl", "moco"), ("mcl", UNTRAINED),
         ("mcl-v1", "moco"), ("mcl-v1", UNTRAINED),
         *((row, "maclr-visual") for row in MACLR if row != "maclr-visual"),
         *((row, UNTRAINED) for row in MACLR))


@dataclass(frozen=True)
class Scores:
    """values: column -> row -> seed -> score, as in metrics.json: percent, or hundredths of a correlation; chance:
    column -> score, where it is known; seeds: all asked for; paper: row -> percent, beside PAPER_COLUMN."""

    values: Mapping[str, Mapping[str, Mapping[int, float]]]
    chance: Mapping[str, float]
    seeds: Sequence[int]
    paper: Mapping[str, float]

    @property
    def columns(self) -> list[str]:
        return list(self.values)

    def measure(self, column: str) -> Measure:
        return measure(self.asked(column)[1])

    def asked(self, column: str) -> tuple[str, str]:
        """(protocol, metric)"""
        protocol, _, metric = column.partition(" ")
        return protocol, metric.partition(OF_GROUP)[0]

    def words(self, column: str) -> str:
        """The metric in words, with its protocol where there are several, and its group where it is of one."""
        words = label(*self.asked(column), len({self.asked(one)[0] for one in self.columns}) > 1)
        return words + "".join(column.partition(OF_GROUP)[1:])

    def head(self, column: str, unit: str = "%") -> str:
        """A column's head; a correlation has no unit."""
        return f"{self.words(column)}, {unit}" if self.measure(column).share else self.words(column)

    def cell(self, column: str, row: str) -> str | None:
        """`mean ± sd` over the seeds; how many they are, where it is not all."""
        values = list(self.values[column].get(row, {}).values())
        if not values:
            return None
        whole = row in HANDMADE or len(values) == len(self.seeds)           # a hand-made one is asked once
        return self.measure(column).mean(values) + ("" if whole else f" ({len(values)} of {len(self.seeds)})")

    def gaps(self, column: str, one: str, other: str) -> list[float]:
        """One row less another, within each seed that both have."""
        ours, theirs = (self.values[column].get(row, {}) for row in (one, other))
        theirs = within_seeds(ours, theirs, other)
        return [ours[seed] - theirs[seed] for seed in self.seeds if seed in ours and seed in theirs]

    def gap(self, column: str, one: str, other: str) -> str | None:
        """`mean ± sd` of the gaps, and in how many seeds they are above 0."""
        gaps = self.gaps(column, one, other)
        if not gaps:
            return None
        return f"{self.measure(column).mean(gaps, '+')}; {sum(gap > 0 for gap in gaps)} of {len(gaps)}"


def within_seeds(ours: Mapping[int, Any], theirs: Mapping[int, Any], other: str) -> Mapping[int, Any]:
    """By seed, what row `other` (theirs) is to be compared with in ours: a hand-made one, which no seed changes, in
    every one."""
    return dict.fromkeys(ours, next(iter(theirs.values()))) if other in HANDMADE and theirs else theirs


def column(protocol: str, metric: str, group: str | None = None) -> str:
    """The name of a metric's column; of one group where each is left out in turn."""
    return f"{protocol} {metric}" + ("" if group is None else f"{OF_GROUP}{group}")


def headlines(protocol: str, metrics: Mapping[str, float]) -> list[str]:
    """Which metrics of a protocol's result stand in the tables: those named here, else its first."""
    named = [name for name in HEADLINES.get(protocol, ()) if name in metrics]
    return named or list(metrics)[:1]


def tables(scores: Scores, recipes: Mapping[str, Pretraining]) -> list[Table]:
    """Table 1, Table 2 and the rows beside them, or few rows side by side; then differences of rows within each seed.

    recipes: of every row asked for, in any order; what each row has of TA, SA and the alignment is read off them.
    """
    if len(recipes) <= FEW and not scores.paper and not set(MACLR) & set(recipes):
        return [_side_by_side(scores, list(recipes)), *differences(scores)]
    made, parts = [], ("TA", "SA", "L_t", "L_s", "L_st")
    for title, names, telling, heads, marks in (
            ("Table 1: motion-focused augmentation and alignment terms", (*ALWAYS, *TABLE_1), (*ALWAYS, *TABLE_1),
             parts, _marks),
            ("Table 2: what is aligned with motion", TABLE_2, TABLE_2, ("aligned map",), _variant),
            ("Beside the tables: one key instead of three", ("moco", *BESIDE), BESIDE, parts, _marks),
            ("MaCLR: its visual pathway alone, and with the motion pathway", (UNTRAINED, *MACLR), MACLR,
             ("terms", "input", "width"), _pathways)):
        if not set(telling) & set(recipes) or (telling is not MACLR and set(MACLR) & set(recipes)):
            continue
        for number, columns in enumerate(_in_parts(scores.columns)):
            rows = [[row, *marks(recipes[row], row), *(scores.cell(column, row) for column in columns)]
                    for row in names if row in recipes]
            names_shown = ["row", *heads, *map(scores.head, columns)]
            if scores.paper and PAPER_COLUMN in columns:
                at = 1 + len(heads) + columns.index(PAPER_COLUMN) + 1
                names_shown.insert(at, "the paper's, %")
                for row in rows:
                    row.insert(at, f"{scores.paper[row[0]]:.2f}" if row[0] in scores.paper else None)
            made.append(Table(title if not number else title.partition(":")[0] + ", continued", names_shown, rows))
    return [*made, *differences(scores)]


def _side_by_side(scores: Scores, rows: Sequence[str]) -> Table:
    """A line a metric, a column a row, which a phone can hold, and chance."""
    return Table("Side by side", ["score", *rows, "chance"], [
        [scores.head(column), *(scores.cell(column, row) for row in rows),
         scores.measure(column).number(scores.chance[column]) if column in scores.chance else None]
        for column in scores.columns])


def _in_parts(columns: Sequence[str]) -> list[Sequence[str]]:
    """The columns in parts of about equal size that a page can hold side by side; one empty part for none."""
    parts = max(1, -(-len(columns) // MOST))
    size = max(1, -(-len(columns) // parts))
    return [columns[first:first + size] for first in range(0, max(1, len(columns)), size)]


def _marks(recipe: Pretraining, row: str) -> list[str]:
    sampling, alignment = recipe.sampling, recipe.alignment
    on = [sampling.ta, sampling.sa, *(alignment.variant != "none" and getattr(alignment, term)
                                      for term in ("t", "s", "st"))]
    return ["" if row == UNTRAINED or not one else "✓" for one in on]


def _variant(recipe: Pretraining, row: str) -> list[str]:
    return [recipe.alignment.variant]


def _pathways(recipe: Pretraining, row: str) -> list[str]:
    if row == UNTRAINED:
        return ["", "", ""]
    maclr, terms = recipe.maclr, {"vv": recipe.contrast.inter}
    terms |= {name: getattr(maclr, name) for name in ("vm", "mv", "mm")}
    terms[f"alignment {recipe.alignment.variant}"] = recipe.alignment.variant != "none"
    return [", ".join(name for name, on in terms.items() if on),
            *((maclr.motion_input, str(maclr.motion_width)) if maclr.reads else ("", ""))]


def differences(scores: Scores) -> list[Table]:
    """Row less row, seed by seed: mean ± sd, and in how many seeds it is above 0; none without pairs of rows."""
    made = []
    for number, columns in enumerate(_in_parts(scores.columns)):
        rows = [[f"{one} less {other}", *(scores.gap(column, one, other) for column in columns)]
                for one, other in PAIRS]
        rows = [row for row in rows if any(row[1:])]
        title = "Differences within a seed: mean ± sd, and how many seeds are above 0" if not number else \
            "Differences, continued"
        if rows:
            made.append(Table(title, ["rows", *(scores.head(column, "points") for column in columns)], rows))
    return made


def figure(scores: Scores, rows: Sequence[str]) -> Figure:
    """A panel a column: every seed a dot, mean and spread beside it, chance dotted, the paper's number hollow."""
    across = min(2, len(scores.columns))
    down = -(-len(scores.columns) // across)
    margin, width, height, above = 1.35, 2.85, 0.27 * len(rows) + 0.3, 1.0
    figure = new_figure(margin + across * width + 0.1, down * (height + above) + 0.05)
    wide, high = figure.get_size_inches()
    places = np.arange(len(rows))[::-1]
    for number, column in enumerate(scores.columns):
        line, place = divmod(number, across)
        scale = 1.0 if scores.measure(column).share else 0.01
        axes = figure.add_axes(((margin + place * width) / wide, 1 - ((line + 1) * (height + above) - 0.42) / high,
                                (width - 0.25) / wide, height / high))
        for at, row in zip(places, rows):
            values = scale * np.array(list(scores.values[column].get(row, {}).values()))
            colour = QUIET if row in (*ALWAYS, *BARE) else COLOURS[0] if row.startswith("seco") else COLOURS[1]
            if len(values):
                axes.plot(values, np.full(len(values), at), ".", color=colour, alpha=0.45, markersize=7)
                axes.errorbar(values.mean(), at, xerr=values.std(ddof=1) if len(values) > 1 else None, fmt="|",
                              color=colour, markersize=11, markeredgewidth=2.2, elinewidth=1.4, capsize=3)
            if column == PAPER_COLUMN and row in scores.paper:
                axes.plot(scores.paper[row], at, "D", markerfacecolor="none", markeredgecolor=QUIET, markersize=5)
        if column in scores.chance:
            axes.axvline(scale * scores.chance[column], color=QUIET, linestyle=":", linewidth=1)
        axes.set_yticks(places, rows if place == 0 else [], fontsize=10)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_title(textwrap.fill(scores.head(column), TITLE), fontsize=11, loc="left")
        axes.tick_params(axis="x", labelsize=9)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#e8ecef", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    return figure
