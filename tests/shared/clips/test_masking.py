"""Tokens' motion against plain loops over pixels, and masks against their counts and their laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clips.index import hot_mask
from shared.clips.masking import binned_masks, high_bin, motion_masks, token_motion


def slow_means(maps, patch, tubelet, box, size, fine):
    """Every token's mean over points of the network's input, `fine` a pixel side, each looked up in its cell."""
    y, x, height, width = box
    out = np.zeros((len(maps) // tubelet, size[0] // patch, size[1] // patch))
    for t, i, j in np.ndindex(*out.shape):
        values = []
        for frame in range(t * tubelet, (t + 1) * tubelet):
            for a in range(patch * fine):
                for b in range(patch * fine):
                    row = y + (i * patch + (a + 0.5) / fine) * height / size[0]
                    column = x + (j * patch + (b + 0.5) / fine) * width / size[1]
                    values.append(float(maps[frame, int(row // 8), int(column // 8)]))
        out[t, i, j] = np.mean(values)
    return out


@settings(max_examples=25)
@given(st.data())
def test_token_motion_is_the_mean_over_its_pixels(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    length, rows, columns = (data.draw(st.integers(1, 4)) for _ in range(3))
    maps = rng.random((length, rows, columns)).astype(np.float16)
    height, width = data.draw(st.integers(1, rows * 8)), data.draw(st.integers(1, columns * 8))
    y, x = data.draw(st.integers(0, rows * 8 - height)), data.draw(st.integers(0, columns * 8 - width))
    tubelet = data.draw(st.integers(1, length))
    patch = data.draw(st.integers(1, min(height, width, 12)))
    found = token_motion(maps, patch, tubelet, (y, x, height, width))         # pixels as they are: exact
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_means(maps, patch, tubelet, (y, x, height, width), (height, width), 1),
                               rtol=1e-6)


@pytest.mark.parametrize("box, size", [((0, 0, 32, 40), (32, 32)), ((3, 5, 21, 30), (28, 16)), ((8, 8, 16, 16), 48)])
def test_token_motion_of_a_resized_crop(box, size):
    maps = np.random.default_rng(1).random((5, 4, 5)).astype(np.float32)
    found = token_motion(maps, 8, 2, box, size)
    size = (size, size) if isinstance(size, int) else size
    assert found.shape == (2, size[0] // 8, size[1] // 8)
    np.testing.assert_allclose(found, slow_means(maps, 8, 2, box, size, 4), atol=0.03)       # a grid of points
    if box == (8, 8, 16, 16):               # a token of 8 px is a third of a cell
        np.testing.assert_allclose(found[0, 0, 0], maps[:2, 1, 1].mean(), rtol=1e-6)


@pytest.mark.parametrize("arguments", [
    {"box": (0, 0, 33, 40)}, {"box": (-1, 0, 8, 8)}, {"box": (0, 0, 0, 8)}, {"patch": 33}, {"patch": 0},
    {"tubelet": 5}, {"tubelet": 0}, {"size": 15}])
def test_what_has_no_token_is_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        token_motion(np.zeros((4, 4, 5), np.float32), **arguments)


def test_the_high_bin():
    motion = np.random.default_rng(0).random((4, 4, 5)).astype(np.float32)
    for ratio in (0.1, 0.25, 0.5, 0.8):
        high = high_bin(motion, ratio)
        assert high.shape == motion.shape and high.sum() == round(ratio * 80)
        assert motion[high].min() > motion[~high].max()
    assert (high_bin(motion, 0.1) == hot_mask(motion)[1]).all()
    assert not high_bin(np.ones((2, 3, 3), np.float32)).any()
    plateau = np.array([[[0, 0, 1, 1, 1, 1]]], np.float32)       # nothing lies above the quantile: those at it
    assert (high_bin(plateau, 0.5) == (plateau == 1)).all()
    for ratio in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            high_bin(motion, ratio)


ratios = st.floats(0, 1)


@settings(max_examples=40)
@given(st.integers(0, 99), st.tuples(*[st.integers(1, 4)] * 4), ratios, ratios, st.floats(-3, 3), st.booleans(),
       st.sampled_from(["noise", "still", "half"]))
def test_masks_have_exact_counts_and_one_seed_gives_one_mask(seed, shape, ratio, high_ratio, power, tube, kind):
    motion = np.random.default_rng(seed).random(shape) * {"noise": 1, "still": 0, "half": 1}[kind]
    if kind == "half":
        motion[motion < 0.5] = 0
    tokens = shape[2] * shape[3] if tube else shape[1] * shape[2] * shape[3]
    for draw in (lambda rng: motion_masks(rng, motion, ratio, power, tube),
                 lambda rng: binned_masks(rng, motion, ratio, high_ratio, tube=tube)):
        masks = draw(np.random.default_rng(seed))
        assert masks.dtype == bool and masks.shape == shape
        seen = masks[:, :1] if tube else masks
        assert (masks == seen).all() and (seen.sum(axis=(1, 2, 3)) == round(ratio * tokens)).all()
        assert (draw(np.random.default_rng(seed)) == masks).all()
        assert masks.flags.writeable
    one = motion_masks(np.random.default_rng(seed), motion[0], ratio, power, tube)        # a clip without a batch
    assert one.shape == shape[1:]


@settings(max_examples=40)
@given(st.integers(0, 99), ratios, ratios)
def test_the_high_bin_is_masked_by_its_own_ratio(seed, ratio, high_ratio):
    rng = np.random.default_rng(seed)
    motion = rng.random((3, 2, 4, 5))
    for clip, mask in zip(motion, binned_masks(rng, motion, ratio, high_ratio, share=0.25)):
        high, count = high_bin(clip, 0.25), round(ratio * 40)
        least, most = max(0, count - 30), min(10, count)          # what all of the low bin, and none of it, leave
        assert mask[high].sum() == min(max(round(high_ratio * 10), least), most) and mask.sum() == count


def test_masks_are_drawn_in_proportion_to_motion():
    """Of one masked token the law is known: motion ** power over its sum. Of many: what moves more goes more often."""
    motion = np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4).repeat(20_000, axis=0)
    for power in (0, 1, 2, -1):
        found = motion_masks(np.random.default_rng(power + 5), motion, 0.25, power).mean(axis=0).ravel()
        expected = np.arange(1, 5.0) ** power
        np.testing.assert_allclose(found, expected / expected.sum(), atol=0.015)
    hidden, shown = (motion_masks(np.random.default_rng(0), motion, 0.5, power).mean(axis=0).ravel()
                     for power in (1, -1))
    assert (np.diff(hidden) > 0.05).all() and (np.diff(shown) < -0.05).all()


def test_what_stands_still_is_masked_last_and_shown_last():
    motion = np.zeros((500, 1, 2, 4))
    motion[:, :, 0] = 1
    assert motion_masks(np.random.default_rng(0), motion, 0.5)[:, :, 0].mean() > 0.99
    assert motion_masks(np.random.default_rng(0), motion, 0.5, -1)[:, :, 0].mean() < 0.01
    # Among equals every place is as likely.
    assert np.ptp(motion_masks(np.random.default_rng(0), motion, 0.75)[:, 0, 1].mean(axis=0)) < 0.1


def test_wrong_ratios_are_refused():
    motion, rng = np.ones((1, 2, 2)), np.random.default_rng(0)
    for call in (lambda: motion_masks(rng, motion, 1.1), lambda: binned_masks(rng, motion, -0.1),
                 lambda: binned_masks(rng, motion, 0.5, 2), lambda: binned_masks(rng, motion, 0.5, 0.5, 1)):
        with pytest.raises(ValueError, match="ratio"):
            call()
