"""The pack writer: what it writes reads back in zarr-python, what fails leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import shared.store.codecs  # noqa: F401
from shared.clips.index import ClipGeometry, ClipIndex
from shared.store.chunks import decode_edges, half
from shared.store.committed import committed_packs, load_pack, rootless_packs, sweep_partials
from shared.store.index import FailureRow, VideoRow
from shared.store.layout import StoreError
from shared.store.verify import read_root, verify_pack

REPOSITORY = Path(__file__).resolve().parents[3]


def jpeg(frames):
    return np.stack([simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(f, 85, "RGB", "420"), "RGB") for f in frames])


def check_against_zarr(path, contents, edges, flow, geometries):
    """Every array of the pack through plain zarr-python against what was appended."""
    group = zarr.open_group(path, mode="r")
    frames = [len(content.rgb) for content in contents]

    def joined(name):
        return np.concatenate([getattr(content, name) for content in contents])

    assert np.array_equal(group["frame_offset"][:], np.cumsum([0, *frames]))
    assert np.array_equal(group["rgb"][:], jpeg(joined("rgb")))
    assert np.array_equal(group["st_motion"][:], joined("st_motion").astype("f2"))
    assert np.array_equal(group["t_motion"][:], joined("t_motion"))
    assert ("edges" in group, "flow" in group) == (edges, flow)
    if edges:
        exact = np.minimum(joined("edges"), 10)
        assert np.abs(decode_edges(group["edges"][:]) - exact).max() <= 10 / 255 + 1e-4
    if flow:
        assert np.array_equal(group["flow"][:], joined("flow").astype("f2"))
    for geometry in map(str, geometries):
        clips = group[f"clips/{geometry}"]
        many = [content.clips[geometry] for content in contents]
        for name in ("start", "score", "s_p90", "hot_mask"):
            assert np.array_equal(clips[name][:], np.concatenate([getattr(one, name) for one in many]))
        assert np.array_equal(clips["offset"][:], np.cumsum([0, *(len(one.start) for one in many)]))
        assert np.array_equal(clips["median"][:], np.array([one.median for one in many], "f4"), equal_nan=True)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from([(8, 8), (16, 24), (24, 16)]),
       st.booleans(), st.booleans(), st.integers(1, 70))
def test_zarr_reads_every_array(tmp_path_factory, make, frames, size, edges, flow, window):
    store = tmp_path_factory.mktemp("store")
    geometries = (ClipGeometry(4, 2), ClipGeometry(1, 1))
    maker = make(len(frames), size, geometries, edges, flow)
    writer = maker.writer(store)
    contents = [maker.add(writer, count, window=window) for count in frames]
    row, rows = writer.commit()
    check_against_zarr(store / row.path, contents, edges, flow, geometries)
    assert (row.frames, row.videos) == (sum(frames), len(frames))
    assert [(r.first_frame, r.frames) for r in rows] == list(zip(np.cumsum([0, *frames]).tolist(), frames))
    assert verify_pack(store, row, rows) == []
    assert load_pack(store, row.path) == (row, rows, [])


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=6), st.integers(1, 20))
def test_an_aborted_video_leaves_no_trace(tmp_path_factory, make, videos, window):
    """Packs with and without the aborted videos are the same bytes."""
    root = tmp_path_factory.mktemp("stores")
    maker = make(7, edges=True, flow=True)
    one, two, contents = maker.writer(root / "one"), maker.writer(root / "two"), []
    for number, (frames, kept) in enumerate(videos):
        content = maker.content(frames)
        for writer in (one, two) if kept else (one,):
            maker.append(writer, content, window)
            if kept:
                writer.end_video(VideoRow(f"v{number}", "p"), content.clips)
            else:
                writer.abort_video()
        contents += [content] * kept
    assert (one.videos, one.frames) == (len(contents), sum(len(content.rgb) for content in contents))
    assert one.commit() == two.commit()


def test_threads_write_the_same_bytes(tmp_path, make):
    rows = []
    with ThreadPoolExecutor(3) as executor:
        for store, options in (("a", {}), ("b", {"executor": executor})):
            maker = make(3)
            writer = maker.writer(tmp_path / store, **options)
            maker.add(writer, 50, window=33)
            rows.append(writer.commit())
            assert set(writer.cpu_seconds) == {"encode", "write", "verify"}
            assert all(seconds > 0 for seconds in writer.cpu_seconds.values())
    assert rows[0] == rows[1]


def test_the_root_says_what_the_pack_is(tmp_path, make):
    failure = FailureRow("x", "a/x.mp4", "truncated", "decode", 3)
    row, rows, _ = make().pack(tmp_path, (12, 3), failures=[failure])
    attributes = read_root(tmp_path / row.path)
    assert attributes["format"] == 1 and attributes["pack"] == "p0" and attributes["frame_size"] == [32, 40]
    assert attributes["backend"] == row.backend == "cpu" and len(attributes["recipe_hash"]) == 16
    assert load_pack(tmp_path, row.path) == (row, rows, [failure])
    assert dict(zarr.open_group(tmp_path / row.path, mode="r").attrs) == attributes
    assert len(row.files) == 23
    assert committed_packs(tmp_path) == {"p0": "packs/32x40/p0"}


def test_a_pack_may_hold_failures_only(tmp_path, make):
    failure = FailureRow("x", "a/x.mp4", "no frames", "decode", 1)
    writer = make(edges=True, flow=True).writer(tmp_path)
    row, rows = writer.commit([failure])
    assert (row.frames, row.videos, rows) == (0, 0, [])
    assert load_pack(tmp_path, row.path) == (row, [], [failure])
    assert verify_pack(tmp_path, row, rows) == []
    group = zarr.open_group(tmp_path / row.path, mode="r")
    assert group["rgb"][:].shape == (0, 32, 40, 3) and group["clips/4x2/hot_mask"][:].shape == (0, 3)
    assert group["frame_offset"][:].tolist() == [0]


def test_large_motion_is_clipped_and_says_so(tmp_path, make):
    maker = make(flow=True)
    content = maker.content(4)
    content.st_motion[1, 2, 3], content.flow[2] = 1e20, -7e4
    writer = maker.writer(tmp_path)
    maker.append(writer, content)
    writer.end_video(VideoRow("v", "p"), content.clips)
    group = zarr.open_group(tmp_path / writer.commit()[0].path, mode="r")
    assert group["st_motion"][1, 2, 3] == 65504 and (group["flow"][2] == -65504).all()
    assert np.array_equal(group["st_motion"][:], half(content.st_motion))
    assert "65504" in group["st_motion"].attrs["encoding"] and "65504" in group["flow"].attrs["encoding"]


def test_the_pack_that_is_there_already_is_kept(tmp_path, make):
    kept = make(1).pack(tmp_path, (9, 4))
    writer = make(2).writer(tmp_path)
    make(2).add(writer, 30)
    assert writer.commit() == kept[:2]
    assert os.listdir(tmp_path / "packs/32x40") == ["p0"]
    assert verify_pack(tmp_path, kept[0], kept[1]) == []


@pytest.mark.parametrize("when", ["empty", "in a video", "after a video", "after commit"])
def test_discard_at_any_time(tmp_path, make, when):
    maker = make()
    writer = maker.writer(tmp_path)
    if when == "in a video":
        maker.append(writer, maker.content(20))
    elif when != "empty":
        maker.add(writer, 20)
    committed = [writer.commit()[0].pack] if when == "after commit" else []
    writer.discard()
    writer.discard()
    assert os.listdir(tmp_path / "packs/32x40") == committed


def test_nothing_has_the_packs_name_before_the_commit(tmp_path, make):
    maker = make()
    writer = maker.writer(tmp_path)
    maker.add(writer, 20)
    assert committed_packs(tmp_path) == {}
    assert not list(tmp_path.rglob("zarr.json"))  # what is half-written does not open either
    writer.discard()


def test_frames_damaged_on_their_way_to_disk_stop_the_commit(tmp_path, make):
    maker = make()
    writer = maker.writer(tmp_path)
    maker.add(writer, 20)
    os.pwrite(writer.rgb.file.fileno(), b"\x55\xaa", 300)
    with pytest.raises(StoreError, match="chunk .*bad checksum"):
        writer.commit()
    assert committed_packs(tmp_path) == {}
    writer.discard()


def _break(content, name, value):
    setattr(content, name, value)
    return content


@pytest.mark.parametrize("breakage, message", [
    (lambda c: _break(c, "rgb", c.rgb[:, :, :-8]), "rgb has shape"),
    (lambda c: _break(c, "rgb", c.rgb.astype(np.float32)), "float32"),
    (lambda c: _break(c, "st_motion", c.st_motion[:-1]), "st_motion has shape"),
    (lambda c: _break(c, "t_motion", np.full(5, np.nan, np.float32)), "t_motion holds values that are not finite"),
    (lambda c: _break(c, "st_motion", np.full((5, 4, 5), np.inf, np.float32)), "st_motion holds values that are not"),
    (lambda c: _break(c, "edges", None), "edges is missing"),
    (lambda c: _break(c, "flow", np.zeros((5, 2, 16, 20))), "flow is not kept by this pack"),
])
def test_arrays_that_do_not_fit_are_refused_and_can_be_aborted(tmp_path, make, breakage, message):
    maker = make(edges=True)
    writer = maker.writer(tmp_path)
    before = maker.add(writer, 5)
    content = breakage(maker.content(5))
    writer.begin_video()
    with pytest.raises(ValueError, match=message):
        writer.append(content.rgb, content.st_motion, content.t_motion, content.edges, content.flow)
    writer.abort_video()
    after = maker.add(writer, 11)
    row, _ = writer.commit()
    check_against_zarr(tmp_path / row.path, [before, after], True, False, maker.geometries)


def clips(**changes):
    start = np.array([0, 2], np.int32)
    good = {"start": start, "score": np.ones(2, "f4"), "s_p90": np.ones(2, "f4"),
            "hot_mask": np.zeros((2, 3), "u1"), "median": 1.0}
    return {"4x2": ClipIndex(**good | changes)}


@pytest.mark.parametrize("row, index, message", [
    (VideoRow("v", "p"), {}, r"clips of \[\]; expected \['4x2'\]"),
    (VideoRow("v", "p"), clips(start=np.array([0, 4], np.int32)), "starts 0 to 4 in 9 frames; expected 0 to 2"),
    (VideoRow("v", "p"), clips(start=np.array([-1, 0], np.int32)), "starts -1"),
    (VideoRow("v", "p"), clips(score=np.ones(3, "f4")), "score"),
    (VideoRow("v", "p"), clips(hot_mask=np.zeros((2, 2), "u1")), "hot_mask"),
    (VideoRow("v", "p"), clips(median=float("nan")), "median"),
    (VideoRow("v0", "p"), clips(), "in the pack already"),
    (VideoRow("", "p"), clips(), "expected an id"),
    (VideoRow("v", "p", fps=float("nan")), clips(), "finite fps"),
    (VideoRow("v", "p", splits=("a;b",)), clips(), "split names without ';'"),
])
def test_rows_and_clips_that_do_not_fit_are_refused(tmp_path, make, row, index, message):
    maker = make()
    writer = maker.writer(tmp_path)
    before = maker.add(writer, 20)
    maker.append(writer, maker.content(9))
    with pytest.raises(ValueError, match=message):
        writer.end_video(row, index)
    writer.abort_video()
    pack, _ = writer.commit()
    check_against_zarr(tmp_path / pack.path, [before], False, False, maker.geometries)


def test_a_failed_append_cannot_be_ended(tmp_path, make, monkeypatch):
    maker = make()
    writer = maker.writer(tmp_path)
    content = maker.content(9)
    maker.append(writer, content)
    monkeypatch.setattr(writer.maps["st_motion"], "add", lambda rows: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError):
        writer.append(content.rgb, content.st_motion, content.t_motion)
    with pytest.raises(ValueError, match="no failed append"):
        writer.end_video(VideoRow("v", "p"), content.clips)
    monkeypatch.undo()
    writer.abort_video()
    again = maker.add(writer, 9)
    pack, _ = writer.commit()
    check_against_zarr(tmp_path / pack.path, [again], False, False, maker.geometries)


def test_calls_out_of_order_are_bugs(tmp_path, make):
    maker = make()
    writer, content = maker.writer(tmp_path), maker.content(3)
    with pytest.raises(RuntimeError, match="no video has begun"):
        writer.append(content.rgb, content.st_motion, content.t_motion)
    writer.begin_video()
    for call in (writer.begin_video, writer.commit):
        with pytest.raises(RuntimeError, match="under way"):
            call()
    with pytest.raises(ValueError, match="0 whole frames"):
        writer.end_video(VideoRow("v", "p"), {"4x2": clips()["4x2"]})
    writer.discard()


@pytest.mark.parametrize("size", [(30, 40), (32, 0), (4, 8)])
def test_frame_sizes_that_no_pack_can_have(tmp_path, make, size):
    with pytest.raises(ValueError, match="multiples of 8"):
        make(size=size).writer(tmp_path)
    assert not (tmp_path / "packs").exists()


@pytest.mark.parametrize("name", ["", ".p", "a/b", "a;b", "a:b"])
def test_names_that_no_pack_can_have(tmp_path, make, name):
    with pytest.raises(ValueError, match="pack name"):
        make().writer(tmp_path, name)


KILLED = textwrap.dedent("""
    import sys, importlib.util, numpy
    sys.path.insert(0, sys.argv[2])
    spec = importlib.util.spec_from_file_location("helpers", sys.argv[2] + "/tests/shared/store/conftest.py")
    helpers = importlib.util.module_from_spec(spec)
    sys.modules["helpers"] = helpers
    spec.loader.exec_module(helpers)
    maker = helpers.Maker(5)
    maker.pack(sys.argv[1], (12,), "whole")
    writer = maker.writer(sys.argv[1], "killed")
    if sys.argv[3] == "committing":
        import shared.store.packs as packs
        def stop(*args):
            print("ready", flush=True)
            sys.stdin.read()
        setattr(packs, sys.argv[4], stop)
    for video in range(3):
        maker.add(writer, 30)
    if sys.argv[3] == "committing":
        writer.commit()
    maker.append(writer, maker.content(30))
    print("ready", flush=True)
    sys.stdin.read()
""")


@pytest.mark.parametrize("when", [("writing", ""), ("committing", "verify_arrays"), ("committing", "write_array"),
                                  ("committing", "seal_attributes"), ("committing", "fsync_directory")])
def test_kill_9_leaves_nothing_that_a_reader_could_see(tmp_path, when):
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), str(REPOSITORY), *when],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()
    assert committed_packs(tmp_path) == {"whole": "packs/32x40/whole"}
    names = os.listdir(tmp_path / "packs/32x40")
    assert len(names) == 2 and sum(name.startswith(".") for name in names) == 1
    assert [path.split("/")[-1].startswith(".killed.") for path in sweep_partials(tmp_path)] == [True]
    assert committed_packs(tmp_path) == {"whole": "packs/32x40/whole"}
    assert sweep_partials(tmp_path) == []


def test_rows_of_the_index_are_compared_with_the_pack(tmp_path, make):
    row, rows, _ = make().pack(tmp_path, (20, 7))
    assert verify_pack(tmp_path, row, [rows[0], replace(rows[1], label=3)]) == [
        "packs/32x40/p0/zarr.json: video 'p0-1' differs from the index"]
    assert verify_pack(tmp_path, replace(row, frames=26), rows)
    assert verify_pack(tmp_path, replace(row, path="packs/32x40/p7"), rows) == ["packs/32x40/p7: is missing"]


@pytest.mark.parametrize("folder", [True, False])
def test_what_lost_its_root_makes_way(tmp_path, make, folder):
    row, _, _ = make(1).pack(tmp_path, (9, 4))
    (tmp_path / row.path / "zarr.json").unlink()
    assert committed_packs(tmp_path) == {} and rootless_packs(tmp_path) == ["packs/32x40/p0"]
    if not folder:
        shutil.rmtree(tmp_path / row.path)
        (tmp_path / row.path).write_text("a file in the pack's place")
    again, rows, _ = make(1).pack(tmp_path, (9, 4))
    assert again == row and verify_pack(tmp_path, row, rows) == [] and rootless_packs(tmp_path) == []
    assert len(sweep_partials(tmp_path)) == 1 and os.listdir(tmp_path / "packs/32x40") == ["p0"]
