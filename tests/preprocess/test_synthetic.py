import csv
import json
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import av
import cv2
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from preprocess.scenes import CLASSES, Dials, Scene
from preprocess.synthetic import make_videos, plan
from shared.cli import RequestError
from shared.datasets.catalog import open_catalog
from shared.datasets.truth import load_truth, truth_path

SMALL = dict(videos=16, seed=5, backgrounds=4, textures=3, frames=40, height=96, width=128)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "videos"
    make_videos(root, **SMALL)
    return root


def decode(path: Path) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def scenes(dials: Dials):
    for video in plan(dials):
        yield video, Scene(dials, video.number, video.label, video.background, video.texture)


def backward_warp(image, flow):
    """(H, W, C) at t+1 and (2, H, W) from t to t+1 -> the image at t."""
    y, x = np.mgrid[:flow.shape[1], :flow.shape[2]].astype(np.float32)
    return cv2.remap(image.astype(np.float32), x + flow[0], y + flow[1], cv2.INTER_LINEAR)


def visible(flow, mask, mask_after):
    """(H, W) bool: pixels whose way ends on the screen and on the same side of the object's outline."""
    inside = np.full(mask.shape, 2.0, np.float32)
    sides = np.stack([mask_after.astype(np.float32), inside], axis=-1)
    warped = backward_warp(sides, flow)
    outline = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) != cv2.erode(mask.astype(np.uint8), np.ones((5, 5)))
    return (np.abs(warped[..., 0] - mask) < 0.01) & (warped[..., 1] > 1.99) & ~outline


@pytest.mark.slow
def test_the_same_bytes_each_time(made, tmp_path):
    make_videos(tmp_path / "again", **SMALL)
    first, second = tree(made), tree(tmp_path / "again")
    assert len(first) == 2 * SMALL["videos"] + 2 and first == second
    other = make_videos(tmp_path / "other", **SMALL | {"seed": 6})
    assert not {path.read_bytes() for path in other} & set(first.values())


@pytest.mark.slow
def test_the_same_bytes_wherever_the_encoder_has_its_memory(tmp_path):
    """x264's macroblock tree gave other bytes in most of these rounds: it reads its memory's alignment."""
    rng, found = np.random.default_rng(0), set()
    for number in range(6):
        blocks = [np.zeros(int(size), np.uint8) for size in rng.integers(1000, 90_000, 40)]
        del blocks[::2]
        paths = make_videos(tmp_path / str(number), videos=8, seed=0, backgrounds=4, textures=6, frames=24)
        found.add(b"".join(path.read_bytes() for path in paths))
    assert len(found) == 1


def test_files_are_what_the_catalog_and_a_decoder_expect(made):
    paths = make_videos(made, **SMALL)
    catalog = open_catalog("synthetic", made)
    assert sorted(path.relative_to(made).as_posix() for path in paths) == [video.id for video in catalog.videos]
    assert catalog.classes == CLASSES and not catalog.absent
    for path in paths[:4]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.frames, stream.average_rate) == ("h264", SMALL["frames"], 25)
        frames, (mask, flow) = decode(path), load_truth(path)
        assert frames.shape == (40, 96, 128, 3)
        assert (mask.shape, mask.dtype, flow.shape, flow.dtype) == ((40, 96, 128), bool, (40, 2, 96, 128), np.float32)
        assert mask.any(axis=(1, 2)).all() and np.array_equal(flow[-1], flow[-2])


def test_truth_and_video_are_those_of_the_scene(made):
    dials = Dials(**SMALL, fps=25)
    for video, scene in list(scenes(dials))[::5]:
        frames, (mask, flow) = decode(made / video.path), load_truth(made / video.path)
        for t in (0, 17, 39):
            assert np.array_equal(mask[t], scene.mask(t))
            np.testing.assert_allclose(flow[t], scene.flow(t), rtol=2**-11, atol=1e-7)  # float16
            assert np.abs(frames[t].astype(int) - scene.frame(t)).mean() < 4  # 4:2:0 and H.264


def test_flow_takes_each_frame_back_from_the_next(made):
    """Where the pixel stays visible; and no flow at all does much worse where things move, so the check can fail."""
    for path in sorted(made.rglob("*.mp4")):
        frames, (mask, flow) = decode(path), load_truth(path)
        errors, still = [], []
        for t in range(0, len(frames) - 1, 3):
            seen = visible(flow[t], mask[t], mask[t + 1])
            assert seen.mean() > 0.7
            error = np.abs(backward_warp(frames[t + 1], flow[t]) - frames[t]).mean(axis=-1)
            errors.append(error[seen].mean())
            moved = seen & (np.hypot(*flow[t]) > 1.5)
            if moved.sum() > 50:
                change = np.abs(frames[t + 1].astype(int) - frames[t]).mean(axis=-1)
                still.append(change[moved].mean() / error[moved].mean())
        assert np.mean(errors) < 2.5 and np.max(errors) < 4, path.name
        assert not still or np.median(still) > 1.8, (path.name, still)


def test_mask_is_where_a_still_camera_sees_change():
    dials, checked = Dials(videos=32, backgrounds=1, textures=2, frames=40, height=96, width=128, fps=25, seed=2), 0
    for video, scene in scenes(dials):
        if scene.camera.way.any() or video.label == "still":
            continue
        for t in range(0, 39, 4):
            change = np.abs(scene.frame(t + 1).astype(int) - scene.frame(t)).max(axis=-1) > 3
            either = cv2.dilate((scene.mask(t) | scene.mask(t + 1)).astype(np.uint8), np.ones((5, 5))).astype(bool)
            assert not change[~either].any()
            speed = np.hypot(*scene.flow(t))
            assert not speed[~scene.mask(t)].any()
            if speed[scene.mask(t)].mean() > 1 and video.label != "rotate":
                checked += 1
                assert change[scene.mask(t)].mean() > 0.3
    assert checked > 30


def test_mask_has_the_area_of_the_object():
    """Half-covered pixels and up: the covered area, and not that of every pixel touched."""
    dials, checked = Dials(videos=16, backgrounds=1, textures=1, frames=30, height=128, width=176, fps=25, seed=4), 0
    for _, scene in scenes(dials):
        for t in range(0, 30, 7):
            mask = scene.mask(t)
            if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
                continue
            area = scene.patch[..., 3].sum() * np.linalg.det(scene.motion.at(t)[:2, :2])
            assert abs(mask.sum() / area - 1) < 0.02
            checked += 1
    assert checked > 20


@pytest.mark.slow
def test_objects_move_a_few_pixels_in_a_part_of_the_video_only():
    dials, peaks = Dials(videos=40, backgrounds=5, textures=4, frames=64, height=128, width=176, fps=25, seed=0), {}
    for video, scene in scenes(dials):
        motion = scene.motion
        own = np.array([np.abs(motion.at(t + 1) - motion.at(t)).max() for t in range(63)])
        resting = [t for t in range(63) if t + 1 <= motion.begin or t >= motion.begin + motion.active]
        if video.label == "still":
            assert not own.any() and np.abs(scene.camera.at(20) - scene.camera.at(0)).max() > 1
        else:
            assert len(resting) >= 20 and not own[resting].any()
            peaks.setdefault(video.label, []).append(
                max(np.hypot(*scene.flow(t))[scene.mask(t)].mean() for t in range(0, 63, 2)))
    assert set(peaks) == set(CLASSES) - {"still"}
    assert all(0.6 < np.median(values) < 7 for values in peaks.values()), peaks


@pytest.mark.slow
def test_objects_start_anywhere():
    dials = Dials(videos=360, backgrounds=1, textures=1, frames=16, height=96, width=128, fps=25, seed=1)
    starts = np.array([scene.motion.start / (128, 96) for _, scene in scenes(dials)])
    cells = Counter(map(tuple, np.minimum(starts * 3, 2).astype(int).tolist()))
    assert len(cells) == 9 and max(cells.values()) < 2 * min(cells.values())  # a ninth each


@pytest.mark.slow
def test_the_flow_is_what_tvl1_measures(made):
    """OpenCV's TV-L1 on the decoded frames: inside moving objects its endpoint error is a fraction of the motion."""
    tvl1, errors, speeds = cv2.optflow.DualTVL1OpticalFlow_create(), [], []
    for path in sorted(made.rglob("*.mp4")):
        mask, flow = load_truth(path)
        speed = np.hypot(flow[:, 0], flow[:, 1])
        inner = [cv2.erode(m.astype(np.uint8), np.ones((3, 3))).astype(bool) for m in mask]
        t = int(np.argsort([s[i].mean() if i.any() else 0 for s, i in zip(speed, inner)])[25])
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in decode(path)[t:t + 2]]
        measured = tvl1.calc(*grey, None).transpose(2, 0, 1)
        errors.append(np.hypot(*(measured - flow[t]))[inner[t]].mean())
        speeds.append(speed[t][inner[t]].mean())
    assert np.median(speeds) > 0.7
    assert np.median(errors) < 0.25 and np.median(np.array(errors) / speeds) < 0.3, (errors, speeds)


def test_a_background_looks_the_same_in_all_its_videos_and_unlike_the_others():
    dials, canvases = Dials(videos=16, backgrounds=4, textures=2, frames=8, height=64, width=80, fps=25, seed=9), {}
    for video, scene in scenes(dials):
        assert np.array_equal(canvases.setdefault(video.background, scene.canvas), scene.canvas)
    assert len(canvases) == 4
    assert min(np.abs(canvases[a] - canvases[b]).mean() for a in range(4) for b in range(a)) > 5


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_dials_turn_what_they_say(data):
    videos = data.draw(st.integers(1, 200))
    backgrounds, textures = data.draw(st.integers(1, videos)), data.draw(st.integers(1, videos))
    planned = plan(Dials(videos, backgrounds, textures, 8, 48, 48, 25, data.draw(st.integers(0, 9))))
    assert len({video.path for video in planned}) == videos
    assert {video.background for video in planned} == set(range(backgrounds))
    assert {video.texture for video in planned} == set(range(textures))
    assert {video.label for video in planned} == set(CLASSES[:videos])
    pairs = Counter((video.label, video.background) for video in planned)
    assert max(pairs.values()) == -(-videos // (8 * backgrounds))
    if videos % (8 * backgrounds) == 0:
        assert len(pairs) == 8 * backgrounds and len(set(pairs.values())) == 1
    train, test = ({v.group for v in planned if v.split == split} for split in ("train", "test"))
    assert not train & test and train and bool(test) == (backgrounds > 1)


def test_annotations_name_background_and_texture(made):
    with open(made / "annotations.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    planned = plan(Dials(**SMALL, fps=25))
    assert rows == [{name: str(asdict(video)[name]) for name in rows[0]} for video in planned]
    assert list(rows[0]) == ["path", "label", "split", "group", "background", "texture"]
    assert len({row["background"] for row in rows}) == 4 and len({row["texture"] for row in rows}) == 3


def test_what_is_there_is_kept_and_what_is_missing_made(made):
    before, times = tree(made), {path: path.stat().st_mtime_ns for path in made.rglob("*.mp4")}
    video, other = sorted(times)[3], sorted(times)[5]
    video.unlink()
    truth_path(other).unlink()
    make_videos(made, **SMALL)
    assert tree(made) == before
    assert {path for path, then in times.items() if path.stat().st_mtime_ns != then} == {video, other}


@pytest.mark.slow
def test_a_killed_run_leaves_whole_videos_only_and_goes_on(tmp_path):
    dials = dict(videos=200, seed=0, backgrounds=2, textures=2, frames=6, height=48, width=48)
    script = textwrap.dedent(f"""
        import os, signal, threading, time
        from pathlib import Path
        from preprocess.synthetic import make_videos
        def kill():
            while len(list(Path({str(tmp_path)!r}).glob("a/*/*.mp4"))) < 5:
                time.sleep(0.002)
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=kill).start()
        make_videos({str(tmp_path / 'a')!r}, **{dials})
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).resolve().parents[2])
    assert done.returncode == -signal.SIGKILL
    catalog = open_catalog("synthetic", tmp_path / "a")
    assert 5 <= len(catalog.videos) <= 200 and len(catalog.absent) == 200 - len(catalog.videos)
    for video in catalog.videos:
        assert len(decode(tmp_path / "a" / video.path)) == len(load_truth(tmp_path / "a" / video.path)[0]) == 6
    make_videos(tmp_path / "a", **dials)
    make_videos(tmp_path / "b", **dials)
    hidden = {name for name in tree(tmp_path / "a") if "/." in name}  # at most what the kill cut off
    assert len(hidden) <= 1
    assert {name: data for name, data in tree(tmp_path / "a").items() if name not in hidden} == tree(tmp_path / "b")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path):
    peaks = []
    for frames in (32, 256):
        tracemalloc.start()
        make_videos(tmp_path / str(frames), videos=1, seed=0, backgrounds=1, textures=1, frames=frames, height=96,
                    width=96)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    flow_growth = (256 - 32) * 2 * 96 * 96 * 2
    assert peaks[1] - peaks[0] < flow_growth / 10


@pytest.mark.parametrize("change, parts", [
    ({"videos": 0}, ["videos is 0", "at least 1"]), ({"frames": 1}, ["frames is 1", "at least 2"]),
    ({"height": 97}, ["height is 97", "even"]), ({"width": 46}, ["width is 46", "at least 48"]),
    ({"backgrounds": 17}, ["17 backgrounds", "16 videos"]), ({"textures": 0}, ["textures is 0"]),
    ({"textures": 99}, ["99 textures"]), ({"seed": -1}, ["seed is -1"]), ({"fps": 0}, ["fps is 0"])])
def test_impossible_dials(tmp_path, change, parts):
    with pytest.raises(RequestError) as caught:
        make_videos(tmp_path / "new", **SMALL | change)
    assert all(part in str(caught.value) for part in parts) and not (tmp_path / "new").exists()


def test_other_settings_and_foreign_folders_are_refused(made, tmp_path):
    with pytest.raises(RequestError, match="backgrounds 4, asked 5; seed 5, asked 6"):
        make_videos(made, **SMALL | {"seed": 6, "backgrounds": 5})
    (tmp_path / "mine.mp4").touch()
    with pytest.raises(RequestError, match="other files"):
        make_videos(tmp_path, **SMALL)
    for text in ("", "[]", "{}", '{"settings": 1, "versions": {}}'):
        (tmp_path / "synthetic.json").write_text(text)
        with pytest.raises(RequestError, match="no(t a)? record"):
            make_videos(tmp_path, **SMALL)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.mp4", "synthetic.json"}


def test_other_versions_may_use_what_is_whole_but_add_nothing(tmp_path):
    dials = dict(videos=2, seed=0, backgrounds=1, textures=1, frames=4, height=48, width=48)
    paths, record = make_videos(tmp_path / "v", **dials), tmp_path / "v/synthetic.json"
    found = json.loads(record.read_text())
    record.write_text(json.dumps(found | {"versions": found["versions"] | {"pyav": "1.0"}}))
    before = tree(tmp_path / "v")
    make_videos(tmp_path / "v", **dials)
    assert tree(tmp_path / "v") == before
    paths[0].unlink()
    with pytest.raises(RequestError, match="unfinished"):
        make_videos(tmp_path / "v", **dials)


def test_a_video_without_truth(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.truth.npz"):
        load_truth(tmp_path / "none.mp4")
