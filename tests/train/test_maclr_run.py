"""MaCLR from videos to checkpoint: every tiny pipeline, resumption, and what leaves the run."""

import json
import re
import shutil

import pytest
import torch

from shared.cli import RequestError
from shared.nn.checkpoint import load, load_backbone
from shared.store.record import read_json, write_json_atomic
from train import main

pytestmark = pytest.mark.usefixtures("quiet_torch")
TIMES = {"clips_per_s", "data_wait"}
TERMS = {"maclr": "vv vm mv", "maclr-visual": "vv", "maclr-flow": "vv vm mv", "maclr-difference": "vv vm mv",
         "maclr-vm": "vm mv", "maclr-mm": "vv vm mv mm", "maclr-narrow": "vv vm mv", "maclr-wide": "vv vm mv",
         "maclr-ta-sa": "vv vm mv", "mcl-maclr": "vv vm mv mal"}
WEIGHTS = {("mcl-maclr", "vv"): 0.01}
SMALL = [word for setting in ("size=24", "batch=4", "bn_group=2", "model.hidden=16", "queue=40", "workers=0",
                              "threads=1", "images_every=0") for word in ("--set", setting)]


@pytest.fixture(scope="session")
def store(small_videos, tmp_path_factory):
    """Twelve synthetic videos by the recipe maclr-tiny, eight of them in `train`."""
    from preprocess import run

    store = tmp_path_factory.mktemp("maclr") / "store"
    assert run.main(["--dataset", "folder", "--recipe", "maclr-tiny", "--videos", str(small_videos), "--store",
                     str(store), "--engine", "serial", "--set", "preset=fast"]) == 0
    return store


def train(store, run, name, *more):
    return main.main(["--pipeline", f"{name}-tiny", "--store", str(store), "--out", str(run), *SMALL, *more])


def rows(run):
    """metrics.jsonl without what depends on the clock."""
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES}
            for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", TERMS)
def test_every_pipeline_trains_on_one_store(name, store, tmp_path, capsys):
    assert train(store, tmp_path / "run", name, "--set", "steps=2") == 0
    said, found = capsys.readouterr().out, rows(tmp_path / "run")
    assert f"pipeline {name}-tiny" in said and ("motion   " in said) == (name != "maclr-visual")
    for row in found:
        assert {term for term in ("vv", "vm", "mv", "mm", "mal") if term in row} == set(TERMS[name].split())
        total = sum(WEIGHTS.get((name, term), 1) * row[term] for term in TERMS[name].split())
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert row["grad_norm"] > 0
    learner = load(tmp_path / "run/last.pt")["learner"]
    assert any(key.startswith("motion_query.") for key in learner) == (name != "maclr-visual")
    if name == "maclr":
        assert "motion   edges, clips 8x2, slow_tiny of width 4; terms vv, vm, mv" in said
        # Starts of 40 frames at 25 frames/s lie 0 to 24 apart: from the middle ones none is half a second away.
        assert "8 videos of split train, clips 4x4; 0 shorter than a clip left out, 8 too short for 0.5 s" in said


@pytest.mark.slow
def test_a_resumed_run_is_as_one_unbroken(store, tmp_path):
    """Bit for bit: both pathways, both queues and their pointers, optimiser, and every logged number."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ["--set", "steps=6", "--set", "checkpoint_steps=3", "--set", "images_every=1", "--set", "maclr.mm=true"]
    assert train(store, whole, "maclr", *more) == 0
    shutil.copytree(whole, broken, symlinks=True)
    (broken / "last.pt").unlink()
    (broken / "last.pt").symlink_to("checkpoints/step-00000003.pt")
    assert train(store, broken, "maclr", *more, "--resume", "auto", "--set", "workers=1") == 0
    assert rows(broken) == rows(whole) and len(rows(whole)) == 6
    one, other = load(whole / "last.pt"), load(broken / "last.pt")
    assert one["learner"].keys() == other["learner"].keys()
    assert all(torch.equal(value, other["learner"][name]) for name, value in one["learner"].items())
    for name in ("queue", "motion_queue"):
        assert one["learner"][f"{name}.pointer"] == 6 * 4 and one["learner"][f"{name}.keys"].shape == (40, 2 * 128)
    momenta = [[state["momentum_buffer"] for state in run["optimizer"]["state"].values()] for run in (one, other)]
    assert len(momenta[0]) > 50 and all(torch.equal(a, b) for a, b in zip(*momenta))


def test_flips_of_classes_that_tell_left_from_right_are_said(store, tmp_path, capsys):
    """Something-Something v2: fine-tuning leaves flips out by itself, pre-training by a setting."""
    sided = tmp_path / "store"
    shutil.copytree(store, sided)
    write_json_atomic(sided / "store.json", read_json(sided / "store.json") | {"dataset": "ssv2"})
    for number, (flip, said) in enumerate((("0.5", True), ("0", False))):
        assert train(sided, tmp_path / f"run{number}", "maclr-visual", "--set", "steps=1", "--set",
                     f"flip_p={flip}") == 0
        assert ("classes of ssv2 tell left from right: flip_p=0" in capsys.readouterr().out) == said


def test_only_the_visual_pathway_leaves_the_run(store, tmp_path):
    """What evaluation loads and what an export holds: the query's visual backbone, tensor by tensor, and no more."""
    from safetensors.torch import load_file

    from evaluate import export

    assert train(store, tmp_path / "run", "maclr", "--set", "steps=2") == 0
    path = tmp_path / "run/last.pt"
    learner = load(path)["learner"]
    visual = {name.removeprefix("query.backbone."): value for name, value in learner.items()
              if name.startswith("query.backbone.")}
    backbone, provenance = load_backbone(path)
    assert backbone.name == "slow_tiny" and backbone.width == 12 and provenance["pipeline"] == "maclr-tiny"
    state = backbone.state_dict()
    assert state.keys() == visual.keys() and all(torch.equal(state[name], visual[name]) for name in state)
    assert export.main(["--checkpoint", str(path), "--out", str(tmp_path / "net.safetensors")]) == 0
    exported = load_file(tmp_path / "net.safetensors")
    assert exported.keys() == visual.keys() and all(torch.equal(exported[name], visual[name]) for name in exported)
    motion = [value for name, value in learner.items() if name.startswith("motion_query.backbone.")]
    assert motion and path.stat().st_size > 2 * (tmp_path / "net.safetensors").stat().st_size


@pytest.mark.parametrize("more, said", [
    (["--set", "clip=8x2", "--set", "motion_clip=16x1"], "preprocess.reindex"),
    (["--set", "motion_clip=8x4"], "expected the same time: add --set motion_clip="),
    (["--set", "motion_inputs=flow"], "did you mean 'motion_input'"),
    (["--init", "nowhere.pth"], "leave out --init"),
])
def test_mistakes_leave_nothing(store, tmp_path, more, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        train(store, tmp_path / "run", "maclr", *more)
    assert not (tmp_path / "run").exists()
