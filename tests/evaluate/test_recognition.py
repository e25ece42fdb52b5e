"""What a report shows of few classes and of many, and of a class that no test video has."""

import numpy as np
import pytest

from evaluate import metrics
from evaluate.recognition import PAIRS, recognition
from evaluate.report import page, pictures


def recognised(out, count, absent=(), learnt=None):
    """A result over `count` classes of which those `absent` have no test videos; class 1 is always taken for 0."""
    labels = np.repeat(np.setdiff1d(np.arange(count), absent), 3)
    scores = np.eye(count)[labels] + np.linspace(0, 0.1, count)
    scores[labels == 1] = np.eye(count)[0]
    learnt = np.arange(count) if learnt is None else learnt
    scores[:, np.setdiff1d(np.arange(count), learnt)] = -np.inf
    return recognition(out, [f"class {i}" for i in range(count)], learnt, labels, scores), labels, scores


@pytest.mark.parametrize("count, absent", [(2, ()), (5, (3,)), (40, (7, 39))])
def test_up_to_forty_classes_are_a_confusion_figure(tmp_path, count, absent):
    result, labels, scores = recognised(tmp_path, count, absent)
    assert [figure.path.name for figure in result.figures] == ["confusion.png"] and len(result.tables) == 1
    rows = {name: (videos, share, *rest) for name, videos, share, *rest in result.tables[0].rows}
    assert len(rows) == count and result.tables[0].rows[0] == ("class 1", 3, 0.0, "class 0", 3)
    assert all(rows[f"class {i}"] == (0, "no test videos", None, None) for i in absent)
    assert list(rows)[count - len(absent):] == [f"class {i}" for i in absent]
    kept = metrics.confusion(labels, scores.argmax(1), count)[np.setdiff1d(np.arange(count), absent)]
    assert result.metrics["mean_class"] == pytest.approx(100 * (1 - 1 / len(kept)))       # the absent count in no mean
    assert "no test videos" in page.table_html(result.tables[0]) or not absent


def test_a_class_without_test_videos_is_a_row_and_a_column(tmp_path):
    table = np.array([[2, 0, 1], [0, 0, 0], [0, 0, 3]])
    figure = pictures.confusion_figure(table, ["walk", "run", "sit"])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["walk", "run", "sit"]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((1.0, 1), "no test videos"), ((0, 0), "67"), ((2, 0), "33"), ((2, 2), "100")}
    band = axes.patches[0]
    assert (band.get_y(), band.get_height(), band.get_hatch()) == (0.5, 1.0, "///")


def test_classes_that_nothing_learnt_are_not_shown(tmp_path):
    result, *_ = recognised(tmp_path, 6, absent=(4, 5), learnt=np.arange(5))
    assert sorted(row[0] for row in result.tables[0].rows) == [f"class {i}" for i in range(5)]


@pytest.mark.parametrize("count", [pictures.NAMED + 1, 400])
def test_more_classes_are_a_curve_and_their_confused_pairs(tmp_path, count):
    result, labels, scores = recognised(tmp_path, count, absent=(7,))
    assert [figure.path.name for figure in result.figures] == ["classes.png"]
    assert not (tmp_path / "confusion.png").exists()
    assert f"{count - 1} classes with test videos" in result.figures[0].caption
    pairs, rows = result.tables
    assert pairs.title == "Most confused pairs" and pairs.rows == [("class 1", "class 0", 3, 100.0)]
    assert len(rows.rows) == count and rows.rows[-1] == ("class 7", 0, "no test videos", None, None)


def test_pairs_are_those_of_the_confusion_table(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 60, 3000)
    result = recognition(tmp_path, [str(i) for i in range(60)], np.arange(60), labels, rng.normal(size=(3000, 60)))
    pairs = result.tables[0].rows
    said = np.random.default_rng(0)
    said.integers(0, 60, 3000)
    table = metrics.confusion(labels, said.normal(size=(3000, 60)).argmax(1), 60)
    counts = [table[int(true), int(taken)] for true, taken, *_ in pairs]
    off = np.sort(table[~np.eye(60, dtype=bool)])[::-1]
    assert len(pairs) == PAIRS and counts == [times for *_, times, _ in pairs] == off[:PAIRS].tolist()
    assert all(share == pytest.approx(100 * times / table[int(true)].sum()) for true, _, times, share in pairs)


def test_the_curve_shows_every_class_hardest_first():
    shares = np.random.default_rng(0).uniform(0, 100, 400)
    axes = pictures.classes_figure(shares).axes[0]
    ys = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert set(shares) <= set(ys) and axes.lines[0].get_ydata()[0] == pytest.approx(shares.mean())
