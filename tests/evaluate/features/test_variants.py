"""Clips from which something has been taken away, against frames that are known."""

import numpy as np
import pytest

from evaluate.features import variants
from evaluate.features.extract import View, read_ahead
from evaluate.features.variants import moving_cells, shuffled
from evaluate.protocol import load_settings
from shared.clips.index import ClipGeometry
from shared.store.reader import StoreReader


@pytest.fixture(scope="module")
def passing(tmp_path_factory, write_store, make_video):
    """A bright square that crosses a still scene, and its maps: motion at the square's cells alone."""
    rgb, maps = make_video(1, 5).repeat(40, 0), np.zeros((40, 8, 10), np.float32)
    for t in range(40):
        rgb[t, 16:32, 2 * t:2 * t + 16] = 255
        maps[t, 2:4, t // 4:t // 4 + 3] = 0.3
    return write_store(tmp_path_factory.mktemp("passing") / "store", {"v": dict(rgb=rgb, maps=maps, label=0,
                                                                               class_name="a", group="", splits=())})


def clips(store, variant):
    """(clips, L, h, w, 3) of the whole frames."""
    view = View(3, ClipGeometry(8, 2), 64, 64, variant=variant)
    frames, places, weights = next(read_ahead(StoreReader(store), np.array([0]), view,
                                              load_settings("linear", ["run.workers=0"]).run))
    assert weights.tolist() == [1, 1, 1] and places.shape == (3, 8)
    return frames[places].astype(int)


def test_order_and_motion_are_taken_away(passing):
    plain = clips(passing, "")
    np.testing.assert_array_equal(clips(passing, "reversed"), plain[:, ::-1])
    np.testing.assert_array_equal(clips(passing, "still"), plain[:, 4:5].repeat(8, 1))
    found = clips(passing, "shuffled")
    np.testing.assert_array_equal(found, clips(passing, "shuffled"))          # the same in every run
    for clip, other in zip(plain, found):
        assert sorted(frame.tobytes() for frame in clip) == sorted(frame.tobytes() for frame in other)
        assert not np.array_equal(clip, other)


def test_what_moves_is_replaced_by_the_median_at_all_times(passing):
    plain, found = clips(passing, ""), clips(passing, "background_only")
    scene = np.median(plain.reshape(-1, *plain.shape[2:]), axis=0)
    for clip, bare in zip(plain, found):
        assert np.ptp(clip, axis=0).max() > 80 and np.ptp(bare, axis=0).max() < 30       # JPEG rings a little
        assert np.abs(bare - scene).mean() < 3
        assert np.array_equal(clip[:, 48:], bare[:, 48:])                    # three cells below the square


def test_cells_that_move_their_insides_and_their_neighbours():
    motion = np.zeros((3, 14, 14))
    motion[0, 2, 2:9] = motion[1, 8, 2:9] = motion[2, 2:9, 2] = motion[2, 2:9, 8] = variants.MOVING * 2
    expected = np.zeros((14, 14), bool)
    expected[:11, :11] = True
    np.testing.assert_array_equal(moving_cells(motion), expected)
    assert not moving_cells(np.full((2, 4, 4), variants.MOVING)).any()


def test_orders_differ_from_the_clips():
    places, rng = np.arange(60).reshape(30, 2), np.random.default_rng(0)
    np.testing.assert_array_equal(shuffled(places, rng), places[:, ::-1])
    with pytest.raises(ValueError, match="one frame has no order"):
        shuffled(places[:, :1], rng)
