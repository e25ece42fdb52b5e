"""Names in scripts that Matplotlib's own font lacks: drawn where a font here has them, escaped where none has."""

import logging
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from shared.pictures import fonts
from shared.pictures.figures import new_figure, save, words
from shared.pictures.fonts import families, short, text_width


@pytest.fixture
def fonts_of_machine(monkeypatch):
    """A function that says which font files this machine has beside Matplotlib's own."""
    def have(*files):
        own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(file) for file in files])
        for cached in (fonts._family, fonts._fonts, fonts._opened):
            cached.cache_clear()
    yield have
    for cached in (fonts._family, fonts._fonts, fonts._opened):
        cached.cache_clear()


@pytest.fixture
def han(tmp_path):
    """A real font of one weight with two characters, squares both."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "walk", "run"])
    builder.setupCharacterMap({ord("\u6b69"): "walk", ord("\u8d70"): "run"})
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((900, 0), (900, 800), (100, 800)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "walk": square, "run": square})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", "walk", "run"), (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Two Squares", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    return tmp_path / "squares.ttf"


def test_a_font_that_has_them_is_taken(fonts_of_machine, han):
    fonts_of_machine(han)
    assert short("\u6b69 x", 20) == "\u6b69 x" and families("\u6b69 x") == ["DejaVu Sans", "Two Squares"]
    assert short("\u6b69\u4e2d", 20) == "\u6b69\\u4e2d"
    assert families("plain, \u00fcber") == ["DejaVu Sans"]


def test_without_one_they_are_escaped(fonts_of_machine, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fonts_of_machine(tmp_path / "broken.ttf", tmp_path / "gone.ttf")
    assert short("\u6b69\u884c", 20) == "\\u6b69\\u884c" and short("\U00020000", 20) == "\\U00020000"
    assert short("a\nb\x07\u00a0\u3000c", 20) == "a\\nb\\x07  c"
    assert short("\udcff.mp4", 20) == "?.mp4" and short("e\u0301", 9) == "\u00e9"


@pytest.mark.parametrize("there", [True, False])
def test_no_warning_is_given(fonts_of_machine, han, tmp_path, caplog, there):
    fonts_of_machine(*[han] * there)
    figure = new_figure(4, 2)
    words(figure, 0.2, 0.5, short("\u6b69\u8d70\u4e2d \u0915 \U0001f600 $x^{", 60), weight="bold")
    axes = figure.add_axes((0.4, 0.2, 0.5, 0.4))
    axes.set_yticks([0, 1], [short("\u8d70", 9), "plain"])
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        save(figure, tmp_path / "a.png")
    assert not caplog.records
    assert axes.get_yticklabels()[0].get_text() == ("\u8d70" if there else "\\u8d70")


@pytest.mark.parametrize("text, longest, want", [
    ("walking", 7, "walking"), ("walking", 6, "walki\u2026"), ("\u6b69\u8d70\u6b69", 6, "\u6b69\u8d70\u6b69"),
    ("\u6b69\u8d70\u6b69", 5, "\u6b69\u8d70\u2026"), ("\u6b69\u8d70\u6b69", 4, "\u6b69\u2026"), ("", 3, "")])
def test_wide_characters_take_two_columns(fonts_of_machine, han, text, longest, want):
    fonts_of_machine(han)
    assert short(text, longest) == want and text_width(want) <= longest


def test_escapes_are_cut_as_a_whole(fonts_of_machine):
    fonts_of_machine()
    assert short("\u6b69" * 4, 15) == "\\u6b69\\u6b69\u2026"
