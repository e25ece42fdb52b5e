"""What becomes of packs whose workers die, on an engine whose deaths are scripted and whose work is real."""

import shutil

import pytest

from preprocess import check, drive, run
from preprocess import cost as costing
from preprocess.engines import EngineError, Outcome
from preprocess.engines.serial import SerialEngine
from shared.cli import Stopped
from shared.recipes.preprocessing import load_pipeline
from shared.store.index import Index, read_failures
from shared.store.record import read_records


class Scripted(SerialEngine):
    """Does the work of a task, unless `script(task)` says how its worker dies. calls: (videos, trial) of every task."""

    name = "scripted"

    def __init__(self, script):
        self.script, self.calls, self.limits = script, [], []

    def map_unordered(self, fn, tasks, resources, retries):
        self.limits.append(resources)
        for task in tasks:
            self.calls.append((len(task.videos) - len(task.lost), task.trial))
            kind = self.script(task)
            if kind in ("died", "timeout", "memory"):
                yield Outcome(task, error=EngineError("scripted"), kind=kind, attempts=retries + 1)
            elif kind:
                yield Outcome(task, error=kind, kind="error", attempts=retries + 1)
            else:
                yield from super().map_unordered(fn, [task], resources, retries)


@pytest.fixture(autouse=True)
def cost(monkeypatch):
    """What the plan expects: 10 ms a frame; nothing is measured."""
    monkeypatch.setattr(costing, "measure_cost", lambda *request: costing.Cost(480, 4.8, 2.4, 1e6, 69))


@pytest.fixture
def preprocess(small_videos, monkeypatch):
    """preprocess(store, script, *more): (exit code, the engine) of a run over the small videos in packs of four."""
    def make(store, script, *more):
        engine = Scripted(script)
        monkeypatch.setattr(drive, "open_engine", lambda *request: engine)
        code = run.main(["--dataset", "folder", "--videos", str(small_videos), "--store", str(store),
                         "--engine", "serial", "--set", "packs.videos=4", *more])
        return code, engine
    return make


def ids(task):
    """The videos that a task opens."""
    return {video.id for video in task.videos} - {row.video for row in task.lost}


def check_passes(store):
    assert check.main([str(store)]) == 0


@pytest.mark.parametrize("kind, reason", [
    ("died", "killed its worker, 3 times"), ("timeout", "over the time limit of 42 s, 3 times"),
    ("memory", "over the memory limit of 1.5 GB, 3 times"),
    (MemoryError(), "over the memory limit of 1.5 GB, 3 times")])
def test_a_killer_is_found_and_named_and_its_neighbours_kept(preprocess, small_videos, tmp_path, kind, reason):
    poison = sorted(path.relative_to(small_videos).as_posix() for path in small_videos.glob("*/*.mp4"))[5]
    code, engine = preprocess(tmp_path / "store", lambda task: kind if poison in ids(task) else None,
                              "--set", "run.time_limit_s=42", "--set", "run.memory_gb=1.5")
    assert code == 1
    assert engine.calls == [(4, False)] * 3 + [(1, True)] * 4 + [(3, False)]
    assert {(limits.timeout, limits.memory) for limits in engine.limits} == {(42, 1.5e9)}
    failure, = read_failures(tmp_path / "store")
    assert (failure.video, failure.reason, failure.stage, failure.attempts) == (poison, reason, "process", 3)
    assert len(Index.load(tmp_path / "store")) == 11
    record, = read_records(tmp_path / "store").values()
    assert [death["attempts"] for death in record["deaths"]] == [3, 3]
    check_passes(tmp_path / "store")
    # Tried again it counts on, in a pack of its own.
    assert preprocess(tmp_path / "store", lambda task: "died", "--retry-failed")[0] == 1
    failure, = read_failures(tmp_path / "store")
    assert failure.attempts == 6
    assert preprocess(tmp_path / "store", lambda task: None, "--retry-failed")[0] == 0
    assert len(Index.load(tmp_path / "store")) == 12
    check_passes(tmp_path / "store")


def test_several_killers_in_one_pack_and_a_pack_of_killers(preprocess, small_videos, tmp_path):
    videos = sorted(path.relative_to(small_videos).as_posix() for path in small_videos.glob("*/*.mp4"))
    poison = {videos[1], videos[2], *videos[8:]}
    code, engine = preprocess(tmp_path / "store", lambda task: "died" if ids(task) & poison else None)
    assert code == 1
    assert engine.calls == [(4, False)] * 3 + [(1, True)] * 8 + [(2, False)]
    assert {row.video for row in read_failures(tmp_path / "store")} == poison
    assert set(Index.load(tmp_path / "store").id) == set(videos) - poison
    check_passes(tmp_path / "store")


def test_a_pack_of_one_has_been_tried_alone(preprocess, small_videos, tmp_path):
    code, engine = preprocess(tmp_path / "store", lambda task: "died" if "circle" in task.videos[0].id else None,
                              "--set", "packs.videos=1")
    assert code == 1 and (1, True) not in engine.calls
    assert all("circle" in row.video for row in read_failures(tmp_path / "store"))


@pytest.mark.slow
def test_a_pack_that_died_by_chance_gets_another_chance(preprocess, tmp_path):
    died = set()

    def by_chance(task):
        if not task.trial and task.name not in died:
            died.add(task.name)
            return "died"

    code, engine = preprocess(tmp_path / "store", by_chance)
    assert code == 0 and engine.calls == [(4, False)] * 3 + [(1, True)] * 12 + [(4, False)] * 3
    assert len(Index.load(tmp_path / "store")) == 12 and read_failures(tmp_path / "store") == []
    check_passes(tmp_path / "store")


@pytest.mark.slow
@pytest.mark.parametrize("kind, tries, words", [
    ("timeout", 1, "over the time limit of 42 s, 3 times); raise it with --set run.time_limit_s=84"),
    ("memory", 1, "over the memory limit of 1.5 GB, 3 times); raise it with --set run.memory_gb=3"),
    ("died", 2, "killed its worker, 3 times); see that nothing else ends the workers")])
def test_a_pack_too_large_for_its_limits_stops_the_run_when_all_else_is_done(preprocess, small_videos, tmp_path, kind,
                                                                             tries, words):
    store = tmp_path / "store"
    first = min(path.relative_to(small_videos).as_posix() for path in small_videos.glob("*/*.mp4"))
    engines = []

    def too_large(task):
        engines.append(task.trial) if first in ids(task) else None
        return kind if first in ids(task) and not task.trial else None

    with pytest.raises(Stopped, match="1 pack could not be made though no video of it fails alone") as stopped:
        preprocess(store, too_large, "--set", "run.time_limit_s=42", "--set", "run.memory_gb=1.5")
    assert words in str(stopped.value) and str(stopped.value).endswith("to go on; all else is done")
    assert engines.count(False) == tries and engines.count(True) == 1
    assert len(Index.load(store)) == 8 and read_failures(store) == []
    assert list(read_records(store).values())[0]["status"] == "stopped"
    check_passes(store)
    whole = tmp_path / "whole"
    assert preprocess(whole, lambda task: None)[0] == preprocess(store, lambda task: None)[0] == 0
    assert {path.name for path in store.glob("packs/*/*")} == {path.name for path in whole.glob("packs/*/*")}


@pytest.mark.parametrize("error, raised, words", [
    (FileNotFoundError(2, "the videos folder has gone", "/videos"), Stopped, "the videos folder has gone.*mend it"),
    (OSError(28, "No space left on device", "/store"), OSError, "No space left"),
    (KeyError("ours"), KeyError, "ours")])
def test_errors_that_are_no_videos_end_the_run(preprocess, small_videos, tmp_path, error, raised, words):
    with pytest.raises(raised, match=words):
        preprocess(tmp_path / "store", lambda task: error)
    assert read_failures(tmp_path / "store") == []


@pytest.mark.slow
def test_workers_share_cores_and_memory(small_videos, tmp_path, monkeypatch):
    seen = []

    class Engine(Scripted):
        slots = 3

        def map_unordered(self, fn, tasks, resources, retries):
            tasks = list(tasks)
            seen.extend((task.run.threads, resources, retries) for task in tasks)
            return super().map_unordered(fn, tasks, resources, retries)

    asked = []
    monkeypatch.setattr(drive, "open_engine", lambda *request: asked.append(request) or Engine(lambda task: None))
    monkeypatch.setattr(drive, "machine_cores", lambda: 8)
    monkeypatch.setattr(drive, "machine_memory", lambda: 30_000_000_000)
    for number, more in enumerate([(), ("--workers", "3", "--set", "retries=7"), ("--address", "tcp://10.0.0.1:8786"),
                                   ("--address", "tcp://10.0.0.1:8786", "--set", "threads=4", "--set", "memory_gb=2")]):
        videos = tmp_path / "videos"
        shutil.copytree(small_videos, videos, dirs_exist_ok=True)
        assert run.main(["--dataset", "folder", "--videos", str(videos), "--store", str(tmp_path / f"store{number}"),
                         "--set", "packs.videos=4", *more]) == 0
    # (name, workers, address): by default no more workers than packs.
    assert [request[:3] for request in asked] == [("dask", 3, None), ("dask", 3, None)] + \
        [("dask", None, "tcp://10.0.0.1:8786")] * 2
    assert [request[3].cpus for request in asked] == [1, 1, 1, 4]
    assert [(threads, limits.memory, retries) for threads, limits, retries in seen[::3]] == \
        [(2, 9_000_000_000, 2), (2, 9_000_000_000, 7), (1, 0, 2), (4, 2_000_000_000, 2)]
    # 15 minutes and ten times what the plan expects of 160 frames.
    assert {limits.timeout for _, limits, _ in seen} == {900 + 10 * 1.6}


def test_a_task_on_cuda_elsewhere_takes_the_cores_that_go_with_its_gpus(monkeypatch):
    """Those of its own machine: 0 of run.threads is left to `machine.task_cores` there."""
    asked = []
    monkeypatch.setattr(drive, "open_engine", lambda *request: asked.append(request) or SerialEngine())
    for settings in (["flow.backend=cuda"], ["flow.backend=cuda", "threads=4"], ["flow.backend=cpu"]):
        asked.append(drive.start("ray", None, "auto", load_pipeline("folder", settings=settings)).run.threads)
    assert asked[1::2] == [0, 4, 1] and [(request[3].cpus, request[3].gpus) for request in asked[::2]] == [
        (1, 1), (4, 1), (1, 0)]


def test_a_pack_that_only_its_worker_sees_stops_the_run(preprocess, tmp_path, monkeypatch):
    """As where every node has a folder of its own under the store's name."""
    monkeypatch.setattr(drive, "PATIENCE_S", 0)
    make = drive.make_pack

    def make_elsewhere(task, **more):
        report = make(task, **more)
        (tmp_path / "store" / report.pack.path).rename(tmp_path / report.pack.pack)
        return report

    monkeypatch.setattr(drive, "make_pack", make_elsewhere)
    with pytest.raises(Stopped, match="worker .* has written .*/store/packs/64x80/.* does not see it; give a --store "
                                      "that this machine and all workers share"):
        preprocess(tmp_path / "store", lambda task: None)
    assert Index.load(tmp_path / "store").packs == []
    monkeypatch.setattr(drive, "make_pack", make)
    assert preprocess(tmp_path / "store", lambda task: None)[0] == 0
    check_passes(tmp_path / "store")


def test_the_progress_line_covers_the_cluster(preprocess, tmp_path, capsys):
    preprocess(tmp_path / "store", lambda task: None)
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("packs")][0]
    assert line.startswith("packs   0%, 0 of 3 packs, 0 videos (0.00/s), 0 frames (0.0/s), 0 failures, ")
