"""Flow colours against the published formula pixel by pixel; figures draw what they are given, and save whole."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from shared.clips.index import Box, ClipIndex
from shared.pictures.figures import VideoPicture, cell_outline, flow_colours, save, video_figure


def slow_wheel():
    """makecolorwheel of the Middlebury flow code, channel by channel in 0..255."""
    wheel = []
    for steps, colour in ((15, lambda r: (255, r, 0)), (6, lambda r: (255 - r, 255, 0)), (4, lambda r: (0, 255, r)),
                          (11, lambda r: (0, 255 - r, 255)), (13, lambda r: (r, 0, 255)),
                          (6, lambda r: (255, 0, 255 - r))):
        wheel += [colour(math.floor(255 * i / steps)) for i in range(steps)]
    return wheel


def slow_colour(u, v):
    """computeColor of the Middlebury flow code for one normalised vector."""
    wheel, radius = slow_wheel(), math.hypot(u, v)
    place = (math.atan2(-v, -u) / math.pi + 1) / 2 * (len(wheel) - 1)
    low = int(place)
    colour = []
    for channel in range(3):
        a, b = wheel[low][channel] / 255, wheel[(low + 1) % len(wheel)][channel] / 255
        value = (1 - (place - low)) * a + (place - low) * b
        value = 1 - radius * (1 - value) if radius <= 1 else value * 0.75
        colour.append(int(255 * value))
    return colour


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (2, 3, 4), elements=st.floats(-2, 2, width=32)))
def test_flow_colours_follow_the_middlebury_code(flow):
    got = flow_colours(flow, longest=1.0)
    slow = [[slow_colour(float(flow[0, y, x]), float(flow[1, y, x])) for x in range(4)] for y in range(3)]
    assert got.shape == (3, 4, 3) and np.abs(got.astype(int) - slow).max() <= 1


def test_flow_colours_of_known_directions():
    flow = np.zeros((2, 1, 5), np.float32)
    flow[:, 0] = [[0, 3, -3, 0, 0], [0, 0, 0, 3, -3]]  # rest, right, left, down, up
    rest, right, left, down, up = flow_colours(flow)[0].astype(int)
    assert rest.tolist() == [255, 255, 255]
    assert right.argmax() == 0 and right[0] == 255 and right[1:].max() < 30  # red
    assert left[0] < 30 and left[1:].min() > 150                             # cyan
    assert down[2] < 30 and down[:2].min() > 150                             # yellow
    assert up[2] == 255 and up[1] < 30                                       # violet


def test_flow_colours_keep_leading_axes_and_one_scale():
    flow = np.random.default_rng(0).normal(size=(3, 2, 8, 9))
    together = flow_colours(flow)
    assert together.shape == (3, 8, 9, 3) and together.dtype == np.uint8
    longest = np.hypot(flow[:, 0], flow[:, 1]).max()
    np.testing.assert_array_equal(together[1], flow_colours(flow[1], longest))
    assert (flow_colours(np.zeros((2, 4, 4))) == 255).all()


@given(arrays(bool, (5, 7)))
def test_outline_separates_hot_cells_from_the_rest(mask):
    """Every segment lies between a true and a false cell, and no such border is left out."""
    padded = np.pad(mask, 1)
    borders = (padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum()
    segments = cell_outline(mask, 8)
    assert len(segments) == len(set(segments)) == borders
    for (x0, y0), (x1, y1) in segments:
        x0, y0, x1, y1 = (int(round((value + 0.5) / 8)) for value in (x0, y0, x1, y1))
        one, two = ((y0, x0 + 1), (y0 + 1, x0 + 1)) if y0 == y1 else ((y0 + 1, x0), (y0 + 1, x0 + 1))
        assert padded[one] != padded[two]


def picture(clips=3, frames=40, height=64, width=80, shown=0, note="", moving=True):
    rng = np.random.default_rng(0)
    n, h, w = 6, height // 8, width // 8
    scale = np.float32(moving)
    hot = np.zeros((h, w), bool)
    hot[2:4, 3:6] = moving
    score = rng.random(clips).astype(np.float32) * scale
    index = ClipIndex(4 * np.arange(clips, dtype=np.int32), score, score, np.zeros((clips, 10), np.uint8),
                      float(np.median(score)) if clips else float("nan"))
    return VideoPicture(
        title="class/video.mp4", facts="class   |   train" + note, number=np.arange(0, 30, 5),
        frames=rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8),
        flow=rng.normal(size=(n, 2, height, width)).astype(np.float32) * scale,
        boundary=rng.random((n, 2, height, width)).astype(np.float32) * scale,
        motion=rng.random((n, h, w)).astype(np.float32) * scale,
        t_motion=rng.random(frames).astype(np.float32) * scale, clips=index, span=31,
        shown=shown if clips else None, s_motion=rng.random((h, w)).astype(np.float32) * scale, hot=hot,
        boxes=[Box(4, 8, 40, 48), Box(0, 0, 64, 64)] if clips else [])


def drawn(figure, path):
    save(figure, path)
    return cv2.imread(str(path))


@pytest.mark.slow
@pytest.mark.parametrize("case", [{}, {"clips": 0}, {"moving": False}, {"height": 128, "width": 48}, {"clips": 1}])
def test_video_figure_draws_every_case(tmp_path, case):
    image = drawn(video_figure(picture(**case)), tmp_path / "a.png")
    assert image.shape[1] >= 1200 and image.std() > 10


def test_video_figure_shows_clips_and_crops_as_given():
    given_picture = picture(clips=5)
    figure = video_figure(given_picture)
    curve = next(axes for axes in figure.axes if axes.get_xlabel() == "frame")
    bars = [segment for collection in curve.collections if isinstance(collection, LineCollection)
            for segment in collection.get_segments()]
    want = {(float(start), float(start) + 30, float(score))
            for start, score in zip(given_picture.clips.start, given_picture.clips.score)}
    assert {(bar[0][0], bar[1][0], bar[0][1]) for bar in bars} == want
    labels = curve.get_legend_handles_labels()[1]
    assert "clips above the median (2)" in labels and "other clips (3)" in labels
    crops = [axes for axes in figure.axes if axes.get_title().startswith("crop ")]
    for axes, box in zip(crops, given_picture.boxes, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(),
                                      given_picture.frames[3][box.y:box.y + box.h, box.x:box.x + box.w])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["$\\frac{$", "a_$b$_c", "\udcff\udcfe.mp4", "x" * 500])
def test_names_from_outside_are_text(tmp_path, name):
    one = dataclasses.replace(picture(), title=name, facts=name)
    assert drawn(video_figure(one), tmp_path / "a.png").shape[1] < 2500


@pytest.mark.slow
def test_same_picture_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        save(video_figure(picture()), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_save_leaves_the_old_file_and_no_other_when_it_fails(tmp_path):
    class Broken(Figure):
        def savefig(self, path, format):
            path.write_bytes(b"half a picture")
            raise OSError("disk full")

    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        save(Broken(), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"old"
