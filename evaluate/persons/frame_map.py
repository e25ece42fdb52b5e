"""Frame mAP of action detection, as AVA's own evaluation has it (PASCAL VOC's area under the precision-recall curve).

n answers, T true actions of persons, P persons, K actions.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Answers:
    """Actions claimed of boxes: keyframe (n,) int64, box (n, 4) float64 x1, y1, x2, y2, action (n,) int64 in [0, K),
    score (n,) float64, higher is surer."""

    keyframe: np.ndarray
    box: np.ndarray
    action: np.ndarray
    score: np.ndarray

    def take(self, rows: np.ndarray) -> "Answers":
        return Answers(self.keyframe[rows], self.box[rows], self.action[rows], self.score[rows])


def answers_of(keyframe: np.ndarray, box: np.ndarray, scores: np.ndarray, kept: int = 0) -> Answers:
    """Every action of every person as an answer, the `kept` best of each keyframe (0: all).

    keyframe (P,), box (P, 4), scores (P, K). Among equals the earlier person's lower action stays.
    """
    persons, actions = scores.shape
    every = Answers(np.repeat(keyframe, actions), np.repeat(box, actions, 0), np.tile(np.arange(actions), persons),
                    scores.reshape(-1).astype(np.float64))
    if not kept:
        return every
    order = np.lexsort((-every.score, every.keyframe))
    sorted_keyframes = every.keyframe[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_keyframes, sorted_keyframes)
    return every.take(np.sort(order[place < kept]))


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(T,) intersection over union of a box (4,) with others (T, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod(np.maximum(high - low, 0), 1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], 1) - common
    return np.divide(common, union, out=np.zeros(len(others)), where=union > 0)


def hits(answers: Answers, keyframe: np.ndarray, box: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """(n,) bool: which answers of one action are right, the surest first.

    keyframe (T,), box (T, 4): the persons who do it. An answer is right where the person whom it overlaps most is
    overlapped by `iou` or more and was not found by a surer answer; it does not turn to the next person instead.
    """
    right, found = np.zeros(len(answers.score), bool), np.zeros(len(keyframe), bool)
    order = np.argsort(keyframe, kind="stable")
    first, stop = (np.searchsorted(keyframe[order], answers.keyframe, side) for side in ("left", "right"))
    for i in np.argsort(-answers.score, kind="stable"):
        there = order[first[i]:stop[i]]
        if len(there):
            shares = overlap(answers.box[i], box[there])
            best = int(shares.argmax())
            if shares[best] >= iou and not found[there[best]]:
                right[i] = found[there[best]] = True
    return right


def average_precision(right: np.ndarray, score: np.ndarray, count: int) -> float:
    """The area under precision over recall, precision made to fall; right, score (n,) of all answers; count: persons to
    find, NaN for none."""
    if not count:
        return float("nan")
    true = np.cumsum(right[np.argsort(-score, kind="stable")])
    precision, recall = true / np.arange(1, len(true) + 1), true / count
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def average_precisions(answers: Answers, keyframe: np.ndarray, box: np.ndarray, acts: np.ndarray,
                       iou: float = 0.5) -> np.ndarray:
    """(K,) float64 average precision of every action, NaN where nobody does it; frame mAP is their nanmean.

    keyframe (P,), box (P, 4), acts (P, K) bool: the persons of all keyframes that count. Answers at a keyframe without
    persons are wrong: those at keyframes that do not count are the caller's to leave out.
    """
    out = np.empty(acts.shape[1])
    for action in range(len(out)):
        said, doing = answers.take(answers.action == action), acts[:, action]
        right = hits(said, keyframe[doing], box[doing], iou)
        out[action] = average_precision(right, said.score, int(doing.sum()))
    return out
