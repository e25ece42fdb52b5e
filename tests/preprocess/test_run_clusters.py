"""The whole command on Dask and Ray: the same bytes as in one process, whatever happens to workers and drivers."""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from preprocess import check, run
from shared.store.index import Index, read_failures
from shared.store.record import read_records

DASK = pytest.param("dask", marks=pytest.mark.dask)
RAY = pytest.param("ray", marks=pytest.mark.ray)
SLOW_RAY = pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])
PATIENCE_S = 600
SLOW_FLOW = "--flow", "opencv", "--set", "warps=5", "--set", "scales=3"   # seconds a pack: a kill hits a run at work


def command(videos, store, *more):
    return [sys.executable, "-m", "preprocess.run", "--dataset", "folder", "--videos", str(videos), "--store",
            str(store), "--set", "packs.videos=4", *more]


def preprocess(videos, store, *more):
    """Exit code of the command in this process, on the serial engine."""
    return run.main([*command(videos, store, *more)[3:], "--engine", "serial"])


@contextmanager
def started(videos, store, *more):
    """The command in a process of its own, which does not outlive the block."""
    process = subprocess.Popen(command(videos, store, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.communicate()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def finish(process, code=0):
    """stdout of a command that must end with `code`."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, (out, err)
    assert "Traceback" not in err
    return out


def wait_until(condition, process=None):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.01)


def arrays(store):
    """Every array file of every pack, by its path in the store."""
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in sorted(Path(store).glob("packs/*/*/**/*"))
            if file.is_file() and file.name != "zarr.json"}


def packs(store):
    return list(Path(store).glob("packs/*/[!.]*"))


def check_passes(store):
    assert check.main([str(store)]) == 0
    assert not list(Path(store).glob("packs/*/.*"))


def record(store):
    return list(read_records(store).values())[-1]


@pytest.fixture(scope="session")
def finished(small_videos, tmp_path_factory):
    """The twelve small videos in three packs, made in one process."""
    store = tmp_path_factory.mktemp("finished") / "store"
    assert preprocess(small_videos, store) == 0
    return store


@pytest.fixture(scope="session")
def finished_slowly(small_videos, tmp_path_factory):
    """The same with the slow flow, in twelve packs."""
    store = tmp_path_factory.mktemp("finished") / "store"
    assert preprocess(small_videos, store, "--set", "packs.videos=1", *SLOW_FLOW) == 0
    return store


@pytest.mark.parametrize("engine", [DASK, RAY])
def test_the_packs_are_those_of_one_process(finished, small_videos, tmp_path, engine):
    store = tmp_path / "store"
    with started(small_videos, store, "--engine", engine, "--workers", "2") as process:
        out = finish(process)
    assert "done: 12 videos, 480 frames in 3 packs" in out
    assert arrays(store) == arrays(finished)
    check_passes(store)
    told = record(store)
    assert told["engine"] == engine and told["cluster"]["slots"] == 2 and told["deaths"] == []
    assert sum(worker["videos"] for worker in told["workers"].values()) == 12
    assert all(worker["frames_per_s"] > 0 for worker in told["workers"].values())
    assert {code["location"] for code in told["cluster"]["code"]} == {str(Path(run.__file__).parents[1])}


@pytest.mark.dask
def test_nothing_to_do_starts_nothing(finished, small_videos, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    with started(small_videos, store) as process:
        assert "0 to do, 12 done" in finish(process)
    assert record(store)["engine"] == "dask" and record(store)["cluster"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("engine", [DASK, RAY])
def test_real_videos_are_the_same_packs(data_root, tmp_path, engine):
    videos, options = data_root / "videos/ucf101", ("--set", "preset=fast", "--set", "packs.videos=3")
    code = preprocess(videos, tmp_path / "serial", *options)
    with started(videos, tmp_path / "store", *options, "--engine", engine, "--workers", "2") as process:
        finish(process, code)
    assert arrays(tmp_path / "store") == arrays(tmp_path / "serial") != {}
    check_passes(tmp_path / "store")


@contextmanager
def again_and_again(act, pause):
    """`act()` in a thread, with `pause()` seconds before each, until the block ends."""
    over = threading.Event()

    def run():
        while not over.wait(pause()):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def killing(victims, seconds, most):
    """Kills -9 one of `victims()`, the first at once, then every so many seconds, give or take a third, at `most` so
    many in all, however slow the machine; yields those it hit."""
    hit, rng = [], random.Random(0)

    def kill():
        if len(hit) == most:
            return
        with suppress(psutil.Error, IndexError, ProcessLookupError):
            victim = rng.choice(victims())
            os.kill(victim.pid, signal.SIGKILL)
            hit.append(victim.pid)

    with again_and_again(kill, lambda: rng.uniform(2 / 3, 4 / 3) * seconds if hit else 0.05):
        yield hit


def workers_of(driver, engine):
    """Processes below the driver that run tasks; on Ray neither its own driver nor the actor that it tells."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if "spawn_main" in line if engine == "dask" else line.startswith("ray::attempt"):
                found.append(process)
    return found


def at_work(store):
    """Whether some task is writing a pack now."""
    return bool(list(Path(store).glob("packs/*/.*.partial")))


@pytest.mark.parametrize("engine", [DASK, SLOW_RAY])
def test_a_worker_killed_every_few_seconds(finished_slowly, small_videos, tmp_path, engine):
    store = tmp_path / "store"
    with started(small_videos, store, "--engine", engine, "--workers", "2", "--set", "packs.videos=1", *SLOW_FLOW,
                 "--set", "retries=4") as process:      # as many as kills: no task is ever given up
        wait_until(lambda: at_work(store), process)
        with killing(lambda: workers_of(process.pid, engine), 4, most=4) as hit:
            finish(process)
    assert hit
    assert arrays(store) == arrays(finished_slowly)
    assert Index.load(store).id == Index.load(finished_slowly).id and read_failures(store) == []
    check_passes(store)


@pytest.mark.parametrize("engine", [DASK, SLOW_RAY])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_ends_is_resumed(finished_slowly, small_videos, tmp_path, engine, number):
    store, options = tmp_path / "store", ("--engine", engine, "--workers", "2", "--set", "packs.videos=1", *SLOW_FLOW)
    with started(small_videos, store, *options) as process:
        wait_until(lambda: packs(store) and at_work(store), process)
        workers = workers_of(process.pid, engine)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
        if number == signal.SIGTERM:
            assert process.returncode == 3, err
            assert err.splitlines()[-1] == "stopped: SIGTERM; run the same command again to go on"
            assert "Traceback" not in err and record(store)["status"] == "stopped"
            check_passes(store)
        if engine == "dask":
            psutil.wait_procs(workers, timeout=PATIENCE_S)
            assert not any(worker.is_running() for worker in workers)
    assert 0 < len(packs(store)) < 12
    with started(small_videos, store, *options) as process:
        finish(process)
    assert arrays(store) == arrays(finished_slowly)
    check_passes(store)


@contextmanager
def assassin(victim, armed):
    """Kills -9 whatever process has the file `victim` open while `armed()`, as a decoder would die of a poisonous
    video."""
    path, hit = os.path.realpath(victim), []

    def watch():
        for process in psutil.process_iter() if armed() else ():
            folder = f"/proc/{process.pid}/fd"
            with suppress(OSError):
                if any(os.readlink(f"{folder}/{fd}") == path for fd in os.listdir(folder)):
                    os.kill(process.pid, signal.SIGKILL)
                    hit.append(process.pid)

    with again_and_again(watch, lambda: 0.002):
        yield hit


def still_film(path, frames, height, width, damaged_from=None):
    """A Motion JPEG of one picture, repeated: long or large, and quickly written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", 25)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuvj420p"
        picture = np.zeros((height * 3 // 2, width), np.uint8)
        packet, = stream.encode(av.VideoFrame.from_ndarray(picture, "yuvj420p"))
        data = bytes(packet)
        for number in range(frames):
            packet = av.Packet(data if damaged_from is None or number < damaged_from else bytes(len(data)))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            out.mux(packet)


@pytest.fixture
def with_poison(small_videos, tmp_path):
    """The small videos with a long one among them, open for seconds, and the store of a serial run in which that one
    broke off."""
    videos, store = tmp_path / "videos", tmp_path / "expected"
    shutil.copytree(small_videos, videos, ignore=shutil.ignore_patterns("*.npz", "*.csv", "*.json"))
    poison = videos / "circle/poison.avi"
    still_film(poison, 3000, 64, 80, damaged_from=5)
    assert preprocess(videos, store) == 1 and read_failures(store)[0].stage == "decode"
    still_film(poison, 3000, 64, 80)
    return videos, poison, store


@pytest.mark.parametrize("engine", [DASK, SLOW_RAY])
def test_a_video_that_kills_costs_no_neighbour(with_poison, tmp_path, engine):
    videos, poison, expected = with_poison
    store = tmp_path / "store"
    with assassin(poison, lambda: at_work(store)) as hit, \
            started(videos, store, "--engine", engine, "--workers", "2", "--set", "retries=1") as process:
        assert "1 failure in" in finish(process, 1)
    failure, = read_failures(store)
    assert failure.video == "circle/poison.avi" and failure.stage == "process"
    assert failure.reason == f"killed its worker, {failure.attempts} times"
    assert len(hit) >= max(4, failure.attempts) and failure.attempts >= 2   # among others twice, and alone twice
    assert arrays(store) == arrays(expected) and len(Index.load(store)) == 12
    check_passes(store)
    # The video is mended, or the decoder is: it comes in, and the row goes.
    with started(videos, store, "--engine", engine, "--retry-failed") as process:
        finish(process)
    assert len(Index.load(store)) == 13 and read_failures(store) == []
    check_passes(store)


@pytest.mark.slow
@pytest.mark.dask
def test_a_video_over_a_limit_is_named_with_it(small_videos, tmp_path):
    """One that takes far too long, in a pack with others, and one whose frames are too large, in a pack of its own."""
    videos, store = tmp_path / "videos", tmp_path / "store"
    for path in sorted(small_videos.glob("circle/*.mp4")):
        (videos / "circle").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, videos / "circle")
    still_film(videos / "circle/long.avi", 150_000, 64, 80)
    still_film(videos / "large.avi", 3, 12_000, 12_000)
    with started(videos, store, "--workers", "2", "--set", "packs.frames=200000", "--set", "retries=0", "--set",
                 "run.time_limit_s=20", "--set", "run.memory_gb=0.6") as process:
        finish(process, 1)
    reasons = {row.video: row.reason for row in read_failures(store)}
    assert reasons == {"circle/long.avi": "over the time limit of 20 s, 1 time",
                       "large.avi": "over the memory limit of 600.0 MB, 1 time"}
    assert sorted(Index.load(store).id) == sorted(f"circle/{path.name}" for path in small_videos.glob("circle/*.mp4"))
    assert {death["kind"] for death in record(store)["deaths"]} == {"timeout", "memory"}
    check_passes(store)


def free_ports(count):
    """Ports of loopback that nobody has, below those that the kernel hands out to whoever asks meanwhile."""
    found = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(str(port))
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


@pytest.fixture
def dask_scheduler(tmp_path):
    """The address of a Dask scheduler on loopback with two workers, all processes of their own."""
    port, = free_ports(1)
    address = f"tcp://127.0.0.1:{port}"
    log, processes = open(tmp_path / "dask.log", "w"), []
    settings = {"stdout": log, "stderr": log, "cwd": tmp_path,
                "env": os.environ | {"PYTHONPATH": str(Path(run.__file__).parents[1])}}
    try:
        for more in (["scheduler", "--host", "127.0.0.1", "--port", port],
                     *[["worker", address, "--host", "127.0.0.1", "--nthreads", "1"]] * 2):
            processes.append(subprocess.Popen([sys.executable, "-m", "dask", *more, "--no-dashboard"], **settings))
        yield address
    finally:
        log.close()
        for process in reversed(processes):
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
            process.wait()


@pytest.mark.dask
def test_a_task_that_outlives_its_driver_harms_nothing(small_videos, tmp_path, dask_scheduler):
    """The driver is killed, its task goes on in a worker of the cluster; the run is resumed meanwhile."""
    store, options = tmp_path / "store", ("--set", "packs.videos=12", *SLOW_FLOW)
    assert preprocess(small_videos, tmp_path / "expected", *options) == 0
    cluster = "--engine", "dask", "--address", dask_scheduler
    with started(small_videos, store, *options, *cluster, "--workers", "1") as process:
        wait_until(lambda: at_work(store), process)
        orphan, = store.glob("packs/*/.*.partial")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert orphan.exists()
    with started(small_videos, store, *options, *cluster) as process:
        assert "12 to do, 0 done" in finish(process)
    assert not orphan.exists()
    assert arrays(store) == arrays(tmp_path / "expected") != {}
    wait_until(lambda: not at_work(store))        # the orphan has found its folder gone, and cleared up
    check_passes(store)
    with started(small_videos, store, *options, *cluster) as process:
        assert "0 to do, 12 done" in finish(process)
    assert record(store)["cluster"]["address"] == dask_scheduler


@pytest.mark.dask
def test_an_address_where_nobody_answers_is_one_line(small_videos, tmp_path):
    with started(small_videos, tmp_path / "store", "--address", "tcp://127.0.0.1:1") as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2 and len(err.splitlines()) == 1, err
    assert "--address tcp://127.0.0.1:1: no Dask scheduler answers there" in err
    assert not (tmp_path / "store").exists()


@pytest.mark.ray
def test_a_ray_that_cannot_start_is_one_line(small_videos, tmp_path, monkeypatch):
    """As on a machine with too much to do, Ray's own server is later than ray.init waits for it, both times."""
    store = tmp_path / "store"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "0")
        with started(small_videos, store, "--engine", "ray") as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        tries = [path for path in Path(folder, "ray").glob("session_*") if not path.is_symlink()]
    assert process.returncode == 3 and len(tries) == 2 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped: Ray did not start on this machine, twice (")
    assert not packs(store)


@pytest.mark.ray
def test_workers_of_ray_that_are_late_are_one_line(tmp_path):
    """A real Ray, whose workers are not waited for at all."""
    script = "from preprocess.engines import ray; from shared import cli; ray.PATIENCE_S = 0.0; " \
        "cli.command(lambda argv: bool(ray.Driver(1)))"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S,
                              env=os.environ | {"RAY_TMPDIR": folder})
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("stopped: the workers of Ray have not started within 0 s;")


@pytest.fixture
def ray_head(tmp_path):
    """The job address of a Ray head on loopback, and the environment of its users; it ends with what it started.

    It has a token of its own: Ray asks for one wherever a local run has left its default in the home folder.
    """
    ports = free_ports(4)                         # another Ray on this machine may hold the usual ones
    folder = tempfile.mkdtemp(prefix="ray-")      # sockets below it: its path must be short
    python = Path(sys.executable).parent
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0",
                                "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(),
                                "PATH": f"{python}:{os.environ['PATH']}"}
    with open(tmp_path / "ray.log", "w") as log:
        head = subprocess.Popen(
            [python / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={ports[0]}",
             "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[2]}",
             f"--dashboard-agent-listen-port={ports[3]}",
             "--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats", f"--temp-dir={folder}"],
            env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(ports[1])), 1):
                break
            assert time.monotonic() < deadline and head.poll() is None, (tmp_path / "ray.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{ports[1]}", environment
    finally:
        below = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(30)
        for process in (*below, head):
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def submit(head, *job):
    """Exit code and output of `ray job submit` from the repository's folder."""
    address, environment = head
    line = [Path(sys.executable).with_name("ray"), "job", "submit", "--address", address, "--working-dir", ".", "--"]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run([*line, *job], cwd=Path(run.__file__).parents[1], capture_output=True, text=True,
                              timeout=PATIENCE_S, env=environment)
        output = done.stdout + done.stderr
        if "No available agent to submit job" not in output or time.monotonic() > deadline:
            return done.returncode, output
        time.sleep(1)   # the head answers before its agent does


@pytest.mark.slow
@pytest.mark.ray
def test_a_submitted_ray_job(finished, small_videos, tmp_path, ray_head):
    store = tmp_path / "store"
    on_cluster = "--engine", "ray", "--address", "auto"
    code, out = submit(ray_head, "python", *command(small_videos, store, *on_cluster)[1:])
    assert code == 0, out
    assert "done: 12 videos, 480 frames in 3 packs" in out
    assert arrays(store) == arrays(finished)
    check_passes(store)
    told = record(store)["cluster"]
    assert told["address"] == "auto" and "working_dir_files" in told["code"][0]["location"]
    # A relative path would lead into the job's temporary folder: refused, as the line in its output says.
    code, out = submit(ray_head, "python", *command(small_videos, "stores/x", *on_cluster)[1:])
    assert code == 1 and "error: --store stores/x is relative, and a submitted Ray job runs in a temporary copy" in out
