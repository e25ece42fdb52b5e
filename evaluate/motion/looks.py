"""Look-alikes: the motion and the look of every video, and whether features find the motion among equal looks.

V videos, C features, Q queries.
"""

import csv
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluate import metrics
from evaluate.settings import Lookalikes
from shared.cli import RequestError, plural
from shared.datasets.listing import read_text, rows_of, within
from shared.store.index import Index
from shared.store.place import Place, as_place
from shared.store.record import read_records

NAME, FACTOR = "lookalikes", "factor"
OWN = {"class": "class_name", "group": "group"}       # columns that the store itself has
DEFAULT = Lookalikes("motion", "look", 5)             # of `controls`, which has no settings for them
CROSSED = ("Every video is tied to every other by motions and looks that they share. The look-alikes' intervals take "
           "those of one motion and one look for independent of all others, which they are not: they are too narrow.")
EQUAL = 1e-9                                          # cosines that differ by less are equal


@dataclass(frozen=True)
class Looks:
    """motion, look, factor: (V,) names. A video without motion or look is in no trial; factor: in what its look differs
    from those of videos without a factor."""

    motion: np.ndarray
    look: np.ndarray
    factor: np.ndarray

    @property
    def named(self) -> np.ndarray:
        """(V,) bool"""
        return (self.motion != "") & (self.look != "")

    def take(self, rows: np.ndarray) -> "Looks":
        return Looks(self.motion[rows], self.look[rows], self.factor[rows])

    def families(self) -> tuple[np.ndarray, bool]:
        """(V,) int: one number for videos that share a motion or a look, directly or by way of others; and whether
        that makes one family of all: then the number is of those that share both."""
        (motions, motion), (looks, look) = (np.unique(names, return_inverse=True) for names in (self.motion, self.look))
        some, sides = self.named, len(motions) + len(looks)
        pairs = coo_array((np.ones(some.sum()), (motion[some], len(motions) + look[some])), shape=(sides, sides))
        family = connected_components(pairs, directed=False)[1][motion]
        one = len(np.unique(family[some])) == 1
        return motion * len(looks) + look if one else family, one


@dataclass(frozen=True)
class Trial:
    """A query among its look-alikes. query: a row; positives, others (distractors): rows; factors: in what each
    positive's look differs from the query's, "" where that has no name."""

    query: int
    positives: np.ndarray
    others: np.ndarray
    factors: np.ndarray


@dataclass(frozen=True)
class Summary:
    """Of `lookalikes`, and `lookalikes_FACTOR` for each factor that has a name: values, chance in percent; trials: how
    many independent ones would vary as these do; queries: how many were asked; factors: their names; notes: what is
    wrong with the trials."""

    values: dict[str, float]
    chance: dict[str, float]
    trials: dict[str, int]
    queries: dict[str, int]
    factors: dict[str, str]
    notes: Sequence[str] = ()


def read_looks(index: Index, settings: Lookalikes, annotations: Place | None = None) -> Looks:
    """Motion, look and factor of all videos of the store, from the CSV or annotations.csv beside the videos; columns
    `class` and `group` are the store's own. Raises RequestError where there is no such file or column, and where no
    path of it is the store's."""
    columns = settings.motion, settings.look
    wanted = [column for column in columns if column not in OWN]
    file = annotations or beside_videos(index)
    if wanted and file is None:
        raise RequestError(f"lookalikes: no annotations.csv is beside the videos of {index.store}; name a CSV with the "
                           f"columns path, {', '.join(wanted)} by --annotations, or take the store's own classes and "
                           "groups: add --set lookalikes.motion=class --set lookalikes.look=group")
    rows = {} if file is None or not wanted and annotations is None else {
        unicodedata.normalize("NFC", row["path"]): row
        for _, row in rows_of(file, ("path", *wanted, *({FACTOR} & _header(file))), ("path", *wanted))}
    own = [rows.get(unicodedata.normalize("NFC", path)) or rows.get(unicodedata.normalize("NFC", within(path)), {})
           for path in index.path]
    if rows and len(index) and not any(own):
        raise RequestError(f"lookalikes: {file} names {plural(len(rows), 'path')}, {next(iter(rows))!r} first, and "
                           f"none is a video of {index.store}, whose first is {index.path[0]!r}; expected paths below "
                           "the folder that the store was made from")
    return Looks(*(np.array(getattr(index, OWN[column]) if column in OWN else [row.get(column, "") for row in own], str)
                   for column in (*columns, FACTOR)))


def known_looks(index: Index) -> Looks:
    """As `read_looks`, with the store's classes for motions and its groups for looks where no annotations beside the
    videos name them."""
    file = beside_videos(index)
    named = file is not None and {DEFAULT.motion, DEFAULT.look} <= _header(file)
    return read_looks(index, DEFAULT if named else Lookalikes("class", "group", DEFAULT.distractors))


def _header(file: Place) -> set[str]:
    return {name.strip() for name in next(csv.reader(read_text(file).splitlines()[:1]), [])}


def beside_videos(index: Index) -> Place | None:
    """annotations.csv in the folder that the store's last run took its videos from; None where none is there."""
    roots = [record["videos_root"] for record in read_records(index.store).values() if "videos_root" in record]
    file = as_place(roots[-1]) / "annotations.csv" if roots else None
    return file if file is not None and file.is_file() else None


def trials(looks: Looks) -> Iterator[Trial]:
    """Every query that has positives, of its motion in another look, and distractors, of its look in another motion.
    A pair whose looks differ in several factors is in no trial."""
    for query in np.flatnonzero(looks.named):
        same_motion, same_look = looks.motion == looks.motion[query], looks.look == looks.look[query]
        positives = np.flatnonzero(looks.named & same_motion & ~same_look)
        others = np.flatnonzero(looks.named & same_look & ~same_motion)
        own, theirs = looks.factor[query], looks.factor[positives]
        one = (theirs == own) | (theirs == "") | (own == "")
        if one.any() and len(others):
            yield Trial(int(query), positives[one], others, np.where(theirs == "", own, theirs)[one])


def ask(vectors: np.ndarray, looks: Looks, distractors: int) -> Summary:
    """How often a positive is nearer to its query, by cosine, than each of so many distractors, or all where there are
    fewer: the mean over queries, of each over its positives and over all draws of its distractors. Equals count
    against. vectors: (V, C) float. Raises ValueError where nothing can be asked."""
    units = np.array(vectors, np.float64)
    length = np.linalg.norm(units, axis=1, keepdims=True)
    units = np.divide(units, length, out=np.zeros_like(units), where=length > 0)
    found: dict[str, list[tuple[int, float, float]]] = {"": []}
    for trial in trials(looks):
        near, far = (units[rows] @ units[trial.query] for rows in (trial.positives, trial.others))
        rates = metrics.beats_all(np.searchsorted(np.sort(far), near - EQUAL), len(far), distractors)
        chance = 1 / (min(distractors, len(far)) + 1)
        found[""].append((trial.query, float(rates.mean()), chance))
        for factor in dict.fromkeys(filter(None, trial.factors.tolist())):
            rate = float(rates[trial.factors == factor].mean())
            found.setdefault(factor, []).append((trial.query, rate, chance))
    if not found[""]:
        raise ValueError("no video has look-alikes")
    families, crossed = looks.families()
    summary = Summary({}, {}, {}, {}, {}, [CROSSED] if crossed else [])
    for factor, rows in found.items():
        name = f"{NAME}_{factor.replace(' ', '_')}" if factor else NAME
        query, rate, chance = map(np.array, zip(*rows))
        summary.values[name], summary.chance[name] = 100 * float(rate.mean()), 100 * float(chance.mean())
        summary.trials[name] = metrics.effective_trials(rate, families[query])
        summary.queries[name], summary.factors[name] = len(query), factor
    return summary
