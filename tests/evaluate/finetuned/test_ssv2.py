"""Something-Something v2 from its official JSON and webm files to top-1 by fine-tuning, without horizontal flips."""

import json

import numpy as np
import pytest

from evaluate import run
from shared import cli
from shared.nn import checkpoint

TEMPLATES = ("Pulling [something] from left to right", "Pulling [something] from right to left")
COUNTS = {"train": 16, "validation": 8}
STEPS = 24


def moving(seed, leftwards):
    """(STEPS, 64, 80, 3) uint8: a bright square that crosses a still, noisy background."""
    rng = np.random.default_rng(seed)
    frames = np.tile(rng.integers(40, 90, (4, 5, 3)).repeat(16, 0).repeat(16, 1), (STEPS, 1, 1, 1))
    top, colour = rng.integers(8, 36), rng.integers(160, 256, 3)
    for t in range(STEPS):
        left = 2 * (STEPS - 1 - t if leftwards else t) + 6
        frames[t, top:top + 20, left:left + 20] = colour
    return frames.astype(np.uint8)


@pytest.fixture(scope="module")
def ssv2(tmp_path_factory, film, pack):
    """The store of videos whose class is the direction alone, mirror images of one another."""
    base = tmp_path_factory.mktemp("ssv2")
    lists, number = base / "labels", 0
    lists.mkdir()
    names = [template.replace("[", "").replace("]", "") for template in TEMPLATES]
    labels = {name: str(i) for i, name in enumerate(names)}
    (lists / "something-something-v2-labels.json").write_text(json.dumps(labels))
    for part, count in COUNTS.items():
        entries = []
        for i in range(count):
            number += 1
            film(base / "videos" / f"{number}.webm", moving(number, i % 2), 12, "libvpx")
            entries.append({"id": str(number), "label": names[i % 2].replace("something", "a box"),
                            "template": TEMPLATES[i % 2], "placeholders": ["a box"]})
        (lists / f"something-something-v2-{part}.json").write_text(json.dumps(entries))
    film(base / "videos" / "0.webm", moving(0, False), 12, "libvpx")
    (lists / "something-something-v2-test.json").write_text('[{"id": "0"}]')       # its answers are not public
    return pack("ssv2", base / "videos", lists, base / "store")


def evaluate(store, out, steps, *more):
    argv = ["--protocol", "finetune", "--checkpoint", "random:r2plus1d_tiny:0", "--store", str(store), "--out",
            str(out)]
    for setting in ("run.threads=1", "run.workers=0", "run.device=cpu", "clips=2", "crops=1", f"finetune.steps={steps}",
                    "finetune.batch=8", "finetune.accumulate=1", "finetune.dropout=0", "finetune.lr=0.05",
                    "finetune.bn_group=8", *more):
        argv += ["--set", setting]
    assert run.main(argv) == cli.DONE
    state = checkpoint.read(out / "runs/00-train-val-seed0/finetuned.pt")
    return json.loads((out / "metrics.json").read_text()), state["recipe"]["finetune"]


@pytest.mark.slow
def test_from_files_to_top1_without_flips(ssv2, tmp_path):
    found, recipe = evaluate(ssv2, tmp_path / "out", 2)
    assert found["store"]["dataset"] == "ssv2" and recipe["flip"] is False
    assert found["counts"]["train_videos"] == 16 and found["counts"]["test_videos"] == 8
    assert found["splits"]["test"] == ["val"]                             # `test` has no labels
    assert 0 <= found["metrics"]["top1"] <= 100 and found["chance"]["top1"] == 50
    assert {row[0] for row in found["tables"][0]["rows"]} == {name.replace("[", "").replace("]", "")
                                                              for name in TEMPLATES}      # accuracy per class


@pytest.mark.slow
def test_directions_are_learnt_because_nothing_is_flipped(ssv2, tmp_path):
    found, _ = evaluate(ssv2, tmp_path / "out", 120, "features.size=32")
    assert found["metrics"]["top1"] >= 87.5


@pytest.mark.slow
def test_flips_are_announced(ssv2, tmp_path):
    found, recipe = evaluate(ssv2, tmp_path / "out", 2, "finetune.flip=true")
    assert recipe["flip"] is True and any("left from right" in note for note in found["notes"])
