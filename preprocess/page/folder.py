"""The folder of a page: ours or empty before it is written, and an earlier page stays until the new one is whole."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from shared import cli
from shared.cli import RequestError
from shared.store.place import Place
from shared.store.record import hidden_name

HIDDEN = re.compile(r"\.page\.[0-9a-f]{32}\.partial")
MARK = b'<meta name="generator" content="motionpack store page">'
OURS = re.compile(r"index\.html|page(/(page\.css|(page|charts|list|video)\.js))?|"
                  r"data(/(store|rows-\d+)\.js)?|videos(/\d+\.(js|jpg))?")


def write_folder(place: Path, store: Place, fill: Callable[[Path], None]) -> Path:
    """`fill(folder)` writes a page into an empty folder, whose entries then replace those of an earlier page in the
    folder `place`. Returns it.

    Raises RequestError where it holds anything else, lies in the store or is in use.
    """
    place, inside = place.absolute(), store.absolute()
    if isinstance(inside, Path) and place.resolve().is_relative_to(inside.resolve()):
        raise RequestError(f"--html {place} lies in the store, which holds nothing but its own files; choose another")
    if place.exists():
        refuse_strangers(place)
    place.mkdir(parents=True, exist_ok=True)
    lock = cli.hold(place, "--html")
    try:
        sweep(place)
        hidden = hidden_name(place / "page")
        hidden.mkdir()
        try:
            with cli.writing(place):
                fill(hidden)
            # The page that carries the mark comes first: a folder left in between is still known as ours.
            for entry in sorted(hidden.iterdir(), key=lambda path: path.name != "index.html"):
                if (place / entry.name).is_dir():
                    os.rename(place / entry.name, hidden / f"old-{entry.name}")
                os.replace(entry, place / entry.name)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    finally:
        os.close(lock)
    return place


def refuse_strangers(place: Path) -> None:
    """Raises RequestError for a folder that holds anything but an earlier page of ours, whole or in part."""
    if not place.is_dir():
        raise RequestError(f"--html {place} is a file; expected a folder, new, empty or with an earlier page")
    page = place / "index.html"
    marked = page.is_file() and MARK in page.read_bytes()[:1000]
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        if HIDDEN.fullmatch(name.split("/")[0]):
            continue
        if path.is_symlink() or name != cli.LOCK and not (marked and OURS.fullmatch(name)):
            raise RequestError(f"--html {place} holds {name!r}, which is no part of an earlier page; give a folder "
                               "that is new, empty or holds such a page alone")


def sweep(place: Path) -> None:
    """Remove what a killed run left."""
    for path in place.iterdir():
        if HIDDEN.fullmatch(path.name):
            shutil.rmtree(path)
