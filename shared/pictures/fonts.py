"""Names from outside in a font that has their characters, where one is installed; other characters as their escapes."""

import logging
import unicodedata
from contextlib import suppress
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

HOUSE = "DejaVu Sans"                      # comes with Matplotlib
NO_TEXT = "Last Resort", "cm"              # boxes for what no font has; TeX's, whose numbers are not Unicode's

# A bold title in a font that is there in one weight only is no fault, and Matplotlib tells of each.
logging.getLogger("matplotlib.font_manager").addFilter(lambda record: "find font weight" not in record.getMessage())


def short(text: str, longest: int) -> str:
    """The text in at most `longest` columns (`text_width`) of characters that can be drawn here; undecodable bytes of a
    path become question marks."""
    pieces = [_drawable(c) for c in unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())]
    if sum(map(text_width, pieces)) <= longest:
        return "".join(pieces)
    kept, room = [], longest - 1
    for piece in pieces:
        room -= text_width(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept) + "\u2026"


def text_width(text: str) -> int:
    """How wide a text is in characters of the Latin alphabet: those of China, Japan and Korea count two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def families(text: str) -> list[str]:
    """The font families that have the text's characters, the house's first."""
    characters = sorted(c for c in set(text) if not c.isascii() and c.isprintable())
    return list(dict.fromkeys([HOUSE, *filter(None, map(_family, characters))]))


def _drawable(character: str) -> str:
    if unicodedata.category(character) == "Zs":
        return " "
    return character if character.isprintable() and _family(character) else character.encode("unicode_escape").decode()


@cache
def _family(character: str) -> str:
    """The first of the fonts that has the character; empty for none."""
    def has(file: str) -> bool:
        return bool(_opened(file) and _opened(file).get_char_index(ord(character)))
    return HOUSE if has(font_manager.findfont(HOUSE)) else next((name for name, file in _fonts() if has(file)), "")


@cache
def _fonts() -> list[tuple[str, str]]:
    """(family, file) of the upright fonts of this machine, those without serifs first."""
    manager = font_manager.fontManager
    for file in set(font_manager.findSystemFonts()) - {entry.fname for entry in manager.ttflist}:
        with suppress(OSError, RuntimeError):      # installed after Matplotlib made its list; or no font at all
            manager.addfont(file)
    upright = [entry for entry in manager.ttflist if entry.style == "normal" and not entry.name.startswith(NO_TEXT)]
    upright.sort(key=lambda entry: ("sans" not in entry.name.casefold(), entry.weight != 400, entry.name, entry.fname))
    return [(entry.name, entry.fname) for entry in upright]


@cache
def _opened(file: str) -> FT2Font | None:
    """The font; none where the file is gone or holds pictures of one size, such as colour emoji."""
    with suppress(OSError, RuntimeError):
        font = FT2Font(file)
        return font if font.scalable else None
    return None
