"""Videos in folders, archives and on object storage: the same arrays, few requests, and a store that remembers."""

import asyncio
import json
import math
import shutil
import tarfile
import threading
import zipfile
from collections import Counter

import pytest
import s3fs

from preprocess import check, reindex, run
from preprocess.cost import Cost
from shared.cli import RequestError
from shared.datasets.headers import read_headers
from shared.store.index import Index, read_failures
from shared.store.object_path import ObjectPath
from shared.store.place import as_place, insist_on
from shared.store.record import read_records
from shared.videos import files as opening


@pytest.fixture(scope="module", autouse=True)
def no_sample():
    """What a run would take is not the point here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocess.cost.measure_cost", lambda packs, *rest: Cost(480, 1, 1, 1, 1))
        yield


def preprocess(store, *videos, more=()):
    return run.main(["--dataset", "folder", "--videos", *map(str, videos), "--store", str(store), "--engine", "serial",
                     "--set", "packs.videos=2", "--set", "preset=fast", "--set", "threads=1", *more])


@pytest.fixture(scope="module")
def videos(small_videos, tmp_path_factory):
    """Four of the videos, without their list."""
    root = tmp_path_factory.mktemp("four") / "videos"
    for file in sorted(small_videos.glob("*/*.mp4"))[:4]:
        (root / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file.parent.name)
    return root


@pytest.fixture(scope="module")
def archives(videos):
    """set.tar, set.zip, and two shards of it, as WebDataset has them too."""
    folder = videos.parent
    with tarfile.open(folder / "set.tar", "w") as out, zipfile.ZipFile(folder / "set.zip", "w") as other:
        for file in sorted(videos.glob("*/*.mp4")):
            out.add(file, file.relative_to(videos))
            other.write(file, file.relative_to(videos))
    for shard, some in enumerate((sorted(videos.glob("*/*.mp4"))[:2], sorted(videos.glob("*/*.mp4"))[2:])):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as out:
            for file in some:
                (folder / "cls.txt").write_text(file.parent.name)
                (folder / "said.json").write_text(json.dumps({"who": file.stem, "split": "val"}))
                out.add(folder / "cls.txt", f"{file.stem}.cls")
                out.add(folder / "said.json", f"{file.stem}.json")
                out.add(file, f"{file.stem}.mp4")
    return folder


@pytest.fixture(scope="module")
def expected(videos, tmp_path_factory):
    store = tmp_path_factory.mktemp("expected") / "store"
    assert preprocess(store, videos) == 0
    return store


def arrays(store):
    """Checksums of every file of arrays, pack by pack in the order of their videos' names."""
    index = Index.load(store)
    first = {row.pack: row.path.rpartition("/")[2] for row in reversed(index.rows())}
    packs = sorted(index.pack_rows(), key=lambda row: first[row.pack])
    return [{name: crc for name, crc in row.files.items() if name != "zarr.json"} for row in packs]


@pytest.mark.parametrize("name", ["set.tar", "set.zip", "shard-{0..1}.tar"])
def test_archives_give_the_arrays_of_the_folder(archives, expected, tmp_path, name):
    store = tmp_path / "store"
    assert preprocess(store, archives / name) == 0
    assert arrays(store) == arrays(expected) and check.main([str(store)]) == 0
    if "set" in name:
        assert [row.path for row in Index.load(store).rows()] == [f"{name}/{row.path}" for row in
                                                                  Index.load(expected).rows()]
        assert [row.class_name for row in Index.load(store).rows()] == [row.class_name for row in
                                                                        Index.load(expected).rows()]


@pytest.fixture
def web(archives):
    """The URL of a web server on loopback that knows ranges, in a thread."""
    from aiohttp import web

    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def start():
        app = web.Application()
        app.router.add_static("/", archives)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.runner, ready.port = runner, runner.addresses[0][1]
        ready.set()
    thread = threading.Thread(target=lambda: (loop.run_until_complete(start()), loop.run_forever()), daemon=True)
    thread.start()
    assert ready.wait(60)
    yield f"http://127.0.0.1:{ready.port}"
    asyncio.run_coroutine_threadsafe(ready.runner.cleanup(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_a_web_server_gives_the_arrays_of_its_archives(web, expected, tmp_path, capsys):
    store = tmp_path / "store"
    assert preprocess(store, f"{web}/shard-{{0..1}}.tar") == 0
    assert arrays(store) == arrays(expected)
    insist_on(as_place(web))          # which refuses to list it
    with pytest.raises(OSError):
        insist_on(as_place("http://127.0.0.1:9"))
    with pytest.raises(RequestError, match="lists no files; expected its tar or zip archives by name"):
        preprocess(store, f"{web}/videos")


@pytest.mark.parametrize("name, members", [("videos", 0), ("set.tar", 4), ("set.zip", 4)])
def test_object_storage_gives_them_too_in_few_requests(archives, expected, tmp_path, bucket, count_requests,
                                                       monkeypatch, capsys, name, members):
    """Three requests a video to probe it and three, and its bytes over the read-ahead, to decode it; a member's header
    one at most; and --plan says so."""
    monkeypatch.setattr(opening, "FIRST", 4000)
    monkeypatch.setattr(opening, "AHEAD", 4000)
    monkeypatch.setattr(opening.RangeFile.__init__, "__defaults__", (4000, 4000, opening.KEPT, None))
    s3fs.S3FileSystem().put(str(archives / name), f"{bucket}/in/{name}", recursive=True)
    sizes = [file.stat().st_size for file in archives.glob("videos/*/*.mp4")]
    bound = sum(3 + math.ceil(size / 4000) for size in sizes)
    seen = count_requests(ObjectPath(bucket))

    def requests():
        """Since the last call, by operation."""
        counted = Counter(operation for operation, _ in seen)
        seen.clear()
        return counted
    assert preprocess(tmp_path / "store", f"{bucket}/in/{name}", more=["--plan"]) == 0
    said = capsys.readouterr().out
    probing = requests()["GetObject"]
    assert f"requests at most {bound:,} to read " in said and "probing takes at most 12" in said
    assert 4 <= probing <= 3 * 4 + members
    assert preprocess(tmp_path / "store", f"{bucket}/in/{name}") == 0
    sent = requests()
    making, others = sent["GetObject"] - probing, sent.total() - sent["GetObject"]
    assert sum(sizes) / 4000 <= making <= bound and others < 16
    assert arrays(tmp_path / "store") == arrays(expected)
    # What is done and known is listed, and not read.
    assert preprocess(tmp_path / "store", f"{bucket}/in/{name}") == 0
    assert not requests()["GetObject"]


def test_fields_make_labels_and_are_followed(archives, tmp_path, capsys):
    store, shards = tmp_path / "store", ["--set", "shards.label=cls", "--set", "shards.group=json.who"]
    assert preprocess(store, archives / "shard-0.tar", more=[*shards, "--set", "shards.split=json.split"]) == 0
    rows = Index.load(store).rows()
    assert {row.path: (row.class_name, row.group, row.splits) for row in rows} == {
        f"shard-0.tar/{name}.mp4": (name.rpartition("_")[0], name, ("val",)) for name in
        (row.path.partition("/")[2].removesuffix(".mp4") for row in rows)}
    assert all(row.class_name for row in rows)
    assert preprocess(store, archives / "shard-0.tar", archives / "shard-1.tar") == 0      # as the store was begun
    assert len(Index.load(store)) == 4 and all(row.class_name and row.group for row in Index.load(store).rows())
    fields, known = read_headers(store)
    assert fields.named() == {"label": "cls", "split": "json.split", "group": "json.who"} and len(known) == 2
    assert len(read_records(store)) == 2 and check.main([str(store)]) == 0
    assert reindex.main([str(store), "--drop-missing", str(archives / "shard-1.tar")]) == 0
    assert "2 videos of" in capsys.readouterr().out and len(Index.load(store)) == 2
    assert reindex.main([str(store), "--drop-missing", str(archives / "shard-*.tar")]) == 0
    assert "nothing to drop" in capsys.readouterr().out


@pytest.mark.slow
def test_bad_members_are_rows_and_mended_archives_are_forgotten(archives, tmp_path):
    store, path = tmp_path / "store", tmp_path / "in/0.tar"
    path.parent.mkdir()
    whole = (archives / "set.tar").read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with zipfile.ZipFile(tmp_path / "in/1.zip", "w") as out:
        out.writestr("../../out.mp4", "x")
        out.writestr("empty.mp4", "")
        out.writestr("good.mp4", next(archives.glob("videos/*/*.mp4")).read_bytes())
    before = set(tmp_path.rglob("*"))
    assert preprocess(store, tmp_path / "in/0.tar", tmp_path / "in/1.zip") == 1
    failed = {row.video: row.reason for row in read_failures(store)}
    assert failed["1.zip/empty.mp4"] == "empty file (0 bytes)" and "leads out" in failed["1.zip/../../out.mp4"]
    assert any("the archive ends before that" in reason or "damaged after" in reason for name, reason in failed.items()
               if name.startswith("0.tar"))
    assert {file for file in tmp_path.rglob("*") if store not in file.parents} == before | {store}
    path.write_bytes(whole)
    assert preprocess(store, tmp_path / "in/0.tar", tmp_path / "in/1.zip", more=["--retry-failed"]) == 1
    assert {row.video for row in read_failures(store)} == {"1.zip/empty.mp4", "1.zip/../../out.mp4"}
    assert len(Index.load(store)) == 5


def test_an_archive_that_changes_meanwhile_stops_the_run(archives, tmp_path, monkeypatch):
    path = shutil.copy(archives / "set.tar", tmp_path / "set.tar")
    make = run.drive.make_packs

    def change(*args):
        with open(path, "ab") as file:
            file.write(bytes(512))
        return make(*args)
    with monkeypatch.context() as patch:
        patch.setattr(run.drive, "make_packs", change)
        with pytest.raises(run.Stopped, match="has changed since it was looked at.*run the same command again"):
            preprocess(tmp_path / "store", path)
    assert preprocess(tmp_path / "store", path) == 0 and len(Index.load(tmp_path / "store")) == 4


def test_the_version_is_the_servers_to_compare(bucket):
    place = ObjectPath(f"{bucket}/object")
    place.put(b"before")
    etag = place.state().partition(":")[2]
    assert place.read_range(1, 3, etag) == b"ef"
    place.put(b"after!")
    with pytest.raises(OSError, match="has changed since it was looked at"):
        place.read_range(1, 3, etag)
