"""What is motion and what is background: features whose answer is known, the truth by a slow oracle, the command."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, spearmanr
from sklearn.linear_model import Ridge as Oracle

from evaluate import run
from evaluate.features.cache import FeatureCache
from evaluate.features.encoders import untrained
from evaluate.features.extract import Features, View
from evaluate.folds import Fold
from evaluate.motion import probes
from evaluate.motion.control_scores import Scene, class_answers, class_scores, motion_scores, object_scores
from evaluate.motion.map_pictures import kept_compared
from evaluate.motion.truth import Clips, Truth, clip_truth, read_truth
from evaluate.protocol import Request, load_settings
from preprocess.scenes import Dials
from preprocess.synthetic import plan
from shared import cli
from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.datasets.truth import load_truth
from shared.motion import motion_map
from shared.nn.distributed import World
from shared.store.index import Index
from shared.store.reader import StoreReader

SMALL = ("generate.videos=48", "backgrounds=6", "textures=6", "generate.frames=28", "height=48", "width=48",
         "short_side=48", "geometries=8x2", "preset=fast")
FAST = [word for setting in ("run.threads=1", "run.device=cpu", "run.workers=1", "clips=2", "moments=3", "untrained=1",
                             "supervised_steps=2") for word in ("--set", setting)]
VIEW = View(3, ClipGeometry(8, 2), 48, 55)
MOVES = """
import torch
import torch.nn.functional as F

net = torch.nn.Conv3d(3, 3, 1, bias=False)
net.weight.data = torch.eye(3)[..., None, None, None]

def moves(clips):
    return net(F.avg_pool3d(F.pad(clips, (0, 0, 0, 0, 0, 1), "replicate").diff(dim=2).abs(), (2, 8, 8)))

def finer(clips):
    return F.avg_pool3d(net(clips), (2, 8, 8))

def still(clips):
    return clips.mean((2, 3, 4))

for one in (moves, finer, still):
    one.clip, one.size = "8x2", 48
"""


@pytest.fixture(scope="module")
def motions(tmp_path_factory):
    """48 videos of 28 frames of 48x48 pixels, by the command: every motion class before each of six backgrounds, four
    of them in train."""
    from preprocess import run as preprocess

    root = tmp_path_factory.mktemp("motions")
    dials = [word for setting in SMALL for word in ("--set", setting)]
    assert preprocess.main(["--dataset", "synthetic", "--videos", str(root / "videos"), "--store", str(root / "store"),
                            "--engine", "serial", *dials]) == 0
    return root / "store"


def request_of(store, tmp_path, **sections):
    given = dataclasses.replace(load_settings("controls", []), **sections)
    return Request("controls", untrained("r2plus1d_tiny", 0), store, "train", "test", False, 0, given,
                   FeatureCache(tmp_path / "cache"), tmp_path, World())


def fold_of(vectors, labels, groups, backgrounds):
    """Features of made-up videos; those of the first backgrounds are for training."""
    part = Features([f"v{i}" for i in range(len(labels))], labels, list("abcdefgh"), groups, vectors, {})
    train = np.isin(groups, backgrounds)
    return Fold(part.take(train), part.take(~train), "split 'train'", "split 'test'")


# 8 classes before each of 30 backgrounds, 4 videos each; 20 backgrounds are for training
LABELS, GROUPS = np.arange(960) % 8, np.char.add("b", (np.arange(960) // 32).astype(str))
TRAINED = [f"b{i}" for i in range(20)]


def by_chance(percent, count, chance):
    low, high = binom.interval(0.9999, count, chance / 100)
    return low <= percent / 100 * count <= high


def scored(tmp_path, vectors):
    fold = fold_of(vectors.astype(np.float32), LABELS, GROUPS, TRAINED)
    values, shared = class_scores(class_answers(request_of(tmp_path, tmp_path), fold), fold.test.labels,
                                  fold.test.groups)
    assert shared.sum() == pytest.approx(100) and shared[0] + shared[1] == pytest.approx(values["background_r@1"])
    assert shared[0] + shared[2] == pytest.approx(values["motion_r@1"])
    return values


def test_random_features_score_at_chance(tmp_path):
    values = scored(tmp_path, np.random.default_rng(0).normal(size=(960, 16)))
    chance = {"linear": 12.5, "knn": 12.5, "background_r@1": 100 * 31 / 319, "motion_r@1": 100 * 39 / 319}
    assert values.keys() == chance.keys()
    for name, expected in chance.items():
        assert by_chance(values[name], 320, expected), (name, values[name])
    assert chance["background_r@1"] == pytest.approx(100 * probes.chance_shared(GROUPS[640:]))
    assert chance["motion_r@1"] == pytest.approx(100 * probes.chance_shared(LABELS[640:]))


def test_features_that_are_the_background(tmp_path):
    rng = np.random.default_rng(0)
    scene = rng.normal(size=(30, 24))[np.arange(960) // 32]
    values = scored(tmp_path, scene + 1e-4 * rng.normal(size=scene.shape))
    assert values["background_r@1"] == 100
    assert by_chance(values["motion_r@1"], 320, 100 * 3 / 31)     # the background's own videos, 4 of each class
    assert values["linear"] < 25 and values["knn"] < 25


def test_features_that_are_the_motion(tmp_path):
    rng = np.random.default_rng(0)
    values = scored(tmp_path, np.eye(8)[LABELS] + 1e-2 * rng.normal(size=(960, 8)))
    assert values["linear"] == values["knn"] == values["motion_r@1"] == 100
    assert by_chance(values["background_r@1"], 320, 100 * 3 / 39)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.data())
def test_most_votes_win_and_the_nearer_among_equals(classes, data):
    neighbours = data.draw(arrays(np.int64, (3, data.draw(st.integers(1, 60))), elements=st.integers(0, classes - 1)))
    for line, said in zip(neighbours.tolist(), probes.vote(neighbours, classes)):
        count = Counter(line)
        best = [label for label in count if count[label] == max(count.values())]
        assert said in best
        if len(line) <= 20:                                       # lexicographic: whose vote comes first
            assert said == max(best, key=lambda label: [one == label for one in line])


@settings(deadline=None, max_examples=40)
@given(arrays(np.float64, (9, 3), elements=st.integers(-2, 2)))
def test_the_nearest_other_is_another(vectors):
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    cosine = units @ units.T
    np.fill_diagonal(cosine, -2)
    found = probes.nearest_other(vectors)
    assert (found != np.arange(9)).all()
    np.testing.assert_allclose(cosine[np.arange(9), found], cosine.max(1), atol=1e-6)


def test_chance_of_sharing_counts_pairs():
    labels = np.array(["a", "b", "a", "c", "a", "b"])
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    assert probes.chance_shared(labels) == pytest.approx(np.mean([labels[i] == labels[j] for i, j in pairs]))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2 ** 32 - 1))
def test_the_prior_is_regressed_out(seed):
    rng = np.random.default_rng(seed)
    said, truth, prior = rng.normal(size=(4, 20)), rng.normal(size=(4, 20)) ** 2, rng.random(20)
    basis = np.stack([np.ones(20), prior], 1)
    for i, found in enumerate(probes.prior_corrected(said, truth, prior)):
        a, b = (line - basis @ np.linalg.lstsq(basis, line, rcond=None)[0] for line in (said[i], truth[i]))
        assert found == pytest.approx(np.corrcoef(a, b)[0, 1])
    scaled = probes.prior_corrected(3 * said + 2 * prior - 5, truth, prior)
    np.testing.assert_allclose(scaled, probes.prior_corrected(said, truth, prior))
    assert (probes.prior_corrected(np.tile(7 * prior - 1, (4, 1)), truth, prior) == 0).all()
    assert np.isnan(probes.prior_corrected(said, np.tile(prior, (4, 1)), prior)).all()


@settings(deadline=None, max_examples=40)
@given(arrays(np.float64, (2, 7), elements=st.integers(0, 4)))
def test_ranks_within_a_video(lines):
    said, truth = lines
    found = probes.spearman(said[None], truth[None])[0]
    if np.ptp(truth) == 0:
        assert np.isnan(found)
    elif np.ptp(said) == 0:
        assert found == 0
    else:
        assert found == pytest.approx(spearmanr(said, truth).statistic)


def test_the_ridge_is_scikit_learns():
    rng = np.random.default_rng(1)
    probe, rows, targets = probes.Ridge(6, torch.device("cpu")), [], []
    for i in range(5):
        x, y = rng.normal(size=(30, 6)) * 10.0 ** np.arange(-3, 3) + 100, rng.normal(size=30) * (i + 1) + 7
        x[:, 4] = 3.5 if i < 4 else 3.75                          # a channel that changes between videos only
        probe.add(torch.from_numpy(x), torch.from_numpy(y))
        rows.append(x - x.mean(0)), targets.append(y - y.mean())
    x, y = np.concatenate(rows), np.concatenate(targets)
    deviation = np.where(x.std(0) > 0, x.std(0), 1)
    expected = Oracle(alpha=0.1 * len(x), fit_intercept=False).fit(x / deviation, y).coef_ / deviation
    found = probe.solve(0.1, World()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert found[4] == 0


@pytest.mark.parametrize("dead", [False, True])
def test_a_probe_finds_motion_that_is_in_the_features_and_none_in_constants(motions, tmp_path, dead):
    """The truth is what one channel of the network itself says, so a probe of it must find it on other videos."""
    encoder, reader = untrained("r2plus1d_tiny", 3), StoreReader(motions)
    train, test = (reader.index.in_split(split) for split in ("train", "test"))
    grid = encoder.net.h_shape(8, 48)[1:]
    run_settings = load_settings("controls", ["run.workers=0"]).run
    taught, asked = (Truth(np.stack([maps[:, 5].numpy() for maps in probes._walk(
        encoder, reader, positions, VIEW, grid, run_settings, World())]), np.empty(0)) for positions in (train, test))
    if dead:
        with torch.no_grad():
            for parameter in encoder.net.parameters():
                parameter.zero_()
        encoder = dataclasses.replace(encoder, sha256="dead")
    before = {name: value.clone() for name, value in encoder.net.state_dict().items()}
    said = probes.motion_probe(encoder, reader, train, taught.motion, test, VIEW, 1e-6, run_settings,
                               FeatureCache(tmp_path), {}, World())
    assert all(torch.equal(value, before[name]) for name, value in encoder.net.state_dict().items())
    assert said.dense.shape == asked.motion.shape and said.energy.shape == asked.motion.shape[:2]
    values = motion_scores(said, taught, asked, [reader.index.id[i] for i in test])
    if dead:
        assert values == {"dense": 0, "dense_own_other": 0, "energy": 0}
    else:
        assert values["dense"] > 99 and values["energy"] > 99 and values["dense_own_other"] > 20
    again = probes.motion_probe(encoder, reader, train, np.zeros_like(taught.motion), test, VIEW, 1e-6, run_settings,
                                FeatureCache(tmp_path), {}, World())           # what was said is kept
    np.testing.assert_array_equal(said.dense, again.dense)
    reader.close()


def test_a_map_of_the_object_and_maps_that_know_nothing():
    rng = np.random.default_rng(0)
    cover = np.zeros((200, 6, 6))
    for clip, (y, x) in zip(cover, rng.integers(0, 5, (200, 2))):
        clip[y:y + 2, x:x + 2] = 0.5
    cover[0] = 0                                                  # the object is out of view
    prior = cover.mean(0)
    scene = Scene(None, None, [f"v{i}" for i in range(200)], None, None, None, None, cover, prior)
    own = object_scores("cam", cover, scene)
    assert own["cam_object_mass"] == own["cam_object_pointing"] == 50 and own["cam_object"] > 80
    fixed = object_scores("cam", np.broadcast_to(prior, cover.shape), scene)
    assert fixed["cam_object"] == pytest.approx(0, abs=1e-9)      # a place that is always the same knows no clip
    flat = object_scores("aligned", np.ones_like(cover), scene)
    assert flat == {"aligned_object": 0, "aligned_object_mass": pytest.approx(100 * 4 * 0.5 / 36),
                    "aligned_object_pointing": pytest.approx(100 * 4 * 0.5 / 36)}


@pytest.mark.parametrize("short_side, box, size", [(48, (3, 3, 42, 42), (48, 48)), (32, (2, 4, 27, 28), (32, 32))])
def test_truth_at_the_positions_is_a_mean_over_pixels_and_frames(motions, short_side, box, size):
    video = sorted(motions.parent.glob("videos/rotate/*.mp4"))[0]
    mask, flow = load_truth(video)
    motion = motion_map(flow)
    motion[motion < 0.01] = 0
    numbers = np.array([np.arange(0, 16, 2), np.arange(11, 27, 2)])
    found = clip_truth(video, numbers, box, size, short_side, (4, 6, 6))
    # Every pixel of the source in 20x20 dots, each put where the stored frame has it.
    dots = (np.arange(48 * 20) + 0.5) / 20
    place = dots * size[0] / 48
    rows, columns = (np.floor((place - first) / side * 6).astype(int) for first, side in zip(box[:2], box[2:]))
    for values, got in zip((motion, mask.astype(np.float64)), found):
        assert got.shape == (2, 4, 6, 6) and got.dtype == np.float32
        for clip, frames in enumerate(numbers):
            pairs = values[frames].reshape(4, 2, 48, 48).mean(1).repeat(20, 1).repeat(20, 2)
            for i in range(6):
                for j in range(6):
                    seen = pairs[:, rows == i][:, :, columns == j].mean((1, 2))
                    np.testing.assert_allclose(got[clip, :, i, j], seen, atol=0.02 * values.max())
    assert found[0].max() > 0 and 0 < found[1].mean() < 1


def test_truth_is_read_once(motions, tmp_path):
    reader, cache = StoreReader(motions), FeatureCache(tmp_path)
    clips = Clips.of(reader, reader.index.in_split("test"), VIEW)
    assert clips.numbers.shape == (16, 3, 8) and (clips.boxes == (3, 3, 42, 42)).all()
    first = read_truth(reader, motions.parent / "videos", clips, (4, 6, 6), cache, "test")
    again = read_truth(reader, tmp_path / "nowhere", clips, (4, 6, 6), cache, "test")
    np.testing.assert_array_equal(first.motion, again.motion), np.testing.assert_array_equal(first.cover, again.cover)
    names = [reader.index.class_name[i] for i in reader.index.in_split("test")]
    energy = first.motion.mean((1, 2, 3, 4))
    assert all((value == 0) == (name == "still") for name, value in zip(names, energy))   # a pan is no motion
    reader.close()


def arguments(store, out, checkpoint, *more):
    return ["--protocol", "controls", "--checkpoint", str(checkpoint), "--store", str(store), "--out", str(out), *FAST,
            *more]


def evaluate(store, out, *more, checkpoint):
    assert run.main(arguments(store, out, checkpoint, *more)) == cli.DONE
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.slow
def test_the_command_prints_the_baselines_beside_the_result(motions, tmp_path, capsys):
    found = evaluate(motions, tmp_path / "one", "--set", "untrained=2", checkpoint="random:r2plus1d_tiny:5")
    maps = {f"{name}_object{part}" for name in ("cam", "aligned") for part in ("", "_mass", "_pointing")}
    probed = {"linear", "knn", "background_r@1", "motion_r@1", "dense", "dense_own_other", "energy", "lookalikes"}
    assert set(found["metrics"]) == set(found["chance"]) == probed | maps
    beside = {"random": probed | maps, "supervised": probed | maps, "mean-image": probed, "prior": maps}
    assert {name: set(values) for name, values in found["beside"].items()} == beside
    assert found["chance"]["linear"] == 12.5 and found["chance"]["background_r@1"] == pytest.approx(100 * 7 / 15)
    assert found["chance"]["motion_r@1"] == pytest.approx(100 * 1 / 15) and found["chance"]["dense"] == 0
    assert found["chance"]["lookalikes"] == pytest.approx(100 / 6) and found["beside"]["mean-image"]["lookalikes"] < 10
    assert found["counts"]["test_backgrounds"] == 2 and found["counts"]["train_videos"] == 32
    line = capsys.readouterr().out.splitlines()[-1]
    for method in ("random", "supervised", "mean-image"):
        assert f"{method} {found['beside'][method]['dense'] / 100:z.2f}" in line
    page = (tmp_path / "one/report.html").read_text()
    assert "baselines beside it" in page and "What the nearest test video shares" in page
    for name in ("controls.png", "probe.png"):
        assert (tmp_path / "one/runs/00-train-test-seed0" / name).read_bytes().startswith(b"\x89PNG")
    kept = kept_compared(tmp_path / "one/runs/00-train-test-seed0/probe.npz")
    assert len(kept) == 6 and len({row.class_name for row in kept}) > 1
    for row in kept:                                     # the truth, this checkpoint, random, supervised, mean image
        assert row.frame.dtype == np.uint8 and row.frame.shape == (42, 42, 3) and row.maps.shape == (5, 6, 6)
        assert row.maps[0].max() > 0


@pytest.mark.slow
def test_baselines_are_kept_for_the_next_checkpoint(motions, tmp_path):
    found = evaluate(motions, tmp_path / "one", checkpoint="random:r2plus1d_tiny:5")
    other = evaluate(motions, tmp_path / "two", checkpoint="random:r2plus1d_tiny:0")
    assert other["beside"] == found["beside"] and other["metrics"] != found["metrics"]
    assert not list((tmp_path / "two").glob("features/*"))        # random:...:0 is one of the untrained of the first


@pytest.mark.slow
def test_two_ranks_find_what_one_does(motions, tmp_path):
    alone = evaluate(motions, tmp_path / "one" / "out", checkpoint="random:r2plus1d_tiny:5")
    master = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(master.port),
             "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "evaluate.run", *arguments(motions, tmp_path / "two" / "out",
                                                                "random:r2plus1d_tiny:5")]
    ranks = [subprocess.Popen(command, env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(2)]
    try:
        said = [process.communicate(timeout=600)[0] for process in ranks]
        assert [process.returncode for process in ranks] == [0, 0], said
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    found = json.loads((tmp_path / "two/out/metrics.json").read_text())
    for name in ("dense", "dense_own_other", "cam_object", "cam_object_mass", "aligned_object", "aligned_object_mass"):
        assert found["metrics"][name] == pytest.approx(alone["metrics"][name], abs=0.5), name
        for method in ("random", "supervised"):
            expected = alone["beside"][method][name]
            assert found["beside"][method][name] == pytest.approx(expected, abs=0.5), (method, name)
    assert found["counts"].keys() == alone["counts"].keys() and found["chance"] == alone["chance"]


@pytest.mark.slow
def test_without_the_truth(motions, tmp_path):
    with pytest.raises(RequestError, match=r"truth.npz is not there \(48 of 48 videos.*controls.truth=false"):
        evaluate(motions, tmp_path / "a", "--set", f"controls.videos={tmp_path}", checkpoint="random:r2plus1d_tiny:0")
    found = evaluate(motions, tmp_path / "a", "--set", "controls.truth=false", "--set", "supervised_steps=0",
                     checkpoint="random:r2plus1d_tiny:0")
    assert set(found["metrics"]) == {"linear", "knn", "background_r@1", "motion_r@1", "lookalikes"}
    assert set(found["beside"]) == {"random", "mean-image"} and not any("with labels" in one for one in found["notes"])
    assert any("too narrow" in note for note in found["notes"])            # every background is before every motion
    moved = shutil.copytree(motions, tmp_path / "moved", ignore=shutil.ignore_patterns("records"))
    with pytest.raises(RequestError, match="does not record where its videos were"):
        evaluate(moved, tmp_path / "b", checkpoint="random:r2plus1d_tiny:0")


def test_what_cannot_be_asked(motions, store, checkpoint, tmp_path):
    with pytest.raises(RequestError, match="holds made-up; expected the synthetic set"):
        evaluate(store, tmp_path / "a", checkpoint=checkpoint)
    with pytest.raises(RequestError, match="controls: mean-image has no backbone"):
        evaluate(motions, tmp_path / "b", checkpoint="mean-image")
    with pytest.raises(RequestError, match="--leave-out group does not apply to controls"):
        evaluate(motions, tmp_path / "c", "--leave-out", "group", checkpoint=checkpoint)
    with pytest.raises(RequestError, match="controls.moments is 1"):
        evaluate(motions, tmp_path / "d", "--set", "moments=1", checkpoint=checkpoint)


def test_few_backgrounds_cannot_tell_videos_apart(motions):
    """The dial: with fewer backgrounds more videos share each, and a neighbour that shares it says less."""
    index, chances = Index.load(motions), {}
    made = Counter((index.group[i], index.class_name[i], index.split_text[i]) for i in range(len(index)))
    for count in (12, 6, 3):
        planned = plan(Dials(48, count, 6, 28, 48, 48, 25, 0))
        places = Counter((video.group, video.label, video.split) for video in planned)
        assert count != 6 or places == made                       # what --set backgrounds=6 has made
        assert len({group for group, *_ in places}) == count and len(places) == min(48, 8 * count)
        chances[count] = probes.chance_shared([video.group for video in planned if video.split == "test"])
    assert chances == {12: pytest.approx(3 / 15), 6: pytest.approx(7 / 15), 3: 1}


@pytest.mark.slow
def test_a_network_of_others_that_sees_motion_alone(motions, tmp_path, monkeypatch):
    """A function gives where pixels change: its positions tell the motion, and no twin of it can be trained."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "moves_of_others.py").write_text(MOVES)
    with pytest.raises(RequestError, match="python:moves_of_others:still gives one vector a clip and no positions"):
        evaluate(motions, tmp_path / "a", checkpoint="python:moves_of_others:still")
    with pytest.raises(RequestError, match="finer has 4x6x6 positions and is looked into at 8x48x48"):
        evaluate(motions, tmp_path / "a", checkpoint="python:moves_of_others:finer")
    found = evaluate(motions, tmp_path / "b", checkpoint="python:moves_of_others:moves")
    assert set(found["beside"]) == {"mean-image", "prior"} and found["metrics"]["dense"] > 30
    assert found["metrics"]["dense"] > found["beside"]["mean-image"]["dense"] + 20
