"""Sets of videos that share motions and looks: what one factor changes, and nothing else."""

import csv
from collections import Counter, defaultdict
from dataclasses import replace

import cv2
import numpy as np
import pytest

from preprocess.lookalikes import FACTORS, LOOKS, Lookalike, Member
from preprocess.scenes import Dials
from preprocess.synthetic import make_videos, plan
from shared.cli import RequestError

DIALS = Dials(videos=36, backgrounds=3, textures=5, frames=20, height=96, width=112, fps=25, seed=3, lookalikes=3)
TIMES = 0, 7, 13, 18


@pytest.fixture(scope="module")
def scenes():
    """(set, motion, factor) -> the scene."""
    members = [Member.of(DIALS, number) for number in range(DIALS.videos)]
    return {(one.set, one.motion, one.factor): Lookalike(DIALS, one) for one in members}


def test_a_motion_is_held_exactly_while_one_factor_changes(scenes):
    for (one, motion, factor), scene in scenes.items():
        plain, moved = scenes[one, motion, ""], 0
        for t in TIMES:
            place, mask, frame = plain.object_map(t), plain.mask(t), plain.frame(t).astype(int)
            other_mask, other = scene.mask(t), scene.frame(t).astype(int)
            if factor == "view":
                np.testing.assert_array_equal(scene.object_map(t), scene.set.view @ place)
                assert np.abs(scene.set.view - np.eye(3))[:2, :2].max() > 0.1
                continue
            np.testing.assert_array_equal(scene.object_map(t), place)
            both, either = mask & other_mask, mask | other_mask
            np.testing.assert_array_equal(scene.flow(t)[:, both], plain.flow(t)[:, both])
            assert not scene.flow(t)[:, ~other_mask].any()
            moved += np.abs(scene.flow(t)).max()
            same_outline = np.array_equal(mask, other_mask)
            assert same_outline != (factor == "object")
            away, inside = ~grown(either), ~grown(~both)
            changed = np.abs(other - frame).max(-1)
            if factor == "static look":
                assert not changed[inside].any() and changed[away].mean() > 3
            elif factor in ("moving look", "object"):
                assert not changed[away].any() and changed[inside].mean() > 20
            elif factor == "style":
                colours = 255 - frame[..., [np.flatnonzero(column)[0] for column in scene.set.mixing.T]]
                assert np.abs(other - colours).max() <= 1 and changed.mean() > 20
            else:
                assert not changed.any()


def grown(mask, by=4):
    """The soft edge included, also of an object that has grown."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1))).astype(bool)


def test_first_picture_and_times_are_the_same_whatever_the_motion(scenes):
    pictures, times = defaultdict(set), defaultdict(set)
    for (one, _, factor), scene in scenes.items():
        times[one].add((scene.motion.begin, scene.motion.active))
        pictures[one, factor].add(scene.frame(0).tobytes())
    assert all(len(some) == 1 for some in (*pictures.values(), *times.values()))
    assert len(set.union(*pictures.values())) == 2 * len(LOOKS)


def test_what_moves_stays_in_the_square_that_evaluation_looks_at(scenes):
    for scene in scenes.values():
        centres = np.array([scene.object_map(t)[:2, 2] for t in range(DIALS.frames)])
        assert (np.abs(centres - (56, 48)) < 42).all()


def test_the_plan_tells_the_truth():
    dials = replace(DIALS, videos=90, lookalikes=5, backgrounds=6, textures=6)
    planned = plan(dials)
    sets = Counter(video.group for video in planned)
    assert sets == {"s000": 30, "s001": 30, "s002": 30}
    assert {video.split for video in planned if video.group == "s002"} == {"test"}
    assert {video.split for video in planned if video.group != "s002"} == {"train"}
    motions, looks = defaultdict(set), defaultdict(set)
    for video in planned:
        motions[video.motion].add((video.look, video.factor)), looks[video.look].add((video.motion, video.label))
        assert video.motion == f"{video.group}-{video.label}" and video.path.startswith(f"{video.label}/{video.label}_")
    assert all({factor for _, factor in some} == {"", *FACTORS} and len(some) == 6 for some in motions.values())
    assert all(len(some) == len({label for _, label in some}) == 5 for some in looks.values())
    assert len(motions) == 15 and len(looks) == 18 and len({video.path for video in planned}) == 90
    assert all("still" not in motion for motion in motions)


def test_annotations_name_motion_look_and_factor(tmp_path):
    dials = dict(videos=12, seed=0, backgrounds=2, textures=5, frames=4, height=48, width=48, lookalikes=2)
    paths = make_videos(tmp_path, **dials)
    with open(tmp_path / "annotations.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [str(tmp_path / row["path"]) for row in rows] == list(map(str, paths))
    assert list(rows[0])[-3:] == ["motion", "look", "factor"]
    assert Counter(row["factor"] for row in rows) == dict.fromkeys(LOOKS, 2)
    with pytest.raises(RequestError, match="lookalikes 2, asked 0"):
        make_videos(tmp_path, **dials | {"lookalikes": 0})


@pytest.mark.parametrize("change, parts", [
    ({"lookalikes": 1}, ["lookalikes is 1", "2 to 7"]), ({"lookalikes": 8}, ["lookalikes is 8"]),
    ({"backgrounds": 1}, ["1 background", "2"]), ({"textures": 4}, ["4 textures", "5"]),
    ({"videos": 17, "textures": 5}, ["17 videos", "18"])])
def test_impossible_sets(tmp_path, change, parts):
    dials = dict(videos=36, seed=0, backgrounds=3, textures=5, frames=4, height=48, width=48, lookalikes=3)
    with pytest.raises(RequestError) as caught:
        make_videos(tmp_path / "new", **dials | change)
    assert all(part in str(caught.value) for part in parts) and not (tmp_path / "new").exists()
