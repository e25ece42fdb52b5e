"""Metrics as pure functions on arrays; shares in [0, 1], percent only where a protocol reports them.

N samples (clips), K classes, Q queries, G gallery vectors, k neighbours, hxw positions of a map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    """R@k: share of queries with at least one of their k nearest in their class (docs/method.md 1.7).

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


def correlations(maps: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) float64 in [-1, 1]: Pearson's r of each map with its target over the positions; 0 where either is constant.

    maps, targets: (N, h, w). Raises ValueError for other shapes.
    """
    maps, targets = _standard(maps), _standard(targets)
    if maps.shape != targets.shape:
        raise ValueError(f"maps {maps.shape}, targets {targets.shape} (clips, positions); expected the same")
    return (maps * targets).sum(1)


def other_correlations(maps: np.ndarray, targets: np.ndarray, videos: Sequence) -> np.ndarray:
    """(N,) float64: mean Pearson's r of each map with the targets of all clips of other videos, exactly.

    A map that knows its own clip correlates less here than in `correlations`; one that always lies in the middle does
    not (docs/method.md 1.7). videos: (N,) whose clip each is. Raises ValueError for other shapes and a single video.
    """
    maps, targets = _standard(maps), _standard(targets)
    videos = np.unique(np.asarray(videos), return_inverse=True)[1]
    if maps.shape != targets.shape or len(videos) != len(maps):
        raise ValueError(f"maps {maps.shape}, targets {targets.shape} (clips, positions), {len(videos)} videos")
    if not len(videos) or not videos.any():
        raise ValueError("clips of one video have no others to compare with")
    same = np.zeros((videos.max() + 1, targets.shape[1]))
    np.add.at(same, videos, targets)
    others = len(videos) - np.bincount(videos)[videos]
    return (maps * (targets.sum(0) - same[videos])).sum(1) / others


def _standard(maps: np.ndarray) -> np.ndarray:
    """(N, h, w) -> (N, hw) float64, each of mean 0 and length 1; constant maps become 0."""
    flat = np.asarray(maps, np.float64).reshape(len(maps), -1)
    constant = flat.min(1) == flat.max(1)
    largest = np.where(constant, 1, np.abs(flat).max(1))[:, None]     # gradients are so small that squares vanish
    flat = flat / largest
    flat = flat - flat.mean(1, keepdims=True)
    return np.where(constant[:, None], 0, flat / np.where(constant, 1, np.linalg.norm(flat, axis=1))[:, None])


def mass_inside(maps: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(N,) share of each map's mass that lies inside; a map of zeros counts as flat.

    maps: (N, h, w) >= 0; inside: (N, h, w) bool, or the share of each position that is inside.
    Raises ValueError for negative maps.
    """
    maps, inside = _flat(maps, inside)
    if (maps < 0).any():
        raise ValueError("a map with negative values has no mass")
    largest = maps.max(1, keepdims=True)
    maps = np.where(largest > 0, maps / np.where(largest > 0, largest, 1), 1)
    return (maps * inside).sum(1) / maps.sum(1)


def pointing(maps: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(N,) the pointing game: whether each map's largest value lies inside (Zhang et al. 2018); equals share it.

    maps: (N, h, w); inside: as in `mass_inside`.
    """
    maps, inside = _flat(maps, inside)
    best = maps == maps.max(1, keepdims=True)
    return (best * inside).sum(1) / best.sum(1)


def _flat(maps: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps, inside = np.asarray(maps, np.float64), np.asarray(inside, np.float64)
    if maps.shape != inside.shape:
        raise ValueError(f"maps {maps.shape}, inside {inside.shape}; expected the same")
    return maps.reshape(len(maps), -1), inside.reshape(len(inside), -1)


def mean_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); no deviation of a single value."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent trials (Wilson 1927)."""
    half = Z95 * math.sqrt(share * (1 - share) / count + Z95 ** 2 / (4 * count ** 2))
    middle, scale = share + Z95 ** 2 / (2 * count), 1 + Z95 ** 2 / count
    # At shares 0 and 1 one end is the share itself, which rounding would miss.
    return ((middle - half) / scale if share > 0 else 0.0), ((middle + half) / scale if share < 1 else 1.0)


def beats_all(beaten: np.ndarray, distractors: int, drawn: int) -> np.ndarray:
    """(N,) how often what beats `beaten` (N,) of the distractors beats all that are drawn of them, without replacement:
    C(beaten, drawn) / C(distractors, drawn). All are drawn where there are fewer."""
    rate = np.ones(np.shape(beaten))
    for i in range(min(drawn, distractors)):
        rate *= np.maximum(np.asarray(beaten) - i, 0) / (distractors - i)
    return rate


def effective_trials(values: np.ndarray, families: np.ndarray) -> int:
    """How many independent trials have a share that varies as the mean of these values does, for `interval`: N over the
    design effect (Kish 1965), at most N.

    values: (N,) in [0, 1]; families: (N,) whose each is, independent of one another, while their members need not be.
    Where all values are 0, or all are 1, nothing is known of the effect, and each family counts once.
    """
    families, size, mean = np.unique(families, return_inverse=True)[1], len(values), float(np.mean(values))
    count = int(families.max()) + 1
    if count == 1 or not 0 < mean < 1:
        return count
    variance = count / (count - 1) * (np.bincount(families, np.asarray(values) - mean) ** 2).sum() / size ** 2
    return int(np.clip(mean * (1 - mean) / max(variance, 1e-12), 1, size))


def paired_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the share of `first` less that of `second`, on the same trials (Newcombe 1998, method 10,
    which puts Wilson's intervals of both together by their correlation). first, second: (N,) bool."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    (p, q), size = (first.mean(), second.mean()), len(first)
    (p_low, p_high), (q_low, q_high) = interval(p, size), interval(q, size)
    covariance, variance = (first & second).mean() - p * q, p * (1 - p) * q * (1 - q)
    if covariance > 0:
        covariance = max(covariance - 1 / (2 * size), 0.0)          # his correction, for continuity
    shared = covariance / math.sqrt(variance) if variance else 0.0
    down = (p - p_low) ** 2 - 2 * shared * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    up = (p_high - p) ** 2 - 2 * shared * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    return float(p - q - math.sqrt(down)), float(p - q + math.sqrt(up))


@dataclass(frozen=True)
class Kept:
    """lost: accuracy less that of the counterparts; kept: the share of what is above chance that they have, None where
    too little is; each with its 95 % interval."""

    lost: float
    lost_interval: tuple[float, float]
    kept: float | None
    kept_interval: tuple[float, float] | None


def kept_above_chance(cells: np.ndarray, chance: float) -> Kept:
    """What of an accuracy is left on counterparts of the same samples, paired by sample.

    cells: (2, 2) counts, or their means over runs: first axis, wrong (0) or right (1) on the sample; second, on its
    counterpart. Intervals: between the 2.5th and 97.5th percentile of 20,000 seeded draws of the four shares
    (Dirichlet, Jeffreys' prior of 1/2 each), so that they do not collapse where no sample differs. The share kept is
    said where the accuracy is above chance in all but 2.5 % of these draws.
    """
    shares = np.random.default_rng(0).dirichlet(np.ravel(cells) + 0.5, 20_000).reshape(-1, 2, 2)
    first, second = shares[:, 1].sum(-1), shares[:, :, 1].sum(-1)
    found = np.asarray(cells) / np.sum(cells)
    own, other = float(found[1].sum()), float(found[:, 1].sum())
    kept = interval = None
    if own > chance and np.quantile(first, 0.025) > chance:
        kept = (other - chance) / (own - chance)
        interval = tuple(np.quantile((second - chance) / (first - chance), (0.025, 0.975)).tolist())
    return Kept(own - other, tuple(np.quantile(first - second, (0.025, 0.975)).tolist()), kept, interval)
