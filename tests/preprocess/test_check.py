"""`python -m preprocess.check`: a good store passes; every damage and every gap is found."""

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from preprocess.check import check_store, main
from shared.cli import RequestError
from shared.store.index import FailureRow, Index, publish, write_failures
from shared.store.lock import store_lock
from shared.store.record import read_json, write_json_atomic, write_record

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("store_helpers", TESTS / "shared/store/conftest.py")
    helpers = importlib.util.module_from_spec(spec)
    sys.modules["store_helpers"] = helpers
    spec.loader.exec_module(helpers)
    return helpers.Maker


@pytest.fixture(scope="module")
def good_store(tmp_path_factory, maker):
    """Two generations, two packs with every kind of array, a record, a failure that no pack knows and one that does."""
    store = tmp_path_factory.mktemp("good") / "store"
    make = maker(1, edges=True, flow=True)
    first = make.pack(store, (33, 5, 40), "p0")
    publish(store, [first[0]], first[1])
    partial = FailureRow("p1-1", "a/b.mp4", "damaged after frame 18", "decode", 1)
    second = make.pack(store, (21, 18), "p1", [partial])
    publish(store, [first[0], second[0]], first[1] + second[1])
    write_failures(store, [partial, FailureRow("bad", "a/bad.mp4", "no video stream", "open", 2)])
    write_json_atomic(store / "store.json", {"format": 1, "dataset": "folder", "classes": []})
    write_record(store, "run-1", {"engine": "serial", "seconds": 1.25})
    with store_lock(store):
        pass
    return store


@pytest.fixture
def store(tmp_path, good_store):
    return Path(shutil.copytree(good_store, tmp_path / "store"))


def test_a_good_store(store, capsys):
    assert main([str(store)]) == 0
    assert capsys.readouterr().out == f"2 packs, 5 videos, 117 frames, {_size(store)}: all is well\n"


def _size(store):
    from shared.cli import size
    return size(sum(file.stat().st_size for file in (store / "packs").rglob("*") if file.is_file()))


@pytest.mark.parametrize("arguments, code, line", [
    (["{store}"], 0, "all is well"), (["{empty}"], 2, "is no store"), (["{missing}"], 2, "is no store")])
def test_exit_codes(store, tmp_path, arguments, code, line):
    (tmp_path / "empty").mkdir()
    names = {"store": store, "empty": tmp_path / "empty", "missing": tmp_path / "missing"}
    run = subprocess.run([sys.executable, "-m", "preprocess.check", *(a.format(**names) for a in arguments)],
                         capture_output=True, text=True, cwd=TESTS.parent)
    assert run.returncode == code and line in run.stdout + run.stderr
    assert len((run.stdout + run.stderr).splitlines()) == 1


def files(store):
    return sorted(file for file in store.rglob("*") if file.is_file() and file.stat().st_size)


def kind(store, file):
    """What a file is, with the names of packs and generations left out."""
    parts = file.relative_to(store).parts
    return {"packs": "/".join(parts[3:]), "index": parts[-1]}.get(parts[0], parts[0])


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def flips_that_pass(store, count, seed):
    """`count` flips, a bit each, spread over all kinds of files: those that nobody noticed."""
    rng, kinds, passed = random.Random(seed), {}, []
    for file in files(store):
        kinds.setdefault(kind(store, file), []).append(file)
    assert len(kinds) == 27 + 8  # a pack's files, and store.json, current, records, 2 x failures, 3 of the index
    for i in range(count):
        file = rng.choice(kinds[sorted(kinds)[i % len(kinds)]])
        bit = rng.randrange(8 * file.stat().st_size)
        flip(file, bit)
        if not check_store(store).problems:
            passed.append((kind(store, file), bit))
        flip(file, bit)
    assert check_store(store).problems == []
    return passed


def test_200_flipped_bits_are_all_noticed(store):
    assert flips_that_pass(store, 200, seed=2) == []


def test_a_missing_truncated_or_longer_file_is_noticed(store):
    for file in files(store):
        data = file.read_bytes()
        for change in (None, data[:-1], data[:len(data) // 2], b"", data + b"\n"):
            if change is None and file.parent.name == "records":
                continue  # nothing lists the records: one that is gone leaves no gap in the store
            file.unlink() if change is None else file.write_bytes(change)
            assert check_store(store).problems, (file, change and len(change))
            file.write_bytes(data)
    assert check_store(store).problems == []


@pytest.mark.parametrize("name", ["stray", "packs/stray", "packs/32x40/stray", "packs/32x40/p0/stray",
                                  "packs/32x40/p0/rgb/stray", "index/stray", "records/stray", "index/{current}/stray",
                                  "packs/32x40/p0/clips/8x8/zarr.json", "packs/8x8/p7/zarr.json"])
def test_a_stray_file_is_noticed(store, name):
    path = store / name.format(current=(store / "current").read_text().strip())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    assert any(name.split("/")[-1] in line or "p7" in line for line in check_store(store).problems)


def test_a_pack_that_is_gone_and_one_that_is_not_listed(store, maker):
    shutil.move(store / "packs/32x40/p0", store / "packs/32x40/p8")
    problems = check_store(store).problems
    assert "packs/32x40/p0: is missing" in problems
    assert "packs/32x40/p8: on disk, but the index does not list it" in problems


def test_an_unlisted_pack_is_checked_too(store, maker):
    make = maker(9)
    make.pack(store, (8,), "p2")
    listed = "packs/32x40/p2: on disk, but the index does not list it"
    assert check_store(store).problems == [listed]
    flip(store / "packs/32x40/p2/rgb/c.0.0.0.0", 999)
    assert any("p2/rgb/c.0.0.0.0: chunk" in line for line in check_store(store).problems)


def test_rows_that_do_not_agree_with_their_pack(store):
    index = Index.load(store)
    rows = index.rows()
    publish(store, index.pack_rows(), [replace(rows[0], frames=32), *rows[1:]])
    assert any("'p0-0' differs" in line for line in check_store(store).problems)
    publish(store, index.pack_rows(), rows[1:])
    assert check_store(store).problems == ["packs/32x40/p0: holds video 'p0-0', which the index does not list"]
    publish(store, [replace(row, frames=row.frames + 1) for row in index.pack_rows()], rows)
    assert any("counts" in line for line in check_store(store).problems)
    publish(store, index.pack_rows(), [*rows, replace(rows[0], id="ghost")])
    assert any("'ghost' differs" in line for line in check_store(store).problems)


def test_a_label_outside_the_classes(store):
    write_json_atomic(store / "store.json", {"format": 1, "dataset": "folder", "classes": ["run"]})
    assert check_store(store).problems == []
    index = Index.load(store)
    rows = index.rows()
    publish(store, index.pack_rows(), [replace(rows[0], label=1, class_name="jump"), *rows[1:]])
    assert any("label 1 and class 'jump'" in line for line in check_store(store).problems)


def test_another_format(store):
    write_json_atomic(store / "store.json", read_json(store / "store.json") | {"format": 2})
    assert check_store(store).problems == ["store.json: format 2, expected 1"]


def test_a_standing_failure_that_failures_csv_lacks(store):
    write_failures(store, [FailureRow("bad", "a/bad.mp4", "no video stream", "open", 2)])
    assert check_store(store).problems == [
        "packs/32x40/p1: failed on video 'p1-1', which failures.csv does not list"]


def test_leftovers_of_a_stopped_run_are_notes(store, maker, capsys):
    make = maker(2)
    make.add(make.writer(store, "killed"), 9)
    (store / ".current.0.partial").write_text("")
    findings = check_store(store)
    assert findings.problems == [] and "2 half-written" in findings.notes[0]
    assert main([str(store)]) == 0
    assert capsys.readouterr().out.startswith("note: 2 half-written")


def test_a_store_that_is_being_written(store, maker):
    with store_lock(store):
        maker(3).pack(store, (8,), "p2")
        maker(3).writer(store, "p3")
        findings = check_store(store)
    assert findings.problems == [] and "a run is writing" in findings.notes[0]
    assert check_store(store).problems == ["packs/32x40/p2: on disk, but the index does not list it"]


def test_a_lost_index_does_not_hide_the_packs(store):
    shutil.rmtree(store / "index")
    (store / "current").unlink()
    assert len(check_store(store).problems) == 1
    flip(store / "packs/32x40/p1/edges/c.0.0.0.0", 4321)
    assert any("p1/edges/c.0.0.0.0: chunk" in line for line in check_store(store).problems)


def test_check_only_reads(store):
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files(store)}
    check_store(store)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files(store)} == before


def test_no_store(tmp_path):
    with pytest.raises(RequestError, match="is no store; expected a folder with store.json"):
        check_store(tmp_path)
    assert os.listdir(tmp_path) == []
