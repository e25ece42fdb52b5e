"""Twins of a whole store: what they share with it, what they hold, and that nothing is lost or overwritten."""

import shutil

import numpy as np
import pytest

from preprocess import check, cost, noise, run, twins
from preprocess.flow import tvl1
from shared.cli import RequestError
from shared.recipes.preprocessing import recipe_hash
from shared.store.index import Index, read_failures
from shared.store.reader import StoreReader
from shared.store.record import read_json, write_json_atomic
from shared.videos.files import VideoError
from tests.preprocess.test_run import arrays

SERIAL = ["--engine", "serial", "--set", "run.threads=1"]


@pytest.fixture(scope="module", autouse=True)
def one_sample():
    """For the plan, since its cost is asked elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "SAMPLE_VIDEOS", 1)
        yield


@pytest.fixture(scope="module")
def store(small_videos, tmp_path_factory):
    """Five small videos in three packs."""
    base = tmp_path_factory.mktemp("twins")
    (base / "videos").mkdir()
    for label in ("left_right", "up_down", "wave", "still"):
        shutil.copytree(small_videos / label, base / "videos" / label)
    store = base / "store"
    assert run.main(["--dataset", "folder", "--videos", str(base / "videos"), "--store", str(store), "--flow", "cpu",
                     "--set", "packs.videos=2", *SERIAL]) == 0
    return store


@pytest.fixture(scope="module")
def made(store):
    out = store.parent / "made"
    assert twins.main([str(store), "--out", str(out), *SERIAL]) == 0
    return out


def test_all_but_the_pictures_is_the_same(store, made):
    own, twin = Index.load(store), Index.load(made)
    names = ("id", "path", "frames", "label", "class_name", "group", "splits", "fps", "source_height", "source_width")
    assert [[getattr(row, name) for name in names] for row in own.rows()] == \
        [[getattr(row, name) for name in names] for row in twin.rows()]
    one, other = (read_json(place / "store.json") for place in (store, made))
    assert {**one["recipe"]["packs"], "twin_seed": 0} == other["recipe"]["packs"]
    assert one["classes"] == other["classes"] and one["recipe_hash"] != other["recipe_hash"]
    assert check.main([str(made)]) == 0 and read_failures(made) == []
    frames = StoreReader(made).frames(twin.id[0], range(40)).astype(int)
    assert abs(frames.mean((1, 2, 3)) - 127.5).max() < 6 and abs(frames - frames[..., :1]).max() <= 2     # grey
    before = arrays(made)
    assert twins.main([str(store), "--out", str(made), *SERIAL]) == 0 and arrays(made) == before


def test_the_flow_of_the_twin_is_that_of_the_video(store, made):
    """By TV-L1 on the frames that both stores hold, means over four frames, since a twin moves in whole pixels."""
    flows = []
    for place in (store, made):
        reader = StoreReader(place)
        grey = [reader.frames(video, range(37)).mean(-1).astype(np.float32) for video in reader.index.id]
        flow = np.stack([tvl1(one[:-1], one[1:], "fast", "cpu")[..., 8:-8, 8:-8] for one in grey])
        flows.append(flow.reshape(len(grey), 9, 4, *flow.shape[2:]).mean(2))
    own, twin = flows
    length, off = (np.hypot(flow[:, :, 0], flow[:, :, 1]) for flow in (own, own - twin))
    assert off.mean() < 0.65 * length.mean() and np.corrcoef(own.ravel(), twin.ravel())[0, 1] > 0.7


@pytest.mark.slow
def test_seed_and_window(store, made, tmp_path):
    """The same seed: the same bytes, whatever the window; another seed: other noise."""
    assert twins.main([str(store), "--out", str(tmp_path / "same"), *SERIAL, "--set", "run.window=7"]) == 0
    assert arrays(tmp_path / "same") == arrays(made)
    assert twins.main([str(store), "--out", str(tmp_path / "other"), *SERIAL, "--seed", "5"]) == 0
    video = Index.load(made).id[0]
    first, other = (StoreReader(place).frames(video, [3]) for place in (made, tmp_path / "other"))
    assert (first != other).mean() > 0.9
    with pytest.raises(RequestError, match="holds twins of seed 5, asked was 0"):
        twins.main([str(store), "--out", str(tmp_path / "other"), *SERIAL, "--seed", "0"])


@pytest.mark.slow
def test_a_stopped_run_goes_on(store, made, tmp_path, monkeypatch):
    from preprocess import drive

    done, make_pack = [], drive.make_pack

    def stop(task, *more, **named):
        if done:
            raise KeyboardInterrupt
        done.append(task.name)
        return make_pack(task, *more, **named)

    monkeypatch.setattr(drive, "make_pack", stop)
    with pytest.raises(KeyboardInterrupt):
        twins.main([str(store), "--out", str(tmp_path / "out"), *SERIAL])
    monkeypatch.undo()
    assert not list((tmp_path / "out").glob("packs/*/.*")) and len(Index.load(tmp_path / "out")) == 2
    assert twins.main([str(store), "--out", str(tmp_path / "out"), *SERIAL]) == 0
    assert arrays(tmp_path / "out") == arrays(made)


@pytest.mark.slow
def test_a_damaged_video_is_a_failure(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    shard = tmp_path / "store" / Index.load(store).pack_rows()[0].path / "rgb/c.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 255
    shard.write_bytes(data)
    assert twins.main([str(tmp_path / "store"), "--out", str(tmp_path / "out"), *SERIAL]) == 1
    failure, = read_failures(tmp_path / "out")
    assert failure.video in Index.load(store).id and "checksum" in failure.reason
    assert len(Index.load(tmp_path / "out")) == 4 and check.main([str(tmp_path / "out")]) == 0
    shutil.copytree(store, tmp_path / "store", dirs_exist_ok=True)
    assert twins.main([str(tmp_path / "store"), "--out", str(tmp_path / "out"), *SERIAL, "--retry-failed"]) == 0
    assert len(Index.load(tmp_path / "out")) == 5 and read_failures(tmp_path / "out") == []


@pytest.mark.parametrize("more, message", [
    (["--out", "STORE"], "are one or lie in one"), (["--out", "STORE/packs/x"], "are one or lie in one"),
    (["--out", "OUT", "--set", "packs.videos=2"], "follows the store of the videos"),
])
def test_refusals(store, tmp_path, more, message):
    before = arrays(store)
    words = [word.replace("STORE", str(store)).replace("OUT", str(tmp_path / "out")) for word in more]
    with pytest.raises(RequestError, match=message):
        twins.main([str(store), *words, *SERIAL])
    assert arrays(store) == before and not (tmp_path / "out").exists()


def test_twins_and_videos_are_kept_apart(store, made, small_videos):
    with pytest.raises(RequestError, match="holds twins already"):
        twins.main([str(made), "--out", str(made) + "2", *SERIAL])
    with pytest.raises(RequestError, match="only preprocess.twins adds to a store of twins"):
        run.main(["--dataset", "folder", "--videos", str(small_videos), "--store", str(made), *SERIAL])
    shutil.copytree(store, store.parent / "copy")
    with pytest.raises(RequestError, match="holds videos, not twins"):
        twins.main([str(store), "--out", str(store.parent / "copy"), *SERIAL])


def test_messages_name_out(store, made, tmp_path):
    (file := tmp_path / "file").touch()
    with pytest.raises(RequestError, match="--out .*file is a file; expected a folder"):
        twins.main([str(store), "--out", str(file), *SERIAL])
    with pytest.raises(RequestError, match="flow.backend: stored 'cpu', asked 'opencv'.*or another --out$"):
        twins.main([str(store), "--out", str(made), "--flow", "opencv", *SERIAL])


def test_twins_of_videos_made_otherwise_are_refused(store, made, tmp_path):
    """The same ids and lengths, from a store of another flow."""
    other = tmp_path / "other"
    shutil.copytree(store, other)
    described = read_json(other / "store.json")
    described["recipe"]["flow"]["warps"] += 1
    write_json_atomic(other / "store.json", described | {"recipe_hash": recipe_hash(described["recipe"])})
    with pytest.raises(RequestError, match="made otherwise: flow.warps: stored .*; choose another --out"):
        twins.main([str(other), "--out", str(made), *SERIAL])


def test_a_video_that_the_store_has_lost_is_a_failure(store, tmp_path):
    (gone, *_), generation = Index.load(store).id, Index.load(store).generation
    twin = noise.Twin(store, generation, gone + "x", None, 0)
    with pytest.raises(VideoError, match="does not hold it any more"):
        twin.probe()
    with pytest.raises(VideoError, match="does not hold it any more"), twin.open(8):
        pass


@pytest.mark.slow
def test_stored_flow_is_taken(store, made, tmp_path, monkeypatch):
    """Of half the size and of half precision, it moves most of the noise alike."""
    other = tmp_path / "store"
    assert run.main(["--dataset", "folder", "--videos", str(store.parent / "videos"), "--store", str(other), "--flow",
                     "cpu", "--set", "packs.videos=2", "--set", "packs.flow=true", *SERIAL]) == 0
    monkeypatch.setattr(noise, "with_flow", None)
    assert twins.main([str(other), "--out", str(tmp_path / "out"), *SERIAL]) == 0
    one, other = (StoreReader(place).frames("wave/wave_0006.mp4", range(24)) for place in (made, tmp_path / "out"))
    assert (one[0] == other[0]).all() and (one == other).mean() > 0.6
