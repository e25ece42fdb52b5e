"""Features as files: against the evaluation's own, of video files against a store's, over stops, growth and ranks."""

import contextlib
import csv
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate import embed, export
from evaluate.embedding import files, kept, work
from evaluate.features.cache import FeatureCache
from evaluate.features.encoders import open_encoder
from evaluate.features.extract import View, extract
from evaluate.protocol import load_settings
from shared import cli
from shared.cli import RequestError, Stopped
from shared.nn import checkpoint as checkpoints
from shared.nn.distributed import World
from shared.store.index import Index, publish
from shared.store.place import as_place
from shared.store.reader import StoreReader
from shared.store.record import read_json
from shared.videos.decode import open_video, probe
from shared.videos.files import VideoError

FAST = ["--set", "run.threads=1", "--set", "run.device=cpu", "--set", "clips=3", "--set", "run.workers=1"]


def table(out) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "videos.csv").read_text())))


def failed(out) -> dict[str, str]:
    rows = csv.DictReader(io.StringIO((out / "failures.csv").read_text()))
    return {row["video"]: row["reason"] for row in rows}


@pytest.fixture
def call(checkpoint, tmp_path):
    """call("--store", store, ..., out=, checkpoint=) -> (exit code, OUT)"""
    def made(*argv, out=tmp_path / "out", checkpoint=checkpoint):
        code = embed.main(["--checkpoint", str(checkpoint), "--out", str(out), *FAST, *map(str, argv)])
        return code, out
    return made


@pytest.fixture(scope="module")
def videos(tmp_path_factory, film, make_video):
    """A folder of four films of 24 to 40 frames in two classes, one of them at the root."""
    root = tmp_path_factory.mktemp("films") / "videos"
    for i, name in enumerate(("a/one.mp4", "a/two.mp4", "b/three.mp4", "four.mp4")):
        film(root / name, make_video(24 + 5 * i, i, (60 - 40 * i, 20 * i, -30)))
    return root


# ---- of a store

@pytest.mark.slow
def test_they_are_those_of_the_evaluation(call, store, checkpoint, tmp_path):
    code, out = call("--store", store)
    settings = load_settings("linear", ["clips=3", "run.device=cpu", "run.threads=1"])
    encoder = open_encoder(checkpoint)
    found = extract(encoder, store, None, View.of(settings.features, encoder), settings.run,
                    FeatureCache(tmp_path / "cache"), World())
    vectors = np.load(out / "features.npy")
    assert code == cli.DONE and vectors.dtype == np.float32 and vectors.shape == (18, 48)
    np.testing.assert_allclose(vectors, found.vectors, rtol=1e-5, atol=1e-6)
    index = Index.load(store)
    assert [list(row.values()) for row in table(out)] == [
        [row.id, row.path, row.class_name, ";".join(row.splits), str(row.frames)] for row in index.rows()]
    assert (out / "videos.csv").read_text().startswith("id,path,label,split,frames\n")
    document = read_json(out / "embed.json")
    assert document["checkpoint"]["pipeline"] == "mcl-tiny" and len(document["checkpoint"]["sha256"]) == 64
    assert document["request"]["view"] == {"clips": 3, "clip": "8x2", "size": 48, "short_edge": 55}
    assert document["source"]["index"] == index.generation and "torch" in document["versions"]
    assert document["order"].startswith("row i of features.npy belongs to line i of videos.csv")
    assert sorted(path.name for path in out.iterdir()) == [".lock", "embed.json", "features.npy", "videos.csv"]


def test_of_every_clip(call, store, tmp_path):
    _, whole = call("--store", store, out=tmp_path / "whole")
    _, out = call("--store", store, "--per", "clip", "--format", "parquet")
    rows, vectors = table(out), np.load(out / "features.npy")
    assert len(rows) == len(vectors) == 17 * 3 + 1               # a5 is one looped clip
    assert [row["start"] for row in rows if row["id"] == "a0"] == ["0", "4", "9"]       # 24 frames, clips of 15
    for video, mean in zip(table(whole), np.load(whole / "features.npy")):
        own = vectors[[row["id"] == video["id"] for row in rows]]
        np.testing.assert_allclose(own.mean(0), mean, rtol=1e-4, atol=1e-5)

    from pyarrow import parquet
    found = parquet.read_table(out / "features.parquet")
    assert found.column_names == ["id", "path", "label", "split", "frames", "start", "features"]
    np.testing.assert_array_equal(np.stack(found["features"].to_numpy()), vectors)
    assert [{name: str(value) for name, value in row.items()} for row in found.drop(["features"]).to_pylist()] == rows


def test_clips_every_so_many_frames(call, store):
    _, out = call("--store", store, "--per", "clip", "--step", 4)
    starts = {}
    for row in table(out):
        starts.setdefault(row["id"], []).append(int(row["start"]))
    index = Index.load(store)
    assert starts == {row.id: list(range(0, max(row.frames - 15, 0) + 1, 4)) for row in index.rows()}
    assert read_json(out / "embed.json")["request"]["view"]["step"] == 4


def test_new_labels_need_no_new_features(call, store, tmp_path, monkeypatch):
    copy = shutil.copytree(store, tmp_path / "store")
    _, out = call("--store", copy)
    before, index = np.load(out / "features.npy"), Index.load(copy)
    publish(copy, index.pack_rows(), [replace(row, class_name="new", splits=()) for row in index.rows()])
    monkeypatch.setattr(StoreReader, "frames", None)             # reading would fail
    code, _ = call("--store", copy)
    assert code == cli.DONE and {(row["label"], row["split"]) for row in table(out)} == {("new", "")}
    np.testing.assert_array_equal(np.load(out / "features.npy"), before)


def test_a_damaged_store_stops_it(call, store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "store")
    shard = next(copy.glob("packs/*/*/rgb/c*"))
    data = bytearray(shard.read_bytes())
    for place in range(len(data) // 2, len(data) * 3 // 4, 200):
        data[place] ^= 255
    shard.write_bytes(data)
    with pytest.raises(Stopped, match="pack pack0, video .*preprocess.check"):
        call("--store", copy)
    assert not (tmp_path / "out" / "features.npy").exists() and not list((tmp_path / "out").rglob("*.partial"))


# ---- of video files

@pytest.mark.slow
def test_video_files_give_what_their_store_gives(call, videos, pack, tmp_path):
    annotations = tmp_path / "annotations.csv"
    annotations.write_text("path\n" + "".join(f"{path.relative_to(videos)}\n" for path in videos.rglob("*.mp4")))
    store = pack("folder", videos, annotations, tmp_path / "store")
    code, ours = call("--videos", videos)
    _, theirs = call("--store", store, out=tmp_path / "theirs")
    assert code == cli.DONE
    names = [(row["id"], row["path"], row["frames"]) for row in table(ours)]
    assert names == [(row["id"], row["path"], row["frames"]) for row in table(theirs)] and len(names) == 4
    assert [row["label"] for row in table(ours)] == ["a", "a", "b", ""]
    one, two = (np.load(out / "features.npy") for out in (ours, theirs))
    cosine = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert cosine.min() > 0.999 and not np.array_equal(one, two)          # the store's frames went through JPEG


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_videos_are_rows_and_end_nothing(call, videos, film, make_video, tmp_path, workers):
    folder = shutil.copytree(videos, tmp_path / "videos")
    film(folder / "cut.avi", make_video(60, 9), codec="libx264")
    data = bytearray((folder / "cut.avi").read_bytes())
    (folder / "cut.avi").write_bytes(data[:len(data) * 3 // 4])
    (folder / "a" / "text.mp4").write_text("no video")
    (folder / "empty.mkv").touch()
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere")
    code, out = call("--videos", folder, "--set", f"run.workers={workers}")
    assert code == cli.FAILURES
    reasons = failed(out)
    assert {"a/text.mp4", "empty.mkv", "gone.mp4"} <= set(reasons) <= {"a/text.mp4", "empty.mkv", "gone.mp4", "cut.avi"}
    assert reasons["empty.mkv"] == "empty file (0 bytes)" and "no such file" in reasons["gone.mp4"]
    good = {row["id"]: int(row["frames"]) for row in table(out)}
    assert set(good) - {"cut.avi"} == {"a/one.mp4", "a/two.mp4", "b/three.mp4", "four.mp4"}
    assert good.get("cut.avi", 9) < 60
    (folder / "a" / "text.mp4").unlink()
    (folder / "empty.mkv").unlink()
    (folder / "gone.mp4").unlink()
    code, _ = call("--videos", folder, "--set", f"run.workers={workers}")
    assert code == (cli.FAILURES if "cut.avi" in reasons else cli.DONE)      # what was damaged still is
    assert set(failed(out)) == {"cut.avi"} & set(reasons)


@pytest.mark.slow
def test_the_longest_good_run_of_damaged_files_is_used(call, data_root, tmp_path):
    """The same frames as a store keeps of them."""
    folder = tmp_path / "videos"
    shutil.copytree(data_root / "cases" / "one_bad_packet", folder, ignore=shutil.ignore_patterns("README*"))
    code, out = call("--videos", folder)
    kept_frames = {"garbchunk.avi": range(0, 25), "h264zero20.mp4": range(24, 50), "mjzero.avi": range(6, 25)}
    assert code == cli.FAILURES and {row["id"]: int(row["frames"]) for row in table(out)} == {
        name: len(frames) for name, frames in kept_frames.items()}
    for name, frames in kept_frames.items():
        assert failed(out)[name].endswith(f"its good frames {frames[0]} to {frames[-1]} are used")
        windows = []
        with open_video(folder / name, first=frames[0]) as decoder, contextlib.suppress(VideoError):
            windows.extend(decoder)
        settings = load_settings("linear", ["clips=3"])
        encoder = open_encoder(read_json(out / "embed.json")["checkpoint"]["file"])
        with torch.no_grad():
            clips = View.of(settings.features, encoder)(np.concatenate(windows))
            expected = encoder.net(clips).mean(0).numpy()
        row = list(kept_frames).index(name)
        np.testing.assert_allclose(np.load(out / "features.npy")[row], expected, rtol=1e-4, atol=1e-5)


def test_a_video_that_ends_its_decoder_is_a_row(call, videos, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE_S", 0)                 # as one that hangs
    code, out = call("--videos", videos)
    assert code == cli.FAILURES and np.load(out / "features.npy").shape == (0, 48)
    assert set(failed(out).values()) == {"took more than 0 s"} and len(failed(out)) == 4


def test_headers_that_lie_about_the_length(call, videos, checkpoint, monkeypatch, tmp_path):
    """The clips are those of the true length, whatever was expected."""
    _, right = call("--videos", videos, out=tmp_path / "right")
    for frames in (5, 300):
        monkeypatch.setattr(files, "probe", lambda *file, frames=frames: replace(probe(*file), frames=frames))
        code, out = call("--videos", videos, "--set", "run.workers=0", out=tmp_path / f"lie{frames}")
        assert code == cli.DONE and table(out) == table(right)
        np.testing.assert_array_equal(np.load(out / "features.npy"), np.load(right / "features.npy"))


@pytest.mark.slow
def test_new_videos_alone_are_computed(call, videos, film, make_video, tmp_path, capsys):
    folder = shutil.copytree(videos, tmp_path / "videos")
    _, out = call("--videos", folder)
    before = dict(zip((row["id"] for row in table(out)), np.load(out / "features.npy")))
    assert "4 videos computed" in capsys.readouterr().out
    film(folder / "a" / "new.mp4", make_video(30, 7))
    (folder / "four.mp4").unlink()
    film(folder / "a" / "two.mp4", make_video(33, 8))            # another film of the same name
    call("--videos", folder)
    assert "2 videos computed" in capsys.readouterr().out
    after = dict(zip((row["id"] for row in table(out)), np.load(out / "features.npy")))
    assert list(after) == ["a/new.mp4", "a/one.mp4", "a/two.mp4", "b/three.mp4"]
    assert [name for name in after if name in before and np.array_equal(before[name], after[name])] == \
        ["a/one.mp4", "b/three.mp4"]
    call("--videos", folder)
    assert "all were there" in capsys.readouterr().out


# ---- stops

RUN = """
import sys
from evaluate import embed
from evaluate.embedding import kept
kept.PART_S = 0
from shared import cli
cli.command(embed.main)
"""


def started(argv, **settings):
    return subprocess.Popen([sys.executable, "-c", RUN, *map(str, argv), *FAST], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **settings)


@pytest.mark.slow
def test_a_killed_run_goes_on(call, store, checkpoint, tmp_path, capsys):
    _, whole = call("--store", store, out=tmp_path / "whole")
    out = tmp_path / "killed"
    run = started(["--checkpoint", checkpoint, "--store", store, "--out", out])
    until = time.monotonic() + 300
    while not list(out.glob("parts/*.json")) and time.monotonic() < until and run.poll() is None:
        time.sleep(0.01)
    run.kill()
    said = run.communicate(timeout=300)
    assert not (out / "features.npy").exists(), said
    check_resumed(call, store, out, whole, capsys)


def check_resumed(call, store, out, whole, capsys):
    done = sum(len(read_json(path)["rows"]) for path in out.glob("parts/*.json"))
    capsys.readouterr()
    call("--store", store, out=out)
    assert 0 < done < 18 and f"{18 - done} video" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(out / "features.npy"), np.load(whole / "features.npy"))
    assert table(out) == table(whole) and not (out / "parts").exists() and not list(out.glob(".*.partial"))


def test_a_full_disk_is_named_and_what_follows_goes_on(call, store, tmp_path):
    """A limit on the size of files stands for the disk: numpy's own writing would say no errno."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="File too large") as caught:
            call("--store", store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno in cli.FULL and caught.value.filename.startswith(str(tmp_path / "out/parts"))
    assert call("--store", store)[0] == 0


def test_an_interrupted_run_keeps_what_it_has(call, store, tmp_path, monkeypatch, capsys):
    _, whole = call("--store", store, out=tmp_path / "whole")
    vectors, calls = work.clip_vectors, []

    def break_off(*args):
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        return vectors(*args)
    monkeypatch.setattr(work, "clip_vectors", break_off)
    with pytest.raises(KeyboardInterrupt):
        call("--store", store)
    monkeypatch.undo()
    assert len(list((tmp_path / "out").glob("parts/*.json"))) == 1
    check_resumed(call, store, tmp_path / "out", whole, capsys)


@pytest.mark.parametrize("damage", ["vectors", "json", "both gone"])
def test_a_part_that_is_not_whole_is_computed_anew(call, store, tmp_path, monkeypatch, damage, capsys):
    _, whole = call("--store", store, out=tmp_path / "whole")
    monkeypatch.setattr(kept, "PART_S", 0)
    monkeypatch.setattr(kept.Kept, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("--store", store)
    monkeypatch.undo()
    out = tmp_path / "out"
    assert len(list(out.glob("parts/*.json"))) == 18
    vectors, document = out / "parts" / "000004.npy", out / "parts" / "000004.json"
    if damage == "vectors":
        data = bytearray(vectors.read_bytes())
        data[-7] ^= 1
        vectors.write_bytes(data)
    elif damage == "json":
        document.write_bytes(document.read_bytes()[:-30])
        with pytest.raises(RequestError, match="000004.json is not what this command wrote, or is damaged"):
            call("--store", store)
        document.unlink()
    else:
        vectors.unlink()
        document.unlink()
    capsys.readouterr()
    call("--store", store)
    assert "1 video computed" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(out / "features.npy"), np.load(whole / "features.npy"))


@pytest.mark.slow
def test_two_processes_find_what_one_does(call, videos, checkpoint, tmp_path):
    _, one = call("--videos", videos)
    torchrun, two = Path(sys.executable).with_name("torchrun"), tmp_path / "two"
    argv = [torchrun, "--standalone", "--nproc-per-node", "2", "-m", "evaluate.embed", "--checkpoint", checkpoint,
            "--videos", videos, "--out", two, *FAST]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^done: ", done.stdout, re.MULTILINE)) == 1
    np.testing.assert_array_equal(np.load(one / "features.npy"), np.load(two / "features.npy"))
    assert table(one) == table(two) and read_json(two / "embed.json")["processes"] == 2


# ---- object storage

@pytest.mark.slow
def test_from_and_to_object_storage(call, store, bucket, tmp_path, monkeypatch, capsys):
    import s3fs
    s3fs.S3FileSystem().put(str(store), f"{bucket}/store", recursive=True)
    _, here = call("--store", store, out=tmp_path / "here")
    monkeypatch.setattr(kept, "PART_S", 0)
    finish = kept.Kept.finish
    monkeypatch.setattr(kept.Kept, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("--store", f"{bucket}/store", out=f"{bucket}/out")
    monkeypatch.setattr(kept.Kept, "finish", finish)
    capsys.readouterr()
    code, _ = call("--store", f"{bucket}/store", "--format", "parquet", out=f"{bucket}/out")
    assert code == cli.DONE and "all were there" in capsys.readouterr().out
    there = tmp_path / "there"
    s3fs.S3FileSystem().get(f"{bucket}/out/", str(there), recursive=True)
    assert sorted(path.name for path in there.iterdir()) == ["embed.json", "features.npy", "features.parquet",
                                                             "videos.csv"]
    np.testing.assert_array_equal(np.load(there / "features.npy"), np.load(here / "features.npy"))
    assert table(there) == table(here)
    assert embed.main(["--out", f"{bucket}/out", "--query", "a1", "-k", "2"]) == cli.DONE
    assert (as_place(bucket) / "out/neighbours-a1.png").exists()


@pytest.mark.slow
def test_video_files_on_object_storage(call, videos, film, make_video, bucket, tmp_path, monkeypatch, capsys):
    """As from a folder, and from a tar there; what has changed is read again, what is gone is a row."""
    import s3fs
    folder, url = shutil.copytree(videos, tmp_path / "videos"), f"{bucket}/videos"
    (folder / "a" / "text.mp4").write_text("no video")
    (folder / "a" / ".hidden.mp4").touch()
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir" / "one.mp4").touch()
    (folder / "annotations.csv").write_text("path,label,split\na/one.mp4,x,val\na/text.mp4,x,val\na/two.mp4,x,val\n"
                                            "b/three.mp4,y,val\nfour.mp4,y,val\n")
    bucket_files = s3fs.S3FileSystem()
    bucket_files.put(str(folder), url, recursive=True)
    list_videos = files.open_catalog
    code, here = call("--videos", folder, "--set", "run.workers=0", out=tmp_path / "here")
    assert code == cli.FAILURES and call("--videos", url, "--set", "run.workers=0")[0] == cli.FAILURES
    out = tmp_path / "out"
    np.testing.assert_array_equal(np.load(out / "features.npy"), np.load(here / "features.npy"))
    assert table(out) == table(here) and {row["label"] for row in table(out)} == {"x", "y"}
    assert failed(out) == failed(here) and set(failed(out)) == {"a/text.mp4"}
    subprocess.run(["tar", "-cf", tmp_path / "all.tar", "-C", folder, "."], check=True)
    bucket_files.put(str(tmp_path / "all.tar"), f"{bucket}/shards/all.tar")
    _, packed = call("--videos", f"{bucket}/shards/*.tar", "--set", "run.workers=0", out=tmp_path / "packed")
    np.testing.assert_array_equal(np.load(packed / "features.npy"), np.load(here / "features.npy"))
    assert [row["id"] for row in table(packed)] == [f"all.tar/{row['id']}" for row in table(here)]

    film(tmp_path / "good.mp4", make_video(30, 7))
    bucket_files.put(str(tmp_path / "good.mp4"), f"{url}/a/text.mp4")
    film(tmp_path / "new.mp4", make_video(31, 8))
    bucket_files.put(str(tmp_path / "new.mp4"), f"{url}/four.mp4")

    def list_then_lose(*args):
        found = list_videos(*args)
        bucket_files.rm(f"{url}/four.mp4")
        return found
    monkeypatch.setattr(files, "open_catalog", list_then_lose)
    capsys.readouterr()
    assert call("--videos", url, "--set", "run.workers=0")[0] == cli.FAILURES
    assert "2 videos computed" in capsys.readouterr().out
    assert failed(out) == {"four.mp4": "cannot be opened: no such file or directory"}
    assert [row["id"] for row in table(out)] == ["a/one.mp4", "a/text.mp4", "a/two.mp4", "b/three.mp4"]

    monkeypatch.setattr(files, "open_catalog", list_videos)
    for query in ("a/one.mp4", f"{url}/a/one.mp4"):
        assert embed.main(["--out", str(out), "--query", query, "-k", "9", *FAST]) == cli.DONE
        assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + 1
    assert embed.main(["--out", str(packed), "--query", "all.tar/a/one.mp4", "-k", "2", *FAST]) == cli.DONE
    for archive in (f"{bucket}/shards/all.tar", str(tmp_path / "all.tar")):
        with pytest.raises(RequestError, match=f"--query {archive} is an archive; expected one of its videos, as vid"):
            embed.main(["--out", str(packed), "--query", archive, *FAST])
    with pytest.raises(RequestError, match="folder s3://.*/nothing does not exist"):
        call("--videos", f"{bucket}/nothing")


# ---- neighbours

def test_the_nearest_videos(call, store, tmp_path, capsys):
    _, out = call("--store", store)
    capsys.readouterr()
    assert embed.main(["--out", str(out), "--query", "b2", "-k", "4"]) == cli.DONE
    vectors = np.load(out / "features.npy").astype(np.float64)
    ids = [row["id"] for row in table(out)]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit[ids.index("b2")]
    expected = [ids[i] for i in np.argsort(-cosine) if ids[i] != "b2"][:4]
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["nearest", "label", "cosine"] and [line.split()[0] for line in said[1:5]] == expected
    assert float(said[1].split()[2]) == pytest.approx(cosine[ids.index(expected[0])], abs=1e-4)
    import PIL.Image
    with PIL.Image.open(out / "neighbours-b2.png") as picture:
        assert picture.width > 2.5 * picture.height and np.asarray(picture.convert("L")).std() > 10
    assert embed.main(["--out", str(out), "--query", "b2", "-k", "400"]) == cli.DONE
    assert len(capsys.readouterr().out.splitlines()) == 1 + 17 + 1


@pytest.mark.slow
def test_the_nearest_videos_of_a_file(call, videos, store, tmp_path, capsys):
    """One of the folder is that video; a copy elsewhere is the nearest of its own."""
    _, out = call("--videos", videos, "--per", "clip")
    capsys.readouterr()
    for query, first in ((videos / "a/one.mp4", None), (shutil.copy(videos / "a/one.mp4", tmp_path / "x.mp4"),
                                                        "a/one.mp4")):
        assert embed.main(["--out", str(out), "--query", str(query), "-k", "9"]) == cli.DONE
        lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
        assert len(lines) == 4 - (first is None)
        assert (lines[0][0] == first and lines[0][-1] == "1.0000") == (first is not None)
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(RequestError, match="bad.mp4: not a video"):
        embed.main(["--out", str(out), "--query", str(tmp_path / "bad.mp4")])
    with pytest.raises(RequestError, match="'a/onn.mp4' is neither .* did you mean 'a/one.mp4'"):
        embed.main(["--out", str(out), "--query", "a/onn.mp4"])


def test_another_checkpoint_in_its_place_answers_no_file(call, videos, checkpoint, tmp_path):
    mine = shutil.copy(checkpoint, tmp_path / "last.pt")
    _, out = call("--videos", videos, checkpoint=mine)
    state = torch.load(mine, weights_only=True)
    checkpoints.save(mine, {**state, "step": 21})
    shutil.copy(videos / "four.mp4", tmp_path / "x.mp4")
    with pytest.raises(RequestError, match="last.pt is not the checkpoint of .* any more"):
        embed.main(["--out", str(out), "--query", str(tmp_path / "x.mp4")])


# ---- refusals

@pytest.mark.parametrize("argv, message", [
    ([], "--out"), (["--out", "o"], "--checkpoint is missing"),
    (["--out", "o", "--checkpoint", "mean-image"], "neither --store nor --videos"),
    (["--out", "o", "--checkpoint", "mean-image", "--store", "s", "--videos", "v"], "both given"),
    (["--out", "o", "--checkpoint", "mean-image", "--videos", "v"], "v does not exist; put the videos there"),
    (["--out", "o", "--checkpoint", "mean-image", "--store", "s"], "s is no store"),
    (["--out", "o", "--checkpoint", "mean-image", "--store", "s", "--step", "0"], "--step 0; expected at least 1"),
    (["--out", "o", "--query", "x", "-k", "0"], "-k 0; expected at least 1"),
    (["--out", "o", "--query", "x"], "o holds no finished features"),
    (["--out", "o", "--checkpoint", "mean-image", "--store", "s", "--set", "clipps=3"], "did you mean 'clips'"),
    (["--out", "o", "--checkpoint", "mean-image", "--store", "s", "--set", "lr=3"], "is no setting")])
def test_commands_that_are_wrong(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        embed.main(argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["features.npy", "notes.txt", "store.json"])
def test_nothing_of_others_is_overwritten(call, store, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(RequestError, match=f"holds {name} and no embed.json"):
        call("--store", store)
    assert (out / name).read_text() == "mine"
    (out / "embed.json").write_text("{}")
    with pytest.raises(RequestError, match="embed.json is not what this command wrote"):
        call("--store", store)


def test_another_request_into_the_same_folder_is_refused(call, store, videos, tmp_path):
    _, out = call("--store", store)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for argv, message in ((["--per", "clip"], "per: stored 'video', asked 'clip'"),
                          (["--set", "clips=2"], "view.clips: stored 3, asked 2"), (["--step", "2"], "view.step")):
        with pytest.raises(RequestError, match=f"holds other features: .*{message}"):
            call("--store", store, *argv)
    with pytest.raises(RequestError, match="checkpoint: stored"):
        call("--store", store, checkpoint="random:r2plus1d_tiny:1")
    with pytest.raises(RequestError, match="source.videos: stored None"):
        call("--videos", videos)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_features_that_are_not_finite_are_refused(call, store, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    next(value for value in state["learner"].values() if value.is_floating_point()).view(-1)[0] = float("nan")
    checkpoints.save(tmp_path / "last.pt", state)
    with pytest.raises(RequestError, match=r"last.pt: the features of video '\w\d' are not finite numbers"):
        call("--store", store, checkpoint=tmp_path / "last.pt")
    assert not list((tmp_path / "out").rglob("*.np?"))


def test_a_checkpoint_that_says_no_plain_data_is_refused_before_the_work(call, store, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["provenance"]["extra"] = torch.zeros(2)
    checkpoints.save(tmp_path / "last.pt", state)
    with pytest.raises(RequestError, match="its provenance is no plain data"):
        call("--store", store, checkpoint=tmp_path / "last.pt")
    assert not (tmp_path / "out").exists()


def test_an_export_embeds_too(call, store, checkpoint, tmp_path):
    export.main(["--checkpoint", str(checkpoint), "--hub", str(tmp_path / "hub")])
    _, one = call("--store", store)
    _, two = call("--store", store, out=tmp_path / "two", checkpoint=tmp_path / "hub")
    np.testing.assert_array_equal(np.load(one / "features.npy"), np.load(two / "features.npy"))
    assert json.loads((two / "embed.json").read_text())["checkpoint"]["kind"] == "export"
