"""What a classifier's scores are worth: top-1, top-5, mean over classes, a confusion figure, a table per class.

M test videos, K classes.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluate import metrics
from evaluate.protocol import Figure, Result, Table
from evaluate.report import pictures
from shared.cli import RequestError, plural
from shared.pictures import figures
from shared.store.record import write_atomic

PAIRS = 25            # of confused classes that are told
PREDICTIONS = "predictions.csv"


def check_classes(train: np.ndarray, test: np.ndarray, names: Sequence[str], train_name: str,
                  test_name: str) -> np.ndarray:
    """(n,) the training videos' classes, sorted. train, test: labels of the videos, numbers of `names`.

    Raises RequestError where the test videos have other classes, or there is one only.
    """
    classes = np.unique(train)
    absent = Counter(test[~np.isin(test, classes)].tolist())
    if absent:
        label, count = absent.most_common(1)[0]
        raise RequestError(f"class {names[label]!r} has {plural(count, 'video')} in {test_name} and none in "
                           f"{train_name}, so nothing can learn it "
                           f"({plural(len(absent), 'such class', 'such classes')}); choose splits that share "
                           "their classes")
    if len(classes) < 2:
        raise RequestError(f"{train_name} holds one class, {names[classes[0]]!r}; a classifier needs two")
    return classes


def write_predictions(out: Path, videos: Sequence[tuple[str, str]], names: Sequence[str], labels: np.ndarray,
                      scores: np.ndarray) -> None:
    """OUT/predictions.csv: id, group, class and predicted class of every test video, for whoever pairs results.

    videos: M (id, group); names: of all K classes; labels (M,), scores (M, K)."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("video", "group", "class", "predicted"))
    table.writerows((*video, names[label], names[said]) for video, label, said in
                    zip(videos, labels.tolist(), scores.argmax(1).tolist()))
    write_atomic(out / PREDICTIONS, text.getvalue().encode("utf-8", "surrogateescape"))


def read_predictions(path: Path) -> dict[str, bool]:
    """Whether each test video of a predictions.csv was recognised, by its id."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["video"]: row["class"] == row["predicted"] for row in csv.DictReader(file)}


def recognition(out: Path, names: Sequence[str], learnt: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Result:
    """Top-1, top-5 (where more than five classes were learnt), mean over classes, in percent, with chance; a figure in
    OUT, confusion.png or, of more classes than can be named, classes.png; a table per class, and then also one of the
    pairs that are confused. The caller adds counts and notes.

    names: of all K classes; learnt: (n,) those of the training videos; labels (M,), scores (M, K): of the test videos,
    -inf for classes that were not learnt. A class without test videos is shown as such and counts in no mean.
    """
    present, shown = np.unique(labels), np.union1d(learnt, labels)
    finite = np.where(np.isneginf(scores), np.finfo(np.float64).min, scores)
    table = metrics.confusion(labels, scores.argmax(1), len(names))
    ranks = metrics.ranks(finite, labels)
    right = {f"top{k}": ranks < k for k in ((1, 5) if len(learnt) > 5 else (1,))}
    values = {name: which.mean() for name, which in right.items()}
    chance = {name: metrics.chance_top(labels, int(name[3:])) for name in right}
    values["mean_class"], chance["mean_class"] = metrics.mean_class(table), 1 / len(present)
    shares = 100 * metrics.per_class(table)
    rows = [(names[i], int(table[i].sum()), float(shares[i]) if i in present else "no test videos",
             *_mistaken(table[i], i, names)) for i in sorted(shown, key=lambda i: (i not in present, shares[i]))]
    tables = [Table("Per class, hardest first", ("class", "videos", "recognised, %", "most often taken for", "times"),
                    rows)]
    if len(shown) <= pictures.NAMED:
        path = out / "confusion.png"
        figures.save(pictures.confusion_figure(table[np.ix_(shown, shown)], [names[i] for i in shown]), path)
        figure = Figure(path, "Confusion: rows are true classes, columns what the classifier said; share of the row.",
                        wide=len(shown) > pictures.COUNTED)
    else:
        path = out / "classes.png"
        figures.save(pictures.classes_figure(shares[present]), path)
        figure = Figure(path, f"Recognised of each of the {plural(len(present), 'class', 'classes')} with test videos, "
                              "hardest first; dashed: their mean.", wide=False)
        pairs = _confused(table, names)
        tables.insert(0, Table("Most confused pairs", ("true class", "taken for", "times", "of its videos, %"), pairs))
    return Result(
        metrics={name: 100 * float(value) for name, value in values.items()},
        chance={name: 100 * float(value) for name, value in chance.items()},
        trials=dict.fromkeys(right, len(labels)), right=right,
        figures=[figure], tables=tables)


def _confused(table: np.ndarray, names: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """Pairs of classes of a confusion table (K, K), those confused most often first: true, said, times, percent of the
    true class's videos."""
    wrong = table - np.diag(np.diag(table))
    share = 100 * wrong / np.maximum(table.sum(1, keepdims=True), 1)
    order = np.lexsort((-share.ravel(), -wrong.ravel()))[:min(PAIRS, np.count_nonzero(wrong))]
    pairs = zip(*np.unravel_index(order, wrong.shape))
    return [(names[i], names[j], int(wrong[i, j]), float(share[i, j])) for i, j in pairs]


def _mistaken(row: np.ndarray, own: int, names: Sequence[str]) -> tuple[str | None, int | None]:
    """The class that another is most often taken for, and how many times; none where it never is."""
    others = row.copy()
    others[own] = 0
    worst = int(others.argmax())
    return (names[worst], int(others[worst])) if others[worst] else (None, None)
