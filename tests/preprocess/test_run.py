"""The whole command on real files: resume, failures, refusals, faults."""

import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import zarr

from preprocess import check, cost, drive, plan, reindex, run, stages
from shared.cli import RequestError, Stopped
from shared.store.index import Index, read_failures
from shared.store.reader import StoreReader
from shared.store.record import read_json, read_records
from shared.videos.decode import probe
from tests.shared.videos.test_decode import scene, write
from tests.shared.videos.test_decode_pictures import shaped
from tests.shared.videos.test_streams import copied, zeroed

SMALL = ["--engine", "serial", "--set", "packs.videos=4", "--set", "threads=2"]


def preprocess(videos, store, *more):
    """Exit code of the command run in this process."""
    return run.main(["--dataset", "folder", "--videos", str(videos), "--store", str(store), *SMALL, *more])


def start(videos, store, *more):
    command = [sys.executable, "-m", "preprocess.run", "--dataset", "folder", "--videos", str(videos), "--store",
               str(store), *SMALL, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def arrays(store):
    """Every array file of every pack, by its path in the store."""
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in sorted(Path(store).glob("packs/*/*/**/*"))
            if file.is_file() and file.name != "zarr.json"}


def check_passes(store):
    assert check.main([str(store)]) == 0


@pytest.fixture(scope="session")
def finished(small_videos, tmp_path_factory):
    """An uninterrupted store of the twelve small videos: three packs of four."""
    store = tmp_path_factory.mktemp("finished") / "store"
    assert preprocess(small_videos, store, "--annotations", str(small_videos / "annotations.csv")) == 0
    return store


def test_every_video_is_packed_and_verified(finished, small_videos):
    index = Index.load(finished)
    with open(small_videos / "annotations.csv", newline="") as file:
        annotated = {row["path"]: row for row in csv.DictReader(file)}
    assert sorted(index.id) == sorted(annotated)
    assert len(index.packs) == 3 and set(index.frames.tolist()) == {40}
    for row in index.rows():
        assert row.class_name == annotated[row.path]["label"] and ";".join(row.splits) == annotated[row.path]["split"]
        assert (row.source_height, row.source_width) == (64, 80)
    assert read_failures(finished) == []
    check_passes(finished)
    record = list(read_records(finished).values())[0]
    assert record["status"] == "done" and record["backend"] in ("cpu", "cuda")
    assert record["counts"]["videos"] == 12 and record["counts"]["frames"] == 480
    assert set(record["cpu_seconds"]) == {"decode", "grey", "flow", "motion", "encode", "write", "verify"}
    document = read_json(finished / "store.json")
    assert document["format"] == 1 and document["recipe"]["flow"]["zoom"] == 0.5


def test_running_again_does_nothing(finished, small_videos, capsys):
    before = arrays(finished)
    assert preprocess(small_videos, finished, "--annotations", str(small_videos / "annotations.csv")) == 0
    assert "0 to do, 12 done" in capsys.readouterr().out
    assert arrays(finished) == before


def test_plan_is_deterministic_and_writes_nothing(small_videos, tmp_path, capsys):
    plans = []
    for _ in range(2):
        assert preprocess(small_videos, tmp_path / "store", "--plan") == 0
        plans.append(re.findall(r"pack \w+ .*", capsys.readouterr().out))
    assert plans[0] == plans[1] and len(plans[0]) == 3
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_plan_and_a_refusal_start_no_engine(small_videos, tmp_path, monkeypatch):
    def fail(*args):
        raise AssertionError("an engine was started")

    monkeypatch.setattr(drive, "start", fail)
    assert preprocess(small_videos, tmp_path / "store", "--plan", "--engine", "dask", "--workers", "2") == 0
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(RequestError, match="free some or choose another --store"):
        preprocess(small_videos, tmp_path / "store", "--engine", "dask")
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(finished, small_videos, tmp_path):
    kill_and_resume(finished, small_videos, tmp_path / "store", kills=3)


@pytest.mark.slow
def test_twenty_kills_lose_nothing(finished, small_videos, tmp_path):
    kill_and_resume(finished, small_videos, tmp_path / "store", kills=20)


def kill_and_resume(finished, videos, store, kills):
    """kill -9 at random moments until so many kills hit a run at work, then let it end; compare with `finished`."""
    rng, done = random.Random(kills), 0
    options = ("--annotations", str(videos / "annotations.csv"))
    while done < kills:
        process = start(videos, store, *options)
        began = time.monotonic()
        while not (store / "store.json").exists() and process.poll() is None and time.monotonic() - began < 60:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.2))
        if process.poll() is not None:
            process.communicate()
            shutil.rmtree(store)           # it ended before the kill: start over with an empty store
            continue
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done += 1
        # Whatever a reader can see at this moment is whole.
        if (store / "current").exists():
            reader = StoreReader(store)
            for row in reader.index.rows():
                assert len(reader.frames(row.id, range(row.frames))) == 40
        for root in store.glob("packs/*/[!.]*/zarr.json"):
            assert np.asarray(zarr.open_group(root.parent, mode="r")["rgb"][:]).any(axis=(1, 2, 3)).all()
    process = start(videos, store, *options)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert arrays(store) == arrays(finished)
    assert Index.load(store).id == Index.load(finished).id
    check_passes(store)
    assert not list(store.glob("packs/*/.*"))


@pytest.mark.slow
@pytest.mark.parametrize("number, name", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_stops_cleanly_and_says_how_to_go_on(small_videos, tmp_path, number, name):
    store = tmp_path / "store"
    process = start(small_videos, store, "--flow", "opencv", "--set", "preset=reference")
    while not list(store.glob("packs/*/.*.partial")) and process.poll() is None:   # a pack is under way
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 3, err
    assert err.splitlines()[-1] == f"stopped: {name}; run the same command again to go on"
    assert "Traceback" not in err
    assert list(read_records(store).values())[0]["status"] == "stopped"
    assert not list(store.glob("packs/*/.*"))
    check_passes(store)


@pytest.mark.slow
def test_two_runs_on_one_store_the_second_stops(small_videos, tmp_path):
    store = tmp_path / "store"
    first = start(small_videos, store, "--flow", "opencv", "--set", "preset=reference")
    try:
        while not (store / "store.json").exists() and first.poll() is None:
            time.sleep(0.02)
        second = start(small_videos, store, "--flow", "opencv", "--set", "preset=reference")
        out, err = second.communicate(timeout=600)
        assert second.returncode == 2 and len(err.splitlines()) == 1
        assert f"another run is writing {store}" in err
    finally:
        first.kill()
        first.communicate()


@pytest.mark.slow
def test_bad_videos_are_rows_and_never_end_a_run(small_videos, tmp_path, capsys):
    videos, store = tmp_path / "videos", tmp_path / "store"
    shutil.copytree(small_videos, videos, ignore=shutil.ignore_patterns("*.npz", "*.csv", "*.json"))
    good = sorted(videos.glob("*/*.mp4"))
    (videos / "a_empty.mp4").write_bytes(b"")
    (videos / "b_text.avi").write_text("this is no video\n" * 40)
    cut = good[0].with_name("cut.mp4")
    cut.write_bytes(good[0].read_bytes()[:600])
    (videos / "notes.txt").write_text("no video by ending")
    shutil.copy(good[0], os.fsencode(videos) + b"/latin\xe9.mp4")
    assert preprocess(videos, store) == 1
    out = capsys.readouterr().out
    assert "4 failures" in out and "1 file ignored" in out
    failures = {row.video: row for row in read_failures(store)}
    cut = cut.relative_to(videos).as_posix()
    assert sorted(failures) == sorted(["a_empty.mp4", "b_text.avi", r"latin\xe9.mp4", cut])
    assert "not UTF-8" in failures[r"latin\xe9.mp4"].reason
    assert all(row.reason and row.attempts == 1 and str(videos) not in row.reason for row in failures.values())
    assert len(Index.load(store)) == 12
    check_passes(store)

    # Again: nothing new, still exit 1. Repaired and retried: a new pack, and the rows go.
    assert preprocess(videos, store) == 1
    shutil.copy(good[1], videos / "a_empty.mp4")
    assert preprocess(videos, store, "--retry-failed") == 1
    failures = {row.video: row for row in read_failures(store)}
    assert "a_empty.mp4" not in failures and {row.attempts for row in failures.values()} == {2}
    assert "a_empty.mp4" in Index.load(store)
    check_passes(store)


def test_a_repaired_video_replaces_its_good_frames(small_videos, tmp_path):
    """An AVI cut in the middle of a frame keeps its good frames; whole again and retried, it is there in full."""
    videos, store = tmp_path / "videos", tmp_path / "store"
    videos.mkdir()
    whole = tmp_path / "whole.avi"
    with av.open(str(whole), "w") as out:
        stream = out.add_stream("png", 25)
        stream.height, stream.width, stream.pix_fmt = 64, 80, "rgb24"
        with av.open(str(sorted(small_videos.glob("circle/*.mp4"))[0])) as source:
            for frame in source.decode(video=0):
                frame.pts = None
                out.mux(stream.encode(frame.reformat(format="rgb24")))
        out.mux(stream.encode())
    data = bytearray(whole.read_bytes())
    data[int(len(data) * 0.88):int(len(data) * 0.9)] = bytes(int(len(data) * 0.9) - int(len(data) * 0.88))
    (videos / "film.avi").write_bytes(data)
    assert preprocess(videos, store) == 1
    kept, failure = Index.load(store).row("film.avi"), read_failures(store)[0]
    assert 31 <= kept.frames < 40 and f"{kept.frames} good frames are kept" in failure.reason
    assert kept.note.startswith("ends early")
    # The same damage again: the pack stays, the row counts the try.
    assert preprocess(videos, store, "--retry-failed") == 1
    assert Index.load(store).row("film.avi") == kept and read_failures(store)[0].attempts == 2
    check_passes(store)
    shutil.copy(whole, videos / "film.avi")
    assert preprocess(videos, store, "--retry-failed") == 0
    assert Index.load(store).row("film.avi").frames == 40 and read_failures(store) == []
    check_passes(store)


@pytest.mark.slow
def test_new_videos_go_into_new_packs(finished, small_videos, tmp_path):
    videos, store = tmp_path / "videos", tmp_path / "store"
    shutil.copytree(small_videos, videos, ignore=shutil.ignore_patterns("*.npz", "*.csv", "*.json"))
    late = videos / "aardvark"
    late.mkdir()
    assert preprocess(videos, store) == 0
    before, labels = arrays(store), {row.id: row.label for row in Index.load(store).rows()}
    assert before == arrays(finished)
    shutil.copy(sorted(videos.glob("*/*.mp4"))[0], late / "new.mp4")
    assert preprocess(videos, store) == 0
    after, index = arrays(store), Index.load(store)
    assert before.items() <= after.items() and len(index.packs) == 4 and len(index) == 13
    # A class that sorts before the others gets a later label, so that the packed labels stay true.
    assert {row.id: row.label for row in index.rows() if row.id in labels} == labels
    assert index.row("aardvark/new.mp4").label == len(set(labels.values()))
    assert read_json(store / "store.json")["classes"][-1] == "aardvark"
    check_passes(store)


def test_another_recipe_is_refused_with_the_keys_named(finished, small_videos):
    named = "another recipe: clips.step: stored 4, asked 8; motion.border_px: stored 8, asked 0;"
    with pytest.raises(RequestError, match=named):
        preprocess(small_videos, finished, "--set", "step=8", "--set", "border_px=0")
    with pytest.raises(RequestError, match="preprocess.reindex .* --clips 8x8"):
        preprocess(small_videos, finished, "--set", "geometries=16x2,8x8")
    with pytest.raises(RequestError, match="flow.backend: stored '.*', asked 'opencv'"):
        preprocess(small_videos, finished, "--flow", "opencv")


def test_a_store_of_before_reads_files_by_its_own_rules(tmp_path, capsys):
    """Its recipe lacks square pixels and the rules of reading: the same command goes on without them."""
    videos, quick = tmp_path / "videos", ["--set", "scales=1", "--set", "warps=1", "--set", "iterations=1"]
    videos.mkdir()
    shaped(videos / "a.mp4", Fraction(4, 3))
    assert preprocess(videos, tmp_path / "old", *quick, "--set", "square_pixels=false", "--set", "reading=1") == 0
    before = read_json(tmp_path / "old/store.json")
    assert before["recipe"]["frames"] == {"short_side": 256, "multiple": 8}
    shutil.copy(videos / "a.mp4", videos / "b.mp4")
    capsys.readouterr()
    assert preprocess(videos, tmp_path / "old", *quick) == 0
    assert "nothing asks for another: frames.reading=1, frames.square_pixels=false" in capsys.readouterr().out
    assert read_json(tmp_path / "old/store.json")["recipe_hash"] == before["recipe_hash"]
    with pytest.raises(RequestError, match="frames.square_pixels: stored False, asked True"):
        preprocess(videos, tmp_path / "old", *quick, "--set", "square_pixels=true")
    assert preprocess(videos, tmp_path / "new", *quick) == 0
    assert read_json(tmp_path / "new/store.json")["recipe"]["frames"]["square_pixels"] is True
    sides = [{(row.source_width, row.note) for row in Index.load(tmp_path / store).rows()} for store in ("old", "new")]
    assert sides == [{(96, "")}, {(128, "pixels of 4:3 made square")}]
    for store, shape in (("old", "64x96"), ("new", "64x128")):
        check_passes(tmp_path / store)
        assert {pack.parent.name for pack in (tmp_path / store).glob("packs/*/*")} == {shape}


def test_a_film_of_which_a_later_part_is_good_goes_into_the_store(tmp_path, capsys):
    """What is kept and what is not stands in failures.csv; a video that the border covers is told beforehand."""
    videos = tmp_path / "videos"
    videos.mkdir()
    copied(write(tmp_path / "a.avi", scene(60, 48, 64), "mjpeg", "yuvj420p"), videos / "a.avi", change=zeroed(5, 50))
    write(videos / "low.avi", scene(32, 16, 64), "mjpeg", "yuvj420p")
    quick = ["--set", "scales=1", "--set", "warps=1", "--set", "iterations=1"]
    assert preprocess(videos, tmp_path / "store", *quick) == 1
    assert "1 video is so small that the border of 8 px covers the frames: no motion" in capsys.readouterr().out
    row, (failure,) = Index.load(tmp_path / "store").row("a.avi"), read_failures(tmp_path / "store")
    assert row.frames == 44 and row.note == (
        "starts at frame 6: its longest run of good frames; ends early: damaged after 50 frames: invalid data")
    assert failure.reason == ("damaged after 5 frames: invalid data; its 44 good frames are kept, 6 to 49, the longest "
                              "run of them")
    check_passes(tmp_path / "store")
    packs = sorted(path.name for path in (tmp_path / "store").glob("packs/*/*"))
    assert preprocess(videos, tmp_path / "store", *quick, "--retry-failed") == 1
    assert sorted(path.name for path in (tmp_path / "store").glob("packs/*/*")) == packs


def test_headers_that_lie_are_planned_again(finished, small_videos, tmp_path, monkeypatch):
    lies = {"frames": 0}

    def lying(path, *rules):
        from dataclasses import replace
        true = probe(path, *rules)
        lies["frames"] += 1
        return replace(true, frames=5, source_height=80, source_width=64) if "circle" in path.name else true

    monkeypatch.setattr(plan, "probe", lying)
    assert preprocess(small_videos, tmp_path / "store") == 0
    index = Index.load(tmp_path / "store")
    assert index.id == Index.load(finished).id and set(index.frames.tolist()) == {40}
    assert {pack.parent.name for pack in (tmp_path / "store").glob("packs/*/*")} == {"64x80"}
    check_passes(tmp_path / "store")


@pytest.mark.slow
def test_packs_keep_their_frame_limit_when_headers_lie(small_videos, tmp_path, monkeypatch):
    from dataclasses import replace
    monkeypatch.setattr(plan, "probe", lambda path, *rules: replace(probe(path, *rules), frames=1))
    assert preprocess(small_videos, tmp_path / "store", "--set", "packs.frames=100") == 0
    index = Index.load(tmp_path / "store")
    assert len(index) == 12 and max(row.frames for row in index.pack_rows()) <= 100
    check_passes(tmp_path / "store")


@pytest.mark.slow
def test_reindex_adds_what_a_run_would_have_stored(finished, small_videos, tmp_path):
    store, both = tmp_path / "store", tmp_path / "both"
    shutil.copytree(finished, store)
    before = arrays(store)
    assert reindex.main([str(store), "--clips", "4x3"]) == 0
    check_passes(store)
    assert before.items() <= arrays(store).items()
    assert preprocess(small_videos, both, "--set", "geometries=16x2,4x3") == 0
    one, two = StoreReader(store), StoreReader(both)
    same = total = 0
    for video in one.index.id:
        a, b = one.clips(video, "4x3"), two.clips(video, "4x3")
        np.testing.assert_array_equal(a.start, b.start)
        np.testing.assert_array_equal(a.score, b.score)
        np.testing.assert_allclose(a.s_p90, b.s_p90, rtol=2e-3, atol=1e-6)
        assert a.median == b.median
        same += (np.unpackbits(a.hot_mask) == np.unpackbits(b.hot_mask)).sum()
        total += a.hot_mask.size * 8
    assert same / total > 0.995                       # float16 moves a few cells across the threshold
    assert reindex.main([str(store), "--clips", "4x3"]) == 0
    assert preprocess(small_videos, store) == 0       # the store's geometries go on
    with pytest.raises(RequestError, match="expected LxS"):
        reindex.main([str(store), "--clips", "4by3"])


def test_a_reindex_that_dies_before_it_publishes_is_taken_up(finished, small_videos, tmp_path, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    for repair in (lambda store: preprocess(small_videos, store),
                   lambda store: reindex.main([str(store), "--clips", "4x3"])):
        store = tmp_path / "store"
        shutil.copytree(finished, store)
        with monkeypatch.context() as patch:
            patch.setattr(reindex, "publish", die)
            with pytest.raises(KeyboardInterrupt):
                reindex.main([str(store), "--clips", "4x3"])
        assert check.main([str(store)]) == 1
        assert repair(store) == 0
        check_passes(store)
        assert len(StoreReader(store).clips(Index.load(store).id[0], "4x3").start) == 8
        shutil.rmtree(store)


def test_a_lost_index_is_rebuilt_from_the_packs(finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    shutil.rmtree(store / "index")
    (store / "current").unlink()
    assert reindex.main([str(store)]) == 0
    assert Index.load(store).rows() == Index.load(finished).rows()
    check_passes(store)


@pytest.mark.parametrize("more, message", [
    (["--dataset", "foldr"], "dataset 'foldr' is unknown; did you mean 'folder'?"),
    (["--dataset", "folder", "--videos", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
    (["--dataset", "folder", "--videos", ".", "--set", "stp=1"], "--set 'stp' is no setting; did you mean 'step'?"),
    (["--dataset", "folder", "--videos", ".", "--set", "warps=0"], "warps"),
    (["--dataset", "folder", "--video", "."], "unrecognized arguments: --video .; did you mean '--videos'?"),
    (["--videos", "."], "the following arguments are required: --dataset"),
    (["--dataset", "folder", "--engine", "seral"], "did you mean 'serial'?"),
    (["--dataset", "folder", "--videos", ".", "--workers", "0"], "--workers 0: expected 1 or more"),
    (["--dataset", "folder", "--engine", "serial", "--workers", "2"], "takes no --workers and no --address"),
    (["--dataset", "folder", "--videos", ".", "--set", "run.gpus_per_task=1.5"], "expected a fraction of one GPU"),
    (["--dataset", "folder", "--videos", ".", "--set", "run.time_limit_s=-1"], "expected 0 or more"),
    (["--dataset", "folder", "--flow", "gpu", "--videos", "."], "backend"),
    (["--dataset", "folder", "--videos", ""], "a path is empty"),
    (["--dataset", "folder", "--videos", ".", "--annotations", "s3://b/x"], "is a URL; expected a path on"),
    (["--dataset", "folder", "--videos", ".", "--set", "geometries=[16x2,16x2]"], "expected each once"),
    (["--dataset", "folder", "--videos", ".", "--set", "run.window=1000000000"], "expected at most 4096 frames"),
])
def test_a_wrong_request_is_one_line_and_exit_2(more, message, tmp_path):
    result = subprocess.run([sys.executable, "-m", "preprocess.run", "--store", str(tmp_path / "store"), *more],
                            capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["current", "store.json", "failures.csv", "index/*/videos.csv", "packs/*/*/zarr.json"])
def test_a_damaged_store_stops_the_run_and_is_named(finished, small_videos, tmp_path, name):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    file = sorted(store.glob(name))[-1]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = subprocess.run([sys.executable, "-m", "preprocess.run", "--dataset", "folder", "--videos",
                             str(small_videos), "--store", str(store), *SMALL], capture_output=True, text=True)
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr and file.name in result.stderr.splitlines()[-1]
    assert f"python -m preprocess.check {store}" in result.stderr
    assert check.main([str(store)]) == 1


def test_a_damaged_record_is_left_aside(finished, small_videos, tmp_path, capsys):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    record = next(store.glob("records/*.json"))
    record.write_bytes(record.read_bytes()[:100])
    assert preprocess(small_videos, store) == 0
    assert f"1 record is damaged and left aside (first {record.name})" in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["store.json", "index", "current", "failures.csv", "failures.crc32c"])
def test_reindex_restores_what_is_lost_beside_the_packs(finished, small_videos, tmp_path, lost):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    shutil.rmtree(store / lost) if (store / lost).is_dir() else (store / lost).unlink()
    if lost == "store.json":
        with pytest.raises(RequestError, match="has packs but no store.json; `python -m preprocess.reindex"):
            preprocess(small_videos, store, "--set", "preset=fast")
    assert reindex.main([str(store)]) == 0
    check_passes(store)
    assert Index.load(store).rows() == Index.load(finished).rows()
    assert read_json(store / "store.json") == read_json(finished / "store.json")
    assert preprocess(small_videos, store) == 0


def test_a_pack_that_lost_its_root_is_made_again(finished, small_videos, tmp_path, capsys):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    sorted(store.glob("packs/*/*/zarr.json"))[0].unlink()
    with pytest.raises(Stopped):
        reindex.main([str(store)])
    assert preprocess(small_videos, store) == 0
    assert "1 pack of the index is not on disk; its videos are done again" in capsys.readouterr().out
    assert arrays(store) == arrays(finished)
    check_passes(store)


@pytest.mark.parametrize("case", ["a folder of others", "the videos", "above the videos", "a file", "below a file"])
def test_a_place_that_is_no_store_is_left_alone(small_videos, tmp_path, case):
    place = tmp_path / "place"
    place.mkdir()
    (place / ".notes.partial").write_text("mine")
    (place / "file").write_text("mine")
    store = {"a folder of others": place, "the videos": small_videos, "above the videos": small_videos.parent,
             "a file": place / "file", "below a file": place / "file/store"}[case]
    before = sorted(small_videos.rglob("*"))
    result = subprocess.run([sys.executable, "-m", "preprocess.run", "--dataset", "folder", "--videos",
                             str(small_videos), "--store", str(store), *SMALL], capture_output=True, text=True)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert sorted(path.name for path in place.iterdir()) == [".notes.partial", "file"]
    assert sorted(small_videos.rglob("*")) == before and not (small_videos.parent / ".lock").exists()


def test_a_refused_request_makes_no_synthetic_videos(finished, tmp_path):
    with pytest.raises(RequestError, match="holds the dataset 'folder'"):
        run.main(["--dataset", "synthetic", "--videos", str(tmp_path / "videos"), "--store", str(finished)])
    assert not (tmp_path / "videos").exists()


def test_a_flow_backend_that_fails_is_not_the_videos_fault(small_videos, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("cannot cache function")

    monkeypatch.setattr(stages.optical_flow, "flow_window", fail)
    with pytest.raises(Stopped, match="flow on cpu: RuntimeError: cannot cache function"):
        preprocess(small_videos, tmp_path / "store", "--flow", "cpu")
    assert not (tmp_path / "store").exists()


def test_a_videos_folder_that_goes_away_stops_the_run(small_videos, tmp_path, monkeypatch):
    videos, store = tmp_path / "videos", tmp_path / "store"
    shutil.copytree(small_videos, videos)
    measure = cost.measure_cost

    def unmount(*args):
        measured = measure(*args)
        videos.rename(tmp_path / "elsewhere")
        return measured

    monkeypatch.setattr(cost, "measure_cost", unmount)
    with pytest.raises(Stopped, match="the videos folder has gone"):
        preprocess(videos, store)
    assert read_failures(store) == []


@pytest.mark.slow
def test_the_maclr_recipe_adds_edges_and_its_clips(small_videos, tmp_path):
    store = tmp_path / "store"
    assert preprocess(small_videos, store, "--recipe", "maclr", "--set", "geometries=16x2,4x8") == 0
    reader = StoreReader(store)
    video = reader.index.id[0]
    assert reader.edges(video, range(40)).shape == (40, 2, 32, 40) and len(reader.clips(video, "4x8").start) == 4
    check_passes(store)


def test_an_interrupt_among_the_imports_is_one_line(small_videos, tmp_path):
    """Ctrl-C comes when the import of numpy begins, and when that of its compiled part does."""
    script = textwrap.dedent("""
        import os, runpy, signal, sys
        class Interrupting:
            def find_spec(name, path=None, target=None):
                if name == sys.argv[1]:
                    sys.meta_path.remove(Interrupting)
                    del sys.argv[1]
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Interrupting)
        sys.argv[0] = "-m"      # as Python has it while it looks for a command
        runpy.run_module("preprocess.run", run_name="__main__", alter_sys=True)
    """)
    for module in ("numpy", "numpy._core._multiarray_umath"):
        done = subprocess.run([sys.executable, "-c", script, module, "--dataset", "folder", "--videos",
                               str(small_videos), "--store", str(tmp_path / "store"), *SMALL], capture_output=True,
                              text=True, cwd=Path(__file__).resolve().parents[2])
        assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_full_disk_stops_with_exit_3(small_videos, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2400k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    # The plan would refuse a disk this small: something else fills it once the run is under way.
    script = textwrap.dedent(f"""
        from preprocess.run import main
        from preprocess.session import Session
        from shared import cli
        begin = Session.begin
        def begin_and_fill(self, *plan):
            begin(self, *plan)
            try:
                with open({str(disk / "ballast")!r}, "wb", buffering=0) as file:
                    while file.write(b"x" * 65536):
                        pass
            except OSError:
                pass
        Session.begin = begin_and_fill
        cli.command(main)
    """)
    command = ["--dataset", "folder", "--videos", str(small_videos), "--store", str(disk / "store"), *SMALL]
    try:
        done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
        assert done.returncode == 3, (done.stdout, done.stderr)
        assert "no space left" in done.stderr.splitlines()[-1] and "run the same command again" in done.stderr
        assert "Traceback" not in done.stderr
        (disk / "ballast").unlink()
        assert run.main(command) == 0
        check_passes(disk / "store")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
