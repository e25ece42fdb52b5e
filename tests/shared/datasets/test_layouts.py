"""The official layouts and file formats, with empty video files: a catalog never opens a video."""

from pathlib import Path

import pytest

from shared.datasets.catalog import open_catalog
from tests.shared.datasets.conftest import refusal, touch, write

UCF101_CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
HMDB51_CLASSES = ("brush_hair", "cartwheel")


def ucf101(base: Path) -> tuple[Path, Path]:
    """Three classes, two groups of two clips; group 1 tests split 1, group 2 tests split 2. No lists of split 3."""
    root, lists = base / "UCF-101", base / "ucfTrainTestlist"
    write(lists / "classInd.txt", "".join(f"{n} {name}\r\n" for n, name in enumerate(UCF101_CLASSES, 1)))
    text = {}
    for number, name in enumerate(UCF101_CLASSES, 1):
        # The official files of this class bear another spelling than its folder and its entry in classInd.txt.
        spelt = name.replace("Handstand", "HandStand")
        for group in (1, 2):
            for clip in (1, 2):
                file = f"v_{spelt}_g{group:02d}_c{clip:02d}.avi"
                touch(root, f"{name}/{file}")
                for split in (1, 2):
                    part = "test" if split == group else "train"
                    line = f"{name}/{file}" + (f" {number}" if part == "train" else "")
                    text.setdefault(f"{part}list0{split}.txt", []).append(line)
    for name, lines in text.items():
        write(lists / name, "\r\n".join(lines) + "\r\n")
    return root, lists


def hmdb51(base: Path) -> tuple[Path, Path]:
    """Two classes with the odd names of the real set; the third video of each is in no split."""
    root, lists = base / "hmdb51_org", base / "testTrainMulti_7030_splits"
    for name in HMDB51_CLASSES:
        files = (f"April_09_{name}_u_nm_np1_ba_goo_0.avi", f"#437_[a]!_&;@('x')_{name}_f_cm_np1_ba_med_1.avi",
                 f"unused_{name}_h_cm_np1_le_bad_2.avi")
        touch(root, *(f"{name}/{file}" for file in files))
        for split in (1, 2, 3):
            marks = (1, 2, 0) if split == 1 else (2, 1, 0)
            write(lists / f"{name}_test_split{split}.txt", "".join(f"{f} {m} \n" for f, m in zip(files, marks)))
    return root, lists


KINETICS = {  # split -> rows of the official CSV; ids may begin with - or _
    "train": (("abseiling", "-3B32lodo2M", 59, 69), ("air drumming", "_1e1e1uuuuu", 0, 10)),
    "val": (("abseiling", "0wR5jVB-WPk", 417, 427),),
    "test": (("", "zzzzzzzzzzz", 100000, 100010),),
}


def kinetics400(base: Path, place: str = "{split}/{label}/{name}", ending: str = ".mp4") -> tuple[Path, Path]:
    """Lists as published: test without a label column, train with an is_cc column, validate.csv as in the archives."""
    root, lists = base / "k400", base / "annotations"
    for split, rows in KINETICS.items():
        for label, youtube_id, start, end in rows:
            name = f"{youtube_id}_{start:06d}_{end:06d}{ending}"
            touch(root, place.format(split=split, label=label or "unknown", name=name).lstrip("/"))
    write(lists / "train.csv", "label,youtube_id,time_start,time_end,split,is_cc\n"
          + "".join(f"{label},{id},{start},{end},train,0\n" for label, id, start, end in KINETICS["train"]))
    write(lists / "validate.csv", "label,youtube_id,time_start,time_end,split\n"
          + "".join(f"{label},{id},{start},{end},validate\n" for label, id, start, end in KINETICS["val"]))
    write(lists / "test.csv", "youtube_id,time_start,time_end,split\n"
          + "".join(f"{id},{start},{end},test\n" for _, id, start, end in KINETICS["test"]))
    return root, lists


class TestUCF101:
    def test_official_lists(self, tmp_path):
        root, lists = ucf101(tmp_path)
        catalog = open_catalog("ucf101", root)
        assert catalog == open_catalog("ucf101", root, lists)
        assert catalog.classes == UCF101_CLASSES and len(catalog.videos) == 12 and catalog.absent == ()
        by_id = {video.id: video for video in catalog.videos}
        video = by_id["v_HandStandPushups_g01_c02"]
        assert (video.path, video.label, video.class_name, video.group, video.splits) == (
            "HandstandPushups/v_HandStandPushups_g01_c02.avi", 1, "HandstandPushups", "g01", ("test1", "train2"))
        assert by_id["v_YoYo_g02_c01"].splits == ("train1", "test2") and by_id["v_YoYo_g02_c01"].label == 2
        assert any("2 split lists are not in" in note and "trainlist03.txt" in note for note in catalog.notes)

    def test_folder_spelt_in_the_other_way(self, tmp_path):
        root, _ = ucf101(tmp_path)
        (root / "HandstandPushups").rename(root / "HandStandPushups")
        catalog = open_catalog("ucf101", root)
        assert sum(video.class_name == "HandstandPushups" for video in catalog.videos) == 4 and catalog.absent == ()

    def test_lists_within_the_root_absent_and_unlisted_videos(self, tmp_path):
        root, lists = ucf101(tmp_path)
        lists.rename(root / lists.name)
        (root / "YoYo/v_YoYo_g01_c01.avi").unlink()
        touch(root, "YoYo/v_YoYo_g99_c01.avi")
        catalog = open_catalog("ucf101", root)
        assert catalog.absent == ("v_YoYo_g01_c01",) and len(catalog.videos) == 11
        assert catalog.ignored == 1 + 5  # the lists lie in the root: five text files
        assert any("v_YoYo_g99_c01.avi" in note for note in catalog.notes)

    def test_no_lists_names_where_it_looked(self, tmp_path):
        root, lists = ucf101(tmp_path)
        lists.rename(tmp_path / "elsewhere")
        message = refusal("ucf101", root)
        assert str(lists) in message and str(root / lists.name) in message and "--annotations" in message
        assert "elsewhere/none" in refusal("ucf101", root, tmp_path / "elsewhere/none")

    @pytest.mark.parametrize("file, text, parts", [
        ("classInd.txt", "1 A\n3 B\n", ["line 2", "'3 B'", "'2 <class>'"]),
        ("trainlist01.txt", "YoYo/v_YoYo_g02_c01.avi 3\nv_YoYo_g02_c02.avi 3\n", ["line 2", "'<class>/<video>.avi'"]),
        ("trainlist01.txt", "YoYos/v_YoYo_g02_c01.avi 3\n", ["line 1", "'YoYos'", "did you mean 'YoYo'"]),
        ("trainlist01.txt", "YoYo/v_YoYo_g02_c01.avi 2\n", ["line 1", "number 2", "says 3"]),
        ("trainlist01.txt", "YoYo/v_YoYo_g02_c01.avi 3\n" * 2, ["line 2", "in train1 already"]),
        ("testlist01.txt", "YoYo/v_YoYo_g02_c01.avi\n", ["line 1", "in train1 already"]),
    ])
    def test_errors_name_file_and_line(self, tmp_path, file, text, parts):
        root, lists = ucf101(tmp_path)
        message = refusal("ucf101", root, write(lists / file, text).parent)
        assert all(part in message for part in [file, *parts]), message

    def test_empty_lists(self, tmp_path):
        root, lists = ucf101(tmp_path)
        for file in lists.glob("*list0*.txt"):
            file.unlink()
        assert "trainlist01.txt" in refusal("ucf101", root)


class TestHMDB51:
    def test_official_lists(self, tmp_path):
        root, lists = hmdb51(tmp_path)
        catalog = open_catalog("hmdb51", root)
        assert catalog == open_catalog("hmdb51", root, lists)
        assert catalog.classes == ("brush_hair", "cartwheel") and catalog.absent == () and catalog.notes == ()
        assert [v.id for v in catalog.videos] == sorted(p.stem for p in root.rglob("*.avi"))
        by_id = {video.id: video for video in catalog.videos}
        odd = by_id["#437_[a]!_&;@('x')_cartwheel_f_cm_np1_ba_med_1"]
        assert (odd.label, odd.group, odd.splits) == (1, "#437_[a]!_&;@('x')", ("test1", "train2", "train3"))
        assert by_id["unused_brush_hair_h_cm_np1_le_bad_2"].splits == ()

    def test_a_name_that_two_classes_share_bears_its_class(self, tmp_path):
        root, lists = hmdb51(tmp_path)
        for name in HMDB51_CLASSES:
            touch(root, f"{name}/same.avi")
            for split in "123":
                with open(lists / f"{name}_test_split{split}.txt", "a") as file:
                    file.write("same.avi 1\n")
        catalog = open_catalog("hmdb51", root)
        same = {v.id: (v.path, v.splits) for v in catalog.videos if "same" in v.id}
        assert same == {f"{name}/same": (f"{name}/same.avi", ("train1", "train2", "train3"))
                        for name in HMDB51_CLASSES}

    @pytest.mark.parametrize("text, parts", [
        ("x.avi 1\nx.avi 3\n", ["line 2", "'x.avi 3'", "0, 1 or 2"]),
        ("x.avi\n", ["line 1", "0, 1 or 2"]),
        ("x.avi 1\nx.avi 2\n", ["line 2", "'x'", "already"]),
    ])
    def test_errors_name_file_and_line(self, tmp_path, text, parts):
        root, lists = hmdb51(tmp_path)
        write(lists / "cartwheel_test_split2.txt", text)
        message = refusal("hmdb51", root)
        assert all(part in message for part in ["cartwheel_test_split2.txt", *parts]), message

    def test_missing_and_wrong_lists(self, tmp_path):
        root, lists = hmdb51(tmp_path)
        (lists / "cartwheel_test_split3.txt").unlink()
        assert any("cartwheel_test_split3.txt" in note for note in open_catalog("hmdb51", root).notes)
        write(lists / "cartwheel_test_split4.txt", "")
        assert "split4.txt; expected" in refusal("hmdb51", root)
        assert "--annotations" in refusal("hmdb51", root, root)


class TestKinetics400:
    @pytest.mark.parametrize("place", ["{name}", "{label}/{name}", "{split}/{label}/{name}", "{split}/{name}"])
    @pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
    def test_official_lists_in_every_arrangement(self, tmp_path, place, ending):
        root, lists = kinetics400(tmp_path, place, ending)
        catalog = open_catalog("kinetics400", root)
        assert catalog == open_catalog("kinetics400", root, lists)
        assert catalog.classes == ("abseiling", "air drumming") and catalog.absent == () and catalog.ignored == 0
        assert [(v.id, v.label, v.splits) for v in catalog.videos] == [
            ("-3B32lodo2M_000059_000069", 0, ("train",)), ("0wR5jVB-WPk_000417_000427", 0, ("val",)),
            ("_1e1e1uuuuu_000000_000010", 1, ("train",)), ("zzzzzzzzzzz_100000_100010", -1, ("test",))]

    def test_underscored_folders_absent_and_unlisted_videos(self, tmp_path):
        root, _ = kinetics400(tmp_path, "{split}/{label}/{name}")
        (root / "train/air drumming").rename(root / "train/air_drumming")
        (root / "val/abseiling/0wR5jVB-WPk_000417_000427.mp4").unlink()
        touch(root, "val/abseiling/0wR5jVB-WPk_000417_000428.mp4", "val/x.csv")
        catalog = open_catalog("kinetics400", root)
        assert catalog.absent == ("0wR5jVB-WPk_000417_000427",) and catalog.ignored == 2
        assert [v.class_name for v in catalog.videos] == ["abseiling", "air drumming", ""]

    def test_one_csv_and_split_from_the_file_name(self, tmp_path):
        root, lists = kinetics400(tmp_path)
        file = write(tmp_path / "kinetics_400_val.csv",
                     "label,youtube_id,time_start,time_end\nabseiling,-3B32lodo2M,59.0,69.0\n")
        catalog = open_catalog("kinetics400", root, file)
        assert [(v.id, v.splits) for v in catalog.videos] == [("-3B32lodo2M_000059_000069", ("val",))]
        assert catalog.ignored == 3

    @pytest.mark.parametrize("text, parts", [
        ("label,youtube_id,time_start,time_end\na,b,x,10\n", ["line 2", "'x'", "seconds"]),
        ("label,youtube_id,time_start,time_end\na,b,nan,inf\n", ["line 2", "seconds"]),
        ("label,youtube_id,time_start\na,b,1\n", ["line 1", "'time_end' is missing"]),
        ("label,youtubeid,time_start,time_end\na,b,1,2\n", ["'youtubeid'", "did you mean 'youtube_id'"]),
        ("label,youtube_id,time_start,time_end,split\na,b,1,2,trian\n", ["line 2", "'trian'", "did you mean 'train'"]),
        ("label,youtube_id,time_start,time_end\na,b,1,2\nc,b,1,2\n", ["line 3", "'c'", "'a'", "train.csv line 2"]),
    ])
    def test_errors_name_file_and_line(self, tmp_path, text, parts):
        root, lists = kinetics400(tmp_path)
        write(lists / "train.csv", text)
        message = refusal("kinetics400", root)
        assert all(part in message for part in ["train.csv", *parts]), message

    def test_a_row_of_two_lists_is_in_both_splits(self, tmp_path):
        root, lists = kinetics400(tmp_path)
        with open(lists / "validate.csv", "a") as file:
            file.write("abseiling,-3B32lodo2M,59,69,validate\n")
        assert open_catalog("kinetics400", root).videos[0].splits == ("train", "val")

    def test_no_lists(self, tmp_path):
        root, lists = kinetics400(tmp_path)
        for file in lists.iterdir():
            file.unlink()
        message = refusal("kinetics400", root)
        assert all(str(place) in message for place in (lists, root / "annotations", root))
        write(lists / "other.csv", "")
        assert "train.csv" in refusal("kinetics400", root)


    def test_the_mirror_as_it_is_unpacked(self, tmp_path):
        """Its train, val and test archives beside good copies of some broken training videos, all flat."""
        root, lists = kinetics400(tmp_path, "{split}/{name}")
        rows = [f"abseiling,aaaaaaa{i:04d},0,10,train" for i in range(1300)]
        with open(lists / "train.csv", "a") as file:
            file.write("".join(f"{row},0\n" for row in rows))
        names = [f"{row.split(',')[1]}_000000_000010.mp4" for row in rows]
        touch(root, *(f"train/{name}" for name in names),
              *(f"replacement/replacement_for_corrupted_k400/{name}" for name in names))
        catalog = open_catalog("kinetics400", root)
        assert len(catalog.videos) == 1304 and catalog.ignored == 1300 and catalog.absent == ()
        assert sum(video.path.startswith("replacement/") for video in catalog.videos) == 1300
        assert {video.splits for video in catalog.videos if video.path.startswith("replacement/")} == {("train",)}
        assert catalog.notes == (
            "a replacement is taken for 1,300 videos, in replacement/ and train/ (first replacement/replacement_for_"
            "corrupted_k400/aaaaaaa0000_000000_000010.mp4 and train/aaaaaaa0000_000000_000010.mp4)",)
        (root / "replacement/replacement_for_corrupted_k400").rename(root / "zz")
        assert "two files for 1,300 videos, in train/ and zz/ (first train/aaaaaaa0000_" in refusal("kinetics400", root)
        (root / "zz").rename(root / "train/replacement_for_corrupted_k400")     # found after those that it replaces
        assert sum("/replacement" in video.path for video in open_catalog("kinetics400", root).videos) == 1300

    def test_pairs_in_several_places_are_all_counted(self, tmp_path):
        root, _ = kinetics400(tmp_path, "train/{label}/{name}")
        touch(root, "copy/-3B32lodo2M_000059_000069.mp4", "copy/0wR5jVB-WPk_000417_000427.mkv",
              "train/air drumming/_1e1e1uuuuu_000000_000010.mkv")
        message = refusal("kinetics400", root)
        assert "two files for 3 videos, 2 of them in copy/ and train/ (first copy/-3B32lodo2M_" in message

    def test_minus_one_is_no_label(self, tmp_path):
        root, lists = kinetics400(tmp_path)
        write(lists / "test.csv", "label,youtube_id,time_start,time_end,split\n-1,zzzzzzzzzzz,100000,100010,test\n")
        catalog = open_catalog("kinetics400", root)
        assert catalog.classes == ("abseiling", "air drumming") and catalog.videos[-1].label == -1


class TestEveryLayout:
    @pytest.mark.parametrize("build, layout, copy", [
        (ucf101, "ucf101", "YoYo/v_YoYo_g01_c01.mp4"),
        (hmdb51, "hmdb51", "cartwheel/unused_cartwheel_h_cm_np1_le_bad_2.mkv"),
        (kinetics400, "kinetics400", "other/-3B32lodo2M_000059_000069.webm")])
    def test_two_files_of_one_id_are_both_named(self, tmp_path, build, layout, copy):
        root, _ = build(tmp_path)
        message = refusal(layout, touch(root, copy))
        assert copy in message and message.count(copy.rpartition("/")[2].rpartition(".")[0]) == 3

    def test_none_of_the_listed_is_there(self, tmp_path):
        root, lists = ucf101(tmp_path)
        message = refusal("ucf101", touch(tmp_path / "other", "x.avi"), lists)
        assert "no video of 12 listed" in message and "listed is 'v_" in message and "on disk is 'x.avi'" in message


@pytest.mark.parametrize("build", [ucf101, hmdb51, kinetics400])
def test_the_contract(build, keeps_the_contract):
    keeps_the_contract(build.__name__, build)
