"""Other rows for packed videos: `check`, a rebuild, the next run and a reader agree with them; nothing is decoded."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest

from preprocess import check, reindex, relabel, run
from shared.cli import RequestError
from shared.store.index import Index, read_failures
from shared.store.place import as_place
from shared.store.reader import StoreReader
from shared.store.record import read_json, write_json_atomic
from tests.shared.videos.test_decode import scene, write


def preprocess(videos, store, *more):
    return run.main(["--dataset", "folder", "--videos", str(videos), "--store", str(store), "--engine", "serial",
                     "--set", "packs.videos=4", "--set", "preset=fast", *more])


@pytest.fixture(scope="module")
def made(small_videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("relabel")
    shutil.copytree(small_videos, folder / "videos")
    assert preprocess(folder / "videos", folder / "store") == 0
    return folder


@pytest.fixture
def store(made, tmp_path):
    return shutil.copytree(made / "store", tmp_path / "store")


def listed(store):
    return {row.id: (row.class_name, row.group, row.splits) for row in Index.load(store).rows()}


def agrees(store):
    """A check finds nothing, and an index built from the packs alone is the same."""
    assert check.main([str(store)]) == 0
    rows, failures = Index.load(store).rows(), read_failures(store)
    assert reindex.main([str(store)]) == 0
    assert Index.load(store).rows() == rows and read_failures(store) == failures
    classes = read_json(as_place(store) / "store.json")["classes"]
    assert all(row.class_name == (classes[row.label] if row.label >= 0 else "") for row in rows)
    return rows


def annotations(folder, rows):
    with open(folder / "other.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *rows])
    return folder / "other.csv"


def test_other_labels_groups_and_splits(made, store, tmp_path, capsys):
    before = listed(store)
    ids = sorted(before)
    new = {id: ("round" if n % 2 else "", f"g{n % 3}", ("train", "val") if n % 4 else ("test",))
           for n, id in enumerate(ids[:8])}
    file = annotations(tmp_path, [(id, label, ";".join(splits), group) for id, (label, group, splits) in new.items()]
                       + [("nowhere.mp4", "round", "train", "")])
    assert reindex.main([str(store), "--annotations", str(file)]) == 0
    said = capsys.readouterr().out
    assert "8 videos" in said and "4 videos that it does not name" in said
    assert "1 row of it is of no packed video" in said
    assert listed(store) == before | new
    agrees(store)
    assert preprocess(made / "videos", store, "--annotations", str(file)) == 0
    said = capsys.readouterr().out
    assert "0 to do" in said and "other splits in the annotations now" not in said
    (store / "store.json").unlink()                       # it comes back with the classes of now
    assert reindex.main([str(store)]) == 0
    agrees(store)


def test_the_same_again_changes_nothing(store, tmp_path):
    rows = [(id, label, ";".join(splits), group) for id, (label, group, splits) in listed(store).items()]
    roots = {path: path.read_bytes() for path in store.glob("packs/*/*/zarr.json")}
    assert reindex.main([str(store), "--annotations", str(annotations(tmp_path, rows))]) == 0
    assert len(roots) == 3 and all(path.read_bytes() == data for path, data in roots.items())


def test_dropped_videos_stay_dropped(made, store, capsys):
    first, second, *_, last = Index.load(store).id
    reader = StoreReader(store)
    frames = reader.clip(last, 0, "16x2")[0]
    assert reindex.main([str(store), "--drop", first, second]) == 0
    rows = agrees(store)
    assert len(rows) == 10 and {first, second}.isdisjoint(row.id for row in rows)
    assert {row.video: row.stage for row in read_failures(store)} == {first: "dropped", second: "dropped"}
    assert preprocess(made / "videos", store, "--retry-failed") == 0
    assert "0 to do" in capsys.readouterr().out
    np.testing.assert_array_equal(StoreReader(store).clip(last, 0, "16x2")[0], frames)   # its neighbours stay readable
    assert reindex.main([str(store), "--clips", "8x1"]) == 0
    assert len(StoreReader(store).clips(last, "8x1").start) and len(agrees(store)) == 10


def test_what_the_csv_has_no_column_for_stays(store, tmp_path, capsys):
    before = listed(store)
    (tmp_path / "few.csv").write_text("path,label\n" + "".join(f"{id},round\n" for id in before))
    assert reindex.main([str(store), "--annotations", str(tmp_path / "few.csv")]) == 0
    assert "it has no column split nor group: what the store has of that stays" in capsys.readouterr().out
    assert listed(store) == {id: ("round", group, splits) for id, (_, group, splits) in before.items()}
    (tmp_path / "few.csv").write_text("path,group\n" + "".join(f"{id},g\n" for id in before))
    assert reindex.main([str(store), "--annotations", str(tmp_path / "few.csv")]) == 0
    assert listed(store) == {id: ("round", "g", splits) for id, (*_, splits) in before.items()}
    agrees(store)


@pytest.mark.slow
def test_a_failed_video_that_was_dropped_stays_so(made, tmp_path):
    videos = shutil.copytree(made / "videos", tmp_path / "videos")
    (videos / "annotations.csv").unlink()
    write(videos / "one.mp4", scene(1, 48, 64), "libx264", "yuv420p")
    store = tmp_path / "store"
    assert preprocess(videos, store) == 1
    assert preprocess(videos, store, "--retry-failed") == 1
    assert reindex.main([str(store)]) == 0
    assert [(row.video, row.attempts) for row in read_failures(store)] == [("one.mp4", 2)]
    first = Index.load(store).id[0]
    assert reindex.main([str(store), "--drop", "one.mp4", "--drop", first]) == 0
    for more in ([], ["--clips", "8x1"]):
        assert reindex.main([str(store), *more]) == 0
        assert {row.video: row.stage for row in read_failures(store)} == {"one.mp4": "dropped", first: "dropped"}
    agrees(store)
    assert preprocess(videos, store, "--retry-failed") == 0


def test_what_the_folder_no_longer_has(made, store, tmp_path, capsys):
    videos = shutil.copytree(made / "videos", tmp_path / "videos")
    gone, renamed = Index.load(store).id[2:4]
    (videos / gone).unlink()
    (videos / renamed).rename((videos / renamed).with_name("other name.mp4"))
    assert reindex.main([str(store), "--drop-missing", str(videos)]) == 0
    assert {row.video for row in read_failures(store)} == {gone, renamed}
    assert "2 videos" in capsys.readouterr().out
    agrees(store)
    assert reindex.main([str(store), "--drop-missing", str(videos)]) == 0
    assert "nothing to drop" in capsys.readouterr().out
    lost = Index.load(store).path[0]
    (videos / lost).unlink()
    (videos / lost).symlink_to(videos / lost)     # cannot be read, so it is not said to be gone
    assert reindex.main([str(store), "--drop-missing", str(videos)]) == 0
    assert "nothing to drop" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds none of the 10 videos"):
        reindex.main([str(store), "--drop-missing", str(tmp_path / "empty")])
    assert len(Index.load(store)) == 10


@pytest.mark.parametrize("argv, message", [
    (["--drop", "nope"], "holds no video 'nope'.*--list"),
    (["--drop-missing", "/nonexistent"], "is no folder"),
    (["--drop-missing", "/nonexistent.tar"], "^--drop-missing /nonexistent.tar: 1 archive of 1 is not there"),
    (["--annotations", "/nonexistent.csv"], "cannot read"),
    (["--annotations", "a.csv", "--clips", "8x1"], "not allowed with argument"),
])
def test_refusals_change_nothing(store, argv, message):
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    with pytest.raises(RequestError, match=message):
        reindex.main([str(store), *argv])
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file() if path.name != ".lock"} == {
        path: data for path, data in before.items() if path.name != ".lock"}


def test_a_class_minus_one_of_old_becomes_none(store, tmp_path):
    """Versions before took -1 for a class; what goes on in such a store keeps it, and this is the way out."""
    place = as_place(store)
    document = read_json(place / "store.json")
    write_json_atomic(place / "store.json", {**document, "classes": [*document["classes"], "-1"]})
    relabel.rewrite(place, "as of old", lambda row: replace(row, class_name="-1", label=len(document["classes"])))
    assert {row.class_name for row in agrees(store)} == {"-1"}
    file = annotations(tmp_path, [(id, "-1", "train", "") for id in listed(store)])
    assert reindex.main([str(store), "--annotations", str(file)]) == 0
    assert {(row.class_name, row.label) for row in agrees(store)} == {("", -1)}


def test_annotations_of_other_videos_are_refused(store, tmp_path):
    file = annotations(tmp_path, [("walk/1.mp4", "walk", "train", "")])
    with pytest.raises(RequestError, match=r"names no video of .*'walk/1.mp4', the store's '"):
        reindex.main([str(store), "--annotations", str(file)])


def test_stopped_on_the_way_it_is_taken_up(store, tmp_path, monkeypatch):
    ids = Index.load(store).id
    write, written = relabel._write_root, []

    def interrupted(*args):
        if written:
            raise KeyboardInterrupt
        written.append(args)
        return write(*args)

    file = annotations(tmp_path, [(id, "one", "train", "") for id in ids])
    monkeypatch.setattr(relabel, "_write_root", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reindex.main([str(store), "--annotations", str(file)])
    assert check.main([str(store)]) == 0
    assert sorted({row.class_name == "one" for row in Index.load(store).rows()}) == [False, True]
    monkeypatch.setattr(relabel, "_write_root", write)
    assert reindex.main([str(store), "--annotations", str(file)]) == 0
    assert {row.class_name for row in agrees(store)} == {"one"}


@pytest.mark.slow
def test_on_object_storage(made, bucket, tmp_path):
    store = f"{bucket}/store"
    assert preprocess(made / "videos", store) == 0
    first, *rest = Index.load(as_place(store)).id
    file = annotations(tmp_path, [(id, "one", "val", "") for id in rest])
    assert reindex.main([store, "--annotations", str(file)]) == 0
    assert reindex.main([store, "--drop", first]) == 0
    assert {row.class_name for row in agrees(as_place(store))} == {"one"}
