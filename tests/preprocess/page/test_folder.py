"""Nothing of the user's is overwritten, and an earlier page stays until the new one is whole."""

import os
from pathlib import Path

import pytest

from preprocess.page.folder import MARK, write_folder
from shared import cli
from shared.cli import RequestError

HIDDEN = ".page.0123456789abcdef0123456789abcdef.partial"


def fill(words):
    def write(folder):
        (folder / "index.html").write_bytes(MARK + words)
        (folder / "data").mkdir()
        (folder / "data/store.js").write_bytes(words)
    return write


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_page_takes_the_place_of_an_earlier_one(tmp_path):
    for words in (b"one", b"two"):
        assert write_folder(tmp_path / "a/b", tmp_path / "store", fill(words)) == tmp_path / "a/b"
        assert tree(tmp_path / "a/b") == {"index.html": MARK + words, "data/store.js": words, ".lock": b""}


def test_what_a_killed_run_left_is_swept(tmp_path):
    (tmp_path / HIDDEN / "data").mkdir(parents=True)
    write_folder(tmp_path, tmp_path / "store", fill(b"one"))
    (tmp_path / HIDDEN).mkdir()
    (tmp_path / "data/store.js").unlink()
    (tmp_path / "data").rmdir()   # killed between two renames
    write_folder(tmp_path, tmp_path / "store", fill(b"two"))
    assert tree(tmp_path) == {"index.html": MARK + b"two", "data/store.js": b"two", ".lock": b""}


def test_a_failure_leaves_the_earlier_page(tmp_path):
    write_folder(tmp_path, tmp_path / "store", fill(b"one"))

    def broken(folder):
        fill(b"two")(folder)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_folder(tmp_path, tmp_path / "store", broken)
    assert tree(tmp_path) == {"index.html": MARK + b"one", "data/store.js": b"one", ".lock": b""}


@pytest.mark.parametrize("name", ["notes.txt", "videos/0.jpg", "data/store.js", "index.html", "page/page.css",
                                  "data/x/y", ".page.x.partial", "store.json"])
def test_a_folder_with_other_things_is_refused(tmp_path, name):
    path = tmp_path / "page" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(RequestError, match="holds '") as caught:
        write_folder(tmp_path / "page", tmp_path / "store", fill(b"one"))
    assert "\n" not in str(caught.value) and tree(tmp_path) == {f"page/{name}": b"mine"}


@pytest.mark.parametrize("name", ["notes.txt", "videos/mine.jpg", "data/rows-x.js", "page/mine.js", "videos/0.js/x"])
def test_a_page_with_other_things_beside_it_is_refused(tmp_path, name):
    page = write_folder(tmp_path / "page", tmp_path / "store", fill(b"one"))
    (page / name).parent.mkdir(parents=True, exist_ok=True)
    (page / name).write_text("mine")
    before = tree(page)
    with pytest.raises(RequestError, match="no part of an earlier page"):
        write_folder(page, tmp_path / "store", fill(b"two"))
    assert tree(page) == before


def test_a_link_to_elsewhere_is_refused(tmp_path):
    page = write_folder(tmp_path / "page", tmp_path / "store", fill(b"one"))
    (tmp_path / "mine").mkdir()
    os.symlink(tmp_path / "mine", page / "videos")
    with pytest.raises(RequestError, match="holds 'videos'"):
        write_folder(page, tmp_path / "store", fill(b"two"))


@pytest.mark.parametrize("text, words", [("store/page", "lies in the store"), ("store", "lies in the store"),
                                         ("file", "is a file")])
def test_places_that_cannot_be(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=words):
        write_folder(Path(text), tmp_path / "store", fill(b"one"))


def test_one_process_at_a_time(tmp_path):
    lock = cli.hold(tmp_path, "--html")
    with pytest.raises(RequestError, match="in use by another process"):
        write_folder(tmp_path, tmp_path / "store", fill(b"one"))
    os.close(lock)
