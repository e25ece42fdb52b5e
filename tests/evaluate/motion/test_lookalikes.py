"""Look-alikes: hand-made cases, features whose answer is known, a slow oracle, and the command."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from evaluate import run
from evaluate.motion.looks import Looks, ask, known_looks, read_looks, trials
from evaluate.settings import Lookalikes
from preprocess.lookalikes import Lookalike, Member
from preprocess.scenes import CLASSES, Dials
from preprocess.synthetic import plan
from shared import cli
from shared.cli import RequestError
from shared.store.index import Index
from shared.store.record import write_record

FAST = [word for setting in ("run.threads=1", "run.device=cpu", "run.workers=1", "clips=2")
        for word in ("--set", setting)]
FACTORS = "static look", "moving look", "object", "view", "style"


def looks(rows):
    return Looks(*(np.array(column, str) for column in zip(*rows)))


def grid(sets, motions):
    """As the generator makes them: every motion of a set in a look and in one with each factor changed."""
    return looks([(f"{one}-{motion}", f"{one}-{factor}", factor) for one in range(sets) for factor in ("", *FACTORS)
                  for motion in range(motions)])


def test_a_hand_made_case():
    names = looks([("spin", "red", ""), ("spin", "blue", "colour"), ("slide", "red", ""), ("jump", "red", ""),
                   ("slide", "", ""), ("", "red", "")])
    (only,) = trials(names)         # the blue one has no distractors, slide and jump no positives
    assert (only.query, only.positives.tolist(), only.others.tolist(), only.factors.tolist()) == (0, [1], [2, 3],
                                                                                                   ["colour"])
    turned = np.array([0, 20, 10, 60, 0, 0]) * np.pi / 180
    vectors = np.stack([np.cos(turned), np.sin(turned)], 1) * [[1], [9], [3], [5], [1], [1]]
    for drawn, value in ((1, 50), (2, 0), (7, 0)):
        found = ask(vectors, names, drawn)
        assert found.values == {"lookalikes": value, "lookalikes_colour": value} and found.trials["lookalikes"] == 1
        assert found.chance["lookalikes"] == pytest.approx(100 / (min(drawn, 2) + 1))
    assert ask(np.ones((6, 3)), names, 1).values["lookalikes"] == 0          # equals count against


def test_looks_that_differ_in_two_factors_are_in_no_trial():
    names = looks([("a", "x1", "colour"), ("a", "x2", "place"), ("a", "x3", "colour"), ("b", "x1", "colour")])
    (only,) = trials(names)
    assert only.query == 0 and only.positives.tolist() == [2] and only.factors.tolist() == ["colour"]


def test_motions_crossed_with_looks_are_said_to_have_narrow_intervals():
    rows = [(motion, look, "") for motion in "abc" for look in "xyz"]
    crossed = ask(np.random.default_rng(0).normal(size=(9, 4)), looks(rows), 2)
    assert "too narrow" in crossed.notes[0]
    apart = ask(np.random.default_rng(0).normal(size=(10, 4)), looks([*rows, ("d", "w", "")]), 2)
    assert not apart.notes


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2 ** 32 - 1), st.integers(1, 4))
def test_any_names_by_enumeration(seed, drawn):
    rng = np.random.default_rng(seed)
    names = Looks(*(rng.choice(some, 9) for some in (["a", "b"], ["x", "y", "z", ""], ["", "f", "g"])))
    vectors = rng.integers(-2, 3, (9, 3)).astype(float)
    length = np.linalg.norm(vectors, axis=1)
    cosine = np.divide(vectors @ vectors.T, np.outer(length, length), out=np.zeros((9, 9)),
                       where=np.outer(length, length) > 0)
    expected = []
    for q in range(9):
        other = [i for i in range(9) if names.look[i] and names.look[q]]
        far = [i for i in other if names.look[i] == names.look[q] and names.motion[i] != names.motion[q]]
        near = [i for i in other if names.look[i] != names.look[q] and names.motion[i] == names.motion[q]
                and len({names.factor[i], names.factor[q]} - {""}) < 2]
        wins = [all(cosine[q, p] > cosine[q, d] + 1e-9 for d in some) for p in near
                for some in itertools.combinations(far, min(drawn, len(far)))]
        if near and far:
            expected.append(np.mean(wins))
    if not expected:
        with pytest.raises(ValueError, match="no video"):
            ask(vectors, names, drawn)
    else:
        assert ask(vectors, names, drawn).values["lookalikes"] == pytest.approx(100 * np.mean(expected))


def test_features_of_nothing_of_the_look_and_of_the_motion():
    names, rng = grid(60, 5), np.random.default_rng(0)
    nothing = ask(rng.normal(size=(1800, 16)), names, 4)
    assert set(nothing.values) == {"lookalikes", *(f"lookalikes_{factor.replace(' ', '_')}" for factor in FACTORS)}
    assert nothing.queries["lookalikes"] == 1800 and nothing.queries["lookalikes_view"] == 600
    low, high = binom.interval(0.9999, 1800, 0.2)
    assert low <= 18 * nothing.values["lookalikes"] <= high
    assert set(nothing.chance.values()) == {20} and nothing.trials["lookalikes"] > 900
    one = {name: rng.normal(size=(len(set(values)), 16))[np.unique(values, return_inverse=True)[1]]
           for name, values in (("motion", names.motion), ("look", names.look))}
    noise = 1e-3 * rng.normal(size=(1800, 16))
    assert set(ask(one["motion"] + noise, names, 4).values.values()) == {100}
    only_look = ask(one["look"] + noise, names, 4)
    assert set(only_look.values.values()) == {0} and only_look.trials["lookalikes"] == 60
    assert not nothing.notes
    mostly = ask(one["look"] + 0.1 * one["motion"], names, 4)
    assert mostly.values["lookalikes"] < 20


@pytest.fixture(scope="module")
def alike(tmp_path_factory, write_store):
    """Three sets of three motions in six looks, as the generator draws them, beside their annotations."""
    root = tmp_path_factory.mktemp("alike")
    dials = Dials(videos=54, backgrounds=4, textures=6, frames=20, height=64, width=80, fps=25, seed=0, lookalikes=3)
    videos, lines = {}, ["path,motion,look,factor"]
    for video in plan(dials):
        scene, name = Lookalike(dials, Member.of(dials, video.number)), Path(video.path).stem
        videos[name] = dict(rgb=np.stack([scene.frame(t) for t in range(dials.frames)]), class_name=video.label,
                            label=CLASSES.index(video.label), group=video.group, splits=(video.split,))
        lines.append(f"{name}.mp4,{video.motion},{video.look},{video.factor}")
    store = write_store(root / "store", videos, CLASSES)
    (root / "annotations.csv").write_text("\n".join(lines) + "\n")
    write_record(store, "one", {"videos_root": str(root)})
    return store


def evaluate(store, out, checkpoint, *more):
    assert run.main(["--protocol", "lookalikes", "--checkpoint", checkpoint, "--store", str(store), "--out", str(out),
                     *FAST, *more]) == cli.DONE
    return json.loads((out / "metrics.json").read_text())


ENCODERS = """
import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 32, 7, 4), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                    nn.Flatten())

def frame(clips):
    return net(clips[:, :, clips.shape[2] // 2])

def trajectory(clips):
    # How much changes, and the way of its centre, from frame to frame: nothing of what it looks like.
    change = clips.mean(1).diff(dim=1).abs()
    change = change * (change > 0.04)
    much, place = change.sum((2, 3)), torch.arange(clips.shape[-1]) / 8
    ways = [(change.sum(dim) * place).sum(2) / much.clamp(min=1e-6) for dim in (2, 3)]
    ways = [(way - way.mean(1, keepdim=True)) * (much > 0) for way in ways]
    return torch.cat([nn.functional.normalize(much), *ways], 1)

frame.clip = trajectory.clip = "8x2"
frame.size = trajectory.size = 48
"""


@pytest.mark.slow
def test_who_ignores_motion_is_below_chance_and_who_sees_it_alone_far_above(alike, tmp_path, monkeypatch):
    (tmp_path / "constructed.py").write_text(ENCODERS)
    monkeypatch.syspath_prepend(tmp_path)
    for checkpoint in ("mean-image", "python:constructed:frame", "python:constructed:trajectory"):
        found = evaluate(alike, tmp_path / "out" / checkpoint[-10:], checkpoint)
        values, chance, interval = (found[part] for part in ("metrics", "chance", "interval"))
        assert set(values) == set(chance) == set(interval) and list(chance.values()) == pytest.approx([100 / 3] * 6)
        if checkpoint.endswith("trajectory"):
            assert interval["lookalikes"][0] > 100 / 3 and all(value > 70 for value in values.values())
        else:
            assert interval["lookalikes"][0] < 10 and all(value <= 100 / 3 for value in values.values())
    assert found["counts"]["queries"] == found["counts"]["test_videos"] == 54
    assert found["splits"] == {"train": [None], "test": [None], "leave_out": None}
    assert [row[0] for row in found["tables"][0]["rows"]] == ["all together", *FACTORS]
    page = (tmp_path / "out/trajectory/report.html").read_text()
    assert "By what tells the positive" in page and page.count("data:image/png") == 3
    assert "above chance, which is 33.3" in page


@pytest.mark.slow
def test_columns_of_a_csv_and_of_the_store(alike, tmp_path):
    with open(alike.parent / "annotations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (tmp_path / "mine.csv").write_text("path,what,how,actor\n" + "".join(
        f"{row['path']},{row['motion']},{row['look']},1\n" for row in rows[:-3]))
    found = evaluate(alike, tmp_path / "csv", "mean-image", "--annotations", str(tmp_path / "mine.csv"), "--test-split",
                     "test", *[word for one in ("motion=what", "look=how", "distractors=1") for word in ("--set", one)])
    assert set(found["metrics"]) == {"lookalikes"} and found["counts"]["unnamed"] == 3
    assert found["counts"]["test_videos"] == 18 and found["chance"]["lookalikes"] == 50
    own = read_looks(Index.load(alike), Lookalikes("class", "group", 5))
    assert len(set(own.look)) == 3 and len(set(own.motion)) == 7 and len(list(trials(own))) == 24


@pytest.mark.parametrize("more, message", [
    (["--train-split", "train"], "--train-split does not apply to lookalikes, which learns nothing"),
    (["--leave-out", "group"], "--leave-out group does not apply to lookalikes"),
    (["--test-split", "tset"], "has no such split; did you mean 'test'"),
    (["--set", "look=group"], "no video of .* has both another of its motion .motion. in another look .group."),
    (["--set", "look=hue"], "'hue' is missing, expected path, motion, hue"),
    (["--set", "distractors=0"], "distractors is 0; expected at least 1"),
])
def test_what_cannot_be_asked(alike, tmp_path, more, message):
    with pytest.raises(RequestError, match=message):
        evaluate(alike, tmp_path / "out", "mean-image", *more)
    assert not list(tmp_path.glob("out/*.json"))


def test_a_csv_of_other_videos_and_columns_of_ones_own(alike, tmp_path):
    file, index = tmp_path / "mine.csv", Index.load(alike)
    file.write_text(f"path,motion,look,actor\n{index.path[0]},spin,red,ann\n")
    named = read_looks(index, Lookalikes("motion", "look", 5), file)
    assert named.motion[0] == "spin" and set(named.factor) == {""} and named.named.sum() == 1
    file.write_text("path,motion,look\nelsewhere/a.mp4,spin,red\n")
    with pytest.raises(RequestError, match="mine.csv names 1 path, 'elsewhere/a.mp4' first, and none is a video of .*"
                                           f"whose first is '{index.path[0]}'"):
        read_looks(index, Lookalikes("motion", "look", 5), file)


def test_a_store_without_annotations(store, tmp_path):
    with pytest.raises(RequestError, match="no annotations.csv is beside .* --set lookalikes.motion=class"):
        evaluate(store, tmp_path / "out", "mean-image")


def test_controls_take_classes_and_groups_where_nothing_is_named(alike, store):
    named, own = (known_looks(Index.load(one)) for one in (alike, store))
    assert set(named.factor) == {"", *FACTORS} and len(set(named.motion)) == 9 and len(set(named.look)) == 18
    assert set(own.motion) == {"a", "b", "c"} and set(own.look) == {"g0", "g1", "g2"} and set(own.factor) == {""}
