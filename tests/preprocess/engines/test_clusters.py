"""Clusters that run already, lost clusters and lost drivers."""

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from faults import Fault, act, remember

from preprocess.engines import Resources, dask, open_engine, ship
from shared.cli import RequestError, Stopped

HERE = Path(__file__).parent


def running(folder) -> list[int]:
    """The processes that have begun tasks whose calls FOLDER counts."""
    return [int(path.name.split("-")[2]) for path in Path(folder).glob("*-*-*")]


@pytest.fixture
def calls(tmp_path) -> str:
    folder = tmp_path / "calls"
    folder.mkdir()
    return str(folder)


@pytest.fixture
def connect():
    """connect(name, ...): an engine that is closed at the end."""
    engines = []

    def to(*args, **settings):
        engines.append(open_engine(*args, **settings))
        return engines[-1]

    yield to
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("name", [pytest.param("dask", marks=pytest.mark.dask),
                                  pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_driver(name, number, start, calls, descendants, wait_until):
    driver = start(sys.executable, HERE / "driver.py", name, calls)
    wait_until(lambda: len(running(calls)) == 2 or driver.poll() is not None)
    assert driver.poll() is None, driver.log.read_text()
    left = descendants(driver.pid)
    assert set(running(calls)) <= {process.pid for process in left}
    if number == signal.SIGINT:
        os.killpg(driver.pid, number)   # as Ctrl-C in a terminal, which the workers get too
    else:
        driver.send_signal(number)
    assert driver.wait(300) == (-number if number == signal.SIGKILL else 3)
    wait_until(lambda: not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])
    assert "Traceback" not in driver.log.read_text()
    if number != signal.SIGKILL:
        assert driver.log.read_text().splitlines()[-1].endswith("run the same command again to go on")


@pytest.mark.dask
def test_bare_workers_get_the_code_and_keep_it_when_they_start_anew(dask_cluster, connect, calls):
    dask_cluster.add()
    engine = connect("dask", None, dask_cluster.address)
    (code,) = engine.describe()["code"]
    assert code["version"] == ship.version() and code["location"].startswith(str(dask_cluster.scratch))
    tasks = [Fault(n, "kill-once" if n == 2 else "fine", calls) for n in range(6)]
    outcomes = {o.task.number: o for o in engine.map_unordered(act, tasks, Resources(timeout=60))}
    assert {n: (o.kind, o.value) for n, o in outcomes.items()} == {n: ("done", n * 10) for n in range(6)}
    assert outcomes[2].attempts == 2
    engine.close()
    # A second driver finds the code unpacked, and the workers where it left them.
    again = connect("dask", None, dask_cluster.address)
    assert [o.value[1] for o in again.map_unordered(remember, range(3))] == [1, 2, 3]
    assert len(list(dask_cluster.scratch.glob("**/motionpack_*/code"))) == 1


@pytest.mark.dask
def test_other_code_on_a_worker_is_refused_at_the_start_and_stops_a_run(dask_cluster, connect, calls):
    dask_cluster.add()
    engine = connect("dask", None, dask_cluster.address)
    (unpacked,) = dask_cluster.scratch.glob("**/motionpack_*/code/shared/cli.py")
    unpacked.write_text(unpacked.read_text() + "# touched\n")
    with pytest.raises(Stopped, match="is not the one that the run began with"):
        # The worker has answered before; the one that takes its place has not.
        list(engine.map_unordered(act, [Fault(0, "kill-once", calls)]))
    engine.close()
    with pytest.raises(RequestError) as refusal:
        connect("dask", None, dask_cluster.address)
    said = str(refusal.value)
    assert "\n" not in said and str(unpacked.parents[1]) in said and str(ship.folders()["shared"].parent) in said


@pytest.mark.dask
def test_a_lost_scheduler_stops_the_run(dask_cluster, connect, calls):
    dask_cluster.add("--no-nanny")
    engine = connect("dask", None, dask_cluster.address)
    outcomes = engine.map_unordered(act, [Fault(0, "fine", calls), Fault(1, "stay", calls)])
    assert next(outcomes).value == 0
    dask_cluster.scheduler.kill()
    with pytest.raises(Stopped, match="the Dask scheduler at tcp://.* is gone; .* run the same command again"):
        list(outcomes)


@pytest.mark.dask
def test_lost_workers_stop_the_run_where_none_comes_back(dask_cluster, connect, calls, monkeypatch):
    worker = dask_cluster.add("--no-nanny")
    engine = connect("dask", None, dask_cluster.address)
    monkeypatch.setattr(dask, "LOOK_S", 0.5)
    monkeypatch.setattr(dask, "PATIENCE_S", 1)
    outcomes = engine.map_unordered(act, [Fault(0, "fine", calls), Fault(1, "stay", calls)])
    assert next(outcomes).value == 0
    worker.kill()
    with pytest.raises(Stopped, match="no worker is left on the Dask scheduler"):
        list(outcomes)


@pytest.mark.dask
def test_workers_that_cannot_take_the_tasks_are_refused(dask_cluster, connect, monkeypatch, wait_until):
    dask_cluster.add()
    engine = connect("dask", None, dask_cluster.address)
    monkeypatch.setattr(dask, "LOOK_S", 0)
    assert engine.slots == 1
    dask_cluster.add("--nthreads", "2")
    wait_until(lambda: len(engine.client.scheduler_info()["workers"]) == 2)
    with pytest.raises(Stopped, match="has 2 threads; .* --nthreads 1, then run the same command again"):
        list(engine.map_unordered(remember, range(3)))
    with pytest.raises(RequestError, match="has 2 threads; .* --nthreads 1"):
        connect("dask", None, dask_cluster.address)
    monkeypatch.setattr(dask, "PATIENCE_S", 1)
    with pytest.raises(RequestError, match="no worker with the resource GPU"):
        connect("dask", None, dask_cluster.address, Resources(gpus=1))


@pytest.mark.dask
def test_gpu_tasks_go_to_workers_that_offer_one(dask_cluster, connect, wait_until):
    dask_cluster.add("--resources", "GPU=1")
    dask_cluster.add()
    engine = connect("dask", None, dask_cluster.address, Resources(gpus=0.5))
    wait_until(lambda: len(engine.client.scheduler_info()["workers"]) == 2)
    outcomes = list(engine.map_unordered(remember, range(8), Resources(gpus=0.5)))
    assert len({o.worker for o in outcomes}) == 1 and engine.slots == 1


@pytest.mark.dask
@pytest.mark.parametrize("gpus, devices", [(0.4, ["3", "3", "5", "5"]), (2, ["3,5"])])
def test_workers_of_this_machine_take_turns_at_its_gpus(connect, monkeypatch, gpus, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    engine = connect("dask", None, None, Resources(gpus=gpus))
    assert engine.slots == len(devices)
    seen = engine.client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert sorted(seen.values()) == devices
    outcomes = list(engine.map_unordered(remember, range(8), Resources(gpus=gpus)))
    assert {o.kind for o in outcomes} == {"done"}


@pytest.mark.parametrize("name, needs, said", [
    pytest.param("dask", Resources(gpus=3), "a task asks for 3 GPU and this machine shows 2", marks=pytest.mark.dask),
    pytest.param("ray", Resources(cpus=10_000), "a task asks for 10000 CPU and no node of the Ray cluster has as much; "
                 "start one, or ask for less by --set run.threads=1", marks=pytest.mark.ray)])
def test_what_no_worker_can_take_is_refused_and_not_waited_for(monkeypatch, name, needs, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with pytest.raises(RequestError, match=said):
        open_engine(name, None, None, needs)


@pytest.mark.dask
@pytest.mark.parametrize("address, why", [
    ("tcp://127.0.0.1:9", ""), ("nonsense://127.0.0.1:9", "unknown address scheme"), ("auto", "missing port number"),
    ("tcp://127.0.0.1", "missing port number"), ("", "something else listens")])
def test_an_address_without_a_scheduler_is_refused(address, why, monkeypatch):
    monkeypatch.setattr(dask, "CONNECT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as other:   # that waits to be spoken to, as a web server does
        address = address or f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(RequestError, match=f"--address {address}: no Dask scheduler answers there .{why}.*; "
                                               "expected tcp://HOST:8786"):
            open_engine("dask", None, address)


@pytest.mark.dask
def test_what_holds_the_interpreter_is_ended_too(connect, calls):
    engine = connect("dask", 1)
    (outcome,) = engine.map_unordered(act, [Fault(0, "hang-in-c", calls)], Resources(timeout=0.5), retries=0)
    # It cannot tell, so it is tried again alone; on a stalled machine the limit may pass before it holds the GIL.
    assert outcome.kind == "timeout" and outcome.attempts in (1, 2)


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_cluster_gets_the_code_and_its_loss_stops_the_run(start, calls, wait_until):
    # A token of its own: Ray asks for one wherever a local run has left its default in the home folder.
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    folder = tempfile.mkdtemp(prefix="ray-")      # sockets below it: its path must be short
    head = start(Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
                 "--port=0", "--include-dashboard=false", "--num-cpus=2", "--object-store-memory=200000000",
                 "--disable-usage-stats", f"--temp-dir={folder}", **alone)
    told = Path(folder, "ray_current_cluster")    # where Ray leaves the address that it has found for itself
    address = wait_until(lambda: "Ray runtime started" in head.log.read_text() and told.exists() and told.read_text())
    driver = start(sys.executable, HERE / "driver.py", "ray", calls, address, **alone)
    wait_until(lambda: len(running(calls)) == 2 or driver.poll() is not None)
    assert driver.poll() is None, driver.log.read_text()
    head.terminate()
    assert driver.wait(300) == 3, driver.log.read_text()
    assert "the Ray cluster is gone" in driver.log.read_text().splitlines()[-1]
    head.wait(300)
    shutil.rmtree(folder, ignore_errors=True)
