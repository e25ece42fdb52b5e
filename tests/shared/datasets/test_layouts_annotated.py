"""The official layouts of MaCLR's datasets (Something-Something v2, VidSitu, AVA v2.2), with empty video files."""

import json
from pathlib import Path

import numpy as np
import pytest

from shared.cli import RequestError
from shared.datasets import ava, vidsitu
from shared.datasets.catalog import open_catalog

TEMPLATES = {"Holding [something] next to [something]": "Holding something next to something",
             "Moving [something] up": "Moving something up",
             "Pretending to put [something] into [something], but missing it":
                 "Pretending to put something into something, but missing it"}


def touch(root: Path, *names: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).touch()
    return root


def dump(path: Path, document) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


def refusal(*args) -> str:
    with pytest.raises(RequestError) as caught:
        open_catalog(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ssv2(base: Path, prefix="something-something-v2-", answers=False) -> tuple[Path, Path]:
    root, lists = base / "20bn-something-something-v2", base / "labels"
    names = list(TEMPLATES.values())
    # The numbers decide the order, not the place in the file.
    dump(lists / f"{prefix}labels.json", {names[2]: "2", names[0]: "0", names[1]: "1"})

    def entry(video, template):
        return {"id": video, "label": "holding a cup", "template": template, "placeholders": ["a cup"]}
    templates = list(TEMPLATES)
    dump(lists / f"{prefix}train.json", [entry("78687", templates[0]), entry("42326", templates[2])])
    dump(lists / f"{prefix}validation.json", [entry("74225", templates[1])])
    dump(lists / f"{prefix}test.json", [{"id": "1420"}, {"id": "3"}])
    if answers:
        dump(lists / f"{prefix}test-answers.csv", f"1420;{names[2]}\n3;{names[0]}\n")
    touch(root, *(f"{video}.webm" for video in ("78687", "42326", "74225", "1420", "3")))
    return root, lists


class TestSSv2:
    @pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
    @pytest.mark.parametrize("answers", [True, False])
    def test_official_files_of_either_name(self, tmp_path, prefix, answers):
        root, lists = ssv2(tmp_path, prefix, answers)
        catalog = open_catalog("ssv2", root)
        assert catalog == open_catalog("ssv2", root, lists)
        assert catalog.classes == tuple(TEMPLATES.values()) and catalog.absent == () and catalog.notes == ()
        assert [(v.id, v.label, v.splits, v.path) for v in catalog.videos] == [
            ("1420", 2 if answers else -1, ("test",), "1420.webm"), ("3", 0 if answers else -1, ("test",), "3.webm"),
            ("42326", 2, ("train",), "42326.webm"), ("74225", 1, ("val",), "74225.webm"),
            ("78687", 0, ("train",), "78687.webm")]

    def test_classes_with_brackets(self, tmp_path):
        """Some copies of labels.json keep the templates' brackets, some lists another case."""
        root, lists = ssv2(tmp_path, "", answers=True)
        dump(lists / "labels.json", {template: str(number) for number, template in enumerate(TEMPLATES)})
        dump(lists / "validation.json", [{"id": "74225", "template": "Moving something  Up"}])
        catalog = open_catalog("ssv2", root)
        assert catalog.classes == tuple(TEMPLATES)
        assert [(v.id, v.label) for v in catalog.videos] == [("1420", 2), ("3", 0), ("42326", 2), ("74225", 1),
                                                             ("78687", 0)]
        dump(lists / "labels.json", {"Moving [something] up": "0", "Moving something up": "1"})
        assert "names a class twice" in refusal("ssv2", root)

    def test_missing_lists_absent_and_unlisted_videos(self, tmp_path):
        root, lists = ssv2(tmp_path)
        (lists / "something-something-v2-test.json").unlink()
        (root / "42326.webm").unlink()
        catalog = open_catalog("ssv2", root)
        assert catalog.absent == ("42326",) and catalog.ignored == 2
        assert any("something-something-v2-test.json" in note for note in catalog.notes)

    @pytest.mark.parametrize("file, document, parts", [
        ("labels.json", '{"a": "0",', ["labels.json line 1", "no JSON"]),
        ("labels.json", ["a"], ["labels.json holds a JSON list", "dict"]),
        ("labels.json", {"a": "0", "b": "2"}, ["2 classes", "without gaps"]),
        ("labels.json", {"a": "0", "b": "0"}, ["'b'", "'0'"]),
        ("train.json", [{"id": "1", "template": "Moving [something] down"}],
         ["train.json entry 1", "'Moving [something] down'", "did you mean 'Moving something up'"]),
        ("train.json", [{"id": 5}], ["train.json entry 1", "'id'"]),
        ("train.json", [{"id": "3"}, {"id": "3"}], ["train.json entry 2", "'3'", "already"]),
        ("test-answers.csv", "3,Moving something up\n", ["test-answers.csv line 1", "'<id>;<class"]),
    ])
    def test_errors_name_file_and_entry(self, tmp_path, file, document, parts):
        root, lists = ssv2(tmp_path, prefix="")
        dump(lists / file, document)
        message = refusal("ssv2", root)
        assert all(part in message for part in parts), message

    def test_no_lists(self, tmp_path):
        root, lists = ssv2(tmp_path)
        message = refusal("ssv2", root, root)
        assert "labels.json" in message and "--annotations" in message
        for name in ("train", "validation", "test"):
            (lists / f"something-something-v2-{name}.json").unlink()
        assert "something-something-v2-train.json" in refusal("ssv2", root)


CLIPS = {"train": ["v_DfXcfWPmWkA_seg_60_70", "v__x-y_seg_0_10"], "valid": ["v_DfXcfWPmWkA_seg_70_80"],
         "testvb": ["v_q_seg_5_15"], "testsrl": ["v_q_seg_5_15", "v_r_seg_0_10"]}


def vidsitu_files(base: Path) -> tuple[Path, Path]:
    root, folder = base / "videos", base / "vidsitu_annotations"
    for part, clips in CLIPS.items():
        dump(folder / f"split_files/vseg_split_{part}_lb.json", clips)

    def annotation(clip, verbs):
        return {f"Ev{i}": {"vid_seg_int": clip, "Verb": "x", "VerbID": verb, "Arg_List": {}, "Args": {}}
                for i, verb in enumerate(verbs, 1)}
    dump(folder / "vseg_ann_files/vsann_train_lb.json", [annotation(CLIPS["train"][0], "abcde")])
    dump(folder / "vseg_ann_files/vsann_valid_lb.json",
         [annotation(CLIPS["valid"][0], verbs) for verbs in ("abcde", "xbcdz", "xbcdz")])
    dump(folder / "vinfo_files/vinfo_train_lb.json", [{"vid_seg_int": CLIPS["train"][0], "genres": []}])
    dump(folder / "vinfo_files/vinfo_valid_lb.json",
         [{"vid_seg_int": CLIPS["valid"][0], "vbid_lst": {f"Ev{i}": list("abcdefghijk") for i in range(1, 6)}}])
    touch(root, *(f"{clip}.mp4" for clip in dict.fromkeys(sum(CLIPS.values(), []))))
    return root, folder


class TestVidSitu:
    def test_official_files(self, tmp_path):
        root, folder = vidsitu_files(tmp_path)
        catalog = open_catalog("vidsitu", root)
        assert catalog == open_catalog("vidsitu", root, folder)
        assert catalog.classes == () and catalog.absent == () and all(v.label == -1 for v in catalog.videos)
        assert {v.id: (v.group, v.splits) for v in catalog.videos} == {
            "v_DfXcfWPmWkA_seg_60_70": ("DfXcfWPmWkA", ("train",)), "v__x-y_seg_0_10": ("_x-y", ("train",)),
            "v_DfXcfWPmWkA_seg_70_80": ("DfXcfWPmWkA", ("val",)), "v_q_seg_5_15": ("q", ("test", "test2")),
            "v_r_seg_0_10": ("r", ("test2",))}
        assert any("vseg_split_testevrel_lb.json" in note for note in catalog.notes)

    def test_verbs(self, tmp_path):
        said = vidsitu.read_verbs(vidsitu_files(tmp_path)[1])
        # One annotation, or the most frequent of several; of eleven annotators ten are asked.
        assert said.learnt == {CLIPS["train"][0]: tuple("abcde"), CLIPS["valid"][0]: tuple("xbcdz")}
        assert said.judged == {CLIPS["valid"][0]: (tuple("abcdefghij"),) * 5}

    @pytest.mark.parametrize("file, document, parts", [
        ("split_files/vseg_split_train_lb.json", ["DfX_seg_60_70"], ["entry 1", "'DfX_seg_60_70'", "v_<YouTube id>"]),
        ("split_files/vseg_split_train_lb.json", ["v_a_seg_0_10"] * 2, ["entry 2", "already"]),
        ("split_files/vseg_split_train_lb.json", {"a": 1}, ["holds a JSON dict", "list"]),
    ])
    def test_errors_name_file_and_entry(self, tmp_path, file, document, parts):
        root, folder = vidsitu_files(tmp_path)
        dump(folder / file, document)
        message = refusal("vidsitu", root)
        assert all(part in message for part in [file.rpartition("/")[2], *parts]), message

    @pytest.mark.parametrize("file, document", [
        ("vseg_ann_files/vsann_train_lb.json", [{"Ev1": {"vid_seg_int": "v_a_seg_0_10", "VerbID": "a"}}]),
        ("vinfo_files/vinfo_valid_lb.json", [{"vid_seg_int": "v_a_seg_0_10", "vbid_lst": {"Ev1": []}}])])
    def test_torn_annotations_are_named(self, tmp_path, file, document):
        _, folder = vidsitu_files(tmp_path)
        dump(folder / file, document)
        with pytest.raises(RequestError, match=f"{file.rpartition('/')[2]} entry 1 .*'Ev2'.*expected"):
            vidsitu.read_verbs(folder)


ROWS = ["-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1", "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,9,1",
        "-5KQ66BBWC4,0902,0.5,0.1,0.9,0.8,2,0", "-5KQ66BBWC4,0903,0.077,0.151,0.283,0.811,9,1"]
LABELS = 'item {\n  name: "read"\n  id: 9\n}\nitem {\n  name: "watch (a person)"\n  id: 80\n}\n'


def ava_files(base: Path) -> tuple[Path, Path]:
    root, folder = base / "movies", base / "annotations"
    dump(folder / "ava_train_v2.2.csv", "\n".join(ROWS))
    dump(folder / "ava_val_v2.2.csv", "1j20qq1JyX4,0902,0.002,0.118,0.714,0.977,12,0\n1j20qq1JyX4,0904\n")
    dump(folder / "ava_train_excluded_timestamps_v2.2.csv", "-5KQ66BBWC4,0903\n-5KQ66BBWC4,0999\n")
    dump(folder / "ava_val_excluded_timestamps_v2.2.csv", "")
    dump(folder / ava.LABEL_MAP, LABELS)
    return touch(root, "-5KQ66BBWC4.mkv", "1j20qq1JyX4.mp4", "unlisted.webm"), folder


class TestAVA:
    def test_official_files(self, tmp_path):
        root, folder = ava_files(tmp_path)
        catalog = open_catalog("ava", root)
        assert catalog == open_catalog("ava", root, folder)
        assert [(v.id, v.label, v.splits) for v in catalog.videos] == [("-5KQ66BBWC4", -1, ("train",)),
                                                                      ("1j20qq1JyX4", -1, ("val",))]
        assert catalog.classes == () and any("unlisted.webm" in note for note in catalog.notes)

    def test_persons_exclusions_and_label_map(self, tmp_path):
        said = ava.read_annotations(ava_files(tmp_path)[1])
        assert said.actions == ("read", "watch (a person)")
        persons = said.persons                        # rows of one person are one; crawl and stand are not in the map
        assert persons.video == ["-5KQ66BBWC4", "-5KQ66BBWC4", "1j20qq1JyX4"] and persons.second.tolist() == [902] * 3
        assert persons.box[0].tolist() == [0.077, 0.151, 0.283, 0.811]
        assert persons.acts.tolist() == [[True, True], [False, False], [False, False]]
        assert said.excluded == {("-5KQ66BBWC4", 903), ("-5KQ66BBWC4", 999)}
        # A row of two cells is a keyframe that shows nobody; one of an action that does not count is one as well.
        assert said.keyframes == {("-5KQ66BBWC4", 902), ("1j20qq1JyX4", 902), ("1j20qq1JyX4", 904)}

    def test_boxes_of_a_detector(self, tmp_path):
        dump(tmp_path / "boxes.csv", "a,0902,-0.01,0.1,0.3,0.8,,0.99\na,0902,-0.01,0.1,0.3,0.8,,0.5\n")
        boxes = ava.read_persons(tmp_path / "boxes.csv", {}, scored=True)
        assert len(boxes) == 1 and boxes.score.tolist() == [0.99] and boxes.acts.shape == (1, 0)
        assert np.array_equal(boxes.take(boxes.score > 2).box, np.zeros((0, 4)))

    @pytest.mark.parametrize("row, parts", [
        ("a,0902,0.1,0.1,0.2,0.2,9", ["7 cells", "expected 2 or 8"]),
        ("a,0902,0.1,0.1,0.2,x,9,1", ["'a,0902,0.1,0.1,0.2,x,9,1'", "action id"]),
        ("a,0902,77,15,283,811,9,1", ["box 77, 15, 283, 811", "shares of the frame"]),
        ("a,0902,0.3,0.1,0.2,0.2,9,1", ["box 0.3", "x1, y1, x2, y2"]),
        ("a,15:02,0.1,0.1,0.2,0.2,9,1", ["second '15:02'", "whole number"]),
    ])
    def test_errors_name_file_and_line(self, tmp_path, row, parts):
        _, folder = ava_files(tmp_path)
        dump(folder / "ava_train_v2.2.csv", f"{ROWS[0]}\n{row}\n")
        with pytest.raises(RequestError) as caught:
            ava.read_annotations(folder)
        assert all(part in str(caught.value) for part in ["ava_train_v2.2.csv line 2", *parts]), caught.value

    def test_missing_files(self, tmp_path):
        root, folder = ava_files(tmp_path)
        (folder / ava.LABEL_MAP).write_text("label { }")
        with pytest.raises(RequestError, match="expected a name and an id"):
            ava.read_annotations(folder)
        (folder / ava.LABEL_MAP).unlink()
        with pytest.raises(RequestError, match=f"no {ava.LABEL_MAP} in .*expected the official label map"):
            ava.read_annotations(folder)
        dump(folder / ava.LABEL_MAP, LABELS)
        (folder / "ava_val_excluded_timestamps_v2.2.csv").unlink()         # without it other persons would be judged
        with pytest.raises(RequestError, match="no ava_val_excluded_timestamps_v2.2.csv beside .*seconds that do not"):
            ava.read_annotations(folder)
        (folder / "ava_val_v2.2.csv").unlink()
        assert any("ava_val_v2.2.csv" in note for note in open_catalog("ava", root).notes)
        assert "--annotations" in refusal("ava", root, root)


@pytest.mark.parametrize("layout, build", [("ssv2", ssv2), ("vidsitu", vidsitu_files), ("ava", ava_files)])
def test_the_contract(layout, build, keeps_the_contract):
    keeps_the_contract(layout, build)
