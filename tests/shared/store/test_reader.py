"""The reader against plain zarr-python, range counts, damage, fork and pickle."""

import multiprocessing
import os
import pickle
import shutil
from contextlib import suppress

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import shared.store.codecs  # noqa: F401
from shared.clips.index import ClipGeometry
from shared.store.index import Index, publish
from shared.store.layout import StoreError
from shared.store.reader import StoreReader


@pytest.fixture(scope="module")
def store(tmp_path_factory, make):
    """Two packs with every kind of array; (path, {video: (group, first frame, frames, place in its pack)})."""
    path, maker, videos = tmp_path_factory.mktemp("store"), make(4, edges=True, flow=True), {}
    packs = [maker.pack(path, (33, 5, 40), "p0"), maker.pack(path, (1, 64), "p1")]
    publish(path, [row for row, _, _ in packs], [video for _, rows, _ in packs for video in rows])
    for row, rows, _ in packs:
        group = zarr.open_group(path / row.path, mode="r")
        videos |= {video.id: (group, video.first_frame, video.frames, i) for i, video in enumerate(rows)}
    return path, videos


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_frames_edges_and_flow_equal_zarrs(store, data):
    path, videos = store
    video = data.draw(st.sampled_from(sorted(videos)))
    group, first, frames, _ = videos[video]
    indices = data.draw(st.lists(st.integers(0, frames - 1), max_size=20))
    reader = StoreReader(path, gap=data.draw(st.sampled_from([0, 500, 1 << 20])))
    for name, read in (("rgb", reader.frames), ("edges", reader.edges), ("flow", reader.flow)):
        values = read(video, indices)
        assert values.dtype == group[name].dtype
        assert np.array_equal(values, group[name][:][first + np.array(indices, int)])
    reader.close()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_motion_equals_zarrs(store, data):
    path, videos = store
    video = data.draw(st.sampled_from(sorted(videos)))
    group, first, frames, _ = videos[video]
    start = data.draw(st.integers(0, frames))
    stop = data.draw(st.integers(start, frames))
    reader = StoreReader(path)
    values = reader.motion(video, start, stop)
    assert values.dtype == np.float16 and values.shape == (stop - start, 4, 5)
    assert np.array_equal(values, group["st_motion"][first + start:first + stop])
    reader.close()


def test_t_motion_and_clips_equal_zarrs(store):
    path, videos = store
    reader = StoreReader(path)
    for video, (group, first, frames, place) in videos.items():
        assert np.array_equal(reader.t_motion(video), group["t_motion"][first:first + frames])
        clips, stored = reader.clips(video, "4x2"), group["clips/4x2"]
        a, b = stored["offset"][place], stored["offset"][place + 1]
        for name in ("start", "score", "s_p90", "hot_mask"):
            assert np.array_equal(getattr(clips, name), stored[name][a:b])
            assert getattr(clips, name).dtype == stored[name].dtype
        assert np.array_equal(clips.median, float(stored["median"][place]), equal_nan=True)
        assert len(clips.start) == max(0, (frames - 7) // 2 + 1)
    reader.close()


def test_a_stride_2_clip_is_one_range_and_its_maps_another(store):
    path, videos = store
    geometry = ClipGeometry(16, 2)
    for video, (group, first, frames, _) in videos.items():
        for start in range(frames - geometry.span + 1):
            reader = StoreReader(path, gap=0)
            rgb, motion = reader.clip(video, start, "16x2" if start % 2 else geometry)
            rows = np.arange(first + start, first + start + geometry.span, 2)
            assert np.array_equal(rgb, group["rgb"].oindex[rows])
            assert np.array_equal(motion, group["st_motion"].oindex[rows])
            assert (reader.counts["rgb"].ranges, reader.counts["st_motion"].ranges) == (1, 1)
            assert reader.counts["rgb"].bytes_read == reader.counts["rgb"].bytes_used
            assert reader.ranges_read == 2 and reader.bytes_read == reader.bytes_used > 0
            reader.close()


def test_tokens_are_means_of_the_stored_cells(store):
    """Frames of 32x40: patches of 16 have 2x2 cells each, and half a patch at the right has no token."""
    path, videos = store
    reader = StoreReader(path)
    for video, start in (("p0-0", 2), ("p1-1", 31)):
        group, first, _, _ = videos[video]
        tokens, cells = reader.tokens(video, start), group["st_motion"]
        assert tokens.motion.shape == tokens.high.shape == (8, 2, 2) and tokens.motion.dtype == np.float32
        for t, i, j in np.ndindex(8, 2, 2):
            rows = [first + start + 2 * (2 * t + k) for k in range(2)]
            values = [float(cells[row, 2 * i + a, 2 * j + b]) for row in rows for a in range(2) for b in range(2)]
            assert tokens.motion[t, i, j] == pytest.approx(np.mean(values), rel=1e-6)
        assert (tokens.high == (tokens.motion > np.median(tokens.motion))).all() and tokens.high.sum() == 16
        quarter = reader.tokens(video, start, 8, 1, geometry="4x3", box=(8, 16, 24, 24), size=48, ratio=0.25)
        assert quarter.motion.shape == (4, 6, 6) and quarter.high.sum() == 36
        assert (quarter.motion[1, ::2, 1::2] == cells[first + start + 3, 1:, 2:]).all()
    assert reader.counts["st_motion"].ranges <= 4
    with pytest.raises(StoreError, match="video 'p0-1': frames 0 to 31, expected 0 to 5"):
        reader.tokens("p0-1", 0)
    for wrong in ({"patch": 64}, {"box": (0, 0, 99, 8)}, {"ratio": 1.0}, {"geometry": "16"}):
        with pytest.raises(ValueError, match="expected"):
            reader.tokens("p0-0", 0, **wrong)
    reader.close()


@pytest.mark.parametrize("stride, gap, ranges", [(1, 0, 2), (3, 0, 10), (4, 0, 10), (4, 1 << 20, 1), (1, 1 << 20, 1)])
def test_ranges_of_other_strides(store, stride, gap, ranges):
    reader = StoreReader(store[0], gap=gap)
    reader.frames("p1-1", range(0, 10 * stride, stride))
    assert reader.counts["rgb"].ranges == ranges
    reader.close()


def open_files(folder):
    """Files below the folder that this process has open; what else it has open comes and goes."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith(f"{os.path.realpath(folder)}/")]


def test_at_most_max_open_packs(store):
    path, _ = store
    reader = StoreReader(path, max_open=1)
    for video in ("p0-0", "p1-0", "p0-1", "p1-1") * 3:
        reader.clip(video, 0, ClipGeometry(1, 1))
        reader.edges(video, [0])
        reader.flow(video, [0])
        assert len(open_files(path)) == 4
    reader.close()
    assert open_files(path) == []
    assert reader.frames("p0-0", [0]).shape == (1, 32, 40, 3)
    reader.close()
    with pytest.raises(ValueError, match="max_open"):
        StoreReader(path, max_open=0)


def test_building_a_reader_opens_nothing(tmp_path):
    StoreReader(tmp_path / "no store at all")


def test_a_pickle_carries_the_index_and_no_file(store):
    path, videos = store
    reader = StoreReader(path, max_open=3, gap=7)
    expected = reader.frames("p0-2", [3, 1])
    other = pickle.loads(pickle.dumps(reader))
    assert other.index.generation == reader.index.generation and (other.max_open, other.gap) == (3, 7)
    assert not other._packs
    assert np.array_equal(other.frames("p0-2", [3, 1]), expected)
    reader.close(), other.close()


def _read_many(reader, queue):
    queue.put(sum(int(reader.frames("p1-1", [t, t + 1]).sum()) for t in range(60)))


def test_forked_workers_share_what_the_parent_opened(store):
    path, _ = store
    reader, context = StoreReader(path), multiprocessing.get_context("fork")
    _expected = context.Queue()
    _read_many(reader, _expected)
    expected, queue = _expected.get(timeout=300), context.Queue()
    workers = [context.Process(target=_read_many, args=(reader, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    _read_many(reader, queue)
    assert [queue.get(timeout=300) for _ in range(4)] == [expected] * 4
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0
    reader.close()


@pytest.mark.parametrize("call, message", [
    (lambda r: r.frames("nobody", [0]), "holds no video 'nobody'"),
    (lambda r: r.frames("p0-1", [5]), r"pack p0, video 'p0-1': frames 5 to 5, expected 0 to 4"),
    (lambda r: r.frames("p0-1", [-1]), "frames -1"),
    (lambda r: r.motion("p0-1", 0, 6), "frames 0 to 6, expected 0 to 5"),
    (lambda r: r.motion("p0-1", 3, 2), "frames 3 to 2"),
    (lambda r: r.clips("p0-1", "8x8"), r"pack p0, video 'p0-1': has no clips 8x8; add them with `python"),
    (lambda r: r.clips("p0-1", "8by8"), "expected LxS"),
    (lambda r: r.clip("p0-1", 0, "8by8"), "expected LxS"),
])
def test_what_is_not_there_is_named(store, call, message):
    reader = StoreReader(store[0])
    with pytest.raises((StoreError, ValueError), match=message):
        call(reader)
    reader.close()


def test_an_array_that_the_pack_does_not_keep(small_store):
    with pytest.raises(StoreError, match="pack p0, video 'p0-0'.*keeps no flow"):
        StoreReader(small_store[0]).flow("p0-0", [0])


READS = {
    "rgb/c.0.0.0.0": lambda r: r.frames("p0-0", range(33)),
    "rgb/zarr.json": lambda r: r.frames("p0-0", [0]),
    "st_motion/c.0.0.0": lambda r: r.motion("p0-0", 0, 33),
    "t_motion/c.0": lambda r: r.t_motion("p0-0"),
    "clips/4x2/hot_mask/c.0.0": lambda r: r.clips("p0-0", "4x2"),
    "clips/4x2/start/c.0": lambda r: r.clips("p0-0", "4x2"),
    "clips/4x2/median/c.0": lambda r: r.clips("p0-0", "4x2"),
    "frame_offset/c.0": lambda r: r.clips("p0-0", "4x2"),
}


@pytest.mark.parametrize("name", READS)
def test_damage_is_raised_with_pack_and_video(small_store, name):
    """A flipped bit, a missing tail and a missing file, in what the read needs."""
    store, _ = small_store
    file, good = store / "packs/32x40/p0" / name, (store / "packs/32x40/p0" / name).read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 3 if name.startswith("rgb/c") else len(good) // 2] ^= 16
    for bad in (bytes(flipped), good[:-1], b""):
        file.write_bytes(bad)
        with pytest.raises(StoreError, match="pack p0, video 'p0-0'"):
            READS[name](StoreReader(store))
    file.unlink()
    with pytest.raises(StoreError, match=f"pack p0, video 'p0-0'.*{name}"):
        READS[name](StoreReader(store))
    file.write_bytes(good)
    READS[name](StoreReader(store))


def test_a_reader_keeps_its_generation_while_a_new_one_is_published(small_store, make):
    store, contents = small_store
    reader = StoreReader(store)
    index = reader.index
    third = make(9).pack(store, (8,), "p2")
    publish(store, [*index.pack_rows(), third[0]], [*index.rows(), *third[1]])
    assert np.array_equal(reader.t_motion("p0-2"), contents["p0-2"].t_motion)
    assert "p2-0" not in reader.index and "p2-0" in Index.load(store)


def test_packs_that_the_index_does_not_list_are_not_read(small_store):
    store, _ = small_store
    shutil.copytree(store / "packs/32x40/p0", store / "packs/32x40/p9")
    reader = StoreReader(store)
    assert reader.index.packs == ["p0", "p1"]
    with pytest.raises(StoreError, match="lists no pack 'p9'"):
        reader.index.pack_row("p9")


@pytest.mark.parametrize("path", ["ucf101/BaseballPitch/v_BaseballPitch_g01_c01.avi",
                                  "kinetics/cleaning_pool/mmaction_rawvideo_part_0.mp4"])
def test_a_real_video(data_root, tmp_path, path):
    """Decoded, written in windows, read in clips: what comes back is the video, as JPEG at quality 85 shows it."""
    from shared.clips.index import ClipIndexer
    from shared.store.index import VideoRow
    from shared.store.packs import PackWriter
    from shared.videos.decode import open_video
    with open_video(data_root / "videos" / path) as video:
        windows = list(video)
    geometry, size = ClipGeometry(16, 2), windows[0].shape[1:3]
    writer = PackWriter(tmp_path, "p", size, geometries=[geometry], attributes={"backend": "none"})
    indexer = ClipIndexer(geometry, 4)
    writer.begin_video()
    for rgb in windows:
        maps = rgb.reshape(len(rgb), size[0] // 8, 8, size[1] // 8, 24).mean(axis=(2, 4), dtype=np.float32)
        indexer.append(maps, maps.mean(axis=(1, 2)))
        writer.append(rgb, maps, maps.mean(axis=(1, 2)))
    clips = {"16x2": indexer.finish()}
    writer.end_video(VideoRow("v", path), clips)
    row, rows = writer.commit()
    publish(tmp_path, [row], rows)
    source, reader = np.concatenate(windows), StoreReader(tmp_path)
    group = zarr.open_group(tmp_path / row.path, mode="r")
    assert len(clips["16x2"].start) > 0
    for start in clips["16x2"].start:
        rgb, motion = reader.clip("v", int(start), geometry)
        error = (rgb.astype(np.float32) - source[start:start + 31:2]) ** 2
        assert 10 * np.log10(255 ** 2 / error.mean()) > 34
        assert np.array_equal(rgb, group["rgb"][start:start + 31:2])
        assert np.array_equal(motion, group["st_motion"][start:start + 31:2])
    assert reader.counts["rgb"].ranges == reader.counts["st_motion"].ranges == len(clips["16x2"].start)
    assert reader.counts["rgb"].bytes_read == reader.counts["rgb"].bytes_used
    reader.close()
