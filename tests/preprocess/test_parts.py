"""N processes that make one store: the packs of one process, whoever comes first, dies, or comes again."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
import s3fs

from preprocess import check, life, reindex, run, status
from preprocess.life import Life
from preprocess.parts import Arrival, Part, newest_plan, parse_part
from shared.cli import RequestError
from shared.store.index import Index, read_failures
from shared.store.lease import Busy
from shared.store.place import as_place
from shared.store.record import read_records


def command(videos, store, *more):
    return ["--dataset", "folder", "--videos", str(videos), "--store", str(store), "--engine", "serial", "--set",
            "packs.videos=1", "--set", "preset=fast", *more]


def arrays(store):
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in sorted(Path(store).glob("packs/*/*/**/*"))
            if file.is_file() and file.name != "zarr.json"}


def names(store):
    return {path.name for path in Path(store).glob("packs/*/[!.]*")}


@pytest.fixture(scope="module")
def videos(small_videos, tmp_path_factory):
    """Six of the small videos."""
    root = tmp_path_factory.mktemp("six") / "videos"
    for file in sorted(small_videos.rglob("*.mp4"))[::2]:
        (root / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file.parent.name)
    return root


@pytest.fixture(scope="module")
def finished(videos, tmp_path_factory):
    """The six in packs of one, made by one process."""
    store = tmp_path_factory.mktemp("finished") / "store"
    assert run.main(command(videos, store)) == 0
    return store


@pytest.mark.parametrize(("text", "part"), [("1/1", (1, 1)), ("3/8", (3, 8)), ("8/8", (8, 8)), ("0/8", None),
                                            ("9/8", None), ("1", None), ("a/b", None), ("-1/2", None), ("", None)])
def test_which_part(text, part):
    if part:
        assert parse_part(text) == Part(*part) and str(Part(*part)) == text
    else:
        with pytest.raises(RequestError, match="expected i/N with i from 1 to N"):
            parse_part(text)


@pytest.mark.parametrize(("ids", "parts"), [((0, 1, 2), (1, 2, 3)), ((1, 2), (1, 2)), ((5, 6, 7, 8), (1, 2, 3, 4)),
                                            ((3,), (1,)), ((0, 4, 8), (1, 2, 3)), ((2, 9), (1, 2)),
                                            ((1, 3, 7), (1, None, 3)), ((0, 1, 2, 9), (None, None, None, None))])
def test_which_part_of_a_job_array(ids, parts):
    """Whatever its ids start at; a single one that is submitted again makes all that is left."""
    for own, number in zip(ids, parts):
        environment = {"SLURM_ARRAY_TASK_ID": str(own), "SLURM_ARRAY_TASK_COUNT": str(len(ids)),
                       "SLURM_ARRAY_TASK_MIN": str(min(ids)), "SLURM_ARRAY_TASK_MAX": str(max(ids))}
        if number:
            assert parse_part("slurm", environment) == Part(number, len(ids))
        elif len(set(parts)) > 1:
            with pytest.raises(RequestError, match=f"do not lie evenly, so task {own} has no place among them"):
                parse_part("slurm", environment)
    with pytest.raises(RequestError, match="are not set as a Slurm job array sets them"):
        parse_part("slurm", {})


@pytest.mark.parametrize("more", [("--plan",), ("--retry-failed",), ("--engine", "dask", "--address", "tcp://a:1")])
def test_what_does_not_go_with_parts(videos, tmp_path, more):
    with pytest.raises(RequestError, match="--part and --.* do not go together: "):
        run.main(command(videos, tmp_path / "store", "--part", "1/2", *more))
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_parts_make_their_packs_and_nothing_else(videos, finished, tmp_path, capsys):
    store = tmp_path / "store"
    assert run.main(command(videos, store, "--part", "2/4")) == 0
    plan = newest_plan(store)
    planned = [pack.name for pack in plan.packs]
    assert names(store) == {planned[1], planned[5]} and len(Index.load(store)) == 2
    run.main(command(videos, store, "--part", "1/4"))
    assert names(store) == {planned[i] for i in (0, 1, 4, 5)} and check.main([str(store)]) == 0
    # What parts 3 and 4 would make, another N makes; again there is nothing left; all of it by one plan.
    run.main(command(videos, store, "--part", "1/1"))
    assert arrays(store) == arrays(finished) and Index.load(store).id == Index.load(finished).id
    capsys.readouterr()
    assert run.main(command(videos, store, "--part", "3/4")) == 0
    assert "0 to do, 6 done" in capsys.readouterr().out
    assert [path.name for path in sorted(store.glob("records/*-*.json"))][-1] == "plan-000001.json"
    told = [record for record in read_records(store).values() if record["counts"]["packs"]]
    assert [record["part"] for record in told] == ["2/4", "1/4", "1/1"]
    assert [record["counts"]["packs"] for record in told] == [2, 2, 2]
    assert check.main([str(store)]) == 0

    # Videos that came since are in no plan yet: the first part makes another one.
    shutil.copytree(videos, tmp_path / "more")
    source = next((tmp_path / "more").rglob("*.mp4"))
    shutil.copy(source, source.with_name("new.mp4"))
    assert run.main(command(tmp_path / "more", store, "--part", "1/2")) == 0
    assert newest_plan(store).name == "plan-000002" and len(Index.load(store)) == 7


def test_one_plans_and_the_others_wait_for_it(tmp_path, capsys):
    """However many come at once; where the planner dies, the next one plans."""
    store, came = tmp_path / "store", []

    def come(number):
        with Arrival(store, Part(number, 3)) as arrival:
            came.append(arrival)
            time.sleep(0.2)

    with Arrival(store, Part(1, 3)) as first:
        assert first.plan is None
        others = [threading.Thread(target=come, args=(number,)) for number in (2, 3)]
        for thread in others:
            thread.start()
        said = ""
        while said.count("waits for the plan, which another part makes") < 2:
            time.sleep(0.05)
            said += capsys.readouterr().err
        assert not came
    for thread in others:
        thread.join()
    assert [arrival.plan for arrival in came] == [None, None]      # one after the other
    assert not list(store.glob("records/*"))                       # whoever made nothing leaves no sign


@pytest.mark.slow
def test_a_killed_part_loses_nothing(videos, finished, tmp_path, capsys):
    """Killed in the middle of a pack; a run without --part takes what it committed, and closes the store."""
    store = tmp_path / "store"
    slow = [word.replace("preset=fast", "packs.videos=1") for word in command(videos, store, "--part", "1/2")]
    slow += ["--flow", "cpu", "--set", "preset=fast"]
    process = subprocess.Popen([sys.executable, "-m", "preprocess.run", *slow], stderr=subprocess.PIPE, text=True)
    while not (list(store.glob("packs/*/.*.partial")) and names(store)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    sign, = store.glob("records/life-*.json")
    assert life.signs(store)[0].alive and life.signs(store)[0].document["part"] == "1/2"
    assert len(Index.load(store)) == 0                             # nobody has published yet
    assert check.main([str(store)]) == 0 and status.main([str(store)]) == 4
    os.utime(sign, (0, 0))
    capsys.readouterr()
    assert status.main([str(store)]) == 3
    said = capsys.readouterr().out
    assert "packs    0 done, 0 under way, 6 waiting" in said and "silent: killed, or its machine is gone" in said
    assert run.main(command(videos, store)) == 0
    assert arrays(store) == arrays(finished) and not sign.exists()
    assert check.main([str(store)]) == 0 and not list(store.glob("**/*.partial"))
    assert status.main([str(store)]) == 0


@pytest.mark.slow
def test_who_wants_the_store_alone_waits_for_the_signs_of_parts(videos, finished, tmp_path, monkeypatch, capsys):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    monkeypatch.setattr(life, "BEAT_S", 0.1)
    part = Life(store, "x-part1of2", "1/2")
    part.start()
    for refused in (lambda: run.main(command(videos, store)), lambda: reindex.main([str(store)])):
        with pytest.raises(Busy, match=r"part 1/2 is writing .*; wait until the parts end, or stop them"):
            refused()
    part.ended.set()                      # as a part that is killed: its sign stays and grows old
    part.thread.join()
    monkeypatch.setattr(life, "QUIET_S", 1.0)
    assert run.main(command(videos, store)) == 0
    assert "watching for up to 1 s whether it lives" in capsys.readouterr().err and not part.path.exists()
    # A part beside a run of the whole store is refused too.
    whole = Life(store, "whole")
    whole.start()
    with pytest.raises(Busy, match="a run without --part is writing"):
        run.main(command(videos, store, "--part", "1/2"))
    whole.ended.set()                     # it is killed too: whoever has the lock knows
    whole.thread.join()
    assert run.main(command(videos, store)) == 0 and not list(store.glob("records/life-*"))

    def rebuilt(store):
        assert [sign.document["state"] for sign in life.signs(store)] == ["reindexing"]
        assert status.main([str(store)]) == 4
        with pytest.raises(Busy, match="a run without --part is writing"):
            run.main(command(videos, store, "--part", "1/2"))
    monkeypatch.setattr(reindex, "rebuild", rebuilt)
    assert reindex.main([str(store)]) == 0 and not list(store.glob("records/life-*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "tar", "s3"])
def test_a_planned_video_that_has_gone_is_a_failure(kind, videos, tmp_path, request, capsys):
    mine, store = tmp_path / "videos", tmp_path / "store"
    source = {"folder": mine, "tar": tmp_path / "set.tar"}.get(kind) or f"{request.getfixturevalue('bucket')}/videos"
    shutil.copytree(videos, mine)

    def put():
        if kind == "tar":
            with tarfile.open(source, "w") as archive:
                archive.add(mine, "videos")
        elif kind == "s3":
            s3fs.S3FileSystem().put(f"{mine}/", f"{source}/", recursive=True)
    put()
    assert run.main(command(source, store, "--part", "1/6")) == 0
    gone = newest_plan(store).packs[2].videos[0]
    next(file for file in mine.rglob("*.mp4") if gone.endswith(file.relative_to(mine).as_posix())).unlink()
    if kind == "s3":
        s3fs.S3FileSystem().rm(f"{source}/{gone}")
    put()
    assert run.main(command(source, store, "--part", "3/6")) == 1
    assert [(row.video, row.stage, row.reason) for row in read_failures(store)] == [
        (gone, "open", "cannot be opened: no longer among the videos, where it was when plan-000001 was made")]
    assert run.main(command(source, store, "--part", "2/6")) == 0      # its own share is good
    capsys.readouterr()
    assert status.main([str(store)]) == 3
    said = capsys.readouterr().out
    assert "packs    2 done, 0 under way, 3 waiting" in said and "failed   1\n         1 x " in said
    assert run.main(command(source, store)) == 1 and status.main([str(store)]) == 1


@pytest.mark.slow
def test_parts_on_object_storage(videos, finished, bucket, tmp_path):
    """An upload that nobody published is taken by the part that comes again; the arrays are one process's."""
    store = as_place(f"{bucket}/store")
    assert run.main(command(videos, store, "--part", "1/3")) == 0
    assert len(Index.load(store)) == 2 and not (store / ".lock").exists()
    before = (store / "current").read_bytes()
    assert run.main(command(videos, store, "--part", "2/3")) == 0
    (store / "current").put(before)                                   # part 2 died before it published
    made = {path.name for path in store.glob("packs/*/*")}
    assert status.main([str(store)]) == 3
    assert run.main(command(videos, store, "--part", "2/3")) == 0
    assert {path.name for path in store.glob("packs/*/*")} == made and len(Index.load(store)) == 4
    assert run.main(command(videos, store, "--part", "3/3")) == 0
    index = Index.load(store)
    assert index.id == Index.load(finished).id and check.main([str(store)]) == 0
    assert status.main([str(store)]) == 0
    for row in index.pack_rows():
        local = finished / row.path.rpartition("-")[0]
        for name in row.files:
            if not name.endswith("zarr.json"):
                assert (store / row.path / name).read_bytes() == (local / name).read_bytes()
