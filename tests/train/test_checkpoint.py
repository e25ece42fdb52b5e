"""Checkpoint files: whole or refused, safe to load, and what evaluation takes from them."""

import os
import pickle
import random
import re
import resource
import zipfile

import numpy as np
import pytest
import torch

from shared import cli
from shared.cli import RequestError
from shared.nn import checkpoint, load


@pytest.fixture
def state(make_recipe, make_learner):
    recipe = make_recipe()
    learner = make_learner(recipe, dtype=torch.float32)
    optimizer = torch.optim.SGD(learner.query.parameters(), 0.1, 0.9)
    return {"format": 1, "pipeline": "mcl-tiny", "recipe": recipe.to_dict(), "run": {}, "step": 3, "epoch": 1,
            "learner": learner.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": {}, "sampler": {},
            "rng": [checkpoint.rng_state()], "provenance": {"world_size": 1, "init": None}}


def test_what_evaluation_takes(state, tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, state)
    assert os.listdir(tmp_path) == ["a.pt"]
    backbone, provenance = checkpoint.load_backbone(path)
    assert provenance["world_size"] == 1 and provenance["step"] == 3 and provenance["recipe"] == state["recipe"]
    assert not backbone.training
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state["learner"][f"query.backbone.{name}"])
    torch.load(path, weights_only=True)       # nothing in it needs more


def test_generators_come_back(tmp_path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    random.random(), np.random.standard_normal()          # numpy keeps the pair's second value
    checkpoint.save(tmp_path / "rng.pt", checkpoint.rng_state())
    drawn = random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist(), random.gauss(0, 1)
    checkpoint.set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert drawn == (random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist(), random.gauss(0, 1))


def refused(path) -> str:
    with pytest.raises(RequestError) as error:
        checkpoint.load_backbone(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_every_damage_is_refused_in_one_line(state, tmp_path):
    path, whole = tmp_path / "last.pt", tmp_path / "whole.pt"
    checkpoint.save(whole, state)
    data = whole.read_bytes()
    rng = np.random.default_rng(0)
    places = [0, 3, len(data) // 2, len(data) - 10, *rng.integers(len(data), size=40)]
    noticed = 0
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = checkpoint.load(path)
        except RequestError as error:
            assert "\n" not in str(error)
            noticed += 1
        else:                                  # padding and dates carry nothing
            assert all(torch.equal(value, state["learner"][name]) for name, value in found["learner"].items())
    assert noticed > len(places) * 0.8
    for cut in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        refused(path)


def test_damage_to_the_directory_of_the_file_is_refused_in_one_line(tmp_path):
    """Places that lie nowhere, other compressions, other sizes: every byte that says where things are."""
    path, whole = tmp_path / "last.pt", {"format": 1}
    checkpoint.save(path, whole)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    noticed = 0
    for place in range(start, len(data)):
        for bits in (0x01, 0x08):
            damaged = bytearray(data)
            damaged[place] ^= bits
            path.write_bytes(damaged)
            try:
                assert checkpoint.read(path) == whole
            except RequestError as error:
                assert "\n" not in str(error)
                noticed += 1
    assert noticed > len(data) - start


def test_foreign_files_are_refused_in_one_line(state, tmp_path):
    path = tmp_path / "x.pt"
    assert "does not exist" in refused(path)
    assert "is a folder" in refused(tmp_path)
    path.write_bytes(b"no checkpoint")
    assert "is no checkpoint" in refused(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    refused(path)
    torch.save({"state_dict": {}}, path)
    assert "it has no format, pipeline" in refused(path)
    torch.save({"path": tmp_path}, path)       # needs unpickling
    refused(path)
    torch.save(torch.zeros(3), path)
    refused(path)
    checkpoint.save(path, {**state, "format": 2})
    assert "format 2; this version reads 1" in refused(path)
    learner = {key: value for key, value in state["learner"].items() if "stem" not in key}
    checkpoint.save(path, {**state, "learner": learner})
    assert "other weights" in refused(path)
    recipe = {**state["recipe"], "model": {**state["recipe"]["model"], "heads": 3}}
    checkpoint.save(path, {**state, "recipe": recipe})
    assert "written by another version: model.heads is no setting" in refused(path)


def test_last_points_at_the_newest_and_old_ones_go(tmp_path):
    folder = checkpoint.Folder(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        folder.save({"step": step}, epoch=7 if step == 2 else None)
        assert torch.load(folder.last, weights_only=True) == {"step": step}
    assert sorted(os.listdir(folder.folder)) == ["epoch-0007.pt", "step-00000003.pt", "step-00000004.pt"]
    assert not [name for name in os.listdir(tmp_path) if name not in ("last.pt", "checkpoints")]
    assert os.path.islink(folder.last) and not os.path.isabs(os.readlink(folder.last))


def test_what_was_just_written_stays_where_later_steps_lie(tmp_path):
    """Somebody went back to an older checkpoint: what the abandoned run wrote later goes first."""
    folder = checkpoint.Folder(tmp_path, keep=2)
    for step in (90, 100, 55, 60, 65):
        folder.save({"step": step})
        assert torch.load(folder.last, weights_only=True) == {"step": step}
    assert sorted(os.listdir(folder.folder)) == ["step-00000060.pt", "step-00000065.pt"]
    (folder.folder / "step-00000065.pt").unlink()
    assert "leads to checkpoints/step-00000065.pt, which is gone; lead it to another" in refused(folder.last)


def test_a_failed_write_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"step": 1})
    with pytest.raises((AttributeError, pickle.PicklingError), match=re.escape("lambda")):
        checkpoint.save(path, {"step": lambda: 2})
    assert torch.load(path, weights_only=True) == {"step": 1} and os.listdir(tmp_path) == ["a.pt"]


def test_a_full_disk_at_any_byte_is_named_and_leaves_the_old_one(tmp_path):
    """torch turns most of them into a RuntimeError. A limit on the size of files stands for the disk."""
    path, state = tmp_path / "a.pt", {"step": 2, "learner": [torch.randn(3000) for _ in range(8)]}
    checkpoint.save(path, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for size in range(0, 96_000, 4000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with pytest.raises(OSError, match="File too large") as caught:
                checkpoint.save(path, state)
            assert caught.value.filename == str(path) and caught.value.errno in cli.FULL
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(path, weights_only=True) == {"step": 1} and os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("key, value", [
    ("recipe", None), ("recipe", []), ("recipe", {"model": 3}), ("learner", None), ("learner", [1]),
    ("learner", {1: 2}),
    ("provenance", None), ("provenance", [1]), ("recipe.model.width", 10 ** 9), ("recipe.model.width", -1),
    ("recipe.model.width", "x"), ("recipe.model.backbone", 7), ("recipe.model.backbone", ["s3d"]),
    ("learner.weight", None), ("format", None),
    ("format", 10 ** 9), ("format", torch.zeros(2))])
def test_hand_made_ones_are_refused_in_one_line(state, tmp_path, key, value):
    section, _, name = key.partition(".")
    if name:
        part = state[section]
        if section == "recipe":
            part, name = part["model"], name.rpartition(".")[2]
        name = next(key for key in part if key.startswith(checkpoint.BACKBONE)) if section == "learner" else name
        assert name in part
        part[name] = value
    else:
        state[key] = value
    torch.save(state, tmp_path / "a.pt")
    for read in (checkpoint.load_backbone, load):
        with pytest.raises(RequestError) as caught:
            read(tmp_path / "a.pt")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
