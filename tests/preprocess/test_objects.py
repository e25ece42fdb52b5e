"""The commands on a store in S3: the same bytes as on disk, and nothing lost or twice by kills, zombies and rivals."""

import functools
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import s3fs
from pyarrow import parquet

from preprocess import check, reindex, run, show, twins
from preprocess import session as sessions
from preprocess.cost import Cost
from preprocess.engines.serial import SerialEngine
from preprocess.task import make_pack
from shared.cli import RequestError, Stopped
from shared.store import lease as leases
from shared.store.index import Index
from shared.store.lock import store_lock
from shared.store.objects import pack_of, pack_prefixes
from shared.store.place import ObjectPath, as_place, read_all, side_by_side
from shared.store.reader import StoreReader
from shared.store.record import read_json, read_records


def command(videos, store, *more):
    return ["--dataset", "folder", "--videos", str(videos), "--store", str(store), "--engine", "serial", "--set",
            "packs.videos=4", "--set", "threads=1", "--annotations", str(videos / "annotations.csv"), *more]


def preprocess(videos, store, *more):
    return run.main(command(videos, store, *more))


def start(videos, store, *more):
    """The command in a process of its own, with a lease of 2 s."""
    script = ("import sys; from shared import cli; cli.catch_interrupts()\n"
              "from shared.store import lease; lease.LEASE_S, lease.BEAT_S = 2.0, 0.3\n"
              "from preprocess.run import main; cli.command(main)")
    return subprocess.Popen([sys.executable, "-c", script, *command(videos, store, *more)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def local(small_videos, tmp_path_factory):
    store = tmp_path_factory.mktemp("local") / "store"
    assert preprocess(small_videos, store) == 0
    return store


@pytest.fixture
def store(bucket):
    return as_place(f"{bucket}/stores/small")


@pytest.fixture(scope="module")
def objects(small_videos, s3_server):
    """The objects of a finished run."""
    s3fs.S3FileSystem().mkdir("finished")
    store = as_place("s3://finished/store")
    assert preprocess(small_videos, store) == 0
    return {name: (store / name).read_bytes() for name in store.find()}


@pytest.fixture
def filled(objects, store):
    side_by_side(lambda name: (store / name).put(objects[name]), objects)
    return store


@pytest.fixture(scope="module", autouse=True)
def no_sample():
    """Runs of this process measure no sample videos: what a run would take is not the point here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocess.cost.measure_cost", lambda packs, *rest: Cost(480, 1, 1, 1, 1))
        yield


def assert_equal(store, local):
    """The index but for the packs' paths, with the checksum of every file, which check compares with the bytes; and
    nothing else under packs/."""
    here, there = Index.load(local), Index.load(store)
    assert there.packs == here.packs and there.rows() == here.rows()
    assert [row.files for row in there.pack_rows()] == [row.files for row in here.pack_rows()]
    assert pack_prefixes(store).keys() == {row.path for row in there.pack_rows()}
    assert check.main([str(store)]) == 0


@pytest.mark.slow
def test_a_run_on_s3_writes_what_a_local_one_writes(store, local, small_videos, capsys):
    capsys.readouterr()
    assert preprocess(small_videos, store) == 0
    assert "12 videos, 480 frames in 3 packs" in capsys.readouterr().out
    assert_equal(store, local)
    here, there = Index.load(local), Index.load(store)
    for name in here.packs:
        mine, row = here.pack_row(name), there.pack_row(name)
        files = read_all(store / row.path / file for file in row.files)
        assert list(files) == [(local / mine.path / file).read_bytes() for file in row.files]
    assert read_json(store / "store.json") == read_json(local / "store.json")
    assert [record["status"] for record in read_records(store).values()] == ["done"]
    before = store.find()
    assert preprocess(small_videos, store, "--plan") == 0
    assert "0 to do, 12 done" in capsys.readouterr().out and store.find() == before
    assert preprocess(small_videos, store) == 0
    assert "0 to do, 12 done" in capsys.readouterr().out and before.items() - store.find().items() <= {
        (name, before[name]) for name in before if name.startswith("index/")}


@pytest.mark.dask
def test_workers_write_to_s3(store, local, small_videos):
    assert preprocess(small_videos, store, "--engine", "dask", "--workers", "2") == 0
    assert_equal(store, local)


@pytest.mark.slow
def test_pictures_and_tables_of_a_store_on_s3(filled, local, tmp_path):
    assert show.main([str(filled), "--out", str(tmp_path / "store.png")]) == 0
    assert show.main([str(filled), "--video", Index.load(filled).id[0], "--out", str(tmp_path / "video.png")]) == 0
    assert (tmp_path / "store.png").stat().st_size > 10_000 and (tmp_path / "video.png").stat().st_size > 10_000
    tables = []
    for store in (filled, local):
        tables.append(tmp_path / f"{len(tables)}.parquet")
        assert show.main([str(store), "--table", str(tables[-1])]) == 0
    one, other = map(parquet.read_table, tables)
    assert one.equals(other) and len(one) == 36


@pytest.mark.slow
def test_a_geometry_is_added_and_a_lost_index_rebuilt(filled, local, small_videos, tmp_path, capsys):
    import shutil
    shutil.copytree(local, tmp_path / "copy")
    for store in (filled, tmp_path / "copy"):
        assert reindex.main([str(store), "--clips", "8x2"]) == 0
    assert_equal(filled, tmp_path / "copy")
    assert len(StoreReader(filled).clips(Index.load(filled).id[0], "8x2").start) > 0
    (filled / "index").remove_tree(), (filled / "current").unlink()
    assert check.main([str(filled)]) == 1
    assert "reindex" in capsys.readouterr().out
    (filled / "store.json").unlink()
    with pytest.raises(RequestError, match="reindex.*restores it"):
        preprocess(small_videos, filled)
    assert reindex.main([str(filled)]) == 0
    # store.json comes back from the run's record, which knows no geometry that was added later.
    assert reindex.main([str(filled), "--clips", "8x2"]) == 0
    assert_equal(filled, tmp_path / "copy")


# What is no store, and what is damaged.

def test_places_that_are_no_store(bucket, small_videos, tmp_path):
    (as_place(bucket) / "other/file").put(b"1")
    with pytest.raises(RequestError, match="is no store and not empty"):
        preprocess(small_videos, f"{bucket}/other")
    for call in (check.main, reindex.main, lambda argv: show.main([*argv, "--out", str(tmp_path / "x.png")])):
        with pytest.raises(RequestError, match="is no store"):
            call([f"{bucket}/other"])
    with pytest.raises(RequestError, match="s3://no-such-bucket/x: The specified bucket does not exist"):
        preprocess(small_videos, "s3://no-such-bucket/x")


@pytest.mark.slow
def test_check_notices_every_damage(filled, capsys):
    one, two, three = (row.path for row in Index.load(filled).pack_rows())
    changes = {
        f"{one}/rgb/c.0.0.0.0": "chunk \\d+: bad checksum", f"{one}/clips/16x2/score/c.0": "bad checksum",
        f"{two}/st_motion/c.0.0.0": "missing|No such file", f"{two}/stray": "does not belong to the pack",
        f"{three}/zarr.json": "", "stray": "does not belong to a store", "failures.csv": "does not match its checksum",
        "store.json": "does not match its checksum"}
    good = {name: (filled / name).read_bytes() for name in changes if "stray" not in name}
    for name in changes:
        if "missing" in changes[name]:
            (filled / name).unlink()
            continue
        flipped = bytearray(good.get(name, b"stray"))
        flipped[len(flipped) // 2] ^= 1
        (filled / name).put(bytes(flipped))
    assert check.main([str(filled)]) == 1
    out = capsys.readouterr().out
    for name, fault in changes.items():
        assert re.search(f"^{re.escape(name)}: .*({fault})", out, re.MULTILINE), out
    for name in changes:
        (filled / name).put(good[name]) if name in good else (filled / name).unlink()
    assert check.main([str(filled)]) == 0


@pytest.mark.slow
def test_a_lost_pack_is_made_again(filled, local, small_videos, capsys):
    row = Index.load(filled).pack_rows()[1]
    (filled / row.path).remove_tree()
    assert check.main([str(filled)]) == 1
    assert f"{row.path}: is missing" in capsys.readouterr().out
    assert preprocess(small_videos, filled) == 0
    assert "1 pack of the index is not on disk" in capsys.readouterr().out
    assert_equal(filled, local)


# Kills, zombies and rivals.

@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_is_resumed(store, small_videos, tmp_path, capsys, number):
    expected, single = tmp_path / "expected", ("--set", "packs.videos=2")
    assert preprocess(small_videos, expected, *single) == 0
    capsys.readouterr()
    process = start(small_videos, store, *single, "--set", "publish_s=0")
    began = time.monotonic()
    while len(pack_prefixes(store)) < 2 and process.poll() is None and time.monotonic() - began < 120:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 3), out + err
    assert check.main([str(store)]) == 0     # whatever a reader sees is whole; the rest is notes
    assert preprocess(small_videos, store, *single) == 0
    assert "done: 12" not in capsys.readouterr().out   # the packs that were there were not made again
    assert_equal(store, expected)


class Halting(SerialEngine):
    """Makes one pack whose outcome its driver never sees, as when a cluster's driver dies, and stops there."""

    tasks = []

    def map_unordered(self, fn, tasks, resources=None, retries=2):
        Halting.tasks = list(tasks)
        make_pack(Halting.tasks[0])
        raise KeyboardInterrupt("SIGTERM")
        yield


def halted(monkeypatch, small_videos, store):
    """The tasks of a run that died after one of them was done."""
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.engines.serial.SerialEngine", Halting)
        with pytest.raises(KeyboardInterrupt):
            preprocess(small_videos, store)
    return Halting.tasks


@pytest.mark.slow
def test_a_pack_that_no_index_lists_is_taken_in(store, local, small_videos, monkeypatch, capsys):
    halted(monkeypatch, small_videos, store)
    (path,) = pack_prefixes(store)
    capsys.readouterr()
    assert check.main([str(store)]) == 0
    assert f"note: {path}: not in the index; the next run takes it in" in capsys.readouterr().out
    assert preprocess(small_videos, store) == 0
    assert "8 to do, 4 done" in capsys.readouterr().out
    assert path in [row.path for row in Index.load(store).pack_rows()]
    assert_equal(store, local)


@pytest.mark.slow
def test_tasks_that_outlive_their_driver_harm_nobody(store, local, small_videos, monkeypatch, capsys):
    """Zombies finish before, while and after the resumed run: it makes their packs itself or takes theirs, once."""
    tasks = halted(monkeypatch, small_videos, store)
    make_pack(tasks[0]), make_pack(tasks[1])             # before: one a second time, one alone

    class Beside(SerialEngine):
        def map_unordered(self, fn, todo, resources=None, retries=2):
            make_pack(tasks[2])                           # while the resumed run makes the same pack
            yield from super().map_unordered(fn, todo, resources, retries)

    with monkeypatch.context() as patch:
        patch.setattr("preprocess.engines.serial.SerialEngine", Beside)
        assert preprocess(small_videos, store) == 0
    assert "4 to do, 8 done" in capsys.readouterr().out
    assert_equal(store, local)
    index = Index.load(store)
    late = make_pack(tasks[0]).pack.path                  # after it has ended
    assert pack_of(late) == tasks[0].name and late not in {row.path for row in index.pack_rows()}
    capsys.readouterr()
    assert check.main([str(store)]) == 0
    assert f"note: {late}: not in the index; the next run removes it" in capsys.readouterr().out
    assert len(StoreReader(store).index) == 12
    assert preprocess(small_videos, store) == 0
    assert_equal(store, local)


@pytest.mark.slow
def test_a_task_whose_files_are_swept_while_it_uploads(store, local, small_videos, monkeypatch, capsys):
    """Its root comes last, so what it leaves looks like a pack; nobody takes it for one."""
    tasks = halted(monkeypatch, small_videos, store)
    report = make_pack(tasks[1])
    for name in ("rgb/c.0.0.0.0", "st_motion/zarr.json"):
        (store / report.pack.path / name).unlink()
    assert preprocess(small_videos, store) == 0
    assert "8 to do, 4 done" in capsys.readouterr().out
    assert_equal(store, local)


@pytest.mark.slow
def test_a_second_run_is_refused(filled, local, small_videos, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    with store_lock(filled):
        process = start(small_videos, filled)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 2 and "another run is writing" in err.splitlines()[-1], err
        process = subprocess.run([sys.executable, "-m", "preprocess.reindex", str(filled)], capture_output=True,
                                 text=True)
        assert process.returncode == 2 and "another run is writing" in process.stderr.splitlines()[-1]
    assert_equal(filled, local)


@pytest.mark.slow
def test_a_run_that_loses_its_lease_stops_and_harms_nothing(store, local, small_videos, monkeypatch):
    """Between its packs another run takes the lock, finishes the store and gives it back."""
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    take = sessions.Session.take
    rivals = []

    def overtaken(session, report):
        take(session, report)
        if not rivals:
            rivals.append(session.name)
            (store / ".lock").unlink()
            rivals.append(start(small_videos, store).wait(timeout=600))

    monkeypatch.setattr(sessions.Session, "take", overtaken)
    with pytest.raises(Stopped, match="another run has taken over"):
        preprocess(small_videos, store)
    assert rivals[1] == 0
    assert len(pack_prefixes(store)) >= 3
    assert check.main([str(store)]) == 0
    assert preprocess(small_videos, store) == 0
    assert_equal(store, local)


@pytest.mark.slow
def test_a_damaged_upload_fails_the_task(store, small_videos, monkeypatch):
    put = ObjectPath.put
    monkeypatch.setattr(ObjectPath, "put", lambda self, data: put(self, data[:-1] if "/rgb/c" in self.url else data))
    with pytest.raises(Stopped, match="what was written to s3://.*rgb/c.0.0.0.0 does not read back"):
        preprocess(small_videos, store)
    assert len(Index.load(store)) == 0 and not [path for path, files in pack_prefixes(store).items()
                                                if "zarr.json" in files]


@pytest.mark.slow
def test_storage_that_does_not_answer_stops_the_run_in_one_line(small_videos, bucket):
    """The server goes away in the middle: exit code 3, and how to go on."""
    script = ("import os, sys; from shared import cli; cli.catch_interrupts()\n"
              "import s3fs; s3fs.S3FileSystem.retries = 1\n"
              "from preprocess import session\n"
              "from shared.store import object_path\n"
              "from preprocess.run import main\n"
              "def gone(self, *rest):\n"
              "    dead = s3fs.S3FileSystem(endpoint_url='http://127.0.0.1:9', config_kwargs={'retries': "
              "{'max_attempts': 0}})\n"
              "    object_path.filesystem = lambda *_: dead\n"
              "session.Session.take = gone\n"
              "cli.command(main)")
    process = subprocess.run([sys.executable, "-c", script, *command(small_videos, f"{bucket}/x")],
                             capture_output=True, text=True, timeout=300)
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 3 and last.startswith("stopped: s3://") and "Could not connect" in last
    assert "run the same command again" in last and "Traceback" not in process.stderr


@pytest.mark.slow
def test_a_real_video_on_s3(data_root, bucket, tmp_path):
    """Bytes of the local store, and clips of both readers, for real videos of several sizes."""
    videos = data_root / "videos/ucf101"
    store = as_place(f"{bucket}/real")
    arguments = functools.partial(lambda place: ["--dataset", "folder", "--videos", str(videos), "--store", str(place),
                                                 "--engine", "serial", "--set", "preset=fast"])
    assert run.main(arguments(tmp_path / "store")) == run.main(arguments(store))
    assert_equal(store, tmp_path / "store")
    one, two = StoreReader(tmp_path / "store"), StoreReader(store)
    for video in one.index.id[:5]:
        for a, b in zip(one.clip(video, 0, "16x2"), two.clip(video, 0, "16x2")):
            assert np.array_equal(a, b)


@pytest.mark.slow
def test_twins_of_a_store_in_s3(filled, store, local, tmp_path):
    """From S3 to S3 by a worker of its own: the bytes of the twins of the same store on disk."""
    assert twins.main([str(local), "--out", str(tmp_path / "out"), "--engine", "serial"]) == 0
    out = store.parent / "twins"
    assert twins.main([str(store), "--out", str(out), "--workers", "1"]) == 0 and check.main([str(out)]) == 0
    own, other = Index.load(tmp_path / "out"), Index.load(out)
    assert [(row.pack, row.files) for row in own.pack_rows()] == [(row.pack, row.files) for row in other.pack_rows()]
    with pytest.raises(RequestError, match="are one or lie in one another"):
        twins.main([str(store), "--out", str(store)])
