"""Frame mAP against ActivityNet's own script: what it gave for these files, with its repository and commit.

golden/public-ava.json was made by that script from the three texts that `files` draws: truth with keyframes that show
nobody and with actions that do not count, and a detector's answers at keyframes of the truth and at others.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluate.persons.frame_map import answers_of, average_precisions
from shared.datasets.ava import LABEL_MAP, read_annotations, read_persons

GOLDEN = json.loads((Path(__file__).parent / "golden/public-ava.json").read_text())
ACTIONS = {1: "bend", 3: "crouch", 8: "lie", 11: "sit", 12: "stand"}          # 2 and 80 do not count
SECONDS, EMPTY, ELSEWHERE = range(902, 912), (912, 913), (914, 915)


def files():
    """The truth's CSV, the detector's boxes as a CSV, their scores (P, K), the label map, and boxes and scores as the
    script reads them."""
    rng = np.random.default_rng(11)

    def line(second, box, *rest):
        return ",".join(["m", f"{second:04d}", *(f"{value:.3f}" for value in box), *map(str, rest)])

    def near(box):
        return np.clip(box + rng.normal(0, 0.03, 4), 0, 1)

    truth, boxes = [f"m,{second:04d}" for second in EMPTY], []
    for second in SECONDS:
        for person in range(3):
            corner = rng.random(2) * 0.5
            box = np.concatenate([corner, corner + 0.2 + 0.3 * rng.random(2)])
            done = rng.choice([1, 2, 3, 8, 11, 12, 80], 2, replace=False)
            truth += [line(second, box, action, person) for action in done]
            boxes += [(second, near(box)) for _ in range(1 + int(rng.integers(2)))]
    boxes += [(second, np.array([0.1, 0.1, 0.6, 0.9])) for second in (*EMPTY, *ELSEWHERE, 905)]
    scores = rng.random((len(boxes), len(ACTIONS))).round(6)
    given = [line(second, box, "", 0.9) for second, box in boxes]
    detections = [line(second, box, action, score) for (second, box), row in zip(boxes, scores)
                  for action, score in zip(ACTIONS, row)]
    labels = "".join(f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in ACTIONS.items())
    return "\n".join([*truth, ""]), "\n".join([*given, ""]), scores, labels, "\n".join([*detections, ""])


def test_frame_map_is_activitynet_s(tmp_path):
    truth, given, scores, labels, _ = files()
    for name, text in (("ava_val_v2.2.csv", truth), ("ava_val_excluded_timestamps_v2.2.csv", ""), (LABEL_MAP, labels),
                       ("boxes.csv", given)):
        (tmp_path / name).write_text(text)
    said, boxes = read_annotations(tmp_path), read_persons(tmp_path / "boxes.csv", {}, scored=True)
    persons, judged = said.persons, boxes.at(said.keyframes)
    answers = answers_of(boxes.second[judged], boxes.box[judged], scores[judged], kept=50)
    found = average_precisions(answers, persons.second, persons.box, persons.acts)
    assert dict(zip(said.actions, found)) == pytest.approx(GOLDEN["actions"], rel=1e-12)
    assert np.nanmean(found) == pytest.approx(GOLDEN["map"], rel=1e-12)
    # Answers are wrong at keyframes that show nobody, and left out at those without a row: nothing else gives as much.
    for others in (np.ones(len(boxes), bool), judged & ~np.isin(boxes.second, EMPTY)):
        answers = answers_of(boxes.second[others], boxes.box[others], scores[others], kept=50)
        assert np.nanmean(average_precisions(answers, persons.second, persons.box, persons.acts)) != GOLDEN["map"]
