import csv
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from shared.cli import RequestError
from shared.datasets.catalog import ENDINGS, open_catalog, scan
from shared.datasets.layouts import folder


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def refusal(*args, **kwargs) -> str:
    with pytest.raises(RequestError) as caught:
        open_catalog(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestFolder:
    def test_first_folder_is_the_class(self, tmp_path):
        touch(tmp_path, "b/x.mp4", "b/deep/er/y.AVI", "a/z.webm", "loose.mkv", "a/notes.txt", ".hidden.mp4",
              "a/._z.mp4", ".cache/z.mp4", "README", "a/mp4")
        catalog = open_catalog("folder", tmp_path, dataset="mine")
        assert (catalog.dataset, catalog.root, catalog.classes) == ("mine", tmp_path, ("a", "b"))
        assert [(v.id, v.path, v.label, v.class_name, v.splits) for v in catalog.videos] == [
            ("a/z.webm", "a/z.webm", 0, "a", ("train",)),
            ("b/deep/er/y.AVI", "b/deep/er/y.AVI", 1, "b", ("train",)),
            ("b/x.mp4", "b/x.mp4", 1, "b", ("train",)),
            ("loose.mkv", "loose.mkv", -1, "", ("train",))]
        assert catalog.ignored == 6  # two hidden files, one hidden folder, notes, README, a file without an ending
        assert catalog.absent == () and catalog.notes == ()

    def test_csv_says_label_split_and_group(self, tmp_path):
        touch(tmp_path / "v", "a/1.mp4", "a/2.mp4", "b, c/3.mp4", "extra.mp4")
        file = write(tmp_path / "list.csv", "split,path,fps,label,group\r\n"
                     "train;val,a/1.mp4,25,jump,g1\r\n\r\n,./a//2.mp4,25,,\r\ntest,\"b, c/3.mp4\",25,run,g2\r\n"
                     "test1,gone.mp4,25,walk,\r\nval,a/gone.mp4,25,walk,\r\n", "utf-8-sig")
        catalog = open_catalog("folder", tmp_path / "v", file)
        assert catalog.classes == ("jump", "run", "walk")
        assert [(v.id, v.label, v.class_name, v.splits, v.group) for v in catalog.videos] == [
            ("a/1.mp4", 0, "jump", ("train", "val"), "g1"), ("a/2.mp4", -1, "", (), ""),
            ("b, c/3.mp4", 1, "run", ("test",), "g2")]
        assert catalog.absent == ("a/gone.mp4", "gone.mp4")
        assert catalog.ignored == 1 and any("1 videos are on disk but not listed" in note and "extra.mp4" in note
                                            for note in catalog.notes)

    def test_csv_in_the_root_is_taken_and_path_alone_is_enough(self, tmp_path):
        touch(tmp_path, "a/1.mp4")
        write(tmp_path / "annotations.csv", "path\na/1.mp4\n")
        catalog = open_catalog("synthetic", tmp_path)
        assert [(v.class_name, v.splits) for v in catalog.videos] == [("a", ("train",))]
        assert any("annotations.csv" in note for note in catalog.notes)

    @pytest.mark.parametrize("text, parts", [
        ("", ["line 1", "none", "'path' is missing"]),
        ("file,label\nx.mp4,a\n", ["line 1", "file, label", "'path' is missing"]),
        ("path,lable\nx.mp4,a\n", ["line 1", "'lable'", "did you mean 'label'"]),
        ("path,Split\nx.mp4,train\n", ["'Split'", "did you mean 'split'"]),
        ("pth\nx.mp4\n", ["'pth'", "did you mean 'path'"]),
        ("path,label,label\nx.mp4,a,b\n", ["line 1", "'label'", "twice"]),
        ("path,label\nx.mp4,a\n\nx.mp4,a\n", ["line 4", "'x.mp4'", "line 2"]),
        ("path,label\nx.mp4,a\n./x.mp4,a\n", ["line 3", "line 2"]),
        ("path,split\nx.mp4,train|val\n", ["line 2", "'train|val'", "train;val"]),
        ("path,split\nx.mp4,trian\n", ["line 2", "'trian'", "did you mean 'train'"]),
        ("path,split\nx.mp4,train;\n", ["line 2", "split ''"]),
        ("path,label\nx.mp4\n", ["line 2", "1 cells", "expected 2"]),
        ("path\nx,y.mp4\n", ["line 2", "2 cells", "quote"]),
        ("path\n\"x.mp4\n", ["line 2", "comma-separated"]),
        ("path\n../x.mp4\n", ["line 2", "'../x.mp4'", "relative"]),
        ("path\n/x.mp4\n", ["line 2", "relative"]),
        ("path,label\n,a\n", ["line 2", "path ''"]),
    ])
    def test_csv_errors_name_the_line(self, tmp_path, text, parts):
        touch(tmp_path, "x.mp4")
        message = refusal("folder", tmp_path, write(tmp_path / "list.csv", text))
        assert all(part in message for part in ["list.csv", *parts]), message

    def test_csv_that_is_not_utf8_or_not_there(self, tmp_path):
        touch(tmp_path, "x.mp4")
        assert "not UTF-8" in refusal("folder", tmp_path, write(tmp_path / "l.csv", "path\ncafé.mp4\n", "latin-1"))
        assert "--annotations" in refusal("folder", tmp_path, tmp_path / "none.csv")

    @settings(max_examples=60, deadline=None)
    @given(st.dictionaries(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\0\r"), min_size=1), min_size=1, max_size=3)
        .map(lambda parts: "/".join(f"_{part}_" for part in parts) + ".mp4"),
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")).map(str.strip),
                  st.sets(st.sampled_from(["train", "val", "test", "train2"])))))
    def test_csv_round_trip(self, tmp_path_factory, rows):
        """Whatever the csv module writes, commas, quotes and line ends in names included, is read back."""
        file = tmp_path_factory.mktemp("csv") / "list.csv"
        with open(file, "w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["path", "label", "split"])
            writer.writerows([path, label, ";".join(sorted(splits))] for path, (label, splits) in rows.items())
        listing = folder(file.parent, file, [])
        assert {k: (v.class_name, set(v.splits)) for k, v in listing.videos.items()} == rows
        assert listing.classes == tuple(sorted({label for label, _ in rows.values()} - {""}))

    def test_real_videos(self, data_root):
        catalog = open_catalog("folder", data_root / "videos")
        with open(data_root / "INDEX.csv", encoding="utf-8") as index:
            expected = [row["path"].removeprefix("videos/") for row in csv.DictReader(index)
                        if row["path"].startswith("videos/")]
        assert [video.id for video in catalog.videos] == sorted(expected)


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
        assert catalog.unnamed == (r"a/caf\xe9.mp4",) and catalog.absent == ()
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
        assert scan(root) == (["4.mp4", "5.mp4", "a/1.mp4", "a/deep/2.mp4", "b/3.mp4", "c/2.mp4"], 0)

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
        (root / "self.mp4").symlink_to(root / "self.mp4")
        assert "cannot read" in refusal("folder", root) and "self.mp4" in refusal("folder", root)

    def test_what_is_no_file_is_ignored(self, tmp_path):
        os.mkfifo(touch(tmp_path, "1.mp4") / "pipe.mp4")
        assert scan(tmp_path) == (["1.mp4"], 1)

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
        assert scan(root) == (sorted(found), ignored)


def test_the_contract(keeps_the_contract):
    def build(base):
        root = touch(base / "videos", "a/1.mp4", "b/2.mp4", "3.mp4")
        return root, write(base / "list.csv", "path,label,split\na/1.mp4,x,train\nb/2.mp4,y,val;test1\n3.mp4,,\n")
    keeps_the_contract("folder", build)
