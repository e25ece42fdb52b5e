"""Features against the slow obvious version; the cache by its key, its damage and its reuse; two processes as one."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.features import vectors
from evaluate.features.cache import FeatureCache
from evaluate.features.encoders import open_encoder, weights_hash
from evaluate.features.extract import View, extract
from evaluate.features.handmade import FrameDifference, MeanImage, MotionHistory
from evaluate.protocol import load_settings
from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.clips.resampling import MEAN, STD, resize
from shared.nn import checkpoint as checkpoints
from shared.nn.distributed import World
from shared.recipes.training import load_training
from shared.store.chunks import crc32c
from shared.store.layout import StoreError
from shared.store.reader import StoreReader
from shared.store.record import read_json, write_json_atomic

SETTINGS = load_settings("linear", ["clips=3", "run.batch=2", "run.threads=1", "run.workers=2", "run.device=cpu"])


@pytest.fixture(scope="module")
def encoder():
    return open_encoder("random:r2plus1d_tiny:3")


@pytest.fixture
def get(store, encoder, tmp_path):
    """get(split, encoder=, settings=, cache=) -> Features of the module's store."""
    def found(split="train", encoder=encoder, settings=SETTINGS, cache=tmp_path / "cache", beside=(), where=store):
        view = View.of(settings.features, encoder)
        return extract(encoder, where, split, view, settings.run, FeatureCache(cache, beside), World())
    return found


def slowly(encoder, store, video, clips, geometry, size, short_edge):
    """The feature of one video as docs/method.md 1.7 says it, a clip after the other in float64."""
    reader = StoreReader(store)
    count = int(reader.index.frames[reader.index.position(video)])
    span = (geometry.length - 1) * geometry.stride + 1
    net = encoder.net.double()
    total = 0
    for k in range(clips):
        start = round(k * max(count - span, 0) / max(clips - 1, 1))
        numbers = [(start + i * geometry.stride) % count for i in range(geometry.length)]
        frames = np.stack([reader.frames(video, [number])[0] for number in numbers])
        side = round(min(frames.shape[1:3]) * size / short_edge)
        top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
        clip = resize(torch.from_numpy(frames[:, top:top + side, left:left + side].copy()), size).double()
        for channel in range(3):
            clip[channel] = (clip[channel] - MEAN[channel]) / STD[channel]
        with torch.no_grad():
            total = total + net(clip[None])[0]
    encoder.net.float()
    return (total / clips).numpy()


@pytest.mark.slow
def test_against_the_slow_version(get, store, encoder):
    found = get("train")
    assert found.looped == 1 and len(found) == 9 and found.clips == 25
    for video, vector in zip(found.ids, found.vectors):
        expected = slowly(encoder, store, video, 3, ClipGeometry(8, 2), 48, 55)
        np.testing.assert_allclose(vector, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


def test_labels_groups_and_order_are_the_stores(get, store):
    found, index = get("test"), StoreReader(store).index
    rows = [index.row(video) for video in found.ids]
    assert all("test" in row.splits for row in rows) and len(rows) == 9
    assert found.labels.tolist() == [row.label for row in rows] and found.classes == ["a", "b", "c"]
    assert found.groups == [row.group for row in rows]


@given(st.integers(1, 400), st.integers(1, 30), st.integers(1, 8), st.integers(1, 4))
def test_clips_lie_evenly_and_each_frame_is_read_once(count, clips, length, stride):
    view = View(clips, ClipGeometry(length, stride), 48, 55)
    distinct, places, weights = view.frames(count)
    numbers = distinct[places]
    assert weights.sum() == clips and len(set(distinct.tolist())) == len(distinct)
    assert 0 <= distinct.min() <= distinct.max() < count
    span = view.geometry.span
    if count >= span:
        starts = numbers[:, 0]
        assert (np.diff(numbers, axis=1) == stride).all()
        if clips > 1:
            assert starts[0] == 0 and starts[-1] == count - span
            gaps = np.diff(np.repeat(starts, weights))
            assert gaps.max() - gaps.min() <= 1
    else:
        np.testing.assert_array_equal(numbers, [[i * stride % count for i in range(length)]])


def test_the_same_twice_comes_from_the_cache(get, encoder, monkeypatch):
    first = get("train")
    monkeypatch.setattr(encoder.net, "forward", None)      # a second extraction would fail
    second = get("train")
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert first.clips > 0 and second.clips == 0


def test_splits_share_the_videos_that_they_share(get, encoder):
    train, test = get("train"), get("test")
    everything = get(None)
    assert everything.clips == 0 and len(everything) == 18
    both = {**dict(zip(train.ids, train.vectors)), **dict(zip(test.ids, test.vectors))}
    np.testing.assert_array_equal(everything.vectors, [both[video] for video in everything.ids])


def test_features_beside_are_used(get, tmp_path):
    get("train", cache=tmp_path / "one" / "features")
    assert get("train", cache=tmp_path / "two" / "features", beside=[tmp_path / "one" / "features"]).clips == 0


@pytest.mark.slow
@pytest.mark.parametrize("part_s", [0, 300])
def test_an_interrupted_extraction_goes_on(get, encoder, monkeypatch, tmp_path, part_s):
    whole = get("train", cache=tmp_path / "whole")
    monkeypatch.setattr(vectors, "PART_S", part_s)
    forward, calls = encoder.net.forward, []

    def break_off(clips):
        calls.append(len(clips))
        if len(calls) > 9:
            raise KeyboardInterrupt
        return forward(clips)
    monkeypatch.setattr(encoder.net, "forward", break_off)
    with pytest.raises(KeyboardInterrupt):
        get("train")
    monkeypatch.setattr(encoder.net, "forward", forward)
    again = get("train")
    assert 0 < again.clips <= whole.clips - sum(calls[:-1]) + 2        # only the video under way was lost
    np.testing.assert_allclose(again.vectors, whole.vectors, rtol=1e-6)
    assert len(list((tmp_path / "cache").glob("*/*"))) == 2 and get("train").clips == 0


@pytest.mark.parametrize("change", ["checkpoint", "clips", "view"])
def test_another_key_is_computed_anew(get, change):
    get("train")
    if change == "checkpoint":
        again = get("train", encoder=open_encoder("random:r2plus1d_tiny:4"))
    else:
        changes = {"clips": 2} if change == "clips" else {"size": 32}
        again = get("train", settings=replace(SETTINGS, features=replace(SETTINGS.features, **changes)))
    assert again.clips > 0


@pytest.mark.parametrize("damage", ["flip", "cut", "no json", "torn json", "other"])
def test_a_damaged_cache_is_computed_anew(get, tmp_path, damage):
    good = np.array(get("train").vectors)
    vectors, = (tmp_path / "cache").glob("*/*.npy")
    document = vectors.with_suffix(".json")
    if damage == "flip":
        data = bytearray(vectors.read_bytes())
        data[-5] ^= 1
        vectors.write_bytes(data)
    elif damage == "cut":
        vectors.write_bytes(vectors.read_bytes()[:-100])
    elif damage == "no json":
        document.unlink()
    elif damage == "torn json":
        document.write_bytes(document.read_bytes()[:-30])
    else:
        np.save(vectors, np.zeros_like(good))
    again = get("train")
    assert again.clips > 0
    np.testing.assert_array_equal(again.vectors, good)
    assert get("train").clips == 0
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_nothing_half_written_stays_when_a_video_is_damaged(get, store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "store")
    shard = next(path for path in copy.glob("packs/*/*/rgb/**/*") if path.is_file() and path.name != "zarr.json")
    data = bytearray(shard.read_bytes())
    for place in range(len(data) // 2, len(data) * 3 // 4, 200):     # in many frames, of which some are read
        data[place] ^= 255
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="pack pack0, video"):
        get("train", where=copy)
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_the_backbone_does_not_move(get, store, checkpoint, tmp_path):
    encoder = open_encoder(str(checkpoint))
    before = weights_hash(encoder.net)
    parameters = [parameter.clone() for parameter in encoder.net.parameters()]
    get("train", encoder=encoder)
    assert weights_hash(encoder.net) == before and not encoder.net.training
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(parameters, encoder.net.parameters()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_features_that_are_not_finite_are_refused(get, store, checkpoint, tmp_path, value):
    """1e38: every weight is finite, and the features overflow."""
    state = torch.load(checkpoint, weights_only=True)
    name = next(key for key in state["learner"] if key.endswith("weight"))
    state["learner"][name].fill_(value)
    path = tmp_path / "last.pt"
    checkpoints.save(path, state)
    with pytest.raises(RequestError) as refused:
        get("train", encoder=open_encoder(path))
    text = str(refused.value)
    assert f"checkpoint {path}: the features of video 'a1' are not finite numbers" in text and "\n" not in text
    assert ("too large" if value == 1e38 else f"{name[15:]} among them") in text
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_cache_that_holds_such_features_is_passed_over(get, tmp_path):
    good = np.array(get("train").vectors)
    vectors, = (tmp_path / "cache").glob("*/*.npy")
    document = read_json(vectors.with_suffix(".json"))
    bad = good.copy()
    bad[3, 5] = np.nan
    np.save(vectors, bad)
    write_json_atomic(vectors.with_suffix(".json"), document | {"crc32c_vectors": crc32c(bad)})
    again = get("train")
    assert again.clips > 0
    np.testing.assert_array_equal(again.vectors, good)


def test_threads_and_batches_change_nothing(get, tmp_path):
    one = get("train")
    run = replace(SETTINGS.run, workers=0, batch=7)
    other = get("train", settings=replace(SETTINGS, run=run), cache=tmp_path / "other")
    np.testing.assert_allclose(one.vectors, other.vectors, rtol=1e-4, atol=1e-4 * np.abs(one.vectors).max())


@pytest.mark.slow
def test_frames_of_a_2d_net(get):
    found = get("train", encoder=open_encoder("random:i2d"),
                settings=replace(SETTINGS, features=replace(SETTINGS.features, size=64)))
    assert found.vectors.shape == (9, 1024) and np.isfinite(found.vectors).all() and found.looped == 0


def test_mean_image_is_the_mean_over_the_frames():
    x = torch.randn(2, 3, 4, 64, 64)
    expected = x.mean(2).reshape(2, 3, 32, 2, 32, 2).mean((3, 5)).flatten(1)
    torch.testing.assert_close(MeanImage()(x), expected)


def test_handmade_motion_is_where_grey_levels_change():
    """A square of 16 px steps right by its own size at every frame over a flat ground, 80 grey levels above it."""
    clip = torch.full((1, 3, 4, 64, 64), 0.2)
    for frame in range(4):
        clip[:, :, frame, 16:32, 16 * frame:16 * frame + 16] += 80 / 255
    x = (clip - torch.tensor(MEAN).view(1, 3, 1, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1, 1)
    changes = torch.zeros(3, 16, 16)                      # between two frames the old place and the new one change
    for step in range(3):
        changes[step, 4:8, 4 * step:4 * step + 8] = 1
    torch.testing.assert_close(FrameDifference()(x), 80 * changes.mean(0).view(1, -1), atol=1e-3, rtol=1e-5)
    history, faded = torch.zeros(16, 16), []
    for moved in changes:
        history = torch.where(moved > 0, 1.0, (history - 1 / 3).clamp(min=0))
        faded.append(history)
    torch.testing.assert_close(MotionHistory()(x), torch.stack(faded).mean(0).view(1, -1))
    assert not FrameDifference()(x[:, :, :1].repeat(1, 1, 4, 1, 1)).any()
    for name in ("frame-difference", "motion-history"):
        with pytest.raises(RequestError, match=f"{name} sees no motion in single frames, and the clip is 1x1"):
            open_encoder(name).check_view(ClipGeometry.parse("1x1"), 64)


def test_untrained_networks_follow_their_seed():
    state = torch.get_rng_state()
    hashes = [open_encoder(text, seed=seed).sha256 for text, seed in
              [("random:r2plus1d_tiny:1", 0), ("random:r2plus1d_tiny", 1), ("random:r2plus1d_tiny", 2)]]
    assert hashes[0] == hashes[1] != hashes[2] and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name, view", [
    ("slow_tiny", ("4x4", 48)), pytest.param("slow_50", ("8x8", 224), marks=pytest.mark.slow)])
def test_an_untrained_pathway_of_maclr_has_the_view_of_its_pipeline(name, view):
    encoder, trained = open_encoder(f"random:{name}"), load_training("maclr-tiny" if "tiny" in name else "maclr").recipe
    assert (encoder.clip, encoder.size) == (trained.sampling.clip, trained.sampling.size) == view
    assert trained.model.backbone == name


@pytest.mark.parametrize("settings, message", [
    (["clip=8by2"], "features.clip: clip geometry '8by2'"), (["size=48", "short_edge=40"], "holds the centre crop"),
    (["short_edge=40"], "short_edge is 40 px and the view 48 px"), (["clips=0"], "features.clips is 0"),
    (["clip=8x2", "siz=48"], "did you mean 'size'"),
    (["block=9"], "setting block: linear does not read it, retrieval, background would"),
])
def test_settings_that_cannot_be(encoder, settings, message):
    with pytest.raises(RequestError, match=message):
        View.of(load_settings("linear", settings).features, encoder)


@pytest.mark.parametrize("name, clip, message", [("i2d", "8x2", "takes single frames"),
                                                 ("r2plus1d_18", "1x1", None), ("r2plus1d_50", "2x1", "cannot take")])
def test_clips_that_a_net_cannot_take(name, clip, message):
    settings, encoder = load_settings("linear", [f"clip={clip}", "size=64"]), open_encoder(f"random:{name}")
    if message is None:
        assert View.of(settings.features, encoder).size == 64
        return
    with pytest.raises(RequestError, match=message):
        View.of(settings.features, encoder)


RANK = """
import os, sys, json
import numpy as np
from dataclasses import replace
from evaluate.features.encoders import open_encoder
from evaluate.features.cache import FeatureCache
from evaluate.features.extract import View, extract
from evaluate.protocol import load_settings
from shared.nn.distributed import close_world, open_world
import torch
torch.set_num_threads(1)
world = open_world("cpu")
settings = load_settings("linear", ["clips=3", "run.workers=1"])
encoder = open_encoder("random:r2plus1d_tiny:3")
view = View.of(settings.features, encoder)
store, cache = sys.argv[1:3]
for split in ("train", None, "train"):
    found = extract(encoder, store, split, view, settings.run, FeatureCache(cache), world)
    if world.main:
        print(json.dumps([split, found.clips, np.asarray(found.vectors).tolist()]))
close_world(world)
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(get, store, tmp_path):
    shared = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(shared.port),
             "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(store), str(tmp_path / "ranks")], text=True,
                              env={**place, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
             for rank in range(2)]
    try:
        answers = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], answers
    (_, clips, train), (_, rest, everything), (_, again, _) = map(json.loads, answers[0][0].splitlines())
    assert clips == 25 and rest == 27 and again == 0
    np.testing.assert_allclose(train, get("train").vectors, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(everything, get(None).vectors, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_features_on_the_gpu_are_the_cpus(gpu, get):
    here, there = get("train"), get("train", encoder=open_encoder("random:r2plus1d_tiny:3", gpu))
    np.testing.assert_allclose(there.vectors, here.vectors, rtol=1e-3, atol=1e-4 * np.abs(here.vectors).max())
