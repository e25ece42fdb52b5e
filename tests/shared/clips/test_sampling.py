"""Draws of clips, boxes and colours: their properties, their laws, and slow oracles."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clips.index import ClipGeometry, ClipIndex, clip_median, clip_starts
from shared.clips.sampling import VIEW, draw_augment, draw_box, draw_clips, generator, halves, motion_region, overlaps

CLIP = ClipGeometry(4, 2)  # spans 7 frames


def index(scores, step=1):
    scores = np.asarray(scores, np.float32)
    start = np.arange(len(scores), dtype=np.int32) * step
    return ClipIndex(start, scores, scores, np.zeros((len(scores), 1), np.uint8), clip_median(scores))


def test_generators_of_other_keys_are_others():
    keys = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (7, 3), (7, 3, 0)]
    draws = {generator(seed, *key).integers(1 << 62) for seed in (0, 1) for key in keys}
    assert len(draws) == 2 * len(keys)
    assert generator(3, 1, 2).integers(1 << 62) == generator(3, 1, 2).integers(1 << 62)


@given(st.integers(1, 80), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))
def test_halves_hold_whole_clips_and_share_no_frame(frames, length, stride, step):
    geometry = ClipGeometry(length, stride)
    starts = clip_starts(frames, geometry, step)
    one, two = halves(starts, frames, geometry)
    middle = frames // 2
    assert one.tolist() == [i for i, s in enumerate(starts) if s + geometry.span - 1 < middle]
    assert two.tolist() == [i for i, s in enumerate(starts) if s >= middle]
    assert not set(one) & set(two)


@settings(deadline=None)
@given(st.data())
def test_query_and_pair_come_from_their_halves_and_move(sampling, data):
    frames = data.draw(st.integers(14, 50))
    count = frames - CLIP.span + 1
    scores = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    clips, chosen = index(scores), sampling(ta=data.draw(st.booleans()))
    one, two = halves(clips.start, frames, CLIP)
    (q, k1, k2, k3), order = draw_clips(generator(data.draw(st.integers(0, 99))), clips, frames, CLIP, chosen)
    assert q == k1 and k2 <= k3
    mine, other = (two, one) if order else (one, two)
    assert q in mine and k2 in other and k3 in other
    if chosen.ta:
        for clip, half in ((q, mine), (k2, other), (k3, other)):
            values = clips.score[half]
            median = np.median(values)
            assert clips.score[clip] > median or not (values > median).any() and clips.score[clip] >= median


def test_every_clip_above_the_median_is_drawn_equally_often(sampling):
    clips, rng = index([0, 9, 0, 8, 7, 0, 0, 0, 5, 0, 6, 4]), generator(0)  # frames 0-17: halves 0-2 and 9-11
    drawn = [draw_clips(rng, clips, 18, CLIP, sampling(keys=1))[0] for _ in range(3000)]
    assert all(q == k1 for q, k1 in drawn)
    counts = np.bincount([q for q, _ in drawn], minlength=12)
    above = np.flatnonzero(clips.score > clips.median)
    assert set(np.flatnonzero(counts)) == set(above) == {1, 3, 4, 8, 10, 11}
    assert (abs(counts[above] / 500 - 1) < 0.2).all()


def test_motion_focus_comes_with_its_probability(sampling):
    clips, rng = index([0, 1, 1, 1] * 6 + [2]), generator(1)  # one clip of 25 lies above the median of 1
    share = {p: np.mean([draw_clips(rng, clips, 31, CLIP, sampling(keys=1, ta_probability=p))[0][0] == 24
                         for _ in range(2000)]) for p in (0.0, 0.7, 1.0)}
    assert share[1.0] == 1
    assert abs(share[0.0] - 1 / 25) < 0.02
    assert abs(share[0.7] - (0.7 + 0.3 / 25)) < 0.05
    off = np.mean([draw_clips(rng, clips, 31, CLIP, sampling(keys=1, ta=False))[0][0] == 24 for _ in range(2000)])
    assert abs(off - 1 / 25) < 0.02


def test_a_half_below_the_videos_median_gives_its_best_clip(sampling):
    # Halves of 20 frames: starts 0-3 and 10-13. The whole first half lies below the median of the video.
    clips = index([1, 3, 2, 1, 5, 5, 5, 5, 5, 5, 6, 7, 8, 9])
    for seed in range(20):
        (q, _, k2, k3), order = draw_clips(generator(seed), clips, 20, CLIP, sampling(ta_scope="video"))
        first, second = ({k2, k3}, {q}) if order else ({q}, {k2, k3})
        assert first == {1} and second <= {10, 11, 12, 13}


@pytest.mark.parametrize("count, before, after", [(1, (0, 0, 0, 0), (0, 0, 0, 0)), (2, (0, 0, 1, 1), (1, 1, 0, 0)),
                                                  (3, (0, 0, 1, 2), (2, 2, 0, 1)), (5, (0, 0, 3, 4), (4, 4, 0, 1))])
def test_a_video_without_halves_gives_its_furthest_clips(sampling, count, before, after):
    seen = {}
    for seed in range(20):
        clips, order = draw_clips(generator(seed), index(range(count)), CLIP.span + count - 1, CLIP, sampling())
        seen.setdefault(order, set()).add(clips)
    assert seen == {0: {before}, 1: {after}}


@given(st.integers(1, 12), st.integers(1, 9), st.data())
def test_overlaps_equal_the_slow_sum(cells, parts, data):
    first = data.draw(st.floats(0, cells - 0.5))
    length = data.draw(st.floats(0.25, cells - first))
    expected = np.zeros((parts, cells))
    for i in range(parts):
        a, b = first + length * i / parts, first + length * (i + 1) / parts
        for cell in range(cells):
            expected[i, cell] = max(0.0, min(b, cell + 1) - max(a, cell)) / (length / parts)
    weights = overlaps(first, length, parts, cells)
    assert np.allclose(weights, expected, atol=1e-9)
    assert np.allclose(weights.sum(axis=1), 1)


def test_plain_boxes_lie_anywhere_in_the_frame(sampling):
    rng, plain = generator(0), sampling(sa=False)
    boxes = [draw_box(rng, plain, (64, 80)) for _ in range(2000)]
    for box in boxes:
        assert 0 <= box.y <= 64 - box.h and 0 <= box.x <= 80 - box.w
        assert 0.19 < box.h * box.w / (64 * 80) <= 1 and 0.72 < box.w / box.h < 1.39
    small = [box for box in boxes if box.h < 40]
    places = [box.y / (64 - box.h) for box in small]
    assert min(places) == 0 and max(places) == 1 and abs(np.mean(places) - 0.5) < 0.03


def test_focused_boxes_cover_the_hot_cells(sampling):
    rng, mask = generator(0), np.zeros((8, 10), bool)
    mask[5:7, 7:9] = True
    pixels = mask.repeat(8, 0).repeat(8, 1)
    for _ in range(300):
        box = draw_box(rng, sampling(), (64, 80), mask)
        assert pixels[box.y:box.y + box.h, box.x:box.x + box.w].sum() >= 0.8 * pixels.sum()


@pytest.mark.parametrize("hot, rows, columns, cover", [
    ([(1, 1), (1, 2), (2, 1), (2, 2)], (1, 3), (1, 3), 0.9), ([(1, 1), (1, 2), (2, 1), (3, 2)], (1, 4), (1, 3), 0.8),
    ([(1, 1), (4, 2), (2, 1), (3, 3)], (1, 5), (1, 4), 0.7), ([(1, 1), (5, 5), (2, 1), (3, 3)], (1, 6), (1, 6), 0.0)])
def test_the_released_codes_boxes_cover_the_top_cells(sampling, hot, rows, columns, cover):
    s_map = np.zeros((14, 21), np.float32)  # cells of 2x3 to a coarse one
    for y, x in hot:
        s_map[2 * y:2 * y + 2, 3 * x:3 * x + 3] = 1
    found = motion_region(s_map)
    assert (tuple(found[0]), tuple(found[1]), found[2]) == (rows, columns, cover)
    rng, met, size = generator(0), 0, (112, 168)
    (top, bottom), (left, right) = (np.array(rows) * 16, np.array(columns) * 24)
    for _ in range(200):
        box = draw_box(rng, sampling(sa_variant="released"), size, s_map=s_map)
        inside = (max(0, min(box.y + box.h, bottom) - max(box.y, top))
                  * max(0, min(box.x + box.w, right) - max(box.x, left)))
        met += inside >= cover * (bottom - top) * (right - left)
        assert 0 <= box.y <= size[0] - box.h and 0 <= box.x <= size[1] - box.w
    assert met > 150  # a small box may not cover a large region


def test_colours_follow_their_settings(augment):
    rng, views = generator(0), np.zeros(4000, VIEW)
    for view in views:
        draw_augment(rng, augment(), view)
    for name, probability in (("jitter", 0.8), ("grey", 0.2), ("flip", 0.5)):
        assert abs(views[name].mean() - probability) < 0.03
    assert abs((views["sigma"] > 0).mean() - 0.5) < 0.03
    assert views["sigma"].max() <= 2 and views["sigma"][views["sigma"] > 0].min() >= 0.1
    assert len(np.unique(views["order"], axis=0)) == 24
    factors = views["factors"]
    assert (factors[:, :3].min(axis=0) < 0.61).all() and (factors[:, :3].min(axis=0) >= 0.6).all()
    assert (factors[:, :3].max(axis=0) > 1.39).all() and (factors[:, :3].max(axis=0) <= 1.4).all()
    assert 0.099 < np.abs(factors[:, 3]).max() / (2 * math.pi) <= 0.1


def test_colours_take_as_many_draws_whatever_comes_of_them(augment):
    after = set()
    for change in ({}, {"jitter_p": 0.0}, {"blur_p": 0.0, "grey_p": 1.0}):
        rng = generator(5)
        draw_augment(rng, augment(**change), np.zeros(1, VIEW)[0])
        after.add(rng.integers(1 << 62))
    assert len(after) == 1
