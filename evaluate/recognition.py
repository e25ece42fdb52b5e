"""What a classifier's scores are worth: top-1, top-5, mean over classes, a confusion figure, a table per class.

M test videos, K classes.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluate import metrics
from evaluate.protocol import Figure, Result, Table
from evaluate.report import pictures
from shared.cli import RequestError, plural
from shared.pictures import figures


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


def recognition(out: Path, names: Sequence[str], learnt: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Result:
    """Top-1, top-5 (where more than five classes were learnt), mean over classes, in percent, with chance; OUT's
    confusion.png and a table per class. The caller adds counts and notes.

    names: of all K classes; learnt: (n,) those of the training videos; labels (M,), scores (M, K): of the test videos,
    -inf for classes that were not learnt.
    """
    present = np.unique(labels)
    shown = [names[i] for i in present]
    finite = np.where(np.isneginf(scores), np.finfo(np.float64).min, scores)
    table = metrics.confusion(labels, scores.argmax(1), len(names))
    values, chance = {"top1": metrics.top_k(finite, labels, 1)}, {"top1": metrics.chance_top(labels, 1)}
    if len(learnt) > 5:
        values["top5"], chance["top5"] = metrics.top_k(finite, labels, 5), metrics.chance_top(labels, 5)
    values["mean_class"], chance["mean_class"] = metrics.mean_class(table), 1 / len(present)
    shares = metrics.per_class(table)
    rows = [(names[i], int(table[i].sum()), 100 * float(shares[i]), *_mistaken(table[i], i, names))
            for i in sorted(present, key=lambda i: shares[i])]
    path = out / "confusion.png"
    figures.save(pictures.confusion_figure(table[np.ix_(present, present)], shown), path)
    return Result(
        metrics={name: 100 * float(value) for name, value in values.items()},
        chance={name: 100 * float(value) for name, value in chance.items()},
        trials={name: len(labels) for name in values if name != "mean_class"},
        figures=[Figure(path, "Confusion: rows are true classes, columns what the classifier said; share of the row.",
                        wide=len(shown) > pictures.COUNTED)],
        tables=[Table("Per class, hardest first", ("class", "videos", "recognised, %", "most often taken for", "times"),
                      rows)])


def _mistaken(row: np.ndarray, own: int, names: Sequence[str]) -> tuple[str | None, int | None]:
    """The class that another is most often taken for, and how many times; none where it never is."""
    others = row.copy()
    others[own] = 0
    worst = int(others.argmax())
    return (names[worst], int(others[worst])) if others[worst] else (None, None)
