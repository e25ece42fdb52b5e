"""Tasks on Ray: processes of its own on this machine, or a cluster that runs already, inside a Ray job or not.

Ray's own are the retries, of exceptions and of lost workers, the shares of GPUs, and the shipping of code. Ours are
the limits (guard.py), the quarantine (window.py), and an actor that remembers what workers told before they ended. This
file alone imports Ray.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from preprocess.engines import RETRIES, EngineError, Outcome, Resources, guard, ship
from preprocess.engines.apart import Apart
from preprocess.engines.window import Ended, Ledger, fit, lost, unordered
from shared.cli import RequestError, Stopped

CONNECT_S = 15.0    # until an address where nothing listens is refused
LOOK_S = 5.0        # between looks at the cluster while nothing ends
PATIENCE_S = 60.0   # until an answer of the cluster is no longer waited for
TELL_S = 10.0       # until a worker that cannot reach the ledger ends its process without a word
GO_ON = "run the same command again to go on"
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",   # the one setting that keeps every socket on loopback
         "RAY_USAGE_STATS_ENABLED": "0",
         "RAY_task_oom_retries": str(RETRIES)}       # else without end


@dataclass(frozen=True)
class Terms:
    """What is the same for all tasks of a run. ledger: the actor that workers tell; code: what they must run."""

    ledger: Any
    code: str
    limits: Resources
    retries: int


def attempt(fn: Callable, task: Any, number: int, terms: Terms) -> Any:
    """One try of a task, in a worker."""
    import ray

    name = f"{os.uname().nodename}:{os.getpid()}"
    ship.insist(terms.code)

    def tell(event: str) -> int:
        return ray.get(terms.ledger.note.remote(number, event, name), timeout=TELL_S)

    tries = tell("began")
    if tries > 2 * (terms.retries + 1):   # a cluster repeats without end what its nodes had no memory for
        raise EngineError("given up")
    return guard.run(fn, task, terms.limits, tell)


class RayEngine(Apart):
    """The contract on Ray. Raises RequestError where the cluster cannot be had or its workers run other code.

    workers: how many tasks run at once; None: one a core, or one a share of a GPU.   address: of a cluster, or `auto`;
    outside of a Ray job its workers get our code from here.   resources: cores and GPUs that a task takes.
    """

    name = "ray"

    def __init__(self, workers: int | None = None, address: str | None = None, resources: Resources = Resources()):
        lost = "the Ray cluster is gone; start it, then" if address else "Ray on this machine has ended;"
        super().__init__(Driver, (workers, address, resources), f"{lost} {GO_ON}")


class Driver:
    """The driver as Ray knows it, in a process apart: Ray ends the driver's process where it loses the cluster."""

    name = "ray"

    def __init__(self, workers: int | None = None, address: str | None = None, resources: Resources = Resources()):
        self.limit, self.address, self.needs = workers, address, resources
        self.ray = _connect(workers, address)
        try:
            self._slots, self._looked = self._room(), time.monotonic()
            if not self._slots:
                less = "--set run.gpus_per_task=1, or choose --flow cpu" if resources.gpus else "--set run.threads=1"
                raise RequestError(f"a task asks for {self._asked()} and no node of the Ray cluster has as much; start "
                                   f"one, or ask for less by {less}")
            self.reports = self._ask_nodes()
            ship.check(self.reports)
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> int:
        """Tasks in flight. Of a given cluster as it was LOOK_S ago at the latest: nodes come and go there."""
        if self.address is not None and time.monotonic() - self._looked > LOOK_S:
            self._slots, self._looked = max(1, self._room()), time.monotonic()
        return self._slots

    def map_unordered(self, fn: Callable, tasks: Iterable, resources: Resources = Resources(),
                      retries: int = RETRIES) -> Iterator[Outcome]:
        ray = self.ray
        # On the driver's node: no other node's loss takes it along.
        here = self._on(ray.get_runtime_context().get_node_id())
        ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote()
        terms, fn = ray.put(Terms(ledger, ship.digest(), resources, retries)), ray.put(fn)
        # max_calls=0: a worker process serves any number of tasks, and keeps its kernels and its CUDA context.
        run = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=0, max_retries=retries,
                         retry_exceptions=True)(attempt)
        flying = {}

        def start(number: int, task: Any) -> None:
            flying[run.remote(fn, task, number, terms)] = number, task

        def finish() -> Ended:
            while True:
                ready, _ = ray.wait(list(flying), num_returns=1, timeout=LOOK_S)
                if ready:
                    return self._ended(ready[0], *flying.pop(ready[0]), ledger, retries)
                self._insist_on_nodes()

        # What is in flight when the caller stops is left to close(): cancelled by force it can abort this process.
        yield from unordered(tasks, resources, lambda: self.slots, start, finish)

    def describe(self) -> dict:
        """For the run's record; `code` counts the nodes by what a worker of theirs reported at the start."""
        return {"engine": self.name, "version": self.ray.__version__, "slots": self._slots,
                "address": self.address or "local", "code": ship.summary(self.reports)}

    def close(self) -> None:
        """Ends what was started here; a given cluster stays, and ends what this run has left there."""
        self.ray.shutdown()

    def _ended(self, ref, number: int, task: Any, ledger, retries: int) -> Ended:
        errors, value, error = self.ray.exceptions, None, None
        try:
            value = self.ray.get(ref)
        except errors.RayTaskError as wrapped:
            error = wrapped.cause
            if isinstance(error, ship.OtherCode):
                raise Stopped(f"{error}; {GO_ON}") from error
        except errors.RayError as failure:
            error = failure
        story, seconds = self._ask(ledger.close.remote(number))
        if isinstance(error, errors.OutOfMemoryError) or isinstance(error, EngineError) and str(error) == "given up":
            return lost(task, story, seconds, retries, kind="memory")
        if isinstance(error, (errors.WorkerCrashedError, errors.NodeDiedError, errors.LocalRayletDiedError)):
            return lost(task, story, seconds, retries)
        return Ended(Outcome(task, value, error, "error" if error else "done", story.attempts, story.worker))

    def _ask(self, ref) -> Any:
        """What the cluster answers. Raises Stopped when it does not."""
        try:
            return self.ray.get(ref, timeout=PATIENCE_S)
        except self.ray.exceptions.RayError as error:
            raise Stopped(f"the Ray cluster is gone ({type(error).__name__}); start it, then {GO_ON}") from error

    def _on(self, node: str) -> Any:
        """Runs there or not at all."""
        return self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)

    def _nodes(self) -> list[dict]:
        """Raises Stopped where the cluster's head does not answer."""
        try:
            return [node for node in self.ray.nodes() if node["Alive"]]
        except Exception as error:
            raise Stopped(f"the Ray cluster is gone ({_line(error)}); start it, then {GO_ON}") from error

    def _room(self) -> int:
        """Tasks that fit the cluster's nodes, each whole on one of them; `workers` at most."""
        needs = {"CPU": self.needs.cpus, "GPU": self.needs.gpus}
        room = sum(min(fit(node["Resources"].get(name, 0), share) for name, share in needs.items() if share)
                   for node in self._nodes())
        return min(room, self.limit or room)

    def _asked(self) -> str:
        return f"{self.needs.cpus:g} CPU" + (f" and {self.needs.gpus:g} GPU" if self.needs.gpus else "")

    def _ask_nodes(self) -> dict[str, dict]:
        """What a worker of every node reports, by the node's address."""
        asked = {node["NodeManagerAddress"]: self.ray.remote(ship.report).options(
            num_cpus=0, scheduling_strategy=self._on(node["NodeID"])).remote() for node in self._nodes()}
        try:
            return {address: self.ray.get(ref, timeout=PATIENCE_S) for address, ref in asked.items()}
        except self.ray.exceptions.GetTimeoutError as error:
            raise Stopped(f"the workers of Ray have not started within {PATIENCE_S:g} s; wait until less runs there, "
                          f"then {GO_ON}") from error
        except self.ray.exceptions.RayError as error:
            raise RequestError(f"the workers of the Ray cluster do not load our code ({_line(error)}); submit the job "
                               "with --working-dir, or install motionpack on every node") from error

    def _insist_on_nodes(self) -> None:
        """Raises Stopped where the cluster's head does not answer, or no node has taken tasks for PATIENCE_S."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._room():
            if time.monotonic() > deadline:
                raise Stopped(f"no node is left in the Ray cluster that has the {self._asked()} of a task; start "
                              f"one, then {GO_ON}")
            time.sleep(0.5)


def _connect(workers: int | None, address: str | None):
    """The module ray, connected. SIGTERM keeps its handler, which ray.init would replace."""
    if address is None:
        os.environ.update(LOCAL)   # read when ray is imported
    import ray
    import ray.util.scheduling_strategies

    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "configure_logging": True,
                                "logging_level": logging.CRITICAL}
    if address is None:
        settings |= {"address": "local", "num_cpus": max(workers or 0, len(os.sched_getaffinity(0)))}
    else:
        settings["address"] = address
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:   # else whoever submitted the job has shipped the code
            settings["runtime_env"] = {"py_modules": [str(folder) for folder in ship.folders().values()],
                                       "excludes": ["**/__pycache__"]}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address not in (None, "auto"):
            look_for_head(address)
        try:
            ray.init(**settings)
        except Exception:      # a machine with too much to do misses Ray's own deadlines
            if address is not None:
                raise
            ray.shutdown()
            ray.init(**settings)
    except Exception as error:
        if address is None:
            raise Stopped(f"Ray did not start on this machine, twice ({_line(error)}); wait until less runs here, or "
                          f"take --engine dask, then {GO_ON}") from error
        if not isinstance(error, (ConnectionError, RuntimeError, ValueError)):
            raise
        raise RequestError(f"--address {address}: no Ray cluster that this process can join ({_line(error)}); expected "
                           "auto, or HOST:6379 of a head that runs (ray start --head); one that asks for its token is "
                           "joined with RAY_AUTH_MODE=token in the environment") from error
    finally:
        signal.signal(signal.SIGTERM, handler)
    return ray


def look_for_head(address: str) -> None:
    """Raises ValueError for what is not HOST:PORT, ConnectionError where nobody listens: ray.init waits minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("missing port number")
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ConnectionError(str(error)) from error
            time.sleep(0.5)   # it may start just now


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
