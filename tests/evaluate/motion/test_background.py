"""What is lost when something is taken away: features whose answer is known, and the command."""

import json

import numpy as np
import pytest

from evaluate import run
from evaluate.motion.background import lost_table
from shared import cli
from shared.cli import RequestError

FAST = [word for setting in ("run.threads=1", "run.device=cpu", "run.workers=1", "clips=2", "clip=8x2", "size=48")
        for word in ("--set", setting)]


@pytest.fixture(scope="module")
def sides(tmp_path_factory, write_store, make_video):
    """16 videos before a still scene of their own: a square goes down on the left in one class, on the right in the
    other; 8 are for training; two groups."""
    videos = {}
    for i in range(16):
        rgb, maps = make_video(1, i).repeat(24, 0), np.zeros((24, 8, 10), np.float32)
        left, label = (40, 1) if i % 2 else (24, 0)
        for t in range(24):
            rgb[t, 2 * t:2 * t + 16, left:left + 16] = 255 * (i // 2 % 2)
            maps[t, t // 4:t // 4 + 3, left // 8:left // 8 + 2] = 0.3
        videos[f"v{i:02d}"] = dict(rgb=rgb, maps=maps, label=label, class_name="ab"[label], group=f"g{i // 8}",
                                   splits=("train" if i < 8 else "test",))
    return write_store(tmp_path_factory.mktemp("sides") / "store", videos)


def evaluate(store, out, checkpoint, *more):
    assert run.main(["--protocol", "background", "--checkpoint", checkpoint, "--store", str(store), "--out", str(out),
                     *FAST, *more]) == cli.DONE
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize("more", [(), pytest.param(("--leave-out", "group", "--set", "classifier=softmax"),
                                                   marks=pytest.mark.slow)])
def test_motion_alone_loses_all_without_motion(sides, tmp_path, more):
    found = evaluate(sides, tmp_path / "out", "frame-difference", *more)
    videos = 16 if more else 8
    values, chance = found["metrics"], found["chance"]
    variants = "", "still_", "shuffled_", "reversed_", "background_only_"
    assert set(values) == {f"{variant}{name}" for variant in variants for name in ("top1", "r@1")}
    assert set(values) == set(chance) == set(found["interval"])
    assert set(chance.values()) == {50}
    for name in ("top1", "r@1"):
        assert values[name] == values[f"reversed_{name}"] == 100
        assert values[f"still_{name}"] == values[f"background_only_{name}"] == 50          # features of zeros
    for table in found["tables"]:
        lost = {row[0]: row[3:] for row in table["rows"]}
        assert lost["nothing"] == [None, None, 50] and lost["the direction of time"][0] == 0
        assert lost["motion"][0] == lost["what moves"][0] == 50
        low, high = map(float, lost["motion"][1].split(" to "))
        assert 0 < low < 50 < high < 100
    assert found["counts"]["test_videos"] == videos
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/png") == 3 and "What is lost when ... is taken away" in page


@pytest.mark.slow
def test_an_image_loses_nothing_without_order(sides, tmp_path):
    found = evaluate(sides, tmp_path / "out", "mean-image")["metrics"]
    assert found["top1"] == found["shuffled_top1"] == found["reversed_top1"] and found["r@1"] == found["reversed_r@1"]


def test_a_table_of_hand_made_answers():
    right = np.ones((5, 50), bool)
    right[0, 48:] = False                              # 36 right as before, 12 lost, 2 found: Newcombe's example
    right[1, :12] = False
    right[1, 48:] = True
    table = lost_table("top-1", right, 25.0)
    assert table.rows[1][2:] == (76.0, pytest.approx(20), "5.7 to 34.0", 25.0)
    assert table.rows[2][3] == pytest.approx(-4)


def test_clips_of_one_frame(sides, tmp_path):
    with pytest.raises(RequestError, match="the clip is 1x1, and one frame has neither motion nor order"):
        evaluate(sides, tmp_path / "out", "mean-image", "--set", "clip=1x1")
