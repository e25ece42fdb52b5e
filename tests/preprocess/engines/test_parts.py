"""What the engines are made of: the window with its quarantine, the guard, the shipping of code."""

import mmap
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from faults import Unportable
from hypothesis import given
from hypothesis import strategies as st

from preprocess.engines import EngineError, Outcome, Resources, ray, ship
from preprocess.engines.guard import portable, private_memory
from preprocess.engines.window import Ended, Ledger, fit, lost, unordered
from shared.cli import RequestError


class Blaming:
    """An engine whose killers take all that is in flight with them, and that never tries again by itself."""

    def __init__(self, killers, retries=2):
        self.killers, self.retries, self.flying, self.most = killers, retries, {}, 0

    def start(self, number, task):
        self.flying[number] = task
        self.most = max(self.most, len(self.flying))

    def finish(self):
        number, task = next(iter(self.flying.items()))
        guilty = bool(set(self.flying.values()) & self.killers)
        del self.flying[number]
        ledger = Ledger()
        for _ in range(self.retries + 1 if guilty else 1):
            ledger.note(0, "began", "host:1")
        return lost(task, *ledger.close(0), self.retries) if guilty else Ended(Outcome(task, task * 10))


@given(st.integers(0, 30), st.integers(1, 5), st.sets(st.integers(0, 29)))
def test_only_those_that_die_alone_are_convicted(count, slots, killers):
    engine, taken = Blaming(killers), 0

    def tasks():
        nonlocal taken
        for number in range(count):
            taken += 1
            yield number

    outcomes = {}
    for outcome in unordered(tasks(), Resources(), lambda: slots, engine.start, engine.finish):
        assert outcome.task not in outcomes
        outcomes[outcome.task] = outcome
    assert sorted(outcomes) == list(range(count)) and taken == count and engine.most <= slots
    assert {n for n, o in outcomes.items() if o.kind == "died"} == killers & set(range(count))
    assert all(o.value == n * 10 for n, o in outcomes.items() if o.kind == "done")
    assert all(str(o.error) == "its worker died; tried 6 times" for o in outcomes.values() if o.kind == "died")


def test_a_reason_that_was_told_convicts_only_who_had_all_tries():
    def story(tries, *events):
        ledger = Ledger()
        for _ in range(tries):
            ledger.note(7, "began", "host:1")
        for event, worker in events:
            ledger.note(7, event, worker)
        return ledger.close(7)

    assert lost("t", *story(3, ("timeout", "host:1")), retries=2).sure
    assert not lost("t", *story(2, ("timeout", "host:1")), retries=2).sure
    assert not lost("t", *story(3), retries=2).sure
    late = lost("t", *story(3, ("memory", "host:2")), retries=2)   # told by a worker that has lost the task since
    assert (late.outcome.kind, late.sure) == ("died", False)
    assert lost("t", *story(0), retries=2).outcome.attempts == 0


@pytest.mark.parametrize("count, share, tasks", [
    (1, 1, 1), (4, 1, 4), (0, 0.5, 0), (1, 0.1, 10), (2, 0.4, 4), (3, 1 / 3, 9), (8, 2, 4), (1, 2, 0), (16.0, 3, 5)])
def test_a_share_of_a_device_is_a_share_of_one(count, share, tasks):
    assert fit(count, share) == tasks


def test_a_death_alone_after_the_time_limit_is_a_timeout():
    def finish():
        ledger = Ledger()
        ledger.note(0, "began", "host:1")
        story, _ = ledger.close(0)
        return lost("t", story, 31.0, 2)

    (outcome,) = unordered(["t"], Resources(timeout=30), lambda: 1, lambda number, task: None, finish)
    assert (outcome.kind, str(outcome.error)) == ("timeout", "over its time limit of 30 s; tried 2 times")


@pytest.mark.parametrize("body, limits, said", [
    ("time.sleep(3600)", "timeout=0.3", "timeout"),
    ("held = [bytearray(os.urandom(1 << 20)) * 64 for _ in iter(int, 1) if not time.sleep(0.02)]",
     "memory=300 << 20", "memory"),
    ("return 5", "timeout=600, memory=1 << 40", "5"),
    ("return 5", "", "5"),
])
def test_the_guard_ends_the_process_and_says_why_first(body, limits, said):
    script = f"""
        import os, time
        from preprocess.engines import Resources, guard
        def fn(task):
            {body}
        print(guard.run(fn, None, Resources({limits}), lambda kind: print(kind, flush=True)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == [said] and done.returncode == (0 if said == "5" else 1)


def test_private_memory_is_what_this_process_took():
    """In pages of its own: a long-lived process may have freed heap to take the bytes from."""
    before = private_memory()
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        for at in range(0, len(held), mmap.PAGESIZE):
            held[at] = 1
        assert 60 << 20 < private_memory() - before < 80 << 20


def test_a_ray_head_is_looked_for_before_ray_waits_for_it(monkeypatch):
    monkeypatch.setattr(ray, "CONNECT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as head:
        ray.look_for_head(f"127.0.0.1:{head.getsockname()[1]}")
    with pytest.raises(ConnectionError, match="refused"):
        ray.look_for_head("127.0.0.1:9")
    for address in ("nonsense", "host:", ":6379", "host:http"):
        with pytest.raises(ValueError, match="missing port number"):
            ray.look_for_head(address)


def test_errors_that_cannot_travel_are_named():
    error = ValueError("kept")
    assert portable(error) is error
    assert isinstance(portable(Unportable(lambda: 0, 1)), EngineError)
    assert str(portable(KeyError(lambda: 0))).startswith("KeyError: <function")


def test_the_archive_unpacks_to_the_same_code(tmp_path):
    worker = tmp_path / "scratch" / "worker-1"
    worker.mkdir(parents=True)
    archive = ship.archive(worker)
    script = f"""
        import importlib, sys, types
        sys.modules["shared"] = types.ModuleType("shared")   # other code of that name, loaded before
        sys.path.insert(0, {str(archive)!r})
        importlib.reload(importlib.import_module({archive.stem!r}))
        from preprocess.engines import ship
        told = ship.report()
        print(told["code"], told["version"], told["location"])
    """
    for _ in range(2):   # the second finds it unpacked
        done = subprocess.run([sys.executable, "-S", "-c", textwrap.dedent(script)], capture_output=True, text=True,
                              env={"PATH": os.environ["PATH"]}, cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [ship.digest(), ship.version(), str(tmp_path / "scratch" / archive.stem / "code")]
    assert sorted(p.name for p in (tmp_path / "scratch").iterdir()) == [archive.stem, "worker-1"]


def test_the_code_that_counts_is_every_source_file():
    names = set(ship.sources())
    root = Path(ship.folders()["preprocess"]).parent
    expected = {p.relative_to(root).as_posix() for package in ("preprocess", "shared")
                for p in (root / package).rglob("*") if p.suffix in (".py", ".cu", ".cuh")}
    assert names == expected and "preprocess/flow/kernels/tvl1.cu" in names


def test_a_worker_with_other_code_or_another_python_is_refused_in_one_line():
    ours = ship.report()
    ship.check({"tcp://a": ours, "tcp://b": ours | {"location": "/elsewhere", "worker": "b:1"}})
    with pytest.raises(RequestError) as refusal:
        ship.check({"tcp://a": ours, "tcp://b": ours | {"code": "0" * 12, "version": "9.9", "location": "/elsewhere"}})
    said = str(refusal.value)
    assert "worker tcp://b runs motionpack 9.9 from /elsewhere" in said and ours["location"] in said
    with pytest.raises(RequestError, match=r"worker tcp://b runs Python 3\.7\.1, this process 3"):
        ship.check({"tcp://b": ours | {"python": "3.7.1"}})


def test_the_record_counts_workers_that_report_the_same():
    ours = ship.report()
    kinds = ship.summary({"a": ours, "b": ours, "c": ours | {"location": "/elsewhere"}})
    assert sorted(kind["workers"] for kind in kinds) == [1, 2]
