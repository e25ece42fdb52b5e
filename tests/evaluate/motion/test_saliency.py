"""The saliency protocol as people run it: numbers beside their controls, the picture, what it refuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from evaluate import run
from evaluate.motion import map_pictures, maps, saliency
from evaluate.report.words import measure
from shared import cli
from shared.cli import RequestError
from shared.pictures.figures import save
from shared.store.reader import StoreReader

FAST = ["--set", "run.threads=1", "--set", "run.device=cpu", "--set", "run.workers=0"]
SCORES = "corr", "own_minus_other", "mass", "pointing"
NAMES = [f"{short}_{name}" for short in ("cam", "aligned", "prior") for name in SCORES
         if (short, name) != ("prior", "own_minus_other")]


@pytest.fixture
def evaluate(moving, tmp_path):
    """evaluate(*argv, out="out", where=moving) -> its metrics.json."""
    def call(*argv, out="out", where=moving):
        assert run.main(["--protocol", "saliency", "--store", str(where), "--out", str(tmp_path / out),
                         *map(str, argv), *FAST]) == cli.DONE
        return json.loads((tmp_path / out / "metrics.json").read_text())
    return call


@pytest.mark.slow
def test_numbers_beside_their_controls(evaluate, contrastive, moving, tmp_path, capsys, monkeypatch):
    drawn, draw = [], map_pictures.saliency_figure
    monkeypatch.setattr(map_pictures, "saliency_figure", lambda *given: drawn.append(given) or draw(*given))
    found = evaluate("--checkpoint", contrastive, "--against", "random:r2plus1d_tiny", "--set", "shown=3")
    assert list(found["metrics"]) == NAMES == list(found["chance"])
    chance, counts = found["chance"], found["counts"]
    assert chance["cam_corr"] == chance["aligned_own_minus_other"] == 0
    assert chance["cam_mass"] == chance["prior_pointing"] == pytest.approx(100 * 4 / 36)
    assert (counts["clips"], counts["still_clips"], counts["rows"], counts["train_videos"]) == (10, 0, 6, 8)

    beside = found["beside"]
    assert set(beside) == {"prior", "against"}
    for name in ("corr", "mass", "pointing"):
        assert beside["prior"][f"cam_{name}"] == beside["prior"][f"aligned_{name}"] == found["metrics"][f"prior_{name}"]
    assert abs(beside["prior"]["cam_own_minus_other"]) < 1e-9
    table = next(one for one in found["tables"] if one["title"] == "For comparison")
    rows = {row[0]: row[1:] for row in table["rows"]}
    assert list(rows) == ["Grad-CAM of random:r2plus1d_tiny:0", "aligned map of random:r2plus1d_tiny:0",
                          "S-motion itself"]
    assert rows["S-motion itself"][0] == "1.00" and rows["S-motion itself"][3] == "100.0 %"
    assert rows["Grad-CAM of random:r2plus1d_tiny:0"] == [
        measure(f"cam_{name}").say(beside["against"][f"cam_{name}"]) for name in SCORES]

    notes, said = " ".join(found["notes"]), capsys.readouterr().out
    assert "the alignment generalises, not that the features are better" in notes and "inter head" in notes
    assert "aligned_corr" in said and "prior" in said
    folder, = (tmp_path / "out" / "runs").iterdir()
    assert (folder / "saliency.png").stat().st_size > 10_000
    kept = map_pictures.kept_compared(folder / "saliency.npz")           # S-motion and both maps
    (rows, names), = drawn
    assert list(names[:2]) == ["Grad-CAM", "aligned map"] and len(rows) == len(kept) == 3
    for row, one in zip(rows, kept):
        assert one.frame is None and not np.array_equal(row.maps[0], row.maps[1])
        np.testing.assert_array_equal(one.maps, [row.motion, *row.maps[:2]])
    assert "against: random:r2plus1d_tiny" in (tmp_path / "out" / "report.html").read_text().lower()


@pytest.mark.parametrize("methods, inches", [(9, (1.1 + 10 * 1.4, 0.5 + 3 * 1.4)),
                                             (10, (1.9 + 3 * 1.4, 0.5 + 11 * 1.4))])
def test_many_methods_stand_below_one_another(methods, inches):
    """A tile's brightest place says which clip and method it is of."""
    clips = [map_pictures.Compared(f"clip {i}", None, np.eye(40)[[20 * i + j for j in range(methods + 1)], :].reshape(
        -1, 5, 8)) for i in (0, 1)] + [map_pictures.Compared("clip 2", None, np.zeros((methods + 1, 5, 8)))]
    figure = map_pictures.compared_figure(clips, "S-motion", [(f"m{j}", "0.1") for j in range(methods)])
    assert tuple(figure.get_size_inches()) == pytest.approx(inches)
    shown = [axes.images[0].get_array() for axes in figure.axes]
    expected = [clip.maps[j] for clip in clips for j in range(methods + 1)]
    if methods == 10:
        expected = [clip.maps[j] for j in range(methods + 1) for clip in clips]
        assert figure.axes[3].texts[0].get_text() == "m0\n0.1" and figure.axes[1].get_title() == "clip 1"
    np.testing.assert_array_equal(shown, expected)


def test_the_prior_is_the_mean_motion_of_the_training_videos(moving, contrastive):
    from evaluate.features.encoders import open_encoder
    from evaluate.features.extract import View
    from evaluate.protocol import load_settings

    settings = load_settings("saliency", ["run.workers=0"])
    view, reader = View.of(settings.saliency, open_encoder(str(contrastive))), StoreReader(moving)
    motion = maps.motion_maps(moving, reader.index.in_split("train"), view, (6, 6), settings.run)
    slow = np.zeros((6, 6))
    for video in (reader.index.id[i] for i in reader.index.in_split("train")):
        cells = reader.motion(video, 4, 19)[::2].astype(np.float64).mean(0)              # the clip in the middle
        fine = np.kron(np.kron(cells, np.ones((8, 8)))[4:60, 12:68], np.ones((6, 6)))    # its crop, 56 of 64x80
        own = fine.reshape(6, 56, 6, 56).mean((1, 3))
        slow += own / own.mean() / 8
    np.testing.assert_allclose(saliency.prior(motion), slow, rtol=1e-3)
    # Of motion ten times as strong in one video nothing is left.
    np.testing.assert_allclose(saliency.prior(motion * np.where(np.arange(8) == 3, 10, 1)[:, None, None]),
                               saliency.prior(motion), rtol=1e-5)
    with pytest.raises(RequestError, match="nothing moves"):
        saliency.prior(np.zeros((3, 6, 6)))


@pytest.mark.slow
def test_several_seeds_and_another_run_reads_the_cache(evaluate, moving, monkeypatch, tmp_path):
    found = evaluate("--checkpoint", "random:r2plus1d_tiny", "--seeds", "2", "--set", "shown=0")
    assert found["spread"]["aligned_corr"] > 0 and found["spread"]["prior_corr"] == 0
    monkeypatch.setattr(maps, "_compute", None)
    assert evaluate("--checkpoint", "random:r2plus1d_tiny", "--seeds", "2", "--set", "shown=0",
                    out="again")["mean"] == found["mean"]
    monkeypatch.undo()
    first = found["runs"][0]["metrics"]
    against = evaluate("--checkpoint", "random:r2plus1d_tiny:1", "--against", "random:r2plus1d_tiny:0", "--set",
                       "shown=0", out="against")["beside"]["against"]
    assert {name: first[name] for name in against} == against


@pytest.mark.parametrize("argv, message", [
    (["--checkpoint", "mean-image"], "mean-image has no map of positions"),
    (["--checkpoint", "random:r2plus1d_tiny", "--against", "mean-image"], "mean-image has no map of positions"),
    (["--checkpoint", "random:r2plus1d_tiny", "--against", "nowhere.pt"], "nowhere.pt does not exist"),
    (["--checkpoint", "random:r2plus1d_tiny", "--against", "random:r2d_50"], "takes single frames"),
    (["--checkpoint", "random:r2plus1d_tiny", "--test-split", "tset"], "tset"),
    (["--checkpoint", "random:r2plus1d_tiny", "--set", "of=clas"], "saliency.of is 'clas'"),
    (["--checkpoint", "random:r2plus1d_tiny", "--set", "saliency.clips=0"], "saliency.clips is 0"),
    (["--checkpoint", "random:r2plus1d_tiny", "--set", "features.clips=3"], "features.clips"),
    (["--checkpoint", "random:r2plus1d_tiny", "--leave-out", "group", "--train-split", "train"], "is of group 'g0'"),
])
def test_refusals(evaluate, argv, message):
    with pytest.raises(RequestError, match=message) as caught:
        evaluate(*argv)
    assert "\n" not in str(caught.value)


def test_what_cannot_stand_beside_is_refused_before_the_work(evaluate, monkeypatch):
    monkeypatch.setattr(saliency, "clip_maps", None)
    with pytest.raises(RequestError, match="mean-image has no map of positions"):
        evaluate("--checkpoint", "random:r2plus1d_tiny", "--against", "mean-image")


def test_the_prior_of_a_group_is_that_of_the_others(evaluate, moving, monkeypatch):
    used = []
    monkeypatch.setattr(saliency, "priors", lambda *args, of=saliency.priors: used.append((args[2], *of(*args))) or
                        used[-1][1:])
    found = evaluate("--checkpoint", "random:r2plus1d_tiny", "--leave-out", "group", "--set", "shown=0")
    (clips, fixed, learnt), = used
    index = StoreReader(moving).index
    group = np.array([index.group[index.position(video)] for video in clips.ids])
    assert sorted(set(group)) == ["g0", "g1", "g2"] and learnt == 16 == found["counts"]["train_videos"]
    for i in range(18):
        np.testing.assert_allclose(fixed[i], saliency.prior(clips.motion[group != group[i]]))


def test_a_store_in_which_nothing_moves(evaluate, store):
    with pytest.raises(RequestError, match="motion is in view in clips of 0 videos"):
        evaluate("--checkpoint", "random:r2plus1d_tiny", where=store)


def test_the_picture_takes_maps_of_any_scale(tmp_path):
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (56, 56, 3)).astype(np.uint8)
    hot = np.zeros((6, 6), bool)
    hot[2, 3:5] = True
    rows = [map_pictures.Row("a $name$ that is no formula", frame, rng.random((6, 6)), hot,
                             [1e-12 * rng.random((6, 6)), np.zeros((6, 6)), rng.random((4, 4))], [0.5, 0.0, -1.0],
                             np.ones((6, 6)))] * 2
    figure = map_pictures.saliency_figure(rows, ["one", "dead", "coarse"])
    save(figure, tmp_path / "x.png")
    words = [text.get_text() for text in figure.texts]
    assert len(figure.axes) == 2 * 6 and words.count("r -1.00") == 2 and "fixed prior" in words
    drawn = figure.axes[2].images[1].get_array()
    assert float(drawn.min()) == 0 and float(drawn.max()) == 1


@pytest.mark.slow
def test_two_processes_say_what_one_says(contrastive, moving, tmp_path, evaluate):
    """The maps do not depend on how many share the work: groups of clips stay together."""
    one = evaluate("--checkpoint", contrastive, "--set", "clips=2", "--set", "shown=0")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "--local-addr=127.0.0.1", "-m", "evaluate.run", "--protocol", "saliency", "--checkpoint",
         str(contrastive), "--store", str(moving), "--out", str(tmp_path / "two"), "--set", "clips=2", "--set",
         "shown=0", *FAST],
        capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-3)
    assert two["counts"]["clips"] == 20


@pytest.mark.gpu
def test_maps_on_the_gpu_are_the_cpus(gpu, evaluate, contrastive):
    here = evaluate("--checkpoint", contrastive)["metrics"]
    there = evaluate("--checkpoint", contrastive, "--set", f"run.device={gpu}", out="there")["metrics"]
    assert there == pytest.approx(here, abs=0.1)
