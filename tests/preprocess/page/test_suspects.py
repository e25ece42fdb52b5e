"""Black frames, logos and equal videos, on frames made for it."""

import cv2
import numpy as np
import pytest

from preprocess.page import suspects
from preprocess.page.numbers import VideoNumbers, means, steadiness
from shared.clips.index import ClipGeometry, unpack_mask
from shared.pictures.census import store_picture
from shared.store.index import Index
from shared.store.reader import OpenPack, StoreReader
from shared.store.record import read_json

GEOMETRY = ClipGeometry(16, 2)


def grey(frames):
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])[::3]


@pytest.mark.parametrize("opaque, seen", [(1.0, True), (0.7, True), (0.0, False)])
def test_a_logo_is_what_stays_while_the_rest_moves(moving, with_logo, opaque, seen):
    for seed in range(3):
        assert suspects.has_logo(grey(with_logo(moving(seed), opaque))) is seen


def test_nothing_is_a_logo_where_the_camera_rests(moving, with_logo):
    frame = with_logo(moving(0), 1.0)[:1]
    noise = np.random.default_rng(0).integers(-6, 7, (12, *frame.shape[1:]))
    assert not suspects.has_logo(grey(np.clip(frame + noise, 0, 255).astype(np.uint8)))
    assert not suspects.has_logo(np.zeros((12, 128, 160), np.uint8)) and not suspects.has_logo(grey(frame))


def test_half_of_the_frames_decide_about_black():
    frames = np.full((12, 64, 64), 200, np.uint8)
    frames[:5] = 20
    assert not suspects.is_black(frames)
    frames[5, :62] = frames[5, 62:, :] = 31
    assert suspects.is_black(frames)
    frames[0, :8] = 32   # an eighth of it is lit
    assert not suspects.is_black(frames)


def test_videos_that_only_begin_alike_are_no_twins(page_store, ids, monkeypatch):
    reader = StoreReader(page_store)
    position = {name: reader.index.position(id) for name, id in ids.items()}
    alike = [0] * len(reader.index)   # whatever the openings say, the frames decide
    assert suspects.twins(reader, alike) == [[position["copy"], position["moving"], position["start"]]]
    sizes = StoreReader.frame_sizes
    monkeypatch.setattr(StoreReader, "frame_sizes", lambda self, video: sizes(self, video) * 0)
    assert suspects.twins(reader, alike) == [[position["copy"], position["moving"], position["start"]]]
    assert suspects.twins(reader, list(range(len(alike)))) == []


def test_numbers_of_a_pack(page_store):
    index, reader = Index.load(page_store), StoreReader(page_store)
    numbers = VideoNumbers(index, GEOMETRY)
    store_picture(index, read_json(page_store / "store.json"), GEOMETRY, numbers.take)
    for position, video in enumerate(index.id):
        t_motion, sizes, clips = reader.t_motion(video), reader.frame_sizes(video), reader.clips(video, GEOMETRY)
        frame = reader.frames(video, [0])[0]
        assert numbers.motion[position] == pytest.approx(t_motion.mean(), rel=1e-5)
        assert numbers.rest[position] == pytest.approx((t_motion < 1e-3).mean())
        assert numbers.detail[position] == pytest.approx(sizes.mean() / frame[..., 0].size, rel=1e-5)
        hot = np.stack([unpack_mask(mask, (frame.shape[0] // 8, frame.shape[1] // 8)) for mask in clips.hot_mask]
                       or [np.zeros((1, 1), bool)])
        steady = (hot.mean(axis=0) > 0.9).sum() / max(hot.sum(axis=(1, 2)).mean(), 1)
        assert numbers.steady[position] == pytest.approx(steady)
    assert numbers.steady.max() > 0
    pack = OpenPack(index.store, index.pack_row("tall"))
    assert steadiness(pack, GEOMETRY, np.array([0])) == numbers.steady[index.position("walk/tall.mp4")]


def test_means_of_ranges():
    np.testing.assert_array_equal(means(np.array([1.0, 2, 6]), np.array([0, 1, 1]), np.array([3, 3, 1])), [3, 4, 0])


def test_of_many_videos_those_with_signs_are_examined(page_store, monkeypatch):
    index = Index.load(page_store)
    numbers = VideoNumbers(index, GEOMETRY)
    numbers.detail[:], numbers.steady[:] = np.arange(12), np.arange(12) % 11
    monkeypatch.setattr(suspects, "EXAMINED", 6)
    assert suspects.worth_examining(numbers) == [0, 1, 2, 8, 9, 10]
