"""Fixtures of the engines' tests: faults that workers can import, engines that must leave nothing, clusters."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from preprocess.engines import ENGINES, open_engine

HERE = Path(__file__).parent
PATIENCE_S = 300

sys.path.insert(0, str(HERE))   # the tests `import faults`, and so do the workers, under the same name


@pytest.fixture(scope="session", autouse=True)
def importable_faults():
    """`import faults` in every process that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="session")
def wait_until():
    """wait_until(condition): polls, and fails the test after a time that only a hang takes."""
    def wait(condition, seconds=PATIENCE_S):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{condition} did not come true in {seconds} s"
            time.sleep(0.05)
        return found
    return wait


@pytest.fixture(scope="session")
def descendants():
    """descendants(process): its children and theirs that run, but for multiprocessing's own resource tracker."""
    def find(process=None):
        out = []
        for child in psutil.Process(process).children(recursive=True):
            try:
                if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(child.cmdline()):
                    out.append(child)
            except psutil.NoSuchProcess:
                continue
        return out
    return find


@pytest.fixture(scope="module", params=[pytest.param(name, marks=[] if name == "serial" else getattr(pytest.mark, name))
                                        for name in ENGINES])
def engine(request, descendants, wait_until):
    """Each engine in turn, on this machine, with two workers; nothing of it may be left when it was closed."""
    before = set(descendants())
    engine = open_engine(request.param, None if request.param == "serial" else 2)
    yield engine
    engine.close()
    wait_until(lambda: not set(descendants()) - before)


@pytest.fixture
def start(tmp_path):
    """start(*command, **environment): a process whose output goes to a file; it and its children end with the test."""
    started = []

    def run(*command, **environment):
        log = tmp_path / f"process-{len(started)}.log"
        with log.open("w") as file:
            process = subprocess.Popen([str(part) for part in command], stdout=file, stderr=subprocess.STDOUT,
                                       cwd=tmp_path, env=os.environ | environment, start_new_session=True)
        process.log = log
        started.append(process)
        return process

    yield run
    for process in started:
        with_children = []
        if process.poll() is None:
            with_children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        process.wait()
        for child in with_children:
            try:
                child.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue


@pytest.fixture
def dask_cluster(start, tmp_path, wait_until):
    """A Dask scheduler, and `add(*options)`, which starts a bare worker: one that has what we depend on but not us."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    bare = {"PYTHONPATH": os.pathsep.join([site, str(HERE)]), "DASK_TEMPORARY_DIRECTORY": str(tmp_path / "scratch"),
            "PYTHONDONTWRITEBYTECODE": "1"}
    python = sys.executable, "-S", "-m"   # without site no editable install is seen
    assert start(*python, "preprocess.engines", **bare).wait() != 0

    class Cluster:
        file = tmp_path / "scheduler.json"
        scheduler = start(*python, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
                          "--no-dashboard", "--scheduler-file", file, **bare)
        scratch = tmp_path / "scratch"

        def add(self, *options):
            return start(*python, "distributed.cli.dask_worker", "--scheduler-file", self.file, "--host", "127.0.0.1",
                         "--nthreads", "1", "--no-dashboard", "--memory-limit", "0", *options, **bare)

    import json

    cluster = Cluster()
    cluster.address = wait_until(lambda: cluster.file.exists() and cluster.file.stat().st_size
                                 and json.loads(cluster.file.read_text())["address"])
    return cluster
