"""Clip windows and crops against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import motion
from shared.clips import index
from shared.clips.index import Box, ClipGeometry, ClipIndexer

GEOMETRIES = st.builds(ClipGeometry, st.integers(1, 8), st.integers(1, 5))


def maps_of(frames, cells=(5, 7), seed=0):
    return np.random.default_rng(seed).random((frames, *cells), np.float32)


@pytest.mark.parametrize("text", ["16x2", "8x8", "1x1", "32x4"])
def test_geometry_reads_what_it_writes(text):
    assert str(ClipGeometry.parse(text)) == text


@pytest.mark.parametrize("text", ["", "16", "0x2", "16x0", "16 x 2", "x2", "-1x2", "16x2x2", "1e3x2"])
def test_geometry_refuses(text):
    with pytest.raises(ValueError, match="LxS"):
        ClipGeometry.parse(text)


def test_span_counts_both_ends():
    assert ClipGeometry(16, 2).span == 31
    assert ClipGeometry(1, 1).span == 1


@given(frames=st.integers(0, 120), geometry=GEOMETRIES, step=st.integers(1, 9))
def test_starts_are_all_that_fit(frames, geometry, step):
    expected = [s for s in range(0, frames, step) if s + (geometry.length - 1) * geometry.stride <= frames - 1]
    assert index.clip_starts(frames, geometry, step).tolist() == expected


@settings(deadline=None)
@given(frames=st.integers(1, 90), geometry=GEOMETRIES, step=st.integers(1, 6), windows=st.integers(1, 40),
       seed=st.integers(0, 9))
def test_streamed_index_equals_brute_force(frames, geometry, step, windows, seed):
    maps = maps_of(frames, seed=seed)
    t = motion.t_motion(maps)
    indexer = ClipIndexer(geometry, step)
    for at in range(0, frames, windows):
        indexer.append(maps[at:at + windows], t[at:at + windows])
    found = indexer.finish()
    starts = [s for s in range(0, frames, step) if s + geometry.span <= frames]
    assert found.start.tolist() == starts and found.start.dtype == np.int32
    scores = [np.float32(np.mean([float(t[s + k * geometry.stride]) for k in range(geometry.length)])) for s in starts]
    np.testing.assert_allclose(found.score, scores, rtol=1e-6)
    for c, s in enumerate(starts):
        s_map = maps[s:s + geometry.span:geometry.stride].astype(np.float64).mean(0).astype(np.float32)
        p90 = np.percentile(s_map.astype(np.float64), 90)
        assert found.s_p90[c] == np.float32(p90)
        bits = "".join("1" if v > np.float32(p90) else "0" for v in s_map.ravel()).ljust(40, "0")
        assert found.hot_mask[c].tolist() == [int(bits[i:i + 8], 2) for i in range(0, 40, 8)]
        np.testing.assert_array_equal(index.unpack_mask(found.hot_mask[c], (5, 7)), s_map > np.float32(p90))
    if starts:
        assert found.median == np.float32(np.median(found.score))
    else:
        assert np.isnan(found.median) and found.hot_mask.shape == (0, 5)


def test_indexer_memory_is_one_span():
    indexer = ClipIndexer(ClipGeometry(16, 2), 4)
    for _ in range(100):
        indexer.append(maps_of(16), np.zeros(16, np.float32))
        assert len(indexer.maps) <= 31 + 16


def test_indexer_skips_frames_between_short_clips():
    maps = maps_of(50)
    indexer = ClipIndexer(ClipGeometry(1, 1), 20)
    for m in maps:
        indexer.append(m[None], motion.t_motion(m[None]))
    assert indexer.finish().start.tolist() == [0, 20, 40]


def test_above_is_strict_but_never_empty():
    assert index.above(np.array([1., 2, 3]), 2).tolist() == [False, False, True]
    assert index.above(np.array([2., 2, 2]), 2).tolist() == [True, True, True]


def test_hot_mask_of_a_plateau_and_of_a_constant():
    plateau = np.zeros((10, 10), np.float32)
    plateau[:3] = 1                                    # the 90th percentile is the maximum: nothing is strictly above
    threshold, mask = index.hot_mask(plateau)
    assert threshold == 1 and mask[:3].all() and not mask[3:].any()
    assert not index.hot_mask(np.full((4, 4), 0.5, np.float32))[1].any()


def brute_coverage(mask, box):
    pixels = np.kron(mask, np.ones((8, 8), int))
    return pixels[box.y:box.y + box.h, box.x:box.x + box.w].sum()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
       size=st.tuples(st.integers(1, 32), st.integers(1, 48)))
def test_valid_positions_equal_brute_force(seed, density, size):
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 6)) < density
    h, w = size
    valid = index.valid_positions(index.summed_area(mask), h, w)
    assert valid.shape == (32 - h + 1, 48 - w + 1)
    total = mask.sum() * 64
    for y in range(0, valid.shape[0], 3):
        for x in range(0, valid.shape[1], 3):
            assert valid[y, x] == (brute_coverage(mask, Box(y, x, h, w)) >= 0.8 * total - 1e-6)


def test_positions_are_drawn_uniformly():
    valid = np.zeros((5, 9), bool)
    valid[1, 2] = valid[4, 8] = valid[0, 0] = True
    rng = np.random.default_rng(0)
    drawn = [index.draw_position(rng, valid) for _ in range(3000)]
    counts = [drawn.count(p) for p in [(1, 2), (4, 8), (0, 0)]]
    assert sum(counts) == 3000 and min(counts) > 900
    assert index.draw_position(rng, np.zeros((3, 3), bool)) is None


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), cells=st.sampled_from([(4, 6), (16, 22), (32, 43), (2, 30), (2, 2)]))
def test_crops_lie_inside_and_cover(seed, cells):
    rng = np.random.default_rng(seed)
    mask = np.zeros(cells, bool)
    y, x = rng.integers(cells[0]), rng.integers(cells[1])
    mask[y:y + 2, x:x + 2] = True
    box = index.draw_crop(rng, mask)
    assert 0 <= box.y <= box.y + box.h <= cells[0] * 8 and 0 <= box.x <= box.x + box.w <= cells[1] * 8
    if box.h >= 16 and box.w >= 16:
        assert brute_coverage(mask, box) >= 0.8 * mask.sum() * 64 - 1e-6


def test_crop_sizes_follow_the_released_code():
    rng = np.random.default_rng(1)
    sizes = np.array([index.draw_size(rng, 256, 344) for _ in range(2000)])
    share, aspect = sizes.prod(axis=1) / (256 * 344), sizes[:, 1] / sizes[:, 0]
    assert 0.19 < share.min() < 0.22 and 0.8 < share.max() <= 1.0
    assert 0.74 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.35


def test_crop_falls_back_to_the_best_cover():
    mask = np.zeros((16, 16), bool)
    mask[0, 0] = mask[0, -1] = mask[-1, 0] = mask[-1, -1] = True
    rng = np.random.default_rng(0)
    for _ in range(20):
        box = index.draw_crop(rng, mask, area=(0.2, 0.3))
        assert brute_coverage(mask, box) == 64         # one corner of four: no box of that size holds more


def test_empty_mask_accepts_every_box():
    rng = np.random.default_rng(0)
    boxes = [index.draw_crop(rng, np.zeros((16, 16), bool), area=(0.2, 0.2)) for _ in range(400)]
    assert min(b.y for b in boxes) < 5 and max(b.y + b.h for b in boxes) > 123
