"""What --videos names, and what lies there: patterns, archives, WebDataset's fields, and archives made to do harm."""

import io
import json
import stat
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cli import RequestError
from shared.datasets.archives import Fields, read_contents
from shared.datasets.catalog import open_catalog
from shared.datasets.scan import scan
from shared.datasets.sources import expanded, open_sources
from shared.videos.files import state_of
from tests.shared.datasets.conftest import refusal, touch, write

VIDEO = b"not really a video"


def tar(path, members, kind=tarfile.PAX_FORMAT):
    """A tar file of {name: bytes, or a TarInfo}, in their order; a list of pairs may repeat a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as out:
        for name, data in members.items() if isinstance(members, dict) else members:
            if isinstance(data, tarfile.TarInfo):
                out.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def zipped(path, members, method=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


def special(name, kind, **more):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


def opened(*texts, fields=None):
    return open_catalog("folder", open_sources(texts), fields=Fields(**(fields or {})))


def row(catalog, path):
    (video,) = [video for video in catalog.videos if video.path == path]
    return video


# ---- what is named

@pytest.mark.slow
def test_patterns_stand_for_what_a_shell_makes_of_them():
    assert expanded("a/{000..002}.tar") == ["a/000.tar", "a/001.tar", "a/002.tar"]
    assert expanded("{train,val}/{8..10}.tar") == [f"{split}/{n}.tar" for split in ("train", "val") for n in (8, 9, 10)]
    assert expanded("{2..0}") == ["2", "1", "0"] and expanded("plain.tar") == ["plain.tar"]
    for text in ("{0..9999999999}.tar", "{a}.tar", "{0..999}{0..999}{0..999}.tar"):
        with pytest.raises(RequestError, match="expected"):
            expanded(text)


def test_a_path_is_the_source_and_the_member(tmp_path):
    for number in range(3):
        tar(tmp_path / f"shards/train/{number:03}.tar", {f"walk/{number}.mp4": VIDEO, "read.me": b"x"})
    zipped(tmp_path / "more.zip", {"run/9.mp4": VIDEO})
    touch(tmp_path / "loose", "run/8.mp4")
    catalog = opened(f"{tmp_path}/shards/{{train,train}}/{{000..000}}.tar".replace("{train,train}", "train"),
                     f"{tmp_path}/shards/train/00[12].tar", tmp_path / "more.zip", tmp_path / "loose")
    assert [video.path for video in catalog.videos] == [
        "000.tar/walk/0.mp4", "001.tar/walk/1.mp4", "002.tar/walk/2.mp4", "more.zip/run/9.mp4", "run/8.mp4"]
    assert [video.class_name for video in catalog.videos] == ["walk"] * 3 + ["run"] * 2
    assert catalog.classes == ("run", "walk") and catalog.ignored == 3
    inside = opened(f"{tmp_path}/shards/{{train,train}}/000.tar".replace("{train,train}", "{train}".strip("{}")),
                    f"{tmp_path}/shards/*/001.tar")
    assert [video.path for video in inside.videos] == ["000.tar/walk/0.mp4", "train/001.tar/walk/1.mp4"]
    assert row(inside, "train/001.tar/walk/1.mp4").class_name == "walk"


def test_folders_above_archives_are_splits(tmp_path):
    for split in ("train", "val"):
        tar(tmp_path / split / "0.tar", {"walk/1.mp4": VIDEO})
    catalog = opened(f"{tmp_path}/{{train,val}}/0.tar")
    assert [(video.class_name, video.splits) for video in catalog.videos] == [("walk", ("train",)), ("walk", ("val",))]


def test_one_path_in_two_sources_is_refused(tmp_path):
    one, two = (touch(tmp_path / name, "walk/1.mp4", f"walk/{name}.mp4") for name in "ab")
    with pytest.raises(RequestError, match="1 video of one path in two sources .*walk/1.mp4, in .*/a and in .*/b"):
        opened(one, two)
    with pytest.raises(RequestError, match="2 videos of one path"):
        opened(one, one)


def test_an_archive_may_have_the_marks_of_a_pattern_in_its_name(tmp_path):
    for name in ("set [a]/x.tar", "shards {1,2}.tar"):
        catalog = open_catalog("folder", open_sources([tar(tmp_path / name, {"v.mp4": VIDEO})]))
        assert [video.id for video in catalog.videos] == [f"{(tmp_path / name).name}/v.mp4"]


@pytest.mark.parametrize("text, said", [
    ("shards/{0..2}.tar", "2 archives of 3 are not there (first "), ("x/*.tar", "names nothing that is there"),
    ("shards/*.mp4", "is no pattern of archives"), ("shards/{0..1}", "is no pattern of archives"),
    ("all.tar.gz", "compressed, which cannot be read by range; decompress it"), ("all.tgz", "give the plain .tar"),
    ("none", "does not exist"), ("none.tar", "1 archive of 1 is not there"), ("", "a path is empty"),
    ("abc://x/y", "no known kind of storage"), ("http://127.0.0.1/x", "lists no files")])
def test_what_is_not_there_or_cannot_be_read_is_refused(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "shards/0.tar", {"1.mp4": VIDEO})
    with pytest.raises(RequestError) as caught:
        opened(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("--videos ") != (text == "none")


def test_a_folder_of_archives_alone_says_how_they_are_read(tmp_path):
    tar(tmp_path / "0.tar", {"1.mp4": VIDEO})
    assert f"--videos '{tmp_path}/*.tar'" in refusal("folder", tmp_path)


def test_what_is_compressed_is_refused(tmp_path):
    path = zipped(tmp_path / "set.zip", {"a/1.mp4": VIDEO * 99}, zipfile.ZIP_DEFLATED)
    with pytest.raises(RequestError, match="a/1.mp4 is compressed .deflate.*zip -0 -r NEW.zip"):
        opened(path)
    with tarfile.open(tmp_path / "set.tar", "w:gz") as out:
        out.addfile(tarfile.TarInfo("1.mp4"))
    with pytest.raises(RequestError, match="is compressed .gzip.*give the plain .tar"):
        opened(tmp_path / "set.tar")
    (tmp_path / "0.tar").write_bytes(b"no archive at all")
    assert "0.tar: damaged after 0 members: truncated header" in refusal("folder", open_sources([tmp_path / "0.tar"]))


# ---- what is said of the videos

def test_a_list_of_a_folder_serves_its_archive(tmp_path):
    tar(tmp_path / "set.tar", {"./walk/1.mp4": VIDEO, "./walk/2.mp4": VIDEO})
    write(tmp_path / "labels.csv", "path,label,split,group\nwalk/1.mp4,go,val,ann\nset.tar/walk/2.mp4,run,test,bob\n")
    catalog = open_catalog("folder", open_sources([tmp_path / "set.tar"]), tmp_path / "labels.csv")
    assert [(video.id, video.path, video.class_name, video.splits, video.group) for video in catalog.videos] == [
        ("set.tar/walk/2.mp4", "set.tar/walk/2.mp4", "run", ("test",), "bob"),
        ("walk/1.mp4", "set.tar/walk/1.mp4", "go", ("val",), "ann")]


def test_each_place_has_its_own_list(tmp_path):
    listed = touch(tmp_path / "listed", "1.mp4")
    write(listed / "annotations.csv", "path,label\n1.mp4,jump\n")
    tar(tmp_path / "shards/0.tar", {"walk/1.mp4": VIDEO, "1.mp4": VIDEO})
    catalog = opened(listed, tmp_path / "shards/0.tar")
    assert [(video.path, video.class_name) for video in catalog.videos] == [
        ("0.tar/1.mp4", ""), ("0.tar/walk/1.mp4", "walk"), ("1.mp4", "jump")]


def test_layouts_of_published_sets_work_inside_archives(tmp_path):
    root = tmp_path / "shards"
    tar(root / "0.tar", {"Walk/v_Walk_g01_c01.avi": VIDEO, "Walk/v_Walk_g02_c01.avi": VIDEO})
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 Walk\n")
    write(lists / "trainlist01.txt", "Walk/v_Walk_g01_c01.avi 1\n")
    write(lists / "testlist01.txt", "Walk/v_Walk_g02_c01.avi\n")
    catalog = open_catalog("ucf101", open_sources([root / "*.tar"]))
    assert [(video.id, video.path, video.splits) for video in catalog.videos] == [
        ("v_Walk_g01_c01", "0.tar/Walk/v_Walk_g01_c01.avi", ("train1",)),
        ("v_Walk_g02_c01", "0.tar/Walk/v_Walk_g02_c01.avi", ("test1",))]


@pytest.mark.parametrize("make", [tar, zipped])
def test_webdataset_fields(tmp_path, make):
    said = json.dumps({"label": 3, "split": "validation", "meta": {"who": "ann"}})
    path = make(tmp_path / f"0.{make.__name__[:3]}", {
        "a/k1.cls": b"12\n", "a/k1.json": said.encode(), "a/k1.mp4": VIDEO, "a/k1.txt": "gehen für".encode(),
        "k2.left.mp4": VIDEO, "k2.json": b'{"label": "two"}', "k2.cls": b"7", "k3.mp4": VIDEO, "k3.json": b"[{]",
        "k4.mp4": VIDEO, "k4.json": b'{"label": {"deep": 1}, "split": "train"}'})
    if make is zipped:
        path = path.rename(tmp_path / "0.zip")
    name = path.name

    def told(video, **fields):
        found = row(opened(path, fields=fields), f"{name}/{video}")
        return found.class_name, found.splits, found.group
    assert told("a/k1.mp4", label="cls") == ("12", ("train",), "")
    assert told("a/k1.mp4", label="txt", group="json.meta.who") == ("gehen für", ("train",), "ann")
    assert told("a/k1.mp4", split="json.split", label="json.label") == ("3", ("val",), "")
    assert told("a/k1.mp4") == ("a", ("train",), "")
    assert told("k2.left.mp4", label="json.label") == ("two", ("train",), "")
    catalog = opened(path, fields={"label": "json.label"})
    assert [video.class_name for video in catalog.videos] == ["3", "two", "", ""]
    assert any("shards.label=json.label says nothing of 2 videos in archives (first" in note for note in catalog.notes)
    with pytest.raises(RequestError, match="its field for the split says '12'; expected train"):
        told("k2.left.mp4", split="cls")
    with pytest.raises(RequestError, match="shards.label: ucf101 takes labels"):
        open_catalog("ucf101", open_sources([path]), fields=Fields("cls"))
    contents, _ = read_contents(path, state_of(path), Fields())
    assert contents.others == 7 and not any(said for *_, said in contents.videos.values())


# ---- archives made to do harm, or damaged

HOSTILE = {
    "../up.mp4": "leads out", "a/../../up.mp4": "leads out", "/etc/passwd.mp4": "leads out",
    "n" * 5000 + ".mp4": "leads out"}


def test_hostile_members_are_rows_and_nothing_is_written(tmp_path, monkeypatch):
    members = [(name, VIDEO) for name in HOSTILE] + [
        ("", special("soft.mp4", tarfile.SYMTYPE, linkname="/etc/passwd")),
        ("", special("hard.mp4", tarfile.LNKTYPE, linkname="good.mp4")), ("", special("pipe.mp4", tarfile.FIFOTYPE)),
        ("", special("tape.mp4", tarfile.CHRTYPE)), ("empty.mp4", b""), ("good.mp4", VIDEO), ("good.mp4", VIDEO * 2),
        (".hidden.mp4", VIDEO), ("__MACOSX/._good.mp4", VIDEO), ("caf\udce9.mp4", VIDEO)]
    path = tar(tmp_path / "set/0.tar", members, tarfile.GNU_FORMAT)
    before = sorted(tmp_path.rglob("*"))
    catalog = opened(path)
    assert {video.path: video.where.fault for video in catalog.videos} == {
        "0.tar/soft.mp4": "a link in an archive, without bytes of its own; pack the file itself",
        "0.tar/hard.mp4": "a link in an archive, without bytes of its own; pack the file itself",
        "0.tar/pipe.mp4": "not a file", "0.tar/tape.mp4": "not a file", "0.tar/empty.mp4": "", "0.tar/good.mp4": ""}
    assert row(catalog, "0.tar/good.mp4").where.size == 2 * len(VIDEO)      # the later, as tar unpacks
    assert row(catalog, "0.tar/empty.mp4").where.size == 0                  # `empty file`, once it is opened
    names = [name for name in catalog.refused if "caf" not in name]
    assert len(names) == 4 and all("leads out" in catalog.refused[name] for name in names)
    assert catalog.refused["0.tar/caf\\xe9.mp4"] == "the file name is not UTF-8; rename it"
    assert catalog.ignored == 2 and sorted(tmp_path.rglob("*")) == before


def test_hostile_zip_members_are_rows(tmp_path):
    path = zipped(tmp_path / "0.zip", {"../up.mp4": VIDEO, "good.mp4": VIDEO, "link.mp4": b"/etc/passwd"})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"link.mp4") - 46
    data[at + 38:at + 42] = (stat.S_IFLNK << 16).to_bytes(4, "little")
    good = data.rindex(b"good.mp4") - 46
    data[good + 24:good + 28] = (1 << 31).to_bytes(4, "little")              # the size that it declares
    path.write_bytes(data)
    catalog = opened(path)
    assert {video.path: video.where.fault[:9] for video in catalog.videos} == {
        "0.zip/good.mp4": "declares ", "0.zip/link.mp4": "a link in"}
    assert list(catalog.refused) == ["0.zip/../up.mp4"]


def test_a_cut_archive_keeps_what_is_whole(tmp_path):
    path = tar(tmp_path / "0.tar", {f"{number}.mp4": bytes(3000) for number in range(3)})
    whole = path.read_bytes()
    path.write_bytes(whole[:2 * 3584 + 1000])
    catalog = opened(path)
    assert [bool(video.where.fault) for video in catalog.videos] == [False, False, True]
    assert "the archive ends before that" in catalog.videos[2].where.fault and not catalog.refused
    path.write_bytes(whole[:2 * 3584 + 100])     # in the middle of a header
    catalog = opened(path)
    assert len(catalog.videos) == 2 and catalog.refused == {"0.tar": "damaged after 2 members: truncated header"}
    path.write_bytes(whole[:3584 + 100] + b"\xff" + whole[3584 + 101:])
    catalog = opened(path)
    assert len(catalog.videos) == 1 and catalog.refused == {"0.tar": "damaged after 1 member: bad checksum"}
    assert catalog.scan.gone([("0.tar/2.mp4", "0.tar/2.mp4")]) == []     # nobody knows
    zipped(tmp_path / "1.zip", {"a.mp4": VIDEO}).write_bytes(b"PK\3\4 and no list")
    both = opened(path, tmp_path / "1.zip")
    assert len(both.videos) == 1 and set(both.refused) == {"0.tar", "1.zip"}


def test_headers_that_declare_too_much_are_damage(tmp_path):
    """A pax header of 8 GB, and a header whose length leads back to itself."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    back = special("x.mp4", tarfile.REGTYPE, size=-512)
    for block in (info.tobuf(tarfile.GNU_FORMAT), back.tobuf(tarfile.GNU_FORMAT)):
        path = tmp_path / "0.tar"
        good = tar(path, {"good.mp4": VIDEO}).read_bytes()[:1024]
        path.write_bytes(good + block + bytes(2048))
        contents, _ = read_contents(path, state_of(path), Fields())
        assert list(contents.videos) == ["good.mp4"] and "damaged after 1 member" in contents.damage


@given(at=st.integers(0, 5119), bits=st.binary(min_size=1, max_size=24), end=st.integers(1, 5120))
def test_any_damage_is_told_or_harmless(tmp_path_factory, at, bits, end):
    """No crash, no endless loop, no span outside of the archive without a fault."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    members = {"a/1.mp4": VIDEO, "a/1.json": b'{"label": 1}', "b/" + "x" * 200 + ".mp4": VIDEO}
    data = bytearray(tar(path, members).read_bytes()[:5120])
    data[at:at + len(bits)] = bits
    path.write_bytes(data[:end])
    archived = path.with_suffix(".zip")
    data = bytearray(zipped(archived, members).read_bytes())
    data[at % len(data):at % len(data) + len(bits)] = bits
    archived.write_bytes(data[:end])
    for file in (path, archived):
        try:
            contents, _ = read_contents(file, state_of(file), Fields("json.label"))
        except RequestError as error:
            assert "compressed" in str(error)
            continue
        for name, (offset, size, fault, _) in contents.videos.items():
            assert fault or 0 <= offset <= offset + size <= file.stat().st_size
            assert not name.startswith("/") and ".." not in name.split("/")


# ---- headers are read once

def test_known_headers_are_not_read_again(tmp_path):
    for number in range(2):
        tar(tmp_path / f"{number}.tar", {"1.mp4": VIDEO})
    sources = open_sources([tmp_path / "*.tar"])
    first = scan(sources)
    tar(tmp_path / "1.tar", {"2.mp4": VIDEO * 999})
    (tmp_path / "0.tar").chmod(0)
    again = scan(open_sources([tmp_path / "*.tar"]), known=first.headers)
    assert again.videos == ["0.tar/1.mp4", "1.tar/2.mp4"] and not again.refused
