"""A folder of one's own: classes, splits, a CSV; and a store that was read in another way before."""

import csv
import unicodedata
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from shared.datasets import folder
from shared.datasets.catalog import open_catalog
from tests.shared.datasets.conftest import refusal, touch, write


class TestClasses:
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

    def test_real_videos(self, data_root):
        catalog = open_catalog("folder", data_root / "videos")
        with open(data_root / "INDEX.csv", encoding="utf-8") as index:
            expected = [row["path"].removeprefix("videos/") for row in csv.DictReader(index)
                        if row["path"].startswith("videos/")]
        assert [video.id for video in catalog.videos] == sorted(expected)


def read(root: Path, *paths: str, annotations: str = "", stored=None) -> dict[str, tuple[str, tuple[str, ...]]]:
    """id -> class and splits, and under `notes` what is said."""
    touch(root / "v", *paths)
    file = write(root / "list.csv", annotations) if annotations else None
    catalog = open_catalog("folder", root / "v", file, stored=stored or {})
    return {video.id: (video.class_name, video.splits) for video in catalog.videos} | {"notes": catalog.notes}


ABOVE = "the first folder as the split, the next as the class"
BELOW = "the first folder as the class, the next as the split"


class TestSplits:
    @pytest.mark.parametrize("names, splits", [
        (("train", "val"), ("train", "val")), (("Training", "validation"), ("train", "val")),
        (("train", "testing"), ("train", "test")), (("train1", "test1"), ("train1", "test1")),
        (("videos_train", "videos_val"), ("train", "val")), (("train_set", "dev"), ("train", "val")),
        (("TRAIN", "eval"), ("train", "test"))])
    def test_folders_named_as_splits_above_the_classes(self, tmp_path, names, splits):
        found = read(tmp_path, *(f"{name}/{kind}/1.mp4" for name in names for kind in ("run", "walk/deep")))
        notes = found.pop("notes")
        assert found == {f"{name}/{kind}/1.mp4": (kind.partition("/")[0], (split,))
                         for name, split in zip(names, splits) for kind in ("run", "walk/deep")}
        assert notes == (f"read with {ABOVE}: " + ", ".join(f"{split} 2 videos" for split in sorted(splits)),)

    def test_below_the_classes(self, tmp_path):
        found = read(tmp_path, "run/train/1.mp4", "run/test/2.mp4", "walk/train/3.mp4")
        assert found == {"run/train/1.mp4": ("run", ("train",)), "run/test/2.mp4": ("run", ("test",)),
                         "walk/train/3.mp4": ("walk", ("train",)),
                         "notes": (f"read with {BELOW}: test 1 video, train 2 videos",)}

    def test_one_split_only(self, tmp_path):
        assert read(tmp_path, "test/run/1.mp4", "test/walk/1.mp4") == {
            "test/run/1.mp4": ("run", ("test",)), "test/walk/1.mp4": ("walk", ("test",)),
            "notes": (f"read with {ABOVE}: test 2 videos",)}

    def test_without_classes_and_videos_at_the_root(self, tmp_path):
        assert read(tmp_path, "train/run/1.mp4", "test/2.mp4", "3.mp4") == {
            "train/run/1.mp4": ("run", ("train",)), "test/2.mp4": ("", ("test",)), "3.mp4": ("", ("train",)),
            "notes": (f"read with {ABOVE}: test 1 video, train 2 videos, 2 of them in no class folder and unlabelled",)}
        assert read(tmp_path / "flat", "train/1.mp4", "val/2.mp4")["val/2.mp4"] == ("", ("val",))

    @pytest.mark.parametrize("paths", [
        ("bus/1.mp4", "car/2.mp4", "train/3.mp4"), ("train/1.mp4", "train/2.mp4"), ("test/1.mp4", "loose.mp4"),
        ("trainer/a/1.mp4", "contest/a/2.mp4")])
    def test_a_class_may_be_called_train(self, tmp_path, paths):
        found = read(tmp_path, *paths)
        assert found.pop("notes") == ()
        assert found == {path: (path.rpartition("/")[0].partition("/")[0], ("train",)) for path in paths}

    def test_a_class_called_train_within_splits(self, tmp_path):
        assert read(tmp_path, "train/train/1.mp4", "train/bus/2.mp4", "val/train/3.mp4")["val/train/3.mp4"] == (
            "train", ("val",))

    def test_what_looks_like_splits_and_is_not_read_so_is_said(self, tmp_path):
        found = read(tmp_path, "train/run/1.mp4", "val/run/2.mp4", "extra/3.mp4")
        assert found["val/run/2.mp4"] == ("val", ("train",)) and "train/ is named as a split" in found["notes"][0]
        found = read(tmp_path / "one", "set/train/run/1.mp4", "set/val/run/2.mp4")
        assert found["set/val/run/2.mp4"] == ("set", ("train",))
        assert f"--videos {tmp_path / 'one/v/set'} takes {ABOVE}" in found["notes"][0]

    def test_a_csv_says_what_it_has_columns_for(self, tmp_path):
        paths = "train/run/1.mp4", "val/run/2.mp4"
        found = read(tmp_path, *paths, annotations="path,label\ntrain/run/1.mp4,jog\nval/run/2.mp4,sit\n")
        assert found["train/run/1.mp4"] == ("jog", ("train",)) and found["val/run/2.mp4"] == ("sit", ("val",))
        assert f"list.csv has no column split: read with {ABOVE}: train 1 video, val 1 video" in found["notes"]
        found = read(tmp_path, *paths, annotations="path,split\ntrain/run/1.mp4,test\nval/run/2.mp4,\n")
        assert found["train/run/1.mp4"] == ("run", ("test",)) and found["val/run/2.mp4"] == ("run", ())
        found = read(tmp_path, *paths, annotations="path,label,split\ntrain/run/1.mp4,a,val\nval/run/2.mp4,b,test\n")
        assert [found[path] for path in paths] == [("a", ("val",)), ("b", ("test",))] and len(found["notes"]) == 1


class TestStores:
    """A store is read on as it was when it took its first videos."""

    def test_splits_as_classes(self, tmp_path):
        old = {"train/run/1.mp4": ("train", ("train",))}
        found = read(tmp_path, "train/run/1.mp4", "train/run/3.mp4", "val/run/2.mp4", stored=old)
        assert found["val/run/2.mp4"] == ("val", ("train",)) and found["train/run/1.mp4"] == old["train/run/1.mp4"]
        assert "the videos that the store holds were read with the first folder as the class" in found["notes"][0]

    def test_splits_as_splits_though_another_folder_has_come(self, tmp_path):
        new = {"train/run/1.mp4": ("run", ("train",))}
        found = read(tmp_path, "train/run/1.mp4", "val/run/2.mp4", "extra/3.mp4", stored=new)
        assert found["val/run/2.mp4"] == ("run", ("val",)) and found["extra/3.mp4"] == ("extra", ("train",))

    def test_splits_below_as_part_of_the_class(self, tmp_path):
        old = {"run/test/1.mp4": ("run", ("train",)), "run/train/2.mp4": ("run", ("train",))}
        assert read(tmp_path, *old, "run/test/3.mp4", stored=old)["run/test/3.mp4"] == ("run", ("train",))

    def test_a_csv_of_labels_alone(self, tmp_path):
        old = {"val/run/1.mp4": ("jog", ("train",))}
        found = read(tmp_path, *old, "val/run/2.mp4", stored=old,
                     annotations="path,label\nval/run/1.mp4,jog\nval/run/2.mp4,sit\n")
        assert found["val/run/2.mp4"] == ("sit", ("train",))

    def test_a_class_minus_one(self, tmp_path):
        text = "path,label\na.mp4,-1\nb.mp4,-1\n"
        assert read(tmp_path, "a.mp4", "b.mp4", annotations=text, stored={"a.mp4": ("-1", ("train",))})["b.mp4"] == (
            "-1", ("train",))


class TestCSV:
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
        assert catalog.ignored == 1 and any("1 video is on disk but not listed" in note and "extra.mp4" in note
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
        ("path,label\nx.mp4\n", ["line 2", "1 cell;", "expected 2"]),
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
        listing = folder.listing(file.parent, file, [], {})
        assert {k: (v.class_name, set(v.splits)) for k, v in listing.videos.items()} == rows
        assert sorted(listing.classes) == sorted({label for label, _ in rows.values()} - {""})

    def test_minus_one_and_nan_and_nothing_are_unlabelled(self, tmp_path):
        names = "abcdefgh"
        touch(tmp_path / "v", *(f"{name}.mp4" for name in names))
        labels = "-1", "", "nan", "-1.0", " NaN ", "0", "nano", "-10"
        rows = (f"{name}.mp4,{label}\n" for name, label in zip(names, labels))
        file = write(tmp_path / "l.csv", "path,label\n" + "".join(rows))
        catalog = open_catalog("folder", tmp_path / "v", file)
        assert [video.class_name for video in catalog.videos] == ["", "", "", "", "", "0", "nano", "-10"]
        assert [video.label for video in catalog.videos] == [-1] * 5 + [1, 2, 0]
        assert "read as unlabelled: 4 labels -1 or nan of l.csv" in catalog.notes

    def test_rows_that_a_spreadsheet_fills_up(self, tmp_path):
        file = write(tmp_path / "l.csv", "path,label,,\r\na.mp4,x,,\r\nb.mp4,y,,,,\r\n,,,\r\n\r\n , \r\n")
        catalog = open_catalog("folder", touch(tmp_path / "v", "a.mp4", "b.mp4"), file)
        assert [(video.id, video.class_name) for video in catalog.videos] == [("a.mp4", "x"), ("b.mp4", "y")]

    @pytest.mark.parametrize("labels, classes", [
        (["10", "2", "1"], ["1", "2", "10"]), (["0", "-2", "+1", "01"], ["-2", "0", "+1", "01"]),
        (["1.0", "10.0", "2.0"], ["1.0", "2.0", "10.0"]), (["10", "2", "b"], ["10", "2", "b"]),
        (["9" * 40, "1" * 40], ["1" * 40, "9" * 40])])
    def test_numbers_are_sorted_by_value(self, tmp_path, labels, classes):
        touch(tmp_path / "v", *(f"{i}.mp4" for i in range(len(labels))))
        rows = (f"{i}.mp4,{label}\n" for i, label in enumerate(labels))
        file = write(tmp_path / "l.csv", "path,label\n" + "".join(rows))
        assert open_catalog("folder", tmp_path / "v", file).classes == tuple(classes)
        for label in labels:
            touch(tmp_path / "tree", f"{label}/x.mp4")
        assert open_catalog("folder", tmp_path / "tree").classes == tuple(classes)

    @pytest.mark.parametrize("text, parts", [
        ("path;label;split\nx.mp4;a;train\n", ["line 1", "'path;label;split'", "semicolons", "commas"]),
        ("sep=;\npath;label\nx.mp4;a\n", ["line 1", "semicolons"]), ("path\tlabel\nx.mp4\ta\n", ["line 1", "tabs"]),
        ("x.mp4 0\ny.mp4 1\n", ["line 1", "'x.mp4 0'", "spaces"]), ("path|label\nx.mp4|a\n", ["vertical bars"]),
        ("path,label\nx.mp4;a\n", ["line 2", "1 cell, separated by semicolons", "expected 2 with commas"])])
    def test_another_separator_is_named(self, tmp_path, text, parts):
        message = refusal("folder", touch(tmp_path, "x.mp4"), write(tmp_path / "list.csv", text))
        assert all(part in message for part in ["list.csv", *parts]), message

    @pytest.mark.parametrize("listed", ["videos/a/1.mp4", "a/1.avi", "a\\1.mp4", "A/2.mp4"])
    def test_none_that_is_listed_shows_one_beside_one_that_is_there(self, tmp_path, listed):
        message = refusal("folder", touch(tmp_path, "a/0.mp4", "a/1.mp4"),
                          write(tmp_path / "l.csv", f"path\nother.mp4\n{listed}\n"))
        want = f"listed is {listed!r}, on disk is 'a/1.mp4'" if "/1" in listed else \
            "listed is 'other.mp4', on disk is 'a/0.mp4'"
        assert f"no video of 2 listed is under {tmp_path} (2 video files, 1 other; {want})" in message

    @pytest.mark.parametrize("there, listed", [("NFD", "NFC"), ("NFC", "NFD")])
    def test_accents_in_either_spelling(self, tmp_path, there, listed):
        on_disk, in_list = (unicodedata.normalize(form, "\u00dcbung/caf\u00e9.mp4") for form in (there, listed))
        assert on_disk != in_list
        catalog = open_catalog("folder", touch(tmp_path / "v", on_disk),
                               write(tmp_path / "l.csv", f"path,label\n{in_list},a\n"))
        assert [(v.id, v.path, v.class_name) for v in catalog.videos] == [(in_list, on_disk, "a")]
        assert catalog.absent == () and len(catalog.notes) == 1


def test_the_contract(keeps_the_contract):
    def build(base):
        root = touch(base / "videos", "a/1.mp4", "b/2.mp4", "3.mp4")
        return root, write(base / "list.csv", "path,label,split\na/1.mp4,x,train\nb/2.mp4,y,val;test1\n3.mp4,,\n")
    keeps_the_contract("folder", build)
