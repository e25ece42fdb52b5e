"""What lies on disk: the walk, links, what cannot be read, what is left out."""

import errno
import os
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import given, settings

from shared.datasets.catalog import Scan, open_catalog, scan
from shared.datasets.listing import ENDINGS
from tests.shared.datasets.conftest import refusal, touch, write


class TestRoot:
    def test_missing_file_empty_and_unknown(self, tmp_path):
        assert "does not exist" in refusal("folder", tmp_path / "none")
        assert "is a file" in refusal("folder", write(tmp_path / "file", ""))
        assert "--videos" in refusal("folder", touch(tmp_path / "empty", "notes.txt").resolve())
        assert "did you mean 'ucf101'" in refusal("ucf11", tmp_path)

    def test_names_that_are_not_utf8(self, tmp_path):
        touch(tmp_path, "a/fine.mp4")
        with open(os.fsencode(tmp_path) + b"/a/caf\xe9.mp4", "w"):
            catalog = open_catalog("folder", tmp_path)
        assert [video.id for video in catalog.videos] == ["a/fine.mp4"]
        assert list(catalog.refused) == [r"a/caf\xe9.mp4"] and catalog.absent == ()
        # Left out by the list, it stands in nobody's way, but it is said, and what is said can be printed.
        catalog = open_catalog("folder", tmp_path, write(tmp_path / "l.csv", "path\na/fine.mp4\n"))
        assert len(catalog.videos) == 1 and any(r"caf\xe9" in note.encode().decode() for note in catalog.notes)

    def test_links_to_folders_and_files_are_followed(self, tmp_path):
        touch(tmp_path / "disk", "v/1.mp4", "v/deep/2.mp4")
        root = touch(tmp_path / "root", "b/3.mp4")
        (root / "a").symlink_to(tmp_path / "disk/v")
        (root / "c").symlink_to(tmp_path / "disk/v/deep")
        (root / "4.mp4").symlink_to(tmp_path / "disk/v/1.mp4")
        (root / "5.mp4").symlink_to(tmp_path / "gone")  # a broken link fails in decoding and is then reported
        assert scan(root) == Scan(["4.mp4", "5.mp4", "a/1.mp4", "a/deep/2.mp4", "b/3.mp4", "c/2.mp4"])

    def test_links_that_never_end(self, tmp_path):
        root = touch(tmp_path / "root", "a/1.mp4")
        (root / "a/up").symlink_to(root)
        assert f"{root / 'a/up'} leads back to {root}" in refusal("folder", root)
        (root / "a/up").unlink()
        touch(tmp_path, "other/2.mp4")
        (root / "a/over").symlink_to(tmp_path / "other")
        (tmp_path / "other/back").symlink_to(root / "a")
        assert "leads back to" in refusal("folder", root)
        (tmp_path / "other/back").unlink()

    def test_what_cannot_be_read_is_counted_and_named_and_not_the_end(self, tmp_path, monkeypatch):
        """As on a disk of one's own, whose lost+found is root's; tests may run as root, who reads all."""
        touch(tmp_path, "walk/1.mp4", "walk/inner/2.mp4", "lost+found/3.mp4", "zoo/4.mp4")
        (tmp_path / "walk/loop.mp4").symlink_to(tmp_path / "walk/loop.mp4")
        (tmp_path / "run").symlink_to(tmp_path / "nowhere")
        listed = os.scandir

        def fake(path):
            if Path(path).name in ("lost+found", "inner"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(os, "scandir", fake)
        catalog = open_catalog("folder", tmp_path)
        assert [video.id for video in catalog.videos] == ["walk/1.mp4", "zoo/4.mp4"]
        assert list(catalog.scan.unreadable) == ["lost+found", "run", "walk/inner", "walk/loop.mp4"]
        assert catalog.notes == ("4 folders or files left out, since reading failed (first lost+found: Permission "
                                 "denied)",)
        # What cannot be seen is not said to be gone.
        paths = "walk/inner/2.mp4", "run/6.mp4", "lost+found/deep/er/5.mp4", "walk/loop.mp4", "zoo/4.mp4", "walk/9.mp4"
        assert catalog.scan.gone((path, path) for path in paths) == ["walk/9.mp4"]
        monkeypatch.setattr(os, "scandir", lambda path: fake("inner"))
        assert f"cannot read {tmp_path}: Permission denied" in refusal("folder", tmp_path)

    def test_what_is_gone(self, tmp_path):
        """A path that is an id names its file; a name may have moved, or another ending now."""
        found = scan(touch(tmp_path, "b/moved.mp4", "a/other.mkv"))
        assert found.gone([("a/moved.mp4", "a/moved.mp4"), ("moved", "a/moved.mp4"), ("other", "a/other.mp4"),
                           ("lost", "a/lost.mp4"), ("b/moved.mp4", "b/moved.mp4")]) == ["a/moved.mp4", "lost"]

    def test_a_folder_that_breaks_off_keeps_what_was_read(self, tmp_path, monkeypatch):
        touch(tmp_path, "a/1.mp4", "b/2.mp4")
        listed = os.scandir

        @contextmanager
        def breaking(path):
            with listed(path) as entries:
                yield broken(entries) if Path(path).name == "a" else entries

        def broken(entries):
            yield from entries
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "scandir", breaking)
        assert scan(tmp_path) == Scan(["a/1.mp4", "b/2.mp4"], 0, {"a": "Input/output error"})

    def test_bins_of_the_system_are_left_out_and_said(self, tmp_path):
        touch(tmp_path, "walk/1.mp4", "#recycle/2.mp4", "walk/@eaDir/1.mp4/SYNOVIDEO.mp4", "__MACOSX/._1.mp4")
        catalog = open_catalog("folder", tmp_path)
        assert [video.id for video in catalog.videos] == ["walk/1.mp4"]
        assert catalog.notes == ("3 folders are left out, since the system keeps its own things there (first "
                                 "#recycle)",)

    def test_what_is_no_file_is_ignored(self, tmp_path):
        os.mkfifo(touch(tmp_path, "1.mp4") / "pipe.mp4")
        assert scan(tmp_path) == Scan(["1.mp4"], 1)

    @settings(max_examples=40, deadline=None)
    @given(st.sets(st.lists(st.sampled_from(["a", "b", ".c", "d.mp4", "e.AVI", "f.txt", "é ü.mkv"]), min_size=1,
                            max_size=4).map("/".join), max_size=12))
    def test_scan_is_the_walk(self, tmp_path_factory, paths):
        root = tmp_path_factory.mktemp("scan")
        for path in sorted(paths, key=len, reverse=True):
            if not (root / path).exists():
                parents = [root / path, *(root / path).parents]
                if not any(parent.is_file() for parent in parents):
                    touch(root, path)
        found, ignored = [], 0
        for folder_path, folders, files in os.walk(root):
            ignored += sum(name.startswith(".") for name in folders)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in ENDINGS:
                    found.append(os.path.relpath(os.path.join(folder_path, name), root))
                else:
                    ignored += 1
        assert scan(root) == Scan(sorted(found), ignored)
