"""The overview of stores of every size: what it says is there, can be read, and overlaps nothing."""

import dataclasses

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from shared.pictures.figures import save
from shared.pictures.overview import NAMED, StorePicture, bins, log_ticks, store_figure


def store(videos=50, failures=3, classes=20):
    rng = np.random.default_rng(1)
    return StorePicture(
        title="store", facts=[("videos", str(videos))], scores=rng.gamma(2, 0.02, 9 * videos).astype(np.float32),
        medians=rng.gamma(2, 0.02, videos).astype(np.float32), frames=rng.integers(20, 400, videos), span=31,
        sizes=[("256x336", videos)] if videos else [], splits=[("train", videos)] if videos else [],
        classes=[(f"class {i}", 2 * classes - i) for i in range(classes)] if videos else [],
        reasons=[("no video stream", failures)] if failures else [])


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def drawn(figure, path):
    save(figure, path)
    return cv2.imread(str(path))


@pytest.mark.parametrize("case", [{}, {"videos": 0}, {"failures": 0}, {"videos": 1}, {"videos": 0, "failures": 0}])
def test_store_figure_draws_every_case(tmp_path, case):
    assert drawn(store_figure(store(**case)), tmp_path / "a.png").shape[1:] == (1500, 3)


@pytest.mark.parametrize("classes", [1, 2, 12, 13, NAMED])
def test_up_to_forty_classes_have_a_line_each(tmp_path, classes):
    figure = store_figure(store(classes=classes))
    axes = panel(figure, "videos by class")
    assert [bar.get_width() for bar in axes.patches] == list(range(2 * classes, classes, -1))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in zip(boxes, boxes[1:]))           # no name on another
    assert all(bar.get_window_extent().height > 8 for bar in axes.patches)               # pixels: no hairlines


@pytest.mark.parametrize("classes", [NAMED + 1, 400])
def test_more_classes_are_a_curve_of_their_sizes(classes):
    counts = [(f"class {i}", 2000 - i) for i in range(classes)]
    figure = store_figure(dataclasses.replace(store(), classes=counts))
    axes = panel(figure, "videos by class")
    assert axes.get_title(loc="left") == f"videos by class, {classes} of them" and not axes.patches
    ys = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert {2000.0, 2000.0 - classes + 1} <= set(ys) and axes.get_ylim()[1] > 2000
    said = [text.get_text() for text in axes.texts]
    assert said[0] == "class 0  2,000" and said[-1] == f"class {classes - 1}  {2000 - classes + 1:,}"
    figure.draw_without_rendering()
    assert "1,600" in [label.get_text() for label in axes.get_yticklabels()]


def test_what_does_not_fit_is_summed_in_words_and_dwarfs_nothing():
    sizes = [(f"{256 + 8 * i}x336", 10) for i in range(300)]
    axes = panel(store_figure(dataclasses.replace(store(), sizes=sizes)), "videos by frame size")
    assert [bar.get_width() for bar in axes.patches] == [10] * 5
    assert axes.get_yticklabels()[-1].get_text() == "295 others" and axes.texts[-1].get_text() == "2,950 in all"


@pytest.mark.parametrize("frames, span, said", [
    ([300] * 7, 31, "7 videos of 300 frames"), ([300], 31, "1 video of 300 frames"), ([1], 1, "1 video"),
    ([300, 301, 302], 31, "3 videos of 300 to 302 frames"), ([5] * 3, 31, "3 videos of 5 frames"),
    ([31] * 9, 31, "9 videos of 31 frames"),
    ([2000] * 4 + [2001], 16, "5 videos of 2,000 to 2,001 frames"), ([3, 90_000], 31, "2 videos of 3 to 90,000 frames"),
    ([25_000] * 4000, 1, "4,000 videos of 25,000 frames")])
def test_lengths_are_seen_equal_or_not(frames, span, said):
    figure = store_figure(dataclasses.replace(store(), frames=np.array(frames), span=span))
    axes = panel(figure, "length of videos")
    figure.draw_without_rendering()
    bars = [bar for bar in axes.patches if bar.get_height()]
    assert sum(bar.get_height() for bar in bars) == len(frames)
    assert min(bar.get_window_extent().width for bar in bars) > 5                         # pixels
    assert said in axes.get_legend_handles_labels()[1][0]
    assert axes.get_xlim()[0] <= span <= axes.get_xlim()[1]
    assert all("." not in label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels()))
    apart(axes.get_xticklabels())


def apart(labels):
    """No label of an axis stands on another, and there are at least two."""
    boxes = sorted((label.get_window_extent() for label in labels if label.get_text() and label.get_visible()),
                   key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:]))


@pytest.mark.parametrize("low, high", [(0.011, 0.26), (0.02, 0.5), (1e-6, 20), (0.9, 19), (31, 700), (1, 1_000_000),
                                       (0.0312, 0.7), (3e-5, 2e-3), (99, 2001), (1e-9, 1e9)])
def test_logarithmic_ticks_stand_apart(low, high):
    figure = Figure(figsize=(4.6, 2), dpi=100)
    axes = figure.add_axes((0.1, 0.3, 3.71 / 4.6, 0.6))
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, low, high)
    figure.draw_without_rendering()
    said = [label.get_text() for label in axes.get_xticklabels()]
    assert 2 <= len(said) <= 6 and not any("e" in text or "$" in text for text in said), said
    assert [float(text.replace(",", "")) for text in said] == pytest.approx(axes.get_xticks())
    apart([*axes.get_xticklabels(), *axes.get_xticklabels(minor=True)])


@pytest.mark.parametrize("low, high", [(0.0291, 0.0655), (0.1, 1.9), (3e-5, 5e-4), (9.9, 101.0), (0.031, 0.0335)])
def test_scores_of_a_narrow_range_have_ticks_apart(low, high):
    scores = np.linspace(low, high, 40, dtype=np.float32)
    figure = store_figure(dataclasses.replace(store(), scores=scores, medians=scores[::9]))
    figure.draw_without_rendering()
    apart(panel(figure, "motion of clips").get_xticklabels())


@pytest.mark.parametrize("score", [0.0312, 1e-5, 12.0])
def test_equal_scores_are_seen(score):
    equal = np.full(30, score, np.float32)
    figure = store_figure(dataclasses.replace(store(), scores=equal, medians=equal[:3]))
    axes = panel(figure, "motion of clips")
    figure.draw_without_rendering()
    bar = max(axes.patches[:40], key=lambda bar: bar.get_height())
    assert bar.get_height() == pytest.approx(100) and bar.get_window_extent().width > 5
    assert max(axes.get_yticks()) <= 100
    apart(axes.get_xticklabels())


@pytest.mark.parametrize("values", [np.array([1, 2, 3]), np.array([7]), np.array([5, 90_000]), np.array([0.5, 0.6]),
                                    np.full(3, 1e-7), np.arange(1, 15),
                                    0.1357870456 + np.array([0, 1, 3]) * 1e-17, np.float32([0.5, 0.50000006])])
@pytest.mark.parametrize("beside", [(), (31,)])
def test_bins_hold_every_value(values, beside):
    edges, log = bins(values, *beside)
    assert np.histogram(values, edges)[0].sum() == len(values) and 10 <= len(edges) <= 43 and (np.diff(edges) > 0).all()
    assert log == (max([*values, *beside]) > 20 * min([*values, *beside]))
    assert all(edges[0] <= value <= edges[-1] for value in beside)


@pytest.mark.parametrize("classes", [1, 10])
def test_names_from_outside_are_text(tmp_path, classes):
    names = ["$\\frac{$", "a_$b$_c", "\udcff\udcfe.mp4", "x" * 500, "two\nlines\tand"]
    many = dataclasses.replace(store(), title="".join(names), facts=[("recipe", name) for name in names],
                               reasons=[(name, 1) for name in names],
                               classes=[(name + str(i), 1) for i in range(classes) for name in names])
    assert drawn(store_figure(many), tmp_path / "b.png").shape[1:] == (1500, 3)
