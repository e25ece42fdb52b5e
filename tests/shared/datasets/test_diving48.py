"""Diving48's official lists, with empty video files."""

import pytest

from shared.cli import RequestError
from shared.datasets.catalog import open_catalog
from tests.shared.datasets.test_layouts_annotated import dump, refusal, touch

VOCABULARY = [["Back", "15som", "05Twis", "FREE"], ["Back", "Dive", "NoTwis", "PIKE"],
              ["Forward", "1som", "NoTwis", "PIKE"]]


def diving48(base):
    """rgb/ and the lists beside it, as the download has them."""
    def entry(video, label):
        return {"vid_name": video, "label": label, "start_frame": 0, "end_frame": 48}
    dump(base / "Diving48_vocab.json", VOCABULARY)
    dump(base / "Diving48_V2_train.json", [entry("-mmq0PT-u8k_00155", 0), entry("_8Vy3dlHg2w_00000", 2)])
    dump(base / "Diving48_V2_test.json", [entry("2x00lRzlTVQ_00001", 1)])
    names = ("-mmq0PT-u8k_00155", "_8Vy3dlHg2w_00000", "2x00lRzlTVQ_00001")
    return touch(base / "rgb", *(f"{name}.mp4" for name in names)), base


def test_official_files(tmp_path):
    root, lists = diving48(tmp_path)
    catalog = open_catalog("diving48", root)
    assert catalog == open_catalog("diving48", root, lists)
    assert catalog.classes == ("Back 15som 05Twis FREE", "Back Dive NoTwis PIKE", "Forward 1som NoTwis PIKE")
    assert [(v.id, v.label, v.group, v.splits, v.path) for v in catalog.videos] == [
        ("-mmq0PT-u8k_00155", 0, "-mmq0PT-u8k", ("train",), "-mmq0PT-u8k_00155.mp4"),
        ("2x00lRzlTVQ_00001", 1, "2x00lRzlTVQ", ("test",), "2x00lRzlTVQ_00001.mp4"),
        ("_8Vy3dlHg2w_00000", 2, "_8Vy3dlHg2w", ("train",), "_8Vy3dlHg2w_00000.mp4")]
    assert catalog.absent == () and catalog.notes == ()
    (root / "2x00lRzlTVQ_00001.mp4").unlink()
    assert open_catalog("diving48", root).absent == ("2x00lRzlTVQ_00001",)
    (lists / "Diving48_V2_test.json").unlink()
    assert any("Diving48_V2_test.json" in note for note in open_catalog("diving48", root).notes)


@pytest.mark.parametrize("file, document, parts", [
    ("Diving48_vocab.json", {"a": 0}, ["Diving48_vocab.json holds a JSON dict", "list"]),
    ("Diving48_vocab.json", [["Back"], "Forward"], ["Diving48_vocab.json entry 2", "'Forward'", "list of words"]),
    ("Diving48_vocab.json", [["Back"], ["Back"]], ["names a class twice"]),
    ("Diving48_V2_train.json", [{"vid_name": "a_0"}], ["Diving48_V2_train.json entry 1", "'label'"]),
    ("Diving48_V2_train.json", [{"vid_name": "a_0", "label": 3}], ["entry 1: label 3", "3 classes"]),
    ("Diving48_V2_test.json", [{"vid_name": "_8Vy3dlHg2w_00000", "label": 0}],
     ["Diving48_V2_test.json entry 1", "stands in Diving48_V2_train.json already"]),
])
def test_errors_name_file_and_entry(tmp_path, file, document, parts):
    root, lists = diving48(tmp_path)
    dump(lists / file, document)
    message = refusal("diving48", root)
    assert all(part in message for part in parts), message


def test_no_lists_or_those_of_version_1(tmp_path):
    root, lists = diving48(tmp_path)
    for name in ("train", "test"):
        (lists / f"Diving48_V2_{name}.json").rename(lists / f"Diving48_{name}.json")
    assert "version 2" in refusal("diving48", root)
    (lists / "Diving48_vocab.json").unlink()
    with pytest.raises(RequestError, match="Diving48_vocab.json.*--annotations"):
        open_catalog("diving48", root)


def test_the_contract(keeps_the_contract):
    keeps_the_contract("diving48", diving48)
