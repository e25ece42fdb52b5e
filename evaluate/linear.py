"""`linear`: a linear classifier on frozen features (METHOD 1.7): SVM (UCF101) or softmax regression (Kinetics-400).

N training videos, M test videos, C features, K classes.
"""

import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC

from evaluate import metrics, pictures
from evaluate.folds import Fold, Found, gather_features
from evaluate.protocol import Figure, Linear, Request, Result, Table
from evaluate.softmax import softmax_scores
from shared import figures
from shared.cli import RequestError

SEARCHED = tuple(10.0 ** power for power in range(-4, 3))      # C of the SVM, ours
MOST_FOLDS = 5
STEPS = 10_000        # liblinear's iterations at most


@dataclass(frozen=True)
class Answer:
    """scores (M, K) float of the test videos; c: of the SVM that gave them; notes: what went other than hoped."""

    scores: np.ndarray
    c: float | None = None
    notes: tuple[str, ...] = ()


def run(request: Request) -> Result | None:
    """Top-1, top-5 (where there are more than five classes), mean over classes; confusion figure, per-class table.

    Raises RequestError for splits that are wrong, videos without labels, a test class without training videos.
    """
    found = gather_features(request)
    if found is None:
        return None
    settings = request.settings.linear
    labels, scores, notes, cs = [], [], Counter(found.notes), set()
    for fold in found.folds:
        classes = _check(fold, found.classes)
        train, test = (np.searchsorted(classes, part.labels) for part in (fold.train, fold.test))
        if settings.classifier == "svm":
            answer = svm_scores(fold.train.vectors, train, fold.test.vectors, settings, request.seed, fold.train.groups)
        else:
            answer = Answer(softmax_scores(fold.train.vectors, train, fold.test.vectors, request.settings.softmax,
                                           settings.normalise, request.seed, request.world.device))
        wide = np.full((len(test), len(found.classes)), -np.inf)
        wide[:, classes] = answer.scores
        labels.append(fold.test.labels)
        scores.append(wide)
        notes.update(answer.notes)
        cs.add(answer.c)
    labels, scores = np.concatenate(labels), np.concatenate(scores)
    return _result(request, found, labels, scores, list(notes), sorted(cs - {None}))


def _check(fold: Fold, names) -> np.ndarray:
    """The training videos' classes. Raises RequestError where the test videos have others, or there is one only."""
    classes = np.unique(fold.train.labels)
    absent = Counter(fold.test.labels[~np.isin(fold.test.labels, classes)].tolist())
    if absent:
        label, count = absent.most_common(1)[0]
        raise RequestError(f"class {names[label]!r} has {count} videos in {fold.test_name} and none in "
                           f"{fold.train_name}, so nothing can learn it ({len(absent)} such classes); choose "
                           "splits that share their classes")
    if len(classes) < 2:
        raise RequestError(f"{fold.train_name} holds one class, {names[classes[0]]!r}; a classifier needs two")
    return classes


def svm_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, settings: Linear, seed: int = 0,
               groups=()) -> Answer:
    """Decision values (M, K) of liblinear's L2-loss SVM, one against the rest.

    train (N, C), test (M, C) float32; labels (N,) in [0, K), each present. Cross-validation, where `settings.search`
    asks for it, keeps videos of a group together where there are groups enough. Raises RequestError for too few videos.
    """
    classes = len(np.unique(labels))
    scale = [Normalizer()] if settings.normalise else []
    model = make_pipeline(*scale, LinearSVC(C=settings.c, dual="auto", max_iter=STEPS, random_state=seed))
    notes, c = (), settings.c
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        if settings.search:
            search = GridSearchCV(model, {"linearsvc__C": SEARCHED}, cv=_folds(labels, groups, seed))
            model = search.fit(train, labels, groups=list(groups) or None).best_estimator_
            c = float(search.best_params_["linearsvc__C"])
        else:
            model.fit(train, labels)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        notes = (f"liblinear stopped after {STEPS:,} iterations without having converged; L2-normalised features "
                 "(--set normalise=true) or a smaller c help",)
    scores = model.decision_function(test)
    return Answer(np.stack([-scores, scores], 1) if classes == 2 else scores, c, notes)


def _folds(labels: np.ndarray, groups, seed: int):
    """How the search for C divides the training videos."""
    fewest = np.bincount(labels)[np.unique(labels)].min()
    by_class = [len({group for group, label in zip(groups, labels) if label == one}) for one in np.unique(labels)]
    if any(groups) and min(by_class) > 1:
        return StratifiedGroupKFold(min(MOST_FOLDS, min(by_class)), shuffle=True, random_state=seed)
    if fewest < 2:
        raise RequestError("linear.search is true, and a class has one training video; cross-validation needs two of "
                           "each: set search=false and choose c")
    return StratifiedKFold(min(MOST_FOLDS, int(fewest)), shuffle=True, random_state=seed)


def _result(request: Request, found: Found, labels: np.ndarray, scores: np.ndarray, notes: list[str],
            cs: list[float]) -> Result:
    present = np.unique(labels)
    names = [found.classes[i] for i in present]
    ranks = metrics.ranks(np.where(np.isneginf(scores), np.finfo(np.float64).min, scores), labels)
    table = metrics.confusion(labels, scores.argmax(1), len(found.classes))
    values, chance = {"top1": (ranks < 1).mean()}, {"top1": metrics.chance_top(labels, 1)}
    if len(np.unique(np.concatenate([fold.train.labels for fold in found.folds]))) > 5:
        values["top5"], chance["top5"] = (ranks < 5).mean(), metrics.chance_top(labels, 5)
    values["mean_class"], chance["mean_class"] = metrics.mean_class(table), 1 / len(present)
    shares = metrics.per_class(table)
    rows = [(found.classes[i], int(table[i].sum()), 100 * float(shares[i]), *_mistaken(table[i], i, found.classes))
            for i in sorted(present, key=lambda i: shares[i])]
    path = request.out / "confusion.png"
    figures.save(pictures.confusion_figure(table[np.ix_(present, present)], names), path)
    counts = dict(found.counts)
    if cs:
        counts["c"] = cs[0] if len(cs) == 1 else float(np.median(cs))
    return Result(
        metrics={name: 100 * float(value) for name, value in values.items()},
        chance={name: 100 * float(value) for name, value in chance.items()},
        trials={name: len(labels) for name in values if name != "mean_class"}, counts=counts,
        figures=[Figure(path, "Confusion: rows are true classes, columns what the classifier said; share of the row.",
                        wide=len(names) > pictures.COUNTED)],
        tables=[Table("Per class, hardest first", ("class", "videos", "recognised, %", "most often taken for", "times"),
                      rows)], notes=notes)


def _mistaken(row: np.ndarray, own: int, names) -> tuple[str | None, int | None]:
    """The class that another is most often taken for, and how many times; none where it never is."""
    others = row.copy()
    others[own] = 0
    worst = int(others.argmax())
    return (names[worst], int(others[worst])) if others[worst] else (None, None)
