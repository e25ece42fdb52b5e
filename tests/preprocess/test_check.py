"""`python -m preprocess.check`: a good store passes; every damage and every gap is found."""

import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from preprocess.check import check_store, main
from shared.cli import RequestError
from shared.recipes.preprocessing import read_description, recipe_hash
from shared.store.chunks import crc32c
from shared.store.committed import load_pack, sweep_partials
from shared.store.index import FailureRow, Index, publish, write_failures
from shared.store.layout import StoreError, crc_text, document_bytes, group_document
from shared.store.lock import store_lock
from shared.store.record import parse_json, read_json, write_json_atomic, write_record
from shared.store.verify import ROOT, read_root, seal_attributes

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
    make.describe(store)
    write_record(store, "run-1", {"engine": "serial", "seconds": 1.25, "status": "done"})
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


@pytest.mark.slow
def test_200_flipped_bits_are_all_noticed(store):
    assert flips_that_pass(store, 200, seed=2) == []


@pytest.mark.slow
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
                                  "packs/32x40/p0/clips/8x8/zarr.json", "packs/8x8/p7/zarr.json",
                                  ".notes.partial", "packs/32x40/.p0.partial", "records/.x.json"])
def test_a_stray_file_is_noticed(store, name):
    path = store / name.format(current=(store / "current").read_text().strip())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    assert any(name.split("/")[-1] in line or "p7" in line for line in check_store(store).problems)


def test_a_pack_that_is_gone_and_one_that_is_not_listed(store, maker):
    shutil.move(store / "packs/32x40/p0", store / "packs/32x40/p8")
    problems = check_store(store).problems
    assert "packs/32x40/p0: is missing" in problems
    assert "packs/32x40/p8: the index does not list it" in problems


def test_an_unlisted_pack_is_checked_too(store, maker, capsys):
    maker(9, edges=True, flow=True).pack(store, (8,), "p2")
    assert check_store(store).problems == ["packs/32x40/p2: the index does not list it"]
    assert main([str(store)]) == 1
    assert f"what helps: preprocess.run, run again, takes in what the packs hold; `python -m preprocess.reindex " \
        f"{store}`" in capsys.readouterr().out
    for status in ("running", "stopped"):
        write_record(store, "run-2", {"engine": "serial", "status": status})
        findings = check_store(store)
        assert findings.problems == [] and findings.notes == [
            "packs/32x40/p2: not in the index yet; the next run takes it in"]
    flip(store / "packs/32x40/p2/rgb/c.0.0.0.0", 999)
    assert any("p2/rgb/c.0.0.0.0: chunk" in line for line in check_store(store).problems)


def test_rows_that_do_not_agree_with_their_pack(store):
    index = Index.load(store)
    rows = index.rows()
    publish(store, index.pack_rows(), [replace(rows[0], frames=32), *rows[1:]])
    assert any("'p0-0' differs" in line for line in check_store(store).problems)
    publish(store, index.pack_rows(), rows[1:])
    assert check_store(store).problems == ["index: does not list video 'p0-0' of packs/32x40/p0"]
    publish(store, [replace(row, frames=row.frames + 1) for row in index.pack_rows()], rows)
    assert any("counts" in line for line in check_store(store).problems)
    publish(store, index.pack_rows(), [*rows, replace(rows[0], id="ghost")])
    assert any("'ghost' differs" in line for line in check_store(store).problems)


def test_a_label_outside_the_classes(store):
    write_json_atomic(store / "store.json", read_json(store / "store.json") | {"classes": ["run"]})
    assert check_store(store).problems == []
    index = Index.load(store)
    rows = index.rows()
    publish(store, index.pack_rows(), [replace(rows[0], label=1, class_name="jump"), *rows[1:]])
    assert any("label 1 and class 'jump'" in line for line in check_store(store).problems)


@pytest.mark.parametrize("where, value, said", [
    ("classes", None, "classes is no list of names"), ("classes", ["a", 1], "classes is no list of names"),
    ("dataset", 7, "dataset is no text"), ("recipe_hash", [], "recipe_hash is no text"),
    ("recipe", [], "recipe: recipe"),
    ("recipe.clips", None, "recipe: clips is None"), ("recipe.clips.step", 0, "recipe: clips.step is 0"),
    ("recipe.clips.step", 10 ** 40, "recipe: clips.step is 1"), ("recipe.clips.geometries", [], "geometries is empty"),
    ("recipe.clips.geometries", ["x"], "clip geometry 'x'"), ("recipe.flow.backend", {}, "recipe: flow.backend is {}"),
    ("recipe.frames.short_side", "\n" * 9, "recipe: frames.short_side is"), ("format", "1", "format '1', expected 1")])
def test_a_store_json_that_is_sealed_and_wrong(store, where, value, said):
    """Whoever wrote it: one line, in the check and wherever it is read."""
    document = read_json(store / "store.json")
    part, keys = document, where.split(".")
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    write_json_atomic(store / "store.json", document)
    problems = [line for line in check_store(store).problems if line.startswith("store.json: ")]
    assert len(problems) == 1 and said in problems[0] and "\n" not in problems[0]
    with pytest.raises(RequestError if where == "format" else StoreError, match=re.escape(said)):
        read_description(store)


@pytest.mark.parametrize("body", [b'{\n "a": ' + b"[" * 100_000, b'{\n "a": ' + b"9" * 10_000])
def test_json_that_no_reader_takes(body):
    with pytest.raises(StoreError, match="holds no JSON that can be read"):
        parse_json(body + b',\n "crc32c": "%s"\n}\n' % crc_text(crc32c(body)).encode(), "a.json")


def test_another_format(store):
    write_json_atomic(store / "store.json", read_json(store / "store.json") | {"format": 2})
    assert check_store(store).problems == ["store.json: format 2, expected 1"]


def test_a_standing_failure_that_failures_csv_lacks(store):
    write_failures(store, [FailureRow("bad", "a/bad.mp4", "no video stream", "open", 2)])
    assert check_store(store).problems == [
        "failures.csv: does not list video 'p1-1', on which packs/32x40/p1 failed"]


def test_leftovers_of_a_stopped_run_are_notes(store, maker, capsys):
    make = maker(2)
    make.add(make.writer(store, "killed"), 9)
    (store / f".current.{'0' * 32}.partial").write_text("")
    (store / f"packs/32x40/p0/.zarr.json.{'a' * 32}.partial").write_text("")  # a reindex killed while it wrote a root
    findings = check_store(store)
    assert findings.problems == [] and "3 half-written" in findings.notes[0]
    assert main([str(store)]) == 0
    assert capsys.readouterr().out.startswith("note: 3 half-written")
    assert load_pack(store, "packs/32x40/p0")[0] == Index.load(store).pack_row("p0")
    assert len(sweep_partials(store)) == 3 and check_store(store).notes == []


def test_a_store_that_is_being_written(store, maker):
    with store_lock(store):
        make = maker(3, edges=True, flow=True)
        make.pack(store, (8,), "p2")
        make.writer(store, "p3")
        findings = check_store(store)
    assert findings.problems == [] and "a run is writing" in findings.notes[0]
    assert check_store(store).problems == ["packs/32x40/p2: the index does not list it"]


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


@pytest.mark.parametrize("change, problems", [
    (lambda recipe: recipe["clips"]["geometries"].append("8x8"), ["lacks clips 8x8 of store.json"]),
    (lambda recipe: recipe["packs"].update(edges=False), ["edges is True, by store.json False", "recipe_hash is "]),
    (lambda recipe: recipe["packs"].update(jpeg_quality=70), ["jpeg_quality is 85, by store.json 70", "recipe_hash"]),
    (lambda recipe: recipe["flow"].update(backend="cuda"), ["backend is 'cpu', by store.json 'cuda'", "recipe_hash"]),
    (lambda recipe: recipe["clips"].update(step=8), ["recipe_hash is "]),
])
def test_packs_of_another_recipe(store, change, problems):
    document = read_json(store / "store.json")
    change(document["recipe"])
    stale = f"store.json: recipe_hash is '{document['recipe_hash']}', that of its recipe "
    write_json_atomic(store / "store.json", document)
    assert check_store(store).problems[0].startswith(stale)
    write_json_atomic(store / "store.json", document | {"recipe_hash": recipe_hash(document["recipe"])})
    found = check_store(store).problems
    assert len(found) == 2 * len(problems)
    for pack in ("p0", "p1"):
        lines = [line for line in found if line.startswith(f"packs/32x40/{pack}: ")]
        assert all(text in line for text, line in zip(sorted(problems), sorted(lines), strict=True))


@pytest.mark.parametrize("name, texts", [
    ("index/{current}/videos.csv", ["preprocess.reindex {store}` rebuilds"]), ("current", ["{store}` rebuilds"]),
    ("store.json", ["{store}` rebuilds"]), ("failures.csv", ["{store}` rebuilds"]),
    ("records/run-1.json", ["delete the damaged record"]),
    ("packs/32x40/p0/rgb/c.0.0.0.0", ["delete the damaged pack's folder"]),
    ("packs/32x40/p1/zarr.json", ["delete the damaged pack's folder"])])
def test_what_helps_is_said_once(store, capsys, name, texts):
    file = store / name.format(current=(store / "current").read_text().strip())
    flip(file, 8 * (file.stat().st_size // 2))
    assert main([str(store)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("what helps: ")]
    assert len(lines) == len(texts) and all(text.format(store=store) in line for text, line in zip(texts, lines))


def test_a_fault_names_its_file_once(store):
    (store / "packs/32x40/p0/rgb/c.0.0.0.0").unlink()
    (store / "packs/32x40/p1/frame_offset/c.0").unlink()
    problems = check_store(store).problems
    assert "packs/32x40/p0/rgb/c.0.0.0.0: No such file or directory" in problems
    assert all(line.count("packs/") == 1 and str(store) not in line and "Errno" not in line for line in problems)


def test_before_the_first_publication_and_after_an_empty_one(tmp_path, maker):
    store = tmp_path / "store"
    store.mkdir()
    maker(1).describe(store)
    findings = check_store(store)
    assert (findings.problems, findings.notes) == ([], ["nothing is published yet"])
    publish(store, [], [])
    write_failures(store, [])
    findings = check_store(store)
    assert (findings.problems, findings.notes, findings.videos) == ([], [], 0)


def test_an_index_without_videos_is_an_index(tmp_path, maker):
    make = maker(1)
    row = make.writer(tmp_path, "p0").commit([FailureRow("x", "x.mp4", "no frames", "decode")])[0]
    make.describe(tmp_path)
    publish(tmp_path, [row], [])
    assert check_store(tmp_path).problems == ["failures.csv: does not list video 'x', on which packs/32x40/p0 failed"]
    write_failures(tmp_path, [FailureRow("x", "x.mp4", "no frames", "decode")])
    make.pack(tmp_path, (5,), "p1")
    assert check_store(tmp_path).problems == ["packs/32x40/p1: the index does not list it"]


def test_packs_without_a_record(store):
    shutil.rmtree(store / "records")
    findings = check_store(store)
    assert findings.problems == [] and findings.notes == ["no record in records/ says how the packs were made"]


def test_a_pack_that_differs_from_a_stale_index(store):
    """A reindex that was killed after it renewed a pack's root: the pack is whole, the index is behind."""
    path = store / "packs/32x40/p0"
    attributes = read_root(path) | {"note": "changed"}
    listed = {name: tuple(entry) for name, entry in attributes["files"].items()}
    (path / ROOT).write_bytes(document_bytes(group_document(seal_attributes(path, attributes, listed))))
    assert check_store(store).problems == ["packs/32x40/p0: is whole, but its row of files and counts differs from the "
                                           "index"]
    with store_lock(store):
        assert check_store(store).problems == []


def test_a_generation_that_goes_while_check_looks(store, monkeypatch):
    """A run publishes between the listing of the generations and their reading."""
    from preprocess import check
    real, index = check.generations, Index.load(store)
    calls = []

    def listing(path):
        names = real(path)
        calls.append(names)
        if len(calls) == 1:
            for _ in range(2):
                publish(store, index.pack_rows(), index.rows())
        return names
    monkeypatch.setattr(check, "generations", listing)
    assert check_store(store).problems == []
    assert len(calls) == 4 and calls[0] != calls[2]


def test_a_pack_that_lost_its_root(store):
    (store / "packs/32x40/p0/zarr.json").unlink()
    assert check_store(store).problems == ["packs/32x40/p0/zarr.json: No such file or directory"]
