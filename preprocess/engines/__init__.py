"""Engines run tasks; what a task does is none of their business.

The contract: `map_unordered(fn, tasks, resources, retries)` yields one Outcome a task, in any order. Errors are
yielded, never raised; tasks are taken from their iterable only when there is room for them, so as many are in flight as
there are `slots`. `fn` is a top-level function of a module that workers can import, a task small frozen data.
`describe()` is what a run's record keeps of the engine. `close()` ends what the engine started.

A cluster that is lost on the way raises shared.cli.Stopped; one that cannot be had at all raises RequestError.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from shared import cli
from shared.cli import RequestError

ENGINES = {"serial": "SerialEngine", "dask": "DaskEngine", "ray": "RayEngine"}
PACKAGES = {"dask": ("dask", "distributed"), "ray": ("ray",)}
INSTALL = {"dask": "pip install dask distributed", "ray": 'pip install "ray[default]"'}
RETRIES = 2


@dataclass(frozen=True)
class Resources:
    """What one task needs, and how far it may go before its process is ended.

    cpus, gpus: cores and GPUs, fractions allowed.   memory: bytes that the task's process may hold (resident), 0 = no
    limit.   timeout: seconds that one try may take, 0 = no limit.
    """

    cpus: float = 1
    gpus: float = 0
    memory: int = 0
    timeout: float = 0


class EngineError(RuntimeError):
    """A task that came to its end without an exception of its own: its process died, or went over a limit."""


@dataclass(frozen=True)
class Outcome:
    """How one task ended.

    kind: `done`; `error`, with the last exception of fn; `died`, when its process did; `timeout` or `memory`, when it
    was ended for going over that limit. For the last three `error` is an EngineError of one line.
    attempts: every try that began.   worker: host:pid of the last one.
    """

    task: Any
    value: Any = None
    error: BaseException | None = None
    kind: str = "done"
    attempts: int = 1
    worker: str = ""


class Engine(Protocol):
    """What every engine offers."""

    name: str

    @property
    def slots(self) -> int: ...

    def map_unordered(self, fn: Callable, tasks: Iterable, resources: Resources = Resources(),
                      retries: int = RETRIES) -> Iterator[Outcome]: ...

    def describe(self) -> dict: ...

    def close(self) -> None: ...


def check_request(name: str, workers: int | None = None, address: str | None = None) -> None:
    """Raises RequestError for a name, a number or an address that no engine can take, or a package that is not
    installed; starts and imports nothing."""
    if name not in ENGINES:
        raise RequestError(f"--engine {name!r} is not in this version{cli.nearest(name, ENGINES)}")
    if workers is not None and workers < 1:
        raise RequestError(f"--workers {workers}: expected 1 or more; leave it out for one a core, or one a GPU")
    if name == "serial" and (address or (workers or 1) > 1):
        raise RequestError("--engine serial runs one task after another in this process and takes no --workers and no "
                           "--address; choose --engine dask or ray for those")
    if name == "ray" and "://" in (address or ""):
        raise RequestError(f"--address {address}: expected auto, or HOST:6379 of a running Ray head; http://HOST:8265 "
                           "is for `ray job submit --address`, whose job has --address auto")
    for package in PACKAGES.get(name, ()):
        if importlib.util.find_spec(package) is None:
            raise RequestError(f"--engine {name} needs the package {package}, which is not installed; "
                               f"{INSTALL[name]} brings it")


def open_engine(name: str, workers: int | None = None, address: str | None = None,
                resources: Resources = Resources()) -> Engine:
    """The engine of that name, started or connected; its file is imported here and only here.

    workers: how many tasks run at once; None is one a core, or one a GPU share where tasks ask for GPUs, and with an
    address as many as the cluster takes.   address: of a cluster that runs already; None starts one on this machine.
    resources: a task's.
    Raises RequestError for a name, a number or an address that it cannot take, and for a package that is not installed.
    """
    check_request(name, workers, address)
    engine = getattr(importlib.import_module(f"preprocess.engines.{name}"), ENGINES[name])
    return engine() if name == "serial" else engine(workers, address, resources)
