"""Stores on object storage, on a real S3 server and on fsspec's memory: commits, leases, reads and damage."""

import argparse
import dataclasses
import errno
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest
import s3fs

from shared.cli import RequestError, Stopped
from shared.store import lease as leases
from shared.store import object_path, objects
from shared.store.chunks import crc32c
from shared.store.index import Index, current_generation, generations, publish, read_failures, write_failures
from shared.store.layout import StoreError
from shared.store.lock import is_locked, store_lock
from shared.store.object_path import Conflict, ObjectPath
from shared.store.place import as_place, store_argument
from shared.store.reader import StoreReader
from shared.store.rebuild import build_index, lost_packs
from shared.store.record import read_json, read_records, write_record
from shared.store.tables import FailureRow


@pytest.fixture(params=["s3", "memory"])
def anywhere(request) -> ObjectPath:
    """An empty place on S3, and in fsspec's memory."""
    if request.param == "s3":
        return as_place(f"{request.getfixturevalue('bucket')}/a/store")
    return as_place(f"memory://{uuid.uuid4().hex}/store")


@pytest.fixture
def store(bucket) -> ObjectPath:
    return as_place(f"{bucket}/store")


@pytest.fixture
def quick_beats(monkeypatch):
    """Who lives is seen at once; who is stalled, as a loaded machine may do, keeps its lease all the same."""
    monkeypatch.setattr(leases, "BEAT_S", 0.1)


def fill(store, maker):
    """Two packs, published: {video: content}."""
    contents = {}
    with store_lock(store):
        packs = [maker.pack(store, (33, 5, 40), "p0"), maker.pack(store, (21, 64), "p1")]
        publish(store, [row for row, _, _ in packs], [video for _, videos, _ in packs for video in videos])
        maker.describe(store)
    for _, videos, many in packs:
        contents |= {video.id: content for video, content in zip(videos, many)}
    return contents


def test_places():
    assert str(as_place("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert as_place("file:///tmp/x").as_posix() == as_place("/tmp/x").as_posix() == "/tmp/x"
    path = as_place("s3://bucket/a/b.json")
    assert (path.name, path.stem, path.suffix, str(path.parent)) == ("b.json", "b", ".json", "s3://bucket/a")
    assert [str(parent) for parent in path.parents] == ["s3://bucket/a", "s3://bucket"]
    assert path.relative_to(as_place("s3://bucket")).as_posix() == "a/b.json"
    assert pickle.loads(pickle.dumps(path)) == path and len({path, as_place(str(path))}) == 1
    for text, message in (("ess3://b/x", "no known kind of storage"), ("s3://", "names no place"),
                          ("simplecache::s3://b/x", "no known kind")):
        with pytest.raises(RequestError, match=message):
            as_place(text)


def test_a_missing_package_is_named_with_what_installs_it():
    script = ("import sys; sys.modules['s3fs'] = None; sys.argv[1:] = ['s3://bucket/store']\n"
              "from preprocess.check import command, main; command(main)")
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 2 and "pip install s3fs" in process.stderr
    assert process.stderr.count("\n") == 1


def test_what_is_there(anywhere):
    assert not anywhere.exists() and not anywhere.is_dir() and not anywhere.iterdir() and not anywhere.find()
    for name in ("b/.x", "b/c/d", "a"):
        (anywhere / name).put(b"12")
    assert [entry.name for entry in anywhere.iterdir()] == ["a", "b"]
    assert [entry.is_dir() for entry in anywhere.iterdir()] == [False, True]
    assert (anywhere / "b").is_dir() and not (anywhere / "a").is_dir() and anywhere.exists()
    assert [entry.relative_to(anywhere).as_posix() for entry in anywhere.glob("b/[!.]*")] == ["b/c"]
    assert anywhere.find() == {"a": 2, "b/.x": 2, "b/c/d": 2}
    assert (anywhere / "b/c/d").read_range(1, 2) == b"2" and (anywhere / "a").read_text("utf-8") == "12"
    assert (anywhere / "a").is_file() and not (anywhere / "b").is_file() and not (anywhere / "none").is_file()
    assert list((anywhere / "a").blocks(1)) == [b"1", b"2"]
    before = anywhere.states()
    (anywhere / "a").put(b"21")
    assert [name for name, state in anywhere.states().items() if state != before[name]] == ["a"]
    with pytest.raises(FileNotFoundError) as error:
        (anywhere / "none").read_bytes()
    assert error.value.filename == f"{anywhere}/none"
    (anywhere / "b").remove_tree(), (anywhere / "a").unlink()
    assert anywhere.find() == {}


def test_a_conditional_write_wins_once(anywhere):
    path = anywhere / "x"
    first = path.put_if(b"1", None)
    with pytest.raises(Conflict):
        path.put_if(b"2", None)
    second = path.put_if(b"2", first)
    assert path.version_and_age()[0] == second != first
    with pytest.raises(Conflict):
        path.put_if(b"3", first)
    with pytest.raises(Conflict):
        (anywhere / "y").put_if(b"3", first)
    assert path.read_bytes() == b"2" and not (anywhere / "y").exists()
    # The client library tries again when an answer is lost: its own earlier success is no conflict.
    assert path.put_if(b"2", first) == second


def test_s3_itself_refuses_the_write_of_who_is_late(bucket):
    """The condition travels with the write: no look before it could be overtaken."""
    path, seen = as_place(f"{bucket}/x"), []
    version = path.put_if(b"1", None)
    path.fs.s3.meta.events.register("before-send.s3.PutObject", lambda request, **_: seen.append(request.headers))
    path.put_if(b"2", version)
    assert [headers["If-Match"].strip(b'"' if isinstance(headers["If-Match"], bytes) else '"') for headers in seen] \
        in ([version.strip('"')], [version.strip('"').encode()])


def test_age_is_told(anywhere):
    (anywhere / "x").put(b"1")
    assert -2 <= (anywhere / "x").version_and_age()[1] < 600


def test_large_files_go_up_in_parts(store, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "PART", 5 << 20)
    data = np.random.default_rng(0).bytes((11 << 20) + 5)
    (tmp_path / "big").write_bytes(data), (tmp_path / "zarr.json").write_bytes(b"{}")
    files = {"big": (len(data), crc32c(data)), "zarr.json": (2, crc32c(b"{}"))}
    objects.upload_pack(tmp_path, store, "packs/8x8/p-1", files)
    assert (store / "packs/8x8/p-1/big").read_bytes() == data
    with pytest.raises(OSError, match="changed before it was uploaded"):
        objects.upload_pack(tmp_path, store, "packs/8x8/p-2", {**files, "big": (len(data), 1)})
    with pytest.raises(StoreError, match="changed before it was uploaded"):
        objects.upload_pack(tmp_path, store, "packs/8x8/p-2", {"zarr.json": (2, 1)})
    assert store.find().keys() == {"packs/8x8/p-1/big", "packs/8x8/p-1/zarr.json"}  # the root comes last


def test_what_did_not_arrive_is_noticed(store, tmp_path, monkeypatch):
    (tmp_path / "zarr.json").write_bytes(b"{}")
    put = ObjectPath.put
    monkeypatch.setattr(ObjectPath, "put", lambda self, data: put(self, b"{]"))
    with pytest.raises(StoreError, match="does not read back"):
        objects.upload_pack(tmp_path, store, "packs/8x8/p-1", {"zarr.json": (2, crc32c(b"{}"))})


@pytest.mark.slow
def test_the_bytes_are_those_of_a_local_store(anywhere, tmp_path, make):
    fill(anywhere, make(3, edges=True, flow=True)), fill(tmp_path, make(3, edges=True, flow=True))
    here, there = Index.load(tmp_path), Index.load(anywhere)
    assert here.packs == there.packs == ["p0", "p1"]
    assert [dataclasses.replace(row, path="") for row in there.pack_rows()] == \
        [dataclasses.replace(row, path="") for row in here.pack_rows()]
    assert there.rows() == here.rows()
    for name in here.packs:
        one, two = here.pack_row(name), there.pack_row(name)
        assert two.path.startswith(f"{one.path}-") and (anywhere / two.path).find().keys() == one.files.keys()
        for file in one.files:
            assert (anywhere / two.path / file).read_bytes() == (tmp_path / one.path / file).read_bytes()
    assert read_json(anywhere / "store.json") == read_json(tmp_path / "store.json")
    assert not (anywhere / ".lock").exists()


def test_failures_and_records(anywhere):
    rows = [FailureRow("b", "b.mp4", "no, \"video\"", "open", 2), FailureRow("a", "a.mp4", "short", "decode")]
    assert read_failures(anywhere) == [] and read_records(anywhere) == {}
    with store_lock(anywhere):
        write_failures(anywhere, rows[:1])
        write_failures(anywhere, rows)
        write_record(anywhere, "run-1", {"n": 1}), write_record(anywhere, "run-2", {"n": 2})
    assert read_failures(anywhere) == rows[::-1]
    assert read_records(anywhere) == {"run-1": {"n": 1}, "run-2": {"n": 2}}
    (anywhere / "failures.csv").put(b"x")
    with pytest.raises(StoreError, match="failures.csv: does not match its checksum"):
        read_failures(anywhere)


def test_only_the_holder_of_the_lock_writes(anywhere):
    for write in (lambda: publish(anywhere, [], []), lambda: write_failures(anywhere, []),
                  lambda: write_record(anywhere, "x", {"n": 1})):
        with pytest.raises(RuntimeError, match="without store_lock"):
            write()
    assert anywhere.find() == {}


# Reading.

@pytest.mark.slow
def test_a_clip_is_two_requests(store, make, count_requests):
    """One range for its frames, one for its maps; before them, once a pack, the frame size and two shard indices."""
    contents = fill(store, make(4))
    reader = StoreReader(store, gap=0)
    assert len(reader.index) == 5
    seen = count_requests(store)
    reader.clip("p1-1", 3, "16x2")
    assert len(seen) == 3 + 2
    for start in range(33):
        seen.clear()
        _, motion = reader.clip("p1-1", start, "16x2")
        assert [name for name, _ in seen] == ["GetObject", "GetObject"] and None not in [range for _, range in seen]
        assert np.array_equal(motion, contents["p1-1"].st_motion[start:start + 31:2].astype(np.float16))
    assert (reader.counts["rgb"].ranges, reader.counts["st_motion"].ranges) == (34, 34)
    assert reader.bytes_read == reader.bytes_used
    reader.clips("p1-1", "4x2")
    seen.clear()
    assert len(reader.clips("p1-0", "4x2").start) == 8 and len(seen) == 1  # hot masks; the rest is kept
    reader.t_motion("p1-0"), seen.clear(), reader.t_motion("p1-1")
    assert seen == []


def test_open_packs_are_bounded(store, make, count_requests):
    fill(store, make(4))
    reader = StoreReader(store, max_open=1)
    assert len(reader.index) == 5
    seen = count_requests(store)
    for video, requests in (("p0-0", 3), ("p0-2", 1), ("p1-0", 3), ("p0-0", 3)):
        seen.clear()
        reader.frames(video, [0])
        assert len(seen) == requests and len(reader._packs) == 1


def _sum(reader, queue):
    queue.put([int(reader.frames(video, [0, 3]).sum()) for video in ("p0-0", "p1-1")])


@pytest.mark.slow
def test_forked_and_pickled_readers_read(store, make):
    """An event loop and its sockets do not survive a fork, so each process has its own."""
    fill(store, make(4))
    reader = StoreReader(store)
    other = pickle.loads(pickle.dumps(reader))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    _sum(reader, queue), _sum(other, queue)
    expected = queue.get(timeout=300)
    workers = [context.Process(target=_sum, args=(reader, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=300) for _ in range(3)] == [expected] * 3
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name, call", [
    ("rgb/c.0.0.0.0", lambda r: r.frames("p0-0", range(33))), ("rgb/zarr.json", lambda r: r.frames("p0-0", [0])),
    ("st_motion/c.0.0.0", lambda r: r.motion("p0-0", 0, 33)),
    ("clips/4x2/start/c.0", lambda r: r.clips("p0-0", "4x2"))])
def test_damage_is_raised_with_pack_and_video(anywhere, make, name, call):
    fill(anywhere, make(4))
    file = anywhere / Index.load(anywhere).pack_row("p0").path / name
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 3] ^= 16
    for bad in (bytes(flipped), good[:-1]):
        file.put(bad)
        with pytest.raises(StoreError, match="pack p0, video 'p0-0'"):
            call(StoreReader(anywhere))
    file.unlink()
    with pytest.raises(StoreError, match=f"pack p0, video 'p0-0'.*{name}"):
        call(StoreReader(anywhere))


@pytest.mark.slow
def test_a_network_that_is_gone_is_one_clear_line(store, make, monkeypatch):
    fill(store, make(4))
    reader = StoreReader(store)
    reader.frames("p0-0", [0])
    gone = s3fs.S3FileSystem(endpoint_url="http://127.0.0.1:9", config_kwargs={"retries": {"max_attempts": 0}},
                             skip_instance_cache=True)
    gone.retries = 1
    monkeypatch.setattr(object_path, "filesystem", lambda protocol, process: gone)
    with pytest.raises(StoreError, match="pack p0, video 'p0-2'.*rgb.*Could not connect") as error:
        reader.frames("p0-2", [0])
    assert "\n" not in str(error.value)
    with pytest.raises(Exception, match="Could not connect.*AWS_ENDPOINT_URL"):
        store_argument(str(store))


@pytest.mark.parametrize("url, words", [
    ("memory://a/b", "memory://a/b would end with this process; expected a folder or a URL"),
    *((f"{kind}://a/b", f"{kind}://a/b: no storage that takes stores") for kind in ("cached", "dir", "data", "jlab"))])
def test_what_keeps_no_store_is_refused(url, words):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{words}"):
        store_argument(url)


def test_links_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for place in ("link", "link/sub/folder"):
        for text in (f"{tmp_path}/{place}", f"file://{tmp_path}/{place}"):
            with pytest.raises(argparse.ArgumentTypeError, match=f"^{tmp_path}/link is a link to {tmp_path}/gone, "):
                store_argument(text)
    (tmp_path / "gone").mkdir()
    assert store_argument(f"{tmp_path}/link/sub") == tmp_path / "link/sub"


# One writer at a time.

def test_a_second_run_is_refused_and_the_lock_goes_when_the_first_ends(anywhere, quick_beats, capsys):
    with store_lock(anywhere):
        assert is_locked(anywhere)
        with pytest.raises(RequestError, match="this process is writing"):
            with store_lock(anywhere):
                pass
        with pytest.raises(RequestError, match=f"another run is writing {anywhere}.*process {os.getpid()}"):
            leases.Lease(anywhere)
    assert not is_locked(anywhere) and anywhere.find() == {}
    with store_lock(anywhere):
        pass


def test_a_lock_that_vanishes_again_and_again_is_given_up(anywhere, quick_beats, monkeypatch):
    """As storage that contradicts itself has it: it lets nobody write the lock, and nobody read it."""
    asked = []

    def gone(path):
        asked.append(path)
        raise FileNotFoundError(errno.ENOENT, "No such object", str(path))

    with store_lock(anywhere), monkeypatch.context() as patch:
        patch.setattr(leases, "LEASE_S", 0.2)
        patch.setattr(type(anywhere), "version_and_age", gone)
        with pytest.raises(Stopped, match="lock could not be had: it comes and goes.*run the same command again"):
            leases.Lease(anywhere)
    assert 2 < len(asked) < 100     # 0.4 s at most, with a pause of 10 ms


def test_a_server_without_conditional_writes_is_named(store, make, capsys):
    def ignore(request, **_):
        for name in ("If-None-Match", "If-Match"):
            if name in request.headers:
                del request.headers[name]
    store.exists()
    with store_lock(store):
        pass
    assert "ignores conditional writes" not in capsys.readouterr().err
    store.fs.s3.meta.events.register("before-send.s3.PutObject", ignore, unique_id="ignore")
    try:
        with store_lock(store):
            publish(store, [], [])
    finally:
        store.fs.s3.meta.events.unregister("before-send.s3.PutObject", unique_id="ignore")
    assert "ignores conditional writes" in capsys.readouterr().err and len(Index.load(store)) == 0


def test_the_lock_of_a_killed_run_is_taken_over(store, quick_beats, s3_server):
    script = ("import sys, time; from shared.store import lease, place; lease.BEAT_S = 0.1\n"
              f"held = lease.Lease(place.as_place({str(store)!r})); print('holds', flush=True); time.sleep(900)")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holds\n"
    with pytest.raises(RequestError, match=f"process {process.pid}"):
        leases.Lease(store)
    process.kill(), process.communicate()
    lock = store / ".lock"
    lock.put(json.dumps(json.loads(lock.read_bytes()) | {"lease_s": 0.5}).encode())   # it runs out soon
    with store_lock(store):
        assert json.loads((store / ".lock").read_bytes())["pid"] == os.getpid()


@pytest.mark.slow
def test_a_run_that_lost_its_lease_changes_nothing_more(anywhere, make, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    fill(anywhere, make(4))
    index = Index.load(anywhere)
    with store_lock(anywhere):
        lease = leases.held(anywhere)
        (anywhere / ".lock").put(b'{"owner": "another"}\n')   # who takes over writes the lock anew
        lease.thread.join(300)
        before = anywhere.find()
        for write in (lambda: publish(anywhere, index.pack_rows(), index.rows()), lambda: write_failures(anywhere, []),
                      lambda: write_record(anywhere, "x", {"n": 1}),
                      lambda: objects.sweep_prefixes(anywhere, index.pack_rows()[:1], superseded=False)):
            with pytest.raises(Stopped, match="another run has taken over"):
                write()
        assert anywhere.find() == before
    assert (anywhere / ".lock").read_bytes() == b'{"owner": "another"}\n'


@pytest.mark.slow
def test_current_is_the_fence(anywhere, make):
    """A run that was asleep while another published, and whose lock says nothing, cannot put its index in force."""
    fill(anywhere, make(4))
    index = Index.load(anywhere)
    with store_lock(anywhere):
        first = publish(anywhere, index.pack_rows(), index.rows())
        (anywhere / "current").put(f"{index.generation}\n".encode())  # what another run did meanwhile
        with pytest.raises(Stopped, match="replaced by another run.*run the same command again"):
            publish(anywhere, index.pack_rows()[:1], index.rows()[:3])
        with pytest.raises(Stopped, match="another run has taken over"):
            write_failures(anywhere, [])
    assert current_generation(anywhere) == index.generation != first
    assert len(Index.load(anywhere)) == 5


# Runs that were killed.

@pytest.mark.slow
def test_old_generations_go_and_the_one_before_stays(anywhere, make):
    fill(anywhere, make(4))
    index = Index.load(anywhere)
    with store_lock(anywhere):
        names = [publish(anywhere, index.pack_rows(), index.rows()[:count]) for count in (4, 3, 2)]
    assert generations(anywhere) == names[1:] and current_generation(anywhere) == names[2]


@pytest.mark.slow
def test_what_a_dead_run_left_is_taken_in_once_or_swept(anywhere, make):
    """Unlisted whole packs are adopted, one prefix of each; halves and second copies are left out and swept."""
    fill(anywhere, make(4))
    known = Index.load(anywhere)
    orphan, videos, _ = make(5).pack(anywhere, (8, 9), "p2")
    again, _, _ = make(5).pack(anywhere, (8, 9), "p2")
    retried, _, _ = make(4).pack(anywhere, (33, 5, 40), "p0")
    half, _, _ = make(6).pack(anywhere, (8,), "p3")
    broken, _, _ = make(7).pack(anywhere, (8,), "p4")
    (anywhere / half.path / "zarr.json").unlink()
    (anywhere / broken.path / "t_motion/c.0").unlink()
    chosen = min(orphan.path, again.path)
    for _ in range(2):
        packs, rows, _ = build_index(anywhere, known, drop_lost=True)
        assert {row.pack: row.path for row in packs} == {
            **{row.pack: row.path for row in known.pack_rows()}, "p2": chosen}
        assert sorted(row.id for row in rows) == sorted(known.id + [video.id for video in videos])
    with store_lock(anywhere):
        assert objects.sweep_prefixes(anywhere, packs, superseded=True) == sorted(
            {orphan.path, again.path, retried.path} - {chosen})
        assert objects.sweep_prefixes(anywhere, packs, superseded=False) == sorted([half.path, broken.path])
        publish(anywhere, packs, rows)
    assert objects.pack_prefixes(anywhere).keys() == {row.path for row in packs}
    assert np.array_equal(StoreReader(anywhere).frames("p2-1", [4]).shape, (1, 32, 40, 3))


def test_lost_packs_are_named(anywhere, make):
    fill(anywhere, make(4))
    known = Index.load(anywhere)
    (anywhere / known.pack_row("p1").path / "zarr.json").unlink()
    assert lost_packs(anywhere, known) == ["p1"]
    with pytest.raises(StoreError, match="packs/32x40/p1-.*: is missing"):
        build_index(anywhere, known)
    packs, _, _ = build_index(anywhere, known, drop_lost=True)
    assert [row.pack for row in packs] == ["p0"]


def test_scratch_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, alive = tmp_path / f"{objects.SCRATCH}dead", objects.Scratch()
    dead.mkdir()
    for folder in (dead, alive.folder):
        os.utime(folder, (time.time() - 2 * objects.FRESH_S,) * 2)
    fresh = tmp_path / f"{objects.SCRATCH}fresh"
    fresh.mkdir()
    second = objects.Scratch()
    assert sorted(tmp_path.iterdir()) == sorted([alive.folder, second.folder, fresh])
    alive.close(), alive.close(), second.close()
    assert sorted(tmp_path.iterdir()) == [fresh]


def test_an_aborted_pack_leaves_nothing(anywhere, make, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    maker = make(4)
    writer = maker.writer(anywhere)
    maker.add(writer, 9)
    assert len(list(tmp_path.iterdir())) == 1
    writer.discard(), writer.discard()
    maker.pack(anywhere, (4,), "p1")
    assert not list(tmp_path.iterdir()) and len(objects.pack_prefixes(anywhere)) == 1
