"""Metrics as pure functions on arrays; shares in [0, 1], percent only where a protocol reports them.

N samples, K classes, Q queries, G gallery vectors, k neighbours.
"""

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054     # standard normal quantile of a two-sided 95 % interval


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) int64: how many other classes score at least as high as the true one; 0 is best, a tie counts against it.

    scores: (N, K) float, labels: (N,) in [0, K). Raises ValueError for scores that are not finite or other shapes.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape}, labels {labels.shape}; expected (N, K) and (N,)")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold values that are not finite")
    if len(labels) and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        raise ValueError(f"labels {labels.min()} to {labels.max()}, expected 0 to {scores.shape[1] - 1}")
    own = scores[np.arange(len(labels)), labels]
    return (scores >= own[:, None]).sum(1) - 1


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of samples whose class is among the k best; ties count against the sample."""
    return float((ranks(scores, labels) < k).mean())


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) int64 counts: row = true class, column = predicted."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (np.asarray(labels), np.asarray(predicted)), 1)
    return table


def per_class(table: np.ndarray) -> np.ndarray:
    """(K,) float64 share of each class that is recognised, from a confusion table; NaN for a class without samples."""
    total = table.sum(1)
    return np.divide(np.diag(table), total, out=np.full(len(table), np.nan), where=total > 0)


def mean_class(table: np.ndarray) -> float:
    """Mean of `per_class` over the classes that have samples."""
    return float(np.nanmean(per_class(table)))


def recall_at(labels: np.ndarray, neighbours: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """R@k: share of queries with at least one of their k nearest in their class (METHOD 1.7).

    labels: (Q,) of the queries; neighbours: (Q, k) labels of the gallery's nearest, nearest first, -1 for none.
    Raises ValueError for a k beyond the neighbours given.
    """
    hits = np.asarray(neighbours) == np.asarray(labels)[:, None]
    if max(ks) > hits.shape[1]:
        raise ValueError(f"R@{max(ks)} of {hits.shape[1]} neighbours")
    return {k: float(hits[:, :k].any(1).mean()) for k in ks}


def chance_recall(labels: np.ndarray, gallery: np.ndarray, k: int) -> float:
    """R@k of k gallery vectors drawn blindly without replacement: 1 - C(G - n, k) / C(G, k), n of the query's class."""
    size = len(gallery)
    found = np.asarray([np.count_nonzero(np.asarray(gallery) == label) for label in labels])
    missed = np.ones(len(found))
    for i in range(min(k, size)):
        missed *= np.maximum(size - found - i, 0) / (size - i)
    return float(1 - missed.mean())


def chance_top(labels: np.ndarray, k: int) -> float:
    """Top-k of always naming the k most frequent classes of `labels` themselves: k/K where they are balanced."""
    counts = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    return float(counts[:k].sum() / counts.sum())


def mean_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); no deviation of a single value."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent trials (Wilson 1927)."""
    half = Z95 * math.sqrt(share * (1 - share) / count + Z95 ** 2 / (4 * count ** 2))
    middle, scale = share + Z95 ** 2 / (2 * count), 1 + Z95 ** 2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
