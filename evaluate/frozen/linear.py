"""`linear`: a linear classifier on frozen features (docs/method.md 1.7): SVM (UCF101) or softmax (Kinetics-400).

N training videos, M test videos, C features, K classes.
"""

import dataclasses
import warnings
from collections import Counter
from dataclasses import dataclass
from statistics import median_low

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC

from evaluate.features.extract import Features
from evaluate.folds import gather_features
from evaluate.frozen.softmax import softmax_scores
from evaluate.protocol import Request, Result
from evaluate.recognition import check_classes, recognition, write_predictions
from evaluate.settings import Linear
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
    """Top-1, top-5 (where there are more than five classes), mean over classes; confusion figure, per-class table;
    OUT/predictions.csv: what was said of every test video.

    Raises RequestError for splits that are wrong, videos without labels, a test class without training videos.
    """
    found = gather_features(request)
    if found is None:
        return None
    labels, scores, notes, cs, videos = [], [], Counter(found.notes), [], []
    for fold in found.folds:
        classes = check_classes(fold.train.labels, fold.test.labels, found.classes, fold.train_name, fold.test_name)
        train, test = (np.searchsorted(classes, part.labels) for part in (fold.train, fold.test))
        answer = classify(request, fold.train, train, fold.test.vectors)
        wide = np.full((len(test), len(found.classes)), -np.inf)
        wide[:, classes] = answer.scores
        labels.append(fold.test.labels)
        scores.append(wide)
        videos += zip(fold.test.ids, fold.test.groups)
        notes.update(answer.notes)
        cs += [] if answer.c is None else [answer.c]
    learnt = np.unique(np.concatenate([fold.train.labels for fold in found.folds]))
    labels, scores = np.concatenate(labels), np.concatenate(scores)
    write_predictions(request.out, videos, found.classes, labels, scores)
    result = recognition(request.out, found.classes, learnt, labels, scores)
    counts = {**found.counts, **({"c": median_low(cs)} if cs else {})}
    return dataclasses.replace(result, tested=[video for video, _ in videos], counts=counts, notes=list(notes))


def classify(request: Request, train: Features, labels: np.ndarray, test: np.ndarray) -> Answer:
    """What the classifier of the settings says of `test` (M, C), learnt from `train` with labels (N,) in [0, K)."""
    settings = request.settings.linear
    if settings.classifier == "svm":
        return svm_scores(train.vectors, labels, test, settings, request.seed, train.groups)
    return Answer(softmax_scores(train.vectors, labels, test, request.settings.softmax, settings.normalise,
                                 request.seed, request.world.device))


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
