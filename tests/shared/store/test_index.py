"""The index: round trips, generations, checksums, failures, and its rebuilding from packs."""

import csv
import io
import os
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.check import check_store
from shared.cli import RequestError
from shared.store.chunks import crc32c
from shared.store.committed import load_pack
from shared.store.index import (
    FailureRow,
    Index,
    PackRow,
    VideoRow,
    _write_generation,
    generations,
    publish,
    read_failures,
    write_failures,
)
from shared.store.layout import StoreError
from shared.store.reader import StoreReader
from shared.store.rebuild import build_index, lost_packs

HEADER = "id,path,pack,first_frame,frames,label,class,group,splits,fps,source_height,source_width,note"
# Whatever a file system or a container can hold: quotes, commas, newlines, bytes that are no UTF-8.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)) |
               st.sampled_from(list('",\n\r;:\udc80\udcff')), max_size=8)
split = st.text("abc1_", min_size=1, max_size=4)
video_rows = st.builds(
    VideoRow, id=text.filter(bool), path=text, pack=st.just("p0"), first_frame=st.integers(0, 2 ** 40),
    frames=st.integers(1, 2 ** 40), label=st.integers(-1, 2 ** 20), class_name=text, group=text,
    splits=st.lists(split, max_size=3).map(tuple), fps=st.floats(0, 1e6), source_height=st.integers(0, 9999),
    source_width=st.integers(0, 9999), note=text)
PACK = PackRow("p0", "packs/32x40/p0", 2 ** 42, 1, "cpu", {"zarr.json": (10, 0xABC), "rgb/c.0.0.0.0": (2 ** 40, 0)})


@settings(max_examples=100, deadline=None)
@given(st.lists(video_rows, max_size=5, unique_by=lambda row: row.id))
def test_rows_round_trip(tmp_path_factory, rows):
    store = tmp_path_factory.mktemp("store")
    publish(store, [PACK], rows)
    index = Index.load(store)
    assert index.rows() == sorted(rows, key=lambda row: row.id)
    assert index.pack_rows() == [PACK]
    assert len(index) == len(rows)
    for row in rows:
        assert row.id in index and index.row(row.id) == row
        assert VideoRow.from_document(row.document()) == row
    assert index.splits == sorted({name for row in rows for name in row.splits})
    for name in index.splits:
        assert [index.id[i] for i in index.in_split(name)] == sorted(row.id for row in rows if name in row.splits)


def test_the_files_are_plain_csv(small_store):
    store, _ = small_store
    folder = store / "index" / (store / "current").read_text().strip()
    assert (store / "current").read_text().count("\n") == 1
    with open(folder / "videos.csv", newline="") as file:
        lines = list(csv.reader(file))
    assert ",".join(lines[0]) == HEADER
    assert lines[1] == ["p0-0", "a/b.mp4", "p0", "0", "33", "-1", "", "", "train", "29.97002997002997", "0", "0", ""]
    assert [line[0] for line in lines[1:]] == ["p0-0", "p0-1", "p0-2", "p1-0", "p1-1"]
    with open(folder / "packs.csv", newline="") as file:
        packs = list(csv.DictReader(file))
    assert list(packs[0]) == ["pack", "path", "frames", "videos", "backend", "files"]
    assert packs[0]["files"].count(";") == 22
    name, size, crc = packs[0]["files"].split(";")[0].split(":")
    assert os.path.getsize(store / packs[0]["path"] / name) == int(size) and len(crc) == 8
    with open(store / "failures.csv", newline="") as file:
        assert list(csv.reader(file)) == [["video", "path", "reason", "stage", "attempts"],
                                          ["bad", "a/bad.mp4", "no video stream", "open", "2"]]


def test_the_fast_and_the_quoted_path_agree(tmp_path):
    rows = [VideoRow(f"v{i:03d}", f"c/{i}.mp4", "p0", i, i + 1, i % 5, fps=30 / 1.001) for i in range(300)]
    publish(tmp_path / "plain", [PACK], rows)
    publish(tmp_path / "quoted", [PACK], [*rows, VideoRow("z", 'say "hi", you', "p0")])
    plain, quoted = Index.load(tmp_path / "plain").rows(), Index.load(tmp_path / "quoted").rows()
    assert plain == quoted[:-1] == rows


def test_columns(small_store):
    index = Index.load(small_store[0])
    assert index.frames.tolist() == [33, 5, 40, 21, 18] and index.frames.dtype == np.int64
    assert index.first_frame.tolist() == [0, 33, 38, 0, 21]
    assert index.pack == ["p0"] * 3 + ["p1"] * 2
    assert index.in_split("train").tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(StoreError, match="no split 'test'; it has train"):
        index.in_split("test")
    with pytest.raises(StoreError, match="no video 'p0-9'"):
        index.row("p0-9")


def test_generations_rise_and_the_last_but_one_stays(small_store):
    store, _ = small_store
    index = Index.load(store)
    names = [index.generation]
    for _ in range(3):
        names.append(publish(store, index.pack_rows(), index.rows()))
        assert generations(store) == names[-2:]
        assert (store / "current").read_text() == f"{names[-1]}\n"
    assert len(set(names)) == 4 and names == sorted(names)
    assert not [name for name in os.listdir(store / "index") if name.startswith(".")]


def test_a_crash_before_current_keeps_the_old_generation(small_store, monkeypatch):
    store, _ = small_store
    index = Index.load(store)

    def crash(*args):
        raise OSError(28, "disk full")
    monkeypatch.setattr("shared.store.index.write_atomic", crash)
    with pytest.raises(OSError):
        publish(store, index.pack_rows(), index.rows()[:2])
    monkeypatch.undo()
    assert Index.load(store).rows() == index.rows()
    third = publish(store, index.pack_rows(), index.rows()[:1])
    assert len(Index.load(store)) == 1
    assert generations(store) == [index.generation, third]


@pytest.mark.parametrize("packs, videos, message", [
    ([PACK], [VideoRow("v", "a", "p0"), VideoRow("v", "b", "p0")], "'v' comes twice"),
    ([PACK, PACK], [], "a pack comes twice"),
    ([PACK], [VideoRow("v", "a", "p1")], "not among the packs"),
])
def test_what_no_index_can_hold_is_refused(tmp_path, packs, videos, message):
    with pytest.raises(ValueError, match=message):
        publish(tmp_path, packs, videos)
    assert not (tmp_path / "current").exists()


def test_no_store_is_a_request_error(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RequestError, match="no store: it has no file `current`"):
            Index.load(path)


def test_every_flipped_byte_of_an_index_is_noticed(small_store):
    store, _ = small_store
    folder = store / "index" / (store / "current").read_text().strip()
    for file in (store / "current", *sorted(folder.iterdir())):
        good = file.read_bytes()
        for at in range(len(good)):
            file.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1:])
            with pytest.raises(StoreError):
                Index.load(store)
        file.write_bytes(good[:-1])
        with pytest.raises(StoreError):
            Index.load(store)
        file.write_bytes(good)
    Index.load(store)


failure_rows = st.builds(FailureRow, text, text, text, st.sampled_from(["open", "probe", "decode"]), st.integers(1, 9))


@settings(max_examples=50, deadline=None)
@given(st.lists(failure_rows, max_size=5, unique_by=lambda row: row.video), st.lists(failure_rows, max_size=2))
def test_failures_round_trip(tmp_path_factory, rows, before):
    store = tmp_path_factory.mktemp("store")
    assert read_failures(store) == []
    write_failures(store, before)
    write_failures(store, rows)
    assert read_failures(store) == sorted(rows, key=lambda row: row.video)


def test_every_flipped_byte_of_the_failures_is_noticed(small_store):
    store, _ = small_store
    for file in (store / "failures.csv", store / "failures.crc32c"):
        good = file.read_bytes()
        for at in range(len(good)):
            file.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1:])
            with pytest.raises(StoreError):
                read_failures(store)
        file.unlink()
        with pytest.raises(StoreError):
            read_failures(store)
        file.write_bytes(good)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_crash_while_failures_are_replaced(tmp_path, monkeypatch, first, steps):
    """After any number of the three replacements the old rows or the new ones read back."""
    from shared.store import index
    old, new = [], [FailureRow("b", "b.mp4", "y", "decode", 2)]
    if not first:
        old = [FailureRow("a", "a.mp4", "x", "open", 1)]
        write_failures(tmp_path, old)
    real, done = index.write_atomic, []

    def crashing(path, data):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(path)
        real(path, data)
    monkeypatch.setattr(index, "write_atomic", crashing)
    try:
        write_failures(tmp_path, new)
        assert steps == 3
    except KeyboardInterrupt:
        assert steps < 3
    monkeypatch.undo()
    assert read_failures(tmp_path) == (new if steps >= 2 else old)


def test_the_index_is_rebuilt_from_the_packs(small_store):
    store, _ = small_store
    index = Index.load(store)
    packs, videos, failures = build_index(store)
    assert (packs, sorted(videos, key=lambda row: row.id), failures) == (index.pack_rows(), index.rows(), [])
    assert build_index(store, index) == (packs, videos, failures)


def test_known_packs_are_not_hashed_again(small_store, monkeypatch, make):
    store, _ = small_store
    known = Index.load(store)
    third = make(9).pack(store, (8,), "p2")
    loaded = []

    def load(store, path):
        loaded.append(path)
        return load_pack(store, path)
    monkeypatch.setattr("shared.store.rebuild.load_pack", load)
    packs, videos, _ = build_index(store, known)
    assert loaded == ["packs/32x40/p2"]
    assert packs == [*known.pack_rows(), third[0]] and len(videos) == 6


def failed(id, attempts=1):
    return FailureRow(id, f"{id}.mp4", "damaged", "decode", attempts)


@pytest.mark.parametrize("packs, winners, standing", [
    # (frames of x, listed as a failure, attempts) in packs a and b
    ([(20, True, 1), (30, False, 0)], "b", []),
    ([(30, True, 1), (20, False, 0)], "b", []),
    ([(20, True, 1), (30, True, 2)], "b", [2]),
    ([(30, True, 1), (20, True, 2)], "a", [2]),
    ([(30, False, 0), (30, True, 2)], "a", []),
    ([(0, True, 1), (0, True, 2)], "", [2]),
    ([(0, True, 1), (30, False, 0)], "b", []),
    ([(0, True, 1), (30, True, 2)], "b", [2]),
])
def test_a_video_in_two_packs(tmp_path, make, packs, winners, standing):
    for name, (frames, is_failure, attempts) in zip("ab", packs):
        videos = (9, frames) if frames else (9,)
        make(3).pack(tmp_path, videos, name, [failed("x", attempts)] if is_failure else [], [f"other-{name}", "x"])
    for known in (None, "published"):
        index = Index.load(tmp_path) if known else None
        rows, videos, failures = build_index(tmp_path, index)
        assert [row.pack for row in rows] == ["a", "b"]
        assert "".join(row.pack for row in videos if row.id == "x") == winners
        assert [row.attempts for row in failures if row.video == "x"] == standing and len(failures) == len(standing)
        publish(tmp_path, rows, videos)


def test_a_changed_root_makes_a_known_pack_be_hashed(small_store):
    """Another clip geometry changes a pack's root; an index from before it must not vouch for the pack."""
    from shared.store.layout import document_bytes, group_document
    from shared.store.verify import ROOT, read_root, seal_attributes
    store, _ = small_store
    known = Index.load(store)
    path = store / "packs/32x40/p0"
    attributes = read_root(path) | {"note": "changed"}
    files = {name: tuple(entry) for name, entry in attributes["files"].items()}
    (path / ROOT).write_bytes(document_bytes(group_document(seal_attributes(path, attributes, files))))
    packs, _, _ = build_index(store, known)
    assert packs[0].files[ROOT] != known.pack_row("p0").files[ROOT]
    assert replace(packs[0], files={}) == replace(known.pack_row("p0"), files={})


@pytest.mark.parametrize("folder_left", [True, False])
def test_a_lost_pack(small_store, folder_left):
    store, _ = small_store
    known = Index.load(store)
    (store / "packs/32x40/p0/zarr.json").unlink() if folder_left else shutil.rmtree(store / "packs/32x40/p0")
    assert lost_packs(store, known) == ["p0"]
    with pytest.raises(StoreError, match="packs/32x40/p0: (has no zarr.json|is missing)"):
        build_index(store, known)
    if folder_left:
        with pytest.raises(StoreError, match="packs/32x40/p0: has no zarr.json"):
            build_index(store)
    packs, videos, _ = build_index(store, known, drop_lost=True)
    assert packs == [known.pack_row("p1")] and {row.pack for row in videos} == {"p1"}


def test_rows_are_written_field_by_field():
    """The slow, obvious way: every field in the order of the columns."""
    row = VideoRow("v", "a/b.mp4", "p0", 3, 4, 5, "run", "g", ("train", "val"), 29.97, 240, 320, "rotated")
    obvious = asdict(row) | {"splits": "train;val", "fps": "29.97"}
    assert row.cells() == [str(value) for value in obvious.values()]
    assert list(row.document().values()) == list((asdict(row) | {"splits": ["train", "val"]}).values())
    assert list(row.document()) == HEADER.split(",")


def test_an_empty_index(tmp_path):
    publish(tmp_path, [], [])
    index = Index.load(tmp_path)
    assert (len(index), index.rows(), index.packs, index.splits) == (0, [], [], [])
    assert index.fps.shape == (0,) and "v" not in index
    with pytest.raises(StoreError, match="has no split 'train'; it has none"):
        index.in_split("train")
    with pytest.raises(StoreError, match="holds no video 'v'"):
        StoreReader(tmp_path).frames("v", [0])


def forge(store, table, row, column, value):
    """Another text in one cell of the index (row from 1), every checksum made to fit."""
    before = (store / "current").read_text().strip()
    tables = {name: (store / "index" / before / name).read_bytes() for name in ("videos.csv", "packs.csv")}
    lines = list(csv.reader(io.StringIO(tables[table].decode(), newline="")))
    lines[row][lines[0].index(column)] = value
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    tables[table] = text.getvalue().encode()
    sums = "".join(f"{crc32c(data):08x} {len(data)} {name}\n" for name, data in tables.items()).encode()
    name = f"000009-{crc32c(sums):08x}"
    _write_generation(store / "index", name, {**tables, "crc32c": sums})
    (store / "current").write_text(f"{name}\n")


NUMBERS = ["", "x", "-7", "1e3", "0.5", "nan", "9" * 12, "9" * 30, "0x1"]
PLACES = ["/etc/p0", "packs/../../p0", "../packs/32x40/p0", "packs/32x40/..", "packs/32x40/.p0", "packs/0x0/p0",
          "packs/999999x8/p0", "packs/32x40/a/b", "", "packs/32x40/p0/", "packs\\32x40\\p0"]
FORGED = [*(("videos.csv", 2, column, value) for column in ("first_frame", "frames", "label", "source_height")
            for value in NUMBERS), *(("videos.csv", 2, "fps", value) for value in ("", "x", "-1", "nan", "inf")),
          *(("packs.csv", 1, column, value) for column in ("frames", "videos") for value in NUMBERS),
          *(("packs.csv", 1, "path", value) for value in PLACES),
          *(("packs.csv", 1, "files", value) for value in ("", "a", "a:1", "a:-1:00000000", "a:1:x", "/a:1:00000000")),
          ("videos.csv", 2, "id", "p0-0"), ("videos.csv", 2, "id", ""), ("videos.csv", 2, "id", "zz"),
          ("videos.csv", 2, "pack", "p7"), ("videos.csv", 2, "pack", "p1"), ("packs.csv", 1, "pack", "p1")]


@pytest.mark.slow
def test_forged_rows_are_refused_by_name(small_store):
    """Right checksums, wrong numbers and places: one line by every reader, and by the check."""
    whole, _ = small_store
    before = (whole / "current").read_text()
    for table, row, column, value in FORGED:
        forge(whole, table, row, column, value)
        name = {"videos.csv": "'p0-1'", "packs.csv": "'p0'"}[table]
        try:
            reader = StoreReader(whole)
            reader.frames("p0-1", [0, 1])
            reader.clips("p0-1", "4x2")
            harmless = True
        except StoreError as error:
            harmless = False
            assert "\n" not in str(error) and len(str(error)) < 600
        assert not harmless or column in ("label", "source_height") and value == "1e3", (table, column, value)
        problems = check_store(whole).problems
        assert any(name in line or "ids do not rise" in line or "comes twice" in line or "packs/" in line
                   for line in problems), (table, column, value, problems)
        (whole / "current").write_text(before)
        for folder in (whole / "index").glob("000009-*"):
            shutil.rmtree(folder)
