"""One contract, every engine: scripted faults, counted calls."""

import collections
import os

import faults
import pytest
from faults import Fault, act, calls, remember

from preprocess.engines import EngineError, Outcome, Resources, open_engine
from shared.cli import RequestError

LIMITS = Resources(memory=400 << 20, timeout=10)     # a loaded machine grows a task slowly
SCRIPT = {3: "raise-once", 5: "raise", 8: "kill-once", 11: "kill", 14: "hang", 17: "grow", 20: "unportable"}
DEADLY = {"kill-once", "kill", "hang", "grow"}          # what this very process would not survive


@pytest.fixture(scope="module")
def told(engine, tmp_path_factory):
    """The outcomes of 24 scripted tasks by number, and the folder that counted the calls."""
    folder = str(tmp_path_factory.mktemp("calls"))
    script = {n: kind for n, kind in SCRIPT.items() if engine.name != "serial" or kind not in DEADLY}
    tasks = [Fault(n, script.get(n, "fine"), folder) for n in range(24)]
    outcomes = list(engine.map_unordered(act, tasks, LIMITS, retries=2))
    assert sorted(o.task.number for o in outcomes) == list(range(24))
    return {o.task.number: o for o in outcomes}, folder


def ended(outcomes, kind) -> list[Outcome]:
    return [o for o in outcomes.values() if o.task.kind == kind]


def deaths(outcomes) -> int:
    """How many workers the script has killed."""
    return sum(o.attempts for o in outcomes.values() if o.task.kind in DEADLY)


def test_every_task_that_can_succeed_does(told):
    outcomes, _ = told
    good = {o.task.number for o in outcomes.values() if o.task.kind in ("fine", "raise-once", "kill-once")}
    assert {n for n, o in outcomes.items() if o.kind == "done"} == good
    assert all(outcomes[n].value == n * 10 and outcomes[n].error is None for n in good)


def test_the_innocent_are_never_blamed(told):
    outcomes, _ = told
    innocent = ended(outcomes, "fine")
    assert all(o.kind == "done" for o in innocent)
    # Two tasks are in flight: a death takes at most one other with it, or its result before that was fetched.
    assert sum(o.attempts - 1 for o in innocent) <= deaths(outcomes)


def test_attempts_are_the_calls_that_were_counted(told, engine):
    outcomes, folder = told
    more = {n: calls(folder, n) - o.attempts for n, o in outcomes.items()}
    if engine.name == "dask":   # it computes anew what its client has fetched, where the worker dies before the release
        assert sum(more.pop(n) for n, o in outcomes.items() if o.kind == "done") in range(deaths(outcomes) + 1)
    assert set(more.values()) <= {0}


def test_exceptions_are_tried_again_and_the_last_one_is_the_outcome(told):
    outcomes, _ = told
    (once,) = ended(outcomes, "raise-once")
    assert once.kind == "done" and once.attempts >= 2   # once more where its result died with its worker
    (always,) = ended(outcomes, "raise")
    assert (always.kind, always.attempts, repr(always.error)) == ("error", 3, "ValueError('scripted 5')")
    (odd,) = ended(outcomes, "unportable")
    assert (odd.kind, odd.attempts) == ("error", 3) and "Unportable" in repr(odd.error) and "20" in repr(odd.error)


def test_a_lost_worker_costs_a_try_and_the_killer_is_convicted_alone(told, engine):
    if engine.name == "serial":
        pytest.skip("in this process")
    outcomes, _ = told
    (once,) = ended(outcomes, "kill-once")
    assert once.kind == "done" and once.attempts >= 2
    (killer,) = ended(outcomes, "kill")
    assert killer.kind == "died" and isinstance(killer.error, EngineError)
    assert 3 <= killer.attempts <= 6, "three tries among others at most, and three alone"
    assert str(killer.error) == f"its worker died; tried {killer.attempts} times"


@pytest.mark.parametrize("kind, reason", [("hang", "timeout"), ("grow", "memory")])
def test_limits_end_the_task_and_say_which(told, engine, kind, reason):
    if engine.name == "serial":
        pytest.skip("in this process")
    outcomes, _ = told
    (outcome,) = ended(outcomes, kind)
    assert outcome.kind == reason and 3 <= outcome.attempts <= 6
    limit = {"timeout": f"time limit of {LIMITS.timeout} s", "memory": "memory limit of 419.4 MB"}[reason]
    assert str(outcome.error) == f"over its {limit}; tried {outcome.attempts} times"


def test_outcomes_name_their_worker(told, engine):
    outcomes, _ = told
    workers = {o.worker for o in outcomes.values()}
    assert all(w.split(":")[0] == os.uname().nodename and w.split(":")[1].isdigit() for w in workers)
    assert (workers == {f"{os.uname().nodename}:{os.getpid()}"}) == (engine.name == "serial")


def test_tasks_are_taken_lazily_and_no_more_are_in_flight_than_slots(engine):
    taken, ended = 0, 0

    def tasks():
        nonlocal taken
        for number in range(12):
            taken += 1
            assert taken - ended <= engine.slots
            yield number

    for _ in engine.map_unordered(remember, tasks()):
        ended += 1
    assert (taken, ended) == (12, 12)


def test_a_caller_that_leaves_early_leaves_a_usable_engine(engine):
    results = engine.map_unordered(remember, range(100))
    next(results)
    results.close()
    assert len(list(engine.map_unordered(remember, range(3)))) == 3


def test_a_worker_keeps_what_its_modules_hold(engine):
    faults.SEEN.clear()
    values = [o.value for o in engine.map_unordered(remember, range(20))]
    by_process = collections.defaultdict(list)
    for process, count in values:
        by_process[process].append(count)
    assert len(by_process) <= (10 if engine.name == "ray" else 2)   # Ray has one a core, and lends them as it likes
    # Each process counts its tasks on: no number comes twice.
    assert all(len(set(counts)) == len(counts) and max(counts) - min(counts) == len(counts) - 1
               for counts in by_process.values())


def test_no_tasks_no_outcomes(engine):
    assert list(engine.map_unordered(act, [])) == []


def test_the_record_tells_the_engine_and_the_code_of_its_workers(engine):
    told = engine.describe()
    assert told["engine"] == engine.name and told["slots"] == engine.slots
    if engine.name != "serial":
        assert told["address"] == "local" and told["slots"] == 2 and told["version"][0].isdigit()
        (code,) = told["code"]
        assert code["python"].startswith("3.") and os.path.isdir(os.path.join(code["location"], "preprocess"))


def test_an_interrupt_reaches_the_caller_of_the_serial_engine():
    def interrupted(task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(open_engine("serial").map_unordered(interrupted, [1, 2], retries=3))


@pytest.mark.parametrize("request_, said", [
    (("dusk",), "--engine 'dusk' is not in this version; did you mean 'dask'?"),
    (("dask", 0), "--workers 0: expected 1 or more"),
    (("serial", 2), "--engine serial runs one task after another"),
    (("serial", None, "tcp://127.0.0.1:1"), "takes no --workers and no --address"),
    (("ray", None, "ray://127.0.0.1:10001"), "--address ray://127.0.0.1:10001: expected auto, or HOST:6379 of a"),
])
def test_requests_that_no_engine_can_meet(request_, said):
    with pytest.raises(RequestError) as refusal:
        open_engine(*request_)
    assert said in str(refusal.value)


@pytest.mark.parametrize("name, brings", [("dask", "pip install dask distributed"),
                                          ("ray", 'pip install "ray[default]"')])
def test_a_missing_package_is_named_with_what_brings_it(name, brings, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(RequestError) as refusal:
        open_engine(name)
    assert f"--engine {name} needs the package {name}, which is not installed; {brings} brings it" == str(refusal.value)
