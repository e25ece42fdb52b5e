"""Tasks on Dask: child processes of this one on loopback, or the workers of a scheduler that runs already.

Dask's own are the retries of exceptions and of tasks whose worker died, the nannies that start workers anew, the
resource GPU, and the shipping of code. Ours are the limits (guard.py) and the quarantine (window.py): Dask blames every
task that was assigned to a dying worker. This file alone imports Dask.
"""

import logging
import os
import queue
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask
import distributed
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import get_backend
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerUploadFile, UploadFile
from distributed.utils import sync

from preprocess.engines import RETRIES, Outcome, Resources, guard, ship
from preprocess.engines.window import Ended, Ledger, fit, lost, unordered
from shared.cli import RequestError, Stopped
from shared.videos.isolate import out_of_reach

CONNECT_S = 15.0    # until an address without an answer is refused
PATIENCE_S = 60.0   # until a cluster without a worker counts as lost
LOOK_S = 5.0        # between looks at the cluster while nothing ends
TELL_S = 10.0       # until a worker that cannot reach the scheduler ends its process without a word
LOOPBACK = "127.0.0.1"
GO_ON = "run the same command again to go on"


@dataclass(frozen=True)
class Terms:
    """What is the same for all tasks of a run. topic: where workers tell; code: what they must run."""

    topic: str
    code: str
    limits: Resources


def attempt(fn: Callable, task: Any, number: int, terms: Terms) -> Any:
    """One try of a task, in a worker."""
    worker, name = distributed.get_worker(), f"{os.uname().nodename}:{os.getpid()}"
    ship.insist(terms.code)

    def tell(event: str) -> None:
        # A call, not a message: it is on the scheduler, and so ahead of the result, when it returns.
        sync(worker.loop, worker.scheduler.log_event, topic=terms.topic,
             msg={"task": number, "event": event, "worker": name}, callback_timeout=TELL_S)

    tell("began")
    return guard.run(fn, task, terms.limits, tell)


class DaskEngine:
    """The contract on Dask. Raises RequestError where the cluster cannot be had or its workers run other code.

    workers: how many tasks run at once; None: one a core, or one a share of a GPU; of a given cluster, all that it has.
    address: of a scheduler; its workers get our code from here.   resources: a task's, of which GPUs count here.
    """

    name = "dask"

    def __init__(self, workers: int | None = None, address: str | None = None, resources: Resources = Resources()):
        self.limit, self.address, self.gpus = workers, address, resources.gpus
        self.cluster = self.client = None
        logging.getLogger("distributed").setLevel(logging.CRITICAL)   # whatever matters ends in an Outcome
        try:
            if address is None:
                self.cluster = _local_cluster(workers, self.gpus)
            self.client = _connect(address or self.cluster)
            self._slots, self._looked = self._count_slots(wait=True), time.monotonic()
            if address is not None:
                self._ship_code()
            self.reports = self.client.run(ship.report)
            ship.check(self.reports)
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> int:
        """Tasks in flight. Of a given cluster as it was LOOK_S ago at the latest: workers come and go there."""
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            if self.cluster is not None:
                self._revive()
                return self._slots
            try:
                self._slots = max(1, self._count_slots())
            except RequestError as error:   # a worker has joined that no task may go to
                raise Stopped(f"{error}, then {GO_ON}") from error
        return self._slots

    def map_unordered(self, fn: Callable, tasks: Iterable, resources: Resources = Resources(),
                      retries: int = RETRIES) -> Iterator[Outcome]:
        terms = Terms(f"motionpack-{uuid.uuid4().hex}", ship.digest(), resources)
        ledger, finished, futures = Ledger(), queue.SimpleQueue(), {}
        if self.cluster is not None:
            self.cluster.scheduler.allowed_failures = retries

        def start(number: int, task: Any) -> None:
            future = self.client.submit(attempt, fn, task, number, terms, key=(terms.topic, number), retries=retries,
                                        resources={"GPU": self.gpus} if self.gpus else None)
            futures[number] = task, future
            future.add_done_callback(lambda _: finished.put(number))

        def finish() -> Ended:
            while True:
                try:
                    number = finished.get(timeout=LOOK_S)
                    break
                except queue.Empty:
                    self._insist_on_workers()
            task, future = futures.pop(number)
            try:
                return self._ended(number, task, future, ledger, retries)
            finally:
                future.release()   # or Dask would compute it again when the worker that holds the result dies

        self.client.subscribe_topic(terms.topic, partial(_hear, ledger))
        try:
            yield from unordered(tasks, resources, lambda: self.slots, start, finish)
        finally:
            if self.client.status == "running":
                self.client.cancel([future for _, future in futures.values()], force=True)
                self.client.unsubscribe_topic(terms.topic)

    def describe(self) -> dict:
        """For the run's record; `code` counts the workers by what they reported at the start."""
        return {"engine": self.name, "version": distributed.__version__, "slots": self._slots,
                "address": self.address or "local", "code": ship.summary(self.reports)}

    def close(self) -> None:
        """Ends the workers that were started here; a given cluster stays."""
        for part in (self.client, self.cluster):
            if part is not None:
                part.close()

    def _ended(self, number: int, task: Any, future: distributed.Future, ledger: Ledger, retries: int) -> Ended:
        if future.status == "cancelled":
            raise Stopped(f"the Dask scheduler at {self.client.scheduler.address} is gone; start it and its workers, "
                          f"then {GO_ON}")
        value = error = None
        try:
            value = future.result()   # may be computed anew, when the worker that held it has died since
        except ship.OtherCode as other:
            raise Stopped(f"{other}; {GO_ON}") from other
        except Exception as failure:
            error = failure
        story, seconds = ledger.close(number)
        if isinstance(error, distributed.KilledWorker):
            return lost(task, story, seconds, retries)
        return Ended(Outcome(task, value, error, "error" if error else "done", story.attempts, story.worker))

    def _ship_code(self) -> None:
        """Our packages to the scheduler, which reads the tasks, and to all workers, those that join later too."""
        with tempfile.TemporaryDirectory() as folder:
            path = str(ship.archive(Path(folder)))
            upload = SchedulerUploadFile(path)
            upload.idempotent = True
            self.client.register_plugin(upload, name=f"motionpack-{ship.digest()}")
            self.client.register_plugin(UploadFile(path), name="motionpack")

    def _workers(self) -> dict[str, dict]:
        """The workers that take our tasks, by address."""
        found = self.client.scheduler_info()["workers"]
        return {address: worker for address, worker in found.items()
                if not self.gpus or worker["resources"].get("GPU", 0) >= self.gpus}

    def _count_slots(self, wait: bool = False) -> int:
        """How many tasks the cluster takes at once; with `wait` it is given time to have a first worker."""
        deadline = time.monotonic() + PATIENCE_S
        while not (workers := self._workers()) and wait:
            if time.monotonic() > deadline:
                kind = "worker with the resource GPU (dask worker --resources GPU=1)" if self.gpus else "worker"
                raise RequestError(f"no {kind} has joined the Dask scheduler at {self.address} in {PATIENCE_S:.0f} s; "
                                   "start some, then run the command again")
            time.sleep(0.5)
        for address, worker in workers.items():
            if worker["nthreads"] > 1:
                raise RequestError(f"the Dask worker {address} has {worker['nthreads']} threads; a task's limits end "
                                   "its whole process, so start the workers with --nthreads 1")
        return min(len(workers), self.limit or len(workers))

    def _insist_on_workers(self) -> None:
        """Raises Stopped where no worker is left, and none has come back in PATIENCE_S."""
        deadline = time.monotonic() + PATIENCE_S
        while self.client.status == "running" and not self._workers():
            if self.cluster is not None:
                self._revive()
            if time.monotonic() > deadline:
                cure = "start workers" if self.address else "see what keeps processes from starting here"
                raise Stopped(f"no worker is left on the Dask scheduler at {self.client.scheduler.address}; {cure}, "
                              f"then {GO_ON}")
            time.sleep(0.5)

    def _revive(self) -> None:
        """Other nannies for those that gave up: they do when their worker dies before it is up."""
        nannies = self.cluster.workers
        for name in [name for name, nanny in nannies.items() if nanny.status in (Status.closed, Status.failed)]:
            nannies.pop(name, None)
        self.cluster.scale(len(self.cluster.worker_spec))


def _hear(ledger: Ledger, event: tuple[float, dict]) -> None:
    _, message = event
    ledger.note(message["task"], message["event"], message["worker"])


def _connect(address) -> distributed.Client:
    try:
        if isinstance(address, str):
            _look_for_scheduler(address)
        return distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RequestError(f"--address {address}: no Dask scheduler answers there ({' '.join(str(error).split())}); "
                           "expected tcp://HOST:8786 of one that runs (dask scheduler)") from error


def _look_for_scheduler(address: str) -> None:
    """Raises ValueError for an address that is none, or of something else: there a Client would wait without end."""
    scheme, place = parse_address(address)
    get_backend(scheme)
    host, port = parse_host_port(place)
    if scheme != "tcp":
        return
    try:
        connection = socket.create_connection((host, port), CONNECT_S)
    except OSError:
        return   # it may start just now: the Client tries for a while
    with connection:
        with suppress(OSError):
            if connection.recv(1):   # a scheduler speaks first
                return
        raise ValueError("something else listens")


def _local_cluster(workers: int | None, gpus: float) -> distributed.SpecCluster:
    """A scheduler in this process and its workers: children that the loss of this process ends, each with a nanny that
    starts it anew. One thread each; no limit of memory, the guard's is the task's own."""
    dask.config.set({"distributed.worker.multiprocessing-method": "spawn", "distributed.admin.tick.limit": "1h",
                     "distributed.worker.profile.enabled": False,      # it looks at every worker 100 times a second
                     "distributed.deploy.lost-worker-timeout": "1h",   # a busy machine takes its time to restart one
                     # With its threshold malloc would map, and the kernel clear, every array anew.
                     "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
                     "distributed.scheduler.worker-saturation": 1.0})   # others wait on the scheduler, out of harm
    devices = visible_gpus() if gpus else []
    if gpus and not fit(len(devices), gpus):
        less = f"ask for less by --set run.gpus_per_task={len(devices)}, or " if devices else ""
        raise RequestError(f"a task asks for {gpus:g} GPU and this machine shows {len(devices)}; {less}choose --flow "
                           "cpu")
    count = workers or (fit(len(devices), gpus) if gpus else len(os.sched_getaffinity(0)))
    quiet = {"dashboard": False, "dashboard_address": f"{LOOPBACK}:0", "host": LOOPBACK}
    options = quiet | {"nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    nannies = {n: {"cls": distributed.Nanny, "options": options} for n in range(count)}
    if gpus:
        each = max(1, int(gpus))
        for n, nanny in nannies.items():
            mine = ",".join(devices[(n * each + i) % len(devices)] for i in range(each))
            nanny["options"] = options | {"resources": {"GPU": gpus}, "env": {"CUDA_VISIBLE_DEVICES": mine}}
    with out_of_reach():   # the workers, and those that take their places later
        return distributed.SpecCluster(scheduler={"cls": distributed.Scheduler, "options": quiet}, workers=nannies,
                                       silence_logs=logging.CRITICAL)


def visible_gpus() -> list[str]:
    """The names, as CUDA_VISIBLE_DEVICES takes them, of the GPUs that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(n) for n in range(len(list(folder.iterdir())))] if folder.is_dir() else []
