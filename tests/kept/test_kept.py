"""What earlier versions left on people's disks stays usable: `make.py` made the archives, by the version they name.

Numbers are compared within float rounding, since the kernels of another processor round otherwise.
"""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate import run as evaluation
from evaluate.ablation import __main__ as ablation
from preprocess import check, reindex
from preprocess import run as preprocessing
from shared.cli import RequestError
from shared.nn import checkpoint
from shared.store.reader import StoreReader
from shared.store.record import read_json
from tests.kept.make import FEATURES, FINETUNE, STEPS, TINY
from train import main as training

ARCHIVES = {"047dddc": "da7f7c61477b9b7dacbe4fe209c46e62b491a33c2007655e891dc1f0730ede9c"}
HERE = Path(__file__).parent


def flags(*settings):
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module", params=ARCHIVES)
def kept(request, tmp_path_factory):
    """The folder as the version left it; not to be changed."""
    data = (HERE / f"{request.param}.tar.xz").read_bytes()
    assert hashlib.sha256(data).hexdigest() == ARCHIVES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with tarfile.open(HERE / f"{request.param}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def own(kept, tmp_path, monkeypatch, quiet_torch):
    """A copy in which to go on, as the current folder."""
    shutil.copytree(kept, tmp_path / "own", symlinks=True)
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


def preprocess(*more):
    return preprocessing.main(["--dataset", "folder", "--videos", "videos", "--annotations", "videos.csv", "--store",
                               "store", "--engine", "serial", "--set", "threads=1", *more])


def files(store):
    return {path.relative_to(store): path.read_bytes() for path in sorted(store.glob("packs/**/*")) if path.is_file()}


AS_TYPED = ["--recipe", "tiny", "--flow", "cpu", *flags("edges=true", "geometries=16x2,8x2,4x4")]


@pytest.mark.parametrize("words", [AS_TYPED, []], ids=["as typed", "no settings"])
def test_a_store_is_checked_and_grows(own, words, capsys):
    store = own / "store"
    document, before = read_json(store / "store.json"), files(store)
    assert check.main(["store"]) == 0
    assert preprocess(*words) == 0
    assert read_json(store / "store.json") == document and files(store) == before
    assert "8 done" in capsys.readouterr().out
    shutil.copy(own / "videos/wave/wave_0006.mp4", own / "videos/wave/another.mp4")
    with (own / "videos.csv").open("a") as file:
        file.write("wave/another.mp4,moving,train,g9\n")
    assert preprocess(*words) == 0
    assert before.items() <= files(store).items() and read_json(store / "store.json") == document
    roots = [json.loads(path.read_text())["attributes"] for path in store.glob("packs/*/*/zarr.json")]
    assert len(roots) == 2 and len({root["recipe_hash"] for root in roots}) == 1
    # The same film, so the same bits, whatever new stores hold.
    reader = StoreReader(store)
    old, new = (reader.clip(name, 0, "16x2") for name in ("wave/wave_0006.mp4", "wave/another.mp4"))
    for a, b in zip(old, new):
        np.testing.assert_array_equal(a, b)
    assert reindex.main(["store", "--clips", "8x4"]) == 0
    assert check.main(["store"]) == 0 and preprocess() == 0


def test_only_what_is_asked_otherwise_is_refused(own):
    with pytest.raises(RequestError, match="clips.step: stored 4, asked 8; use the store's settings"):
        preprocess("--set", "step=8")
    with pytest.raises(RequestError, match="optimise.lr: stored 0.04, asked 0.5; use its settings"):
        train("mcl", "mcl-tiny", *flags("lr=0.5"))


def train(name, pipeline, *more):
    return training.main(["--pipeline", pipeline, "--store", "store", "--out", name, "--resume", "auto",
                          *flags("run.workers=0", "run.threads=1", "images_every=0"), *more])


def rows(run):
    """metrics.jsonl without what depends on the clock."""
    parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("clips_per_s", "data_wait")} for row in parsed]


@pytest.mark.slow
@pytest.mark.parametrize("name, pipeline, settings", [
    ("mcl", "mcl-tiny", TINY), ("mcl", "mcl-tiny", ()), ("released", "mcl-tiny", ()), ("s3d", "moco-tiny", ()),
    ("s3d", "moco-tiny", (*TINY, "backbone=s3d", "width=1", "clip=16x2")), ("maclr", "maclr-tiny", ())],
    ids=lambda value: "as typed" if value and isinstance(value, tuple) else None)
def test_a_run_goes_on(own, name, pipeline, settings):
    """Steps 5 and 6 (of s3d: 2 to 6) are those of the version's own unbroken run; under another torch, which rounds
    otherwise, the first of them."""
    stored, wanted = checkpoint.load(own / name / "last.pt"), rows(own / name)
    assert train(name, pipeline, *flags(*settings, *([STEPS[0]] if settings else []))) == 0
    found = rows(own / name)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    held = 6 if torch.__version__.startswith("2.13.") else stored["step"] + 1
    for new, old in zip(found[:held], wanted):
        assert {key: new[key] for key in old} == pytest.approx(old, rel=2e-4, abs=1e-6)
    state = checkpoint.load(own / name / "last.pt")
    assert state["recipe"] == stored["recipe"] and state["step"] == 6


def test_a_store_is_trained_on(own):
    assert train("new", "mcl-tiny", *flags(*TINY, "steps=2")) == 0
    assert len(rows(own / "new")) == 2


def evaluate(protocol, checkpoint, out, *more):
    assert evaluation.main(["--protocol", protocol, "--checkpoint", checkpoint, "--store", "store", "--out", out,
                            *flags(*FEATURES), *more]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name, checkpoint", [("mcl", "mcl/last.pt"), ("s3d", "s3d.safetensors")])
def test_a_checkpoint_gives_the_same_features_and_numbers(own, name, checkpoint):
    evaluate("linear,retrieval", checkpoint, f"fresh/{name}", "--cache", "fresh/features")
    for old in sorted((own / "results" / name / "features").rglob("*.npy")):
        new = own / "fresh/features" / old.relative_to(own / "results" / name / "features")      # the same key, too
        np.testing.assert_allclose(np.load(new), np.load(old), rtol=1e-4, atol=1e-6)
    for protocol in ("linear", "retrieval"):
        new, old = (json.loads((own / folder / name / protocol / "metrics.json").read_text())
                    for folder in ("fresh", "results"))
        assert {key: new["metrics"][key] for key in old["metrics"]} == old["metrics"]


@pytest.mark.slow
def test_features_are_found_and_results_compared(own):
    cache = own / "results/mcl/features"
    before = sorted(cache.rglob("*"))
    evaluate("retrieval", "mcl/last.pt", "fresh", "--cache", str(cache))
    assert sorted(cache.rglob("*")) == before
    assert evaluation.main(["--compare", "results/mcl/retrieval", "results/s3d/retrieval", "fresh", "--out",
                            "compared"]) == 0
    assert len(json.loads((own / "compared/metrics.json").read_text())["runs"]) == 3


@pytest.mark.slow
def test_a_classifier_is_read_and_a_killed_training_goes_on(own):
    evaluate("finetune", "mcl/last.pt", "classifier-killed", *flags(*FINETUNE))
    classifiers = [checkpoint.load_finetuned(own / folder / "runs/00-train-test-seed0/finetuned.pt")
                   for folder in ("classifier", "classifier-killed")]
    for name, old in classifiers[0].backbone.state_dict().items():
        np.testing.assert_allclose(classifiers[1].backbone.state_dict()[name], old, rtol=1e-3, atol=1e-5)
    evaluate("linear", "classifier/runs/00-train-test-seed0/finetuned.pt", "fresh")


@pytest.mark.slow
def test_an_ablation_takes_another_seed(own):
    """And another row: a net whose weights cannot be named, since its width is no name's own. Both follow what is
    there, in which the command names nothing."""
    assert ablation.main(["--store", "store", "--rows", "untrained,moco", "--seeds", "2", "--protocols", "retrieval",
                          "--out", "ablation", "--set-evaluation", "clips=2"]) == 0
    made = [checkpoint.load_recipe(own / f"ablation/runs/moco-seed{seed}/last.pt")[1] for seed in (0, 1)]
    told = [read_json(own / f"ablation/runs/moco-seed{seed}.json")["identity"]["recipe"] for seed in (0, 1)]
    assert made == told and made[1]["optimise"]["seed"] == 1
    made[1]["optimise"]["seed"] = 0
    assert made[0] == made[1] and not (own / "ablation/logs/moco-seed0.log").exists()
