"""One pack against the slow, obvious version: decode everything, cv2 flow, loops over frames and clips."""

import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import zarr

from preprocess.run import resolve
from preprocess.stages import motion_arrays
from preprocess.task import PackTask, make_pack
from shared.cli import plural
from shared.clips.index import ClipGeometry, ClipIndexer
from shared.datasets.catalog import Video, open_catalog
from shared.recipes.preprocessing import load_pipeline
from shared.store import codecs  # noqa: F401  registers motionpack.jpeg with zarr
from shared.store.committed import committed_packs, sweep_partials
from shared.store.layout import StoreError
from shared.store.tables import FailureRow, file_start
from shared.store.verify import verify_pack
from shared.videos.decode import open_video
from tests.shared.videos.test_decode import read, scene, write
from tests.shared.videos.test_streams import copied, zeroed


def task_for(root, store, videos, settings=(), **changes):
    pipeline = resolve(load_pipeline("folder", settings=["flow.backend=opencv", "scales=2", "warps=2", *settings]))
    catalog = open_catalog("folder", root)
    task = PackTask(store, root, "pack", (64, 80), tuple(catalog.videos[:videos]), pipeline.recipe, "hash",
                    replace(pipeline.run, threads=2))
    return replace(task, **changes)


def slow_flow(frames, flow):
    """cv2's TV-L1 pair by pair; the last frame repeats the flow before it. (T, 2, H, W); at flow.scale 0.5 of frames
    whose pixels are means of 2x2, in their pixels."""
    tvl1 = cv2.optflow.DualTVL1OpticalFlow_create(
        tau=flow.tau, lambda_=flow.lambda_, theta=flow.theta, nscales=flow.scales, warps=flow.warps, epsilon=0.0,
        innnerIterations=flow.iterations, outerIterations=1, scaleStep=flow.zoom, gamma=0, medianFiltering=flow.median,
        useInitialFlow=False)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    if flow.scale == 0.5:        # of float32 it takes [0, 1]
        grey = [(g.reshape(g.shape[0] // 2, 2, g.shape[1] // 2, 2).mean((1, 3)) / 255).astype(np.float32) for g in grey]
    flows = [tvl1.calc(a, b, None).transpose(2, 0, 1) for a, b in zip(grey, grey[1:])]
    return np.stack([*flows, flows[-1]]).astype(np.float64)


def slow_index(flow, border=8, length=16, stride=2, step=4, cell=8):
    """Equations 1 and 2 and section 3.2 in float64 loops; border, cell: pixels of the flow."""
    maps = np.stack([np.sqrt(sum(d ** 2 for c in f for d in np.gradient(c))) for f in flow])
    bordered = maps.copy()
    bordered[:, :border] = bordered[:, -border:] = bordered[:, :, :border] = bordered[:, :, -border:] = 0

    def cells(m):
        return m.reshape(len(m), m.shape[1] // cell, cell, m.shape[2] // cell, cell).mean((2, 4))

    t_motion, clips = bordered.mean((1, 2)), []
    for start in range(0, len(flow) - (length - 1) * stride, step):
        sampled = slice(start, start + (length - 1) * stride + 1, stride)
        s_map = cells(bordered[sampled]).mean(0)
        clips.append((start, t_motion[sampled].mean(), np.percentile(s_map, 90), s_map))
    return cells(maps), t_motion, clips


@pytest.mark.slow
@pytest.mark.parametrize("window, scale", [(64, 1), (7, 1), (7, 0.5)])
def test_a_pack_equals_the_slow_version(small_videos, tmp_path, window, scale):
    task = task_for(small_videos, tmp_path, 2, [f"flow.scale={scale}"])
    task = replace(task, run=replace(task.run, window=window))
    report = make_pack(task)
    assert not report.failures and not report.misplanned and report.frames == 80
    pack = zarr.open_group(tmp_path / report.pack.path, mode="r")
    for number, video in enumerate(task.videos):
        with open_video(small_videos / video.path) as source:
            frames = np.concatenate(list(source))
        st_motion, t_motion, clips = slow_index(slow_flow(frames, task.recipe.flow), border=int(8 * scale),
                                                cell=int(8 * scale))
        here = slice(40 * number, 40 * number + 40)
        assert np.abs(pack["rgb"][here].astype(int) - frames).mean() < 4          # JPEG
        np.testing.assert_allclose(pack["st_motion"][here], st_motion, rtol=2e-3, atol=2e-5)
        np.testing.assert_allclose(pack["t_motion"][here], t_motion, rtol=1e-4)
        a, b = pack["clips/16x2/offset"][number:number + 2]
        np.testing.assert_array_equal(pack["clips/16x2/start"][a:b], [clip[0] for clip in clips])
        np.testing.assert_allclose(pack["clips/16x2/score"][a:b], [clip[1] for clip in clips], rtol=1e-4)
        np.testing.assert_allclose(pack["clips/16x2/s_p90"][a:b], [clip[2] for clip in clips], rtol=1e-4)
        assert pack["clips/16x2/median"][number] == np.median(pack["clips/16x2/score"][a:b])
        for bits, (_, _, p90, s_map) in zip(pack["clips/16x2/hot_mask"][a:b], clips):
            mask = np.unpackbits(bits, count=80).reshape(8, 10).astype(bool)
            clear = np.abs(s_map - p90) > 1e-5
            np.testing.assert_array_equal(mask[clear], (s_map > p90)[clear])


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 0.5])
def test_the_decoding_window_changes_nothing(small_videos, tmp_path, scale):
    """Also with derivatives averaged over blocks of frames, and for edges and flow."""
    files = []
    for window in (64, 9, 1):
        task = task_for(small_videos, tmp_path / str(window), 2,
                        ["motion.window=3", "edges=true", "packs.flow=true", "geometries=16x2,8x1",
                         f"flow.scale={scale}"])
        report = make_pack(replace(task, run=replace(task.run, window=window)))
        files.append(dict(report.pack.files.items()))
        assert report.frames == 80
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("border, scale", [(0, 1), (3, 1), (3, 0.5)])
def test_the_border_is_zeroed_at_pixel_level(small_videos, tmp_path, border, scale):
    """At half the size 3 px are 2 of the flow's."""
    task = task_for(small_videos, tmp_path, 1, [f"border_px={border}", f"flow.scale={scale}"])
    pack = zarr.open_group(tmp_path / make_pack(task).pack.path, mode="r")
    with open_video(small_videos / task.videos[0].path) as source:
        flow = slow_flow(np.concatenate(list(source)), task.recipe.flow)
    border = round(border * scale + 0.1)
    t_motion = slow_index(flow, cell=int(8 * scale))[1]
    maps = np.stack([np.sqrt(sum(d ** 2 for c in f for d in np.gradient(c))) for f in flow])
    if border:
        maps[:, :border] = maps[:, -border:] = maps[:, :, :border] = maps[:, :, -border:] = 0
    np.testing.assert_allclose(pack["t_motion"][:], maps.mean((1, 2)), rtol=1e-4)
    assert not np.allclose(pack["t_motion"][:], t_motion, rtol=1e-3)


@pytest.mark.parametrize("scale", [1, 0.5])
def test_edges_and_flow_are_what_the_format_says(small_videos, tmp_path, scale):
    task = task_for(small_videos, tmp_path, 1, ["edges=true", "packs.flow=true", f"flow.scale={scale}"])
    pack = zarr.open_group(tmp_path / make_pack(task).pack.path, mode="r")
    with open_video(small_videos / task.videos[0].path) as source:
        flow = slow_flow(np.concatenate(list(source)), task.recipe.flow)

    def halved(x):
        return x if scale < 1 else x.reshape(*x.shape[:2], 32, 2, 40, 2).mean((3, 5))

    np.testing.assert_allclose(pack["flow"][:], halved(flow) / scale, rtol=2e-3, atol=2e-3)
    magnitude = np.stack([[np.sqrt(sum(d ** 2 for d in np.gradient(c))) for c in f] for f in flow])
    expected = np.clip(halved(magnitude), 0, 10)
    value = 10 * (pack["edges"][:] / 255.0) ** 2
    np.testing.assert_allclose(np.sqrt(value), np.sqrt(expected), atol=np.sqrt(10) / 255)


@pytest.mark.slow
def test_a_video_of_another_size_or_too_long_is_given_back(small_videos, tmp_path):
    report = make_pack(task_for(small_videos, tmp_path / "a", 2, frame_size=(80, 64)))
    assert report.pack is None and [m.frame_size for m in report.misplanned] == [(64, 80)] * 2
    report = make_pack(task_for(small_videos, tmp_path / "b", 3, ["packs.frames=90"]))
    assert len(report.videos) == 2 and [m.frames for m in report.misplanned] == [91]
    assert not list(Path(tmp_path).glob("*/packs/*/.*"))


def test_a_long_first_video_is_a_pack_of_its_own(small_videos, tmp_path):
    report = make_pack(task_for(small_videos, tmp_path, 2, ["packs.frames=10"]))
    assert len(report.videos) == 1 and report.frames == 40 and len(report.misplanned) == 1


def files_of(store):
    return {file.relative_to(store): file.read_bytes() for file in store.glob("packs/*/[!.]*/**/*") if file.is_file()}


@pytest.mark.slow
def test_a_pack_that_is_there_is_not_made_again(small_videos, tmp_path):
    """A worker died after its commit, or outlived its driver: also what did not fit the pack is told as before."""
    task = task_for(small_videos, tmp_path, 3, ["packs.frames=90"])
    first, before = make_pack(task), files_of(tmp_path)
    again = make_pack(replace(task, run=replace(task.run, window=7)))
    assert files_of(tmp_path) == before and not again.seconds
    assert (again.pack, again.videos, again.failures, again.misplanned, again.frames) == \
        (first.pack, first.videos, first.failures, first.misplanned, first.frames)
    other = task_for(small_videos, tmp_path / "other", 2)
    (small,) = make_pack(replace(other, videos=other.videos[:1])).videos
    assert [m.video for m in make_pack(other).misplanned] == [other.videos[1].id] and small.id == other.videos[0].id


def test_two_workers_make_one_pack_and_the_first_counts(small_videos, tmp_path):
    """The second is at work when the first, which knows of a video that kills, commits."""
    task = task_for(small_videos, tmp_path, 2)
    row = FailureRow(task.videos[1].id, task.videos[1].path, "killed its worker, 6 times", "process", 6)
    reports = []

    def overtake(videos, frames):
        if not reports:
            reports.append(make_pack(replace(task, lost=(row,))))

    second = make_pack(task, tell=overtake)
    first, = reports
    assert second.pack == first.pack and second.videos == first.videos and second.failures == first.failures == (row,)
    assert [video.id for video in first.videos] == [task.videos[0].id]
    assert verify_pack(tmp_path, first.pack, first.videos) == []
    assert not list(tmp_path.glob("packs/*/.*"))


@pytest.mark.slow
def test_a_sweep_takes_the_folder_from_a_worker_that_outlived_its_run(small_videos, tmp_path):
    task, swept = task_for(small_videos, tmp_path, 2), []

    def sweep(videos, frames):
        swept.extend(sweep_partials(tmp_path))

    with pytest.raises((OSError, StoreError)):
        make_pack(task, tell=sweep)
    assert swept and committed_packs(tmp_path) == {}
    sweep_partials(tmp_path)
    assert not list(tmp_path.glob("packs/*/.*"))
    assert make_pack(task).frames == 80


def test_a_sweep_never_breaks_a_commit_under_way(small_videos, tmp_path):
    """Sweeps without end beside a writer: a pack is there whole, or not at all."""
    task, over = task_for(small_videos, tmp_path, 1), threading.Event()

    def sweeps():
        rng = random.Random(0)
        while not over.is_set():
            sweep_partials(tmp_path)
            time.sleep(rng.uniform(0, 0.1))

    made = 0
    with ThreadPoolExecutor(1) as pool:
        sweeping = pool.submit(sweeps)
        try:
            for number in range(12):
                name = f"pack{number}"
                with suppress(OSError, StoreError):
                    report = make_pack(replace(task, name=name, sample_frames=2))
                    made += verify_pack(tmp_path, report.pack, report.videos) == []
        finally:
            over.set()
        sweeping.result()
    assert len(committed_packs(tmp_path)) == made


def test_a_trial_commits_nothing(small_videos, tmp_path):
    report = make_pack(task_for(small_videos, tmp_path, 1, trial=True))
    assert report.pack is None and report.frames == 40 and committed_packs(tmp_path) == {}
    assert not list(tmp_path.glob("packs/*/.*"))


@pytest.mark.slow
def test_neighbours_of_a_lost_video_are_the_bytes_of_a_run_in_which_it_failed(small_videos, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(small_videos, root, ignore=shutil.ignore_patterns("*.npz"))
    task = task_for(root, tmp_path / "a", 3)
    row = FailureRow(task.videos[1].id, task.videos[1].path, "over the time limit of 30 s, 6 times", "process", 6)
    lost = make_pack(replace(task, lost=(row,)))
    (root / task.videos[1].path).write_bytes(b"")
    failed = make_pack(replace(task, store=tmp_path / "b"))
    assert lost.failures == (row,) and failed.failures[0].reason == "empty file (0 bytes)"
    a, b = (({name: data for name, data in files_of(tmp_path / store).items() if name.name != "zarr.json"})
            for store in "ab")
    assert a == b and [video.id for video in lost.videos] == [task.videos[0].id, task.videos[2].id]


QUICK = "scales=1", "warps=1", "iterations=1"


def films_in(root, bad=(), length=100, name="film.avi"):
    """A film of `length` frames of 64x80 px, each a key frame; those of `bad` cannot be decoded."""
    root.mkdir(exist_ok=True)
    whole = write(root.parent / name, scene(length, 64, 80), "mjpeg", "yuvj420p")
    copied(whole, root / name, change=zeroed(*bad))
    return whole


@pytest.mark.parametrize("bad, kept", [((10,), (11, 89)), ((60,), (0, 60)), ((1, 50, 99), (2, 48)),
                                       ((0, 40), (41, 59)), ((0, 70), (1, 69)), ((0,), (1, 99))])
def test_the_longest_run_of_good_frames_is_kept(tmp_path, bad, kept):
    root = tmp_path / "videos"
    whole, (first, count) = films_in(root, bad), kept
    task = task_for(root, tmp_path / "store", 1, QUICK)
    report = make_pack(task)
    (row,), pack = report.videos, zarr.open_group(tmp_path / "store" / report.pack.path, mode="r")
    with open_video(whole) as source:
        wanted = np.concatenate(list(source))[first:first + count]
    assert row.frames == count == report.frames and np.abs(pack["rgb"][:].astype(int) - wanted).mean() < 4
    assert verify_pack(tmp_path / "store", report.pack, report.videos) == []
    assert file_start(row.note) == first
    if bad == (0,):    # nothing is missing between good frames
        assert report.failures == () and row.note == "starts at frame 1: what comes before cannot be decoded"
        return
    (failure,) = report.failures
    assert failure.reason == (
        f"damaged after {plural(bad[bad[0] == 0], 'frame')}: invalid data; its {count} good frames are kept, "
        f"{first} to {first + count - 1}" + ", the longest run of them" * (first > 1))
    assert row.note.startswith("starts at frame") == (first > 0)
    assert ("ends early: damaged after" in row.note) == (first + count in bad)
    again = make_pack(replace(task, name="again", kept=(count,)))
    assert again.pack is None and again.failures[0].reason == failure.reason


def test_good_frames_of_under_a_clip_are_named_and_not_kept(tmp_path):
    films_in(tmp_path / "videos", range(5, 100, 20))
    report = make_pack(task_for(tmp_path / "videos", tmp_path / "store", 1, QUICK))
    assert report.pack is None and report.failures[0].reason == (
        "damaged after 5 frames: invalid data; fewer good frames in a row than a clip's 31: at most 19, 6 to 24")


def test_a_store_of_before_keeps_the_first_run(tmp_path):
    films_in(tmp_path / "videos", (40,))
    report = make_pack(task_for(tmp_path / "videos", tmp_path / "store", 1, [*QUICK, "frames.reading=1"]))
    assert (report.videos[0].frames, report.videos[0].note) == (40, "ends early: damaged after 40 frames: invalid data")


def test_a_run_of_another_size_is_given_back_and_kept_in_a_pack_of_that_size(small_videos, tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    parts = [write(tmp_path / f"{n}.h264", scene(n, *size), "libx264", "yuv420p")
             for n, size in ((12, (64, 80)), (40, (48, 64)))]
    (root / "two.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    video = Video("two.h264", "two.h264", -1, "", "", ("train",))
    task = replace(task_for(small_videos, tmp_path / "store", 0, QUICK), root=root, videos=(video,))
    first = make_pack(task)
    assert first.pack is None and not first.videos and first.failures == ()
    assert [(m.video, m.frame_size) for m in first.misplanned] == [("two.h264", (48, 64))]
    report = make_pack(replace(task, name="other", frame_size=(48, 64)))
    assert (report.videos[0].frames, file_start(report.videos[0].note)) == (40, 12)
    assert report.failures[0].reason.startswith("size or orientation changes before frame 12; its 40 good frames are")
    np.testing.assert_array_equal(read(parts[1]), read(root / "two.h264", first=12))


def test_a_frame_that_the_border_covers_says_so(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    write(root / "low.avi", scene(40, 16, 80), "mjpeg", "yuvj420p")
    task = task_for(root, tmp_path / "store", 1, QUICK, frame_size=(16, 80))
    report = make_pack(task)
    assert report.videos[0].note == "the border of 8 px covers its frames: no motion is scored"
    assert not zarr.open_group(tmp_path / "store" / report.pack.path, mode="r")["t_motion"][:].any()
    free = replace(task, name="free", recipe=replace(task.recipe, motion=replace(task.recipe.motion, border_px=0)))
    report = make_pack(free)
    assert report.videos[0].note == ""
    assert zarr.open_group(tmp_path / "store" / report.pack.path, mode="r")["t_motion"][:].all()


@pytest.mark.slow
def test_a_damaged_video_keeps_its_good_frames_or_says_why_not(data_root, tmp_path):
    """derived_truncated60pct.avi and its like: rows in failures, packs without holes."""
    root = data_root / "odd"
    pipeline = resolve(load_pipeline("folder", settings=["flow.backend=opencv", "scales=1", "warps=1", "iterations=2"]))
    videos = [v for v in open_catalog("folder", root).videos if "truncated" in v.id or "corrupted" in v.id]
    assert len(videos) >= 3
    for video in videos:
        try:
            with open_video(root / video.path) as source:
                size = source.frame_size
        except Exception:
            continue
        task = PackTask(tmp_path / video.id, root, "pack", size, (video,), pipeline.recipe, "hash", pipeline.run)
        report = make_pack(task)
        assert report.pack or report.failures
        if report.failures and report.pack:
            assert report.videos[0].note.startswith("ends early") and "are kept" in report.failures[0].reason
            again = make_pack(replace(task, name="again", kept=(report.frames,)))
            assert again.pack is None and again.failures[0].reason == report.failures[0].reason
        elif report.failures:
            assert "fewer good frames" in report.failures[0].reason or "no frame" in report.failures[0].reason


@pytest.mark.gpu
@pytest.mark.parametrize("scale", ["1", "0.5"])
def test_arrays_of_a_device_are_stored_as_the_hosts(gpu, scale):
    """CuPy flow through motion, edges and clips: what the store gets lies on the host, and equals NumPy's."""
    import cupy

    recipe = resolve(load_pipeline("folder", settings=[
        "flow.backend=cpu", "edges=true", "flow=true", "geometries=[8x2, 4x4]", f"flow.scale={scale}"])).recipe
    side = (64, 80) if scale == "1" else (32, 40)
    flow = np.random.default_rng(0).normal(0, 2, (40, 2, *side)).astype(np.float32)
    found = []
    for xp in (np, cupy):
        indexers = {g: ClipIndexer(ClipGeometry.parse(g), 4) for g in recipe.clips.geometries}
        arrays = motion_arrays(xp.asarray(flow), recipe, indexers)
        found.append((arrays, {g: indexer.finish() for g, indexer in indexers.items()}))
    (host, clips), (device, others) = found
    assert set(device) == {"st_motion", "t_motion", "edges", "flow"}
    for name, values in device.items():
        assert isinstance(values, np.ndarray) and values.dtype == host[name].dtype
        np.testing.assert_allclose(values, host[name], rtol=1e-5, atol=1e-5)
    for geometry, clip in clips.items():
        np.testing.assert_allclose(others[geometry].s_p90, clip.s_p90, rtol=1e-5)
        np.testing.assert_array_equal(others[geometry].hot_mask, clip.hot_mask)
