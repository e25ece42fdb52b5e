"""`--twins`: what an encoder keeps without appearance. The class is where something moves, and the colour."""

import json
import shutil

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.svm import LinearSVC

from evaluate import metrics, run
from preprocess import twins
from shared import cli
from shared.cli import RequestError
from shared.store.index import Index, publish
from shared.store.reader import StoreReader

FAST = ["--set", "run.threads=1", "--set", "clips=2", "--set", "run.device=cpu", "--set", "features.size=48"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory, film, pack):
    """Forty videos of 64x80, red where a patch moves on the left, blue where one moves on the right, and twins."""
    base, rng = tmp_path_factory.mktemp("twins"), np.random.default_rng(0)
    rows = ["path,label,split"]
    for number in range(40):
        right = number % 2
        scene = rng.integers(60, 190, (1, 16, 20, 1)).repeat(4, 1).repeat(4, 2).repeat(3, 3) + np.zeros((16, 1, 1, 1))
        scene[..., 2 * right] += 50
        patch, side = rng.integers(0, 255, (8, 8, 3)).repeat(3, 0).repeat(3, 1), rng.choice((-1, 1))
        top, left = rng.integers(4, 36), 40 * right + (2 if side > 0 else 12)
        for t, frame in enumerate(scene):
            at = left + side * (t * 2 // 3)
            frame[top:top + 24, at:at + 24] = patch
        path = f"{'right' if right else 'left'}/{number:02d}.mp4"
        film(base / "videos" / path, scene.clip(0, 255).astype(np.uint8))
        rows.append(f"{path},{'right' if right else 'left'},{'test' if number >= 20 else 'train'}")
    (base / "labels.csv").write_text("\n".join(rows) + "\n")
    store = pack("folder", base / "videos", base / "labels.csv", base / "store")
    assert twins.main([str(store), "--out", str(base / "twins"), "--engine", "serial"]) == 0
    return store, base / "twins"


def evaluate(stores, out, protocol, checkpoint, *more):
    assert run.main(["--protocol", protocol, "--checkpoint", checkpoint, "--store", str(stores[0]), "--twins",
                     str(stores[1]), "--out", str(out), *(["--set", "shown=0"] if protocol == "retrieval" else []),
                     *FAST, *more]) == cli.DONE
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize("protocol, score, moving", [("linear", "top1", "frame-difference"),
                                                     pytest.param("retrieval", "r@1", "motion-history",
                                                                  marks=pytest.mark.slow)])
def test_motion_is_kept_and_appearance_lost(stores, tmp_path, capsys, protocol, score, moving):
    seeing = evaluate(stores, tmp_path / "moves", protocol, moving)
    assert f"kept by twins of what is above chance: {score} " in capsys.readouterr().out
    found = seeing["twins"]["scores"][score]
    assert found["chance"] == pytest.approx(50)
    assert seeing["metrics"][score] == found["videos"]
    assert seeing["beside"]["appearance-free twins"][score] == found["twins"]
    assert found["videos"] > 85 and found["twins"] > 85 and found["kept"] > 70
    low, high = found["kept_interval"]
    assert low < found["kept"] < high
    page = (tmp_path / "moves/report.html").read_text()
    assert "Without appearance" in page and " twins</th>" in page
    blind = evaluate(stores, tmp_path / "looks", protocol, "mean-image")["twins"]["scores"][score]
    low, high = (100 * end for end in metrics.interval(0.5, 20))
    assert blind["videos"] == 100 and low <= blind["twins"] <= high and blind["kept"] < 60


def test_single_frames_say_all_of_the_videos_and_nothing_of_the_twins(stores):
    hits = []
    for store in stores:
        reader = StoreReader(store)
        frames = np.stack([reader.frames(video, [8])[0, ::2, ::2].ravel() for video in reader.index.id]) / 255 - 0.5
        train, labels = np.array([text == "train" for text in reader.index.split_text]), reader.index.label
        hits.append((LinearSVC(dual=True).fit(frames[train], labels[train]).predict(frames) == labels)[~train].sum())
    low, high = binom.interval(0.999, 20, 0.5)
    assert hits[0] == 20 and low <= hits[1] <= high


@pytest.fixture(scope="module")
def lacking(stores, tmp_path_factory):
    """The twins without the first of the test videos and of the training videos."""
    base = tmp_path_factory.mktemp("lacking") / "twins"
    shutil.copytree(stores[1], base)
    index = Index.load(base)
    gone = [next(row.id for row in index.rows() if split in row.splits) for split in ("train", "test")]
    publish(base, [index.pack_row(name) for name in index.packs], [row for row in index.rows() if row.id not in gone])
    return base


@pytest.mark.slow
def test_draws_from_videos_without_twins_are_refused_and_splits_go_on(stores, lacking, tmp_path):
    for more in (["--holdout", "0.5"], ["--samples", "10"]):
        with pytest.raises(RequestError, match="2 of 40 labelled videos of .* without a twin, left.* would draw"):
            evaluate((stores[0], lacking), tmp_path / "out", "linear", "mean-image", *more)
    found = evaluate((stores[0], lacking), tmp_path / "out", "linear", "mean-image")
    assert any("1 test video has no twin" in note for note in found["notes"])
    assert not any("not over seeds" in note for note in found["notes"])
    found = evaluate((stores[0], lacking), tmp_path / "out", "linear", "mean-image", "--seeds", "2")
    assert any("of the mean of 2 runs, and not over seeds" in note for note in found["notes"])


def test_what_is_no_twin_is_refused(stores, tmp_path, store, moving):
    with pytest.raises(RequestError, match="holds no twins"):
        evaluate((stores[0], stores[0]), tmp_path / "out", "linear", "mean-image")
    with pytest.raises(RequestError, match="is not in .*, or of another class"):
        evaluate((store, stores[1]), tmp_path / "out", "linear", "mean-image")
    with pytest.raises(RequestError, match="--twins does not apply to finetune"):
        evaluate(stores, tmp_path / "out", "finetune", "random:r2plus1d_tiny")
