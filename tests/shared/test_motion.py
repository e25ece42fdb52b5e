"""Motion maps against float64 loops and invariances."""

import numpy as np
import pytest

from shared import motion


def flows(frames=3, height=24, width=32, seed=0):
    return np.random.default_rng(seed).normal(size=(frames, 2, height, width)).astype(np.float32)


def slow_boundary(flow):
    f = flow.astype(np.float64)
    return np.stack([np.gradient(f[:, 0], axis=2), np.gradient(f[:, 0], axis=1),
                     np.gradient(f[:, 1], axis=2), np.gradient(f[:, 1], axis=1)], axis=1)


def slow_prewitt(flow):
    t, _, height, width = flow.shape
    pad = np.pad(flow.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    out = np.zeros((t, 4, height, width))
    kernel = np.array([[-1, 0, 1]] * 3) / 6
    for y in range(height):
        for x in range(width):
            patch = pad[:, :, y:y + 3, x:x + 3]
            out[:, 0::2, y, x] = (patch * kernel).sum((2, 3))
            out[:, 1::2, y, x] = (patch * kernel.T).sum((2, 3))
    return out


def test_boundary_is_central_and_one_sided_at_the_edge():
    np.testing.assert_allclose(motion.motion_boundary(flows()), slow_boundary(flows()), atol=1e-6)


def test_prewitt():
    np.testing.assert_allclose(motion.motion_boundary(flows(), "prewitt"), slow_prewitt(flows()), atol=1e-6)


def test_map_is_equation_1():
    expected = np.sqrt((slow_boundary(flows()) ** 2).sum(axis=1))
    got = motion.motion_map(flows())
    assert got.dtype == np.float32 and got.shape == (3, 24, 32)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_released_code_sums_the_two_magnitudes():
    b = slow_boundary(flows())
    expected = np.hypot(b[:, 0], b[:, 1]) + np.hypot(b[:, 2], b[:, 3])
    np.testing.assert_allclose(motion.motion_map(flows(), combine="sum"), expected, rtol=1e-5)
    np.testing.assert_allclose(motion.edges(flows()).sum(axis=1), expected, rtol=1e-5)


def test_window_averages_derivatives_before_the_magnitude():
    b = slow_boundary(flows(frames=5))
    got = motion.motion_map(flows(frames=5), window=2)
    for block in (slice(0, 2), slice(2, 4), slice(4, 5)):
        expected = np.sqrt((b[block].mean(axis=0) ** 2).sum(axis=0))
        for frame in got[block]:
            np.testing.assert_allclose(frame, expected, rtol=1e-5)


def test_camera_translation_vanishes_and_direction_does_not_matter():
    flow = flows()
    np.testing.assert_allclose(motion.motion_map(flow + np.float32([3, -5])[None, :, None, None]),
                               motion.motion_map(flow), atol=1e-5)
    np.testing.assert_allclose(motion.motion_map(-flow), motion.motion_map(flow))
    assert not motion.motion_map(np.full((1, 2, 16, 16), 7, np.float32)).any()


@pytest.mark.parametrize("shape", [(3, 24, 32), (3, 3, 24, 32), (2, 24, 32, 2)])
def test_flow_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(T, 2, H, W\)"):
        motion.motion_map(np.zeros(shape, np.float32))


def test_combine_is_checked():
    with pytest.raises(ValueError, match="motion.combine"):
        motion.motion_map(flows(), combine="max")


def test_pool_is_the_mean_of_each_cell():
    maps = motion.motion_map(flows())
    got = motion.pool(maps)
    for y in range(3):
        for x in range(4):
            np.testing.assert_allclose(got[:, y, x], maps[:, 8 * y:8 * y + 8, 8 * x:8 * x + 8].mean((1, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match="multiples of 8"):
        motion.pool(maps[:, :20])


@pytest.mark.parametrize("border", [0, 3, 8])
def test_border_is_zeroed_in_a_copy(border):
    maps = np.ones((2, 24, 32), np.float32)
    got = motion.zero_border(maps, border)
    assert maps.all()
    assert got.sum() == 2 * (24 - 2 * border) * (32 - 2 * border)


def test_pooling_over_space_and_time():
    maps = np.random.default_rng(0).random((5, 3, 4), np.float32)
    np.testing.assert_allclose(motion.s_motion(maps), maps.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(motion.t_motion(maps), maps.astype(np.float64).mean((1, 2)), rtol=1e-6)


def test_a_frame_has_the_same_map_in_any_window():
    flow = flows(frames=9)
    whole = motion.pool(motion.motion_map(flow))
    parts = np.concatenate([motion.pool(motion.motion_map(flow[a:a + 2])) for a in range(0, 9, 2)])
    np.testing.assert_array_equal(whole, parts)
