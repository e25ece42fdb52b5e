"""What each row's probe said of the videos of a group that pre-training and probe have not seen: tables a group.

A row is a method, N seeds of it. Intervals are of 95 %: over the seeds by Student's t, over the videos by resampling
them with replacement, the seeds averaged; rows are paired, within a seed and within a video.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from evaluate.ablation.plan import BARE, HANDMADE, MACLR, SUPERVISED, UNTRAINED, UNTRAINED_MACLR
from evaluate.ablation.tables import OF_GROUP, Scores, within_seeds
from evaluate.protocol import Table
from evaluate.report.words import PERCENT

PROTOCOL, METRIC = "linear", "top1"      # what the tables are made of
DRAWS = 5_000      # resamplings of the videos
HEAD = "95 % over seeds"
BASES = "moco-ta-sa", "seco-ta-sa", "moco"     # contrast alone, from the nearest to the rows with alignment


@dataclass(frozen=True)
class Asked:
    """One group, or several together.

    title: what was asked; right: row -> seed -> {video: whether its class was said}; shared: what every row has seen of
    it, in the title's words; chance: percent.
    """

    title: str
    right: Mapping[str, Mapping[int, Mapping[str, bool]]]
    chance: float
    shared: str = ""

    @property
    def rows(self) -> list[str]:
        return [row for row, seeds in self.right.items() if seeds]

    @property
    def videos(self) -> int:
        return len(next(iter(self.right[self.rows[0]].values())))


def together(asked: Sequence[Asked]) -> Asked:
    """Every video once, asked by nets that have not seen its group: of the rows and seeds that all groups have."""
    right, videos = {}, [one.videos for one in asked]
    for row in asked[0].rows:
        seeds = [seed for seed in asked[0].right[row] if all(seed in one.right.get(row, {}) for one in asked)]
        right[row] = {seed: {video: said for one in asked for video, said in one.right[row][seed].items()}
                      for seed in seeds}
    chance = float(np.average([one.chance for one in asked], weights=videos))
    return Asked(f"{len(asked)} groups", right, chance, f"each in turn, {sum(videos):,} videos; ")


def matrix(seeds: Mapping[int, Mapping[str, bool]], chosen: Sequence[int] | None = None) -> np.ndarray:
    """(seeds, videos) float64 of 0 and 1, the videos by name. Raises KeyError where two seeds were asked of others."""
    videos = sorted(next(iter(seeds.values())))
    return np.array([[float(seeds[seed][video]) for video in videos] for seed in chosen or seeds])


def over_seeds(values: np.ndarray) -> tuple[float, float] | None:
    """Interval of the mean of N seeds' values; None for one."""
    if len(values) < 2:
        return None
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def over_videos(values: np.ndarray) -> tuple[float, float]:
    """Interval of the mean of M videos' values, (M,), by the bootstrap's percentiles, with a generator of its own."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def tables(asked: Sequence[Asked]) -> list[Table]:
    """The rows' accuracies and their paired differences, of the groups together and of each."""
    asked = [one for one in asked if one.rows]
    whole = [together(asked)] if len(asked) > 1 else []
    return [table for one in [*whole, *asked] for table in (_accuracies(one), _differences(one)) if table.rows]


def other_scores(scores: Scores, group: str) -> list[Table]:
    """What other protocols have measured of a group, and its differences within a seed; none where `linear` alone was
    asked."""
    columns = [one for one in scores.columns if one.endswith(f"{OF_GROUP}{group}")
               and scores.asked(one) != (PROTOCOL, METRIC)]
    if not columns:
        return []
    rows = list(dict.fromkeys(row for one in columns for row in scores.values[one]))
    made = [_by_two(row, columns, lambda one: scores.cell(one, row), lambda one: _interval(
        scores, one, list(scores.values[one].get(row, {}).values()))) for row in rows]
    if any(one in scores.chance for one in columns):
        made.append(_by_two("chance", columns, lambda one: scores.measure(one).number(scores.chance[one])
                            if one in scores.chance else None, lambda one: None))
    gaps = [_by_two(f"{one} less {other}", columns, lambda name: scores.gap(name, one, other), lambda name: _interval(
        scores, name, scores.gaps(name, one, other))) for one, other in pairs(rows)]
    found = [Table(f"Group {group}: other scores", _by_two("row", columns, scores.head, lambda one: HEAD), made),
             Table(f"Group {group}: other scores, differences within a seed, and how many seeds are above 0",
                   _by_two("rows", columns, lambda one: scores.head(one, "points"), lambda one: HEAD),
                   [row for row in gaps if any(row[1:])])]
    return [table for table in found if table.rows]


def _by_two(first: str, columns: Sequence[str], value: Callable, interval: Callable) -> list[str | None]:
    """A line of a table: of each column a value and its interval."""
    return [first, *(cell for one in columns for cell in (value(one), interval(one)))]


def _interval(scores: Scores, column: str, values: Sequence[float]) -> str | None:
    return scores.measure(column).span(over_seeds(np.array(values)))


def _accuracies(asked: Asked) -> Table:
    rows = []
    for row in asked.rows:
        values = 100 * matrix(asked.right[row])
        seeds = values.mean(1)
        rows.append([row, PERCENT.mean(seeds), PERCENT.span(over_seeds(seeds)),
                     PERCENT.span(over_videos(values.mean(0))), " / ".join(map(PERCENT.number, seeds))])
    return Table(f"{asked.title} left out: {asked.shared}chance {asked.chance:.1f} %",
                 ["row", "top-1 accuracy, %", HEAD, "95 % over videos", "each seed"], rows)


def _differences(asked: Asked) -> Table:
    rows = []
    for one, other in pairs(asked.rows):
        ours, theirs = asked.right[one], within_seeds(asked.right[one], asked.right[other], other)
        seeds = [seed for seed in ours if seed in theirs]
        if not seeds:
            continue
        gaps = 100 * (matrix(ours, seeds) - matrix(theirs, seeds))
        means = gaps.mean(1)
        rows.append([f"{one} less {other}", PERCENT.mean(means, "+"), f"{(means > 0).sum()} of {len(means)}",
                     PERCENT.span(over_seeds(means)), PERCENT.span(over_videos(gaps.mean(0)))])
    return Table(f"{asked.title}: differences within a seed and a video, points",
                 ["rows", "top-1", "seeds above 0", HEAD, "95 % over videos"], rows)


def pairs(rows: Sequence[str]) -> list[tuple[str, str]]:
    """(row, what it is compared with): of every trained row the net that it starts from, of every one with motion also
    contrast alone, and the baselines that nothing has trained."""
    made = []
    for row in rows:
        if row in (*HANDMADE, UNTRAINED, UNTRAINED_MACLR):
            continue
        maclr, bare = row in MACLR, row in (*BARE, *BASES, "maclr-visual")
        others = [UNTRAINED_MACLR if maclr else UNTRAINED]
        if not bare:
            others += ["maclr-visual"] * maclr + list(BASES[:2])
            others += [*HANDMADE, SUPERVISED]
        made += [(row, other) for other in others if other in rows]
    return made
