"""Frame mAP against cases computed by hand, and against a slow and obvious version on random answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.persons.frame_map import Answers, answers_of, average_precision, average_precisions, hits, overlap

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)      # exact in binary, so that one half is one half
HALF = (0.0, 0.0, 0.5, 0.5)          # overlaps LEFT by exactly one half
LESS = (0.0, 0.0, 0.5, 0.49)


def answers(*rows):
    """rows: keyframe, box, action, score."""
    keyframe, box, action, score = zip(*rows)
    return Answers(np.array(keyframe), np.array(box, np.float64), np.array(action), np.array(score, np.float64))


def truth(*rows, actions=1):
    """rows: keyframe, box, actions done."""
    acts = np.zeros((len(rows), actions), bool)
    for row, (_, _, done) in enumerate(rows):
        acts[row, list(done)] = True
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows], np.float64), acts


def test_overlap():
    boxes = np.array([LEFT, HALF, RIGHT, (0.25, 0.0, 0.75, 1.0), (0.1, 0.1, 0.1, 0.5)])
    assert overlap(np.array(LEFT), boxes) == pytest.approx([1, 0.5, 0, 1 / 3, 0])
    assert overlap(boxes[-1], boxes[-1:]) == 0                 # no area, nothing in common


@pytest.mark.parametrize("said, true, expected", [
    # Both persons found.
    ([(0, LEFT, 0, 0.9), (0, RIGHT, 0, 0.8)], [(0, LEFT, [0]), (0, RIGHT, [0])], 1.0),
    # Right, wrong (nobody there), right: precision 1 at recall 1/2, 2/3 at recall 1.
    ([(0, LEFT, 0, 0.9), (1, LEFT, 0, 0.8), (0, RIGHT, 0, 0.7)], [(0, LEFT, [0]), (0, RIGHT, [0])], 1 / 2 + 1 / 3),
    # Wrong first: precision 1/2 at recall 1/2, 2/3 at 1; made to fall it is 2/3 throughout.
    ([(1, LEFT, 0, 0.9), (0, LEFT, 0, 0.8), (0, RIGHT, 0, 0.7)], [(0, LEFT, [0]), (0, RIGHT, [0])], 2 / 3),
    # A person is found once: the surer answer is right, the other wrong; the other person is never found.
    ([(0, LEFT, 0, 0.9), (0, LEFT, 0, 0.8)], [(0, LEFT, [0]), (0, RIGHT, [0])], 1 / 2),
    # An overlap of exactly one half is enough, less is not.
    ([(0, HALF, 0, 0.9)], [(0, LEFT, [0])], 1.0),
    ([(0, LESS, 0, 0.9)], [(0, LEFT, [0])], 0.0),
    # The same box at another keyframe, or another action's, is wrong.
    ([(1, LEFT, 0, 0.9)], [(0, LEFT, [0])], 0.0),
    ([(0, LEFT, 0, 0.9)], [(0, LEFT, [0]), (1, LEFT, [0]), (2, LEFT, [0]), (3, LEFT, [0])], 1 / 4),
])
def test_one_action_by_hand(said, true, expected):
    keyframe, box, acts = truth(*true)
    assert average_precisions(answers(*said), keyframe, box, acts) == pytest.approx([expected])


def test_an_answer_does_not_turn_to_the_next_person():
    """Two persons in nearly the same place: both answers overlap the first most, so the second is wrong."""
    near = (0.0, 0.0, 0.5, 0.9)
    keyframe, box, acts = truth((0, LEFT, [0]), (0, near, [0]))
    said = answers((0, LEFT, 0, 0.9), (0, LEFT, 0, 0.8))
    assert hits(said, keyframe, box).tolist() == [True, False]
    assert average_precisions(said, keyframe, box, acts) == pytest.approx([0.5])


def test_actions_apart_and_those_nobody_does():
    keyframe, box, acts = truth((0, LEFT, [0, 1]), (0, RIGHT, [1]), actions=4)
    said = answers((0, LEFT, 0, 0.9), (0, RIGHT, 0, 0.95),      # action 0: wrong, then right: 1/2
                   (0, LEFT, 1, 0.1),                           # action 1: one of two: 1/2
                   (0, LEFT, 3, 1.0))                           # action 3: nobody does it
    found = average_precisions(said, keyframe, box, acts)
    assert found[:2] == pytest.approx([0.5, 0.5]) and np.isnan(found[2:]).all()
    assert np.nanmean(found) == pytest.approx(0.5)
    nothing = np.zeros(0, bool), np.zeros(0)
    assert average_precision(*nothing, 3) == 0 and np.isnan(average_precision(*nothing, 0))


def test_the_best_of_a_keyframe_are_kept():
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.2, 0.3]])
    boxes = np.array([LEFT, RIGHT, LEFT])
    every = answers_of(np.array([5, 5, 7]), boxes, scores)
    assert len(every.score) == 6 and every.action.tolist() == [0, 1] * 3
    kept = answers_of(np.array([5, 5, 7]), boxes, scores, kept=2)
    assert list(zip(kept.keyframe, kept.action, kept.score)) == [(5, 0, 0.9), (5, 0, 0.8), (7, 0, 0.2), (7, 1, 0.3)]
    assert (kept.box == [LEFT, RIGHT, LEFT, LEFT]).all()


def slowly(said, keyframe, box, iou):
    """The definition, an answer after the other: (precision at every recall level that a right answer reaches)."""
    order = sorted(range(len(said.score)), key=lambda i: -said.score[i])
    found, true, points = set(), 0, []
    for place, i in enumerate(order, 1):
        best, share = None, -1.0
        for j in range(len(keyframe)):
            if keyframe[j] == said.keyframe[i]:
                a, b = said.box[i], box[j]
                width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                common = width * height if width > 0 and height > 0 else 0.0
                union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
                if common / union > share:
                    best, share = j, common / union
        if best is not None and share >= iou and best not in found:
            found.add(best)
            true += 1
        points.append((true / len(keyframe), true / place))
    area, before = 0.0, 0.0
    for at, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[at:])
        before = recall
    return area


@given(st.integers(0, 2 ** 32 - 1), st.sampled_from([0.3, 0.5, 0.75]))
@settings(max_examples=50, deadline=None)
def test_against_the_definition(seed, iou):
    rng = np.random.default_rng(seed)

    def boxes(count):
        corners = rng.random((count, 2)) * 0.5
        return np.concatenate([corners, corners + 0.2 + 0.3 * rng.random((count, 2))], 1)
    keyframe, box = rng.integers(0, 4, 9), boxes(9)
    near = box[rng.integers(0, 9, 30)] + rng.normal(0, 0.05, (30, 4)).clip(-0.09, 0.09)
    said = Answers(rng.integers(0, 5, 30), near, np.zeros(30, int), rng.random(30))
    got = average_precisions(said, keyframe, box, np.ones((9, 1), bool), iou)
    assert got == pytest.approx([slowly(said, keyframe, box, iou)])
