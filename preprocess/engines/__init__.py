"""Engines run tasks; what a task does is none of their business.

The contract: `map_unordered(fn, tasks, resources, retries)` yields one Outcome a task, in any order. Errors are yielded,
never raised; tasks are taken from their iterable only when there is room for them, so as many are in flight as there are
slots. `fn` is a top-level function, a task small frozen data. `close()` ends what the engine started.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Resources:
    """What one task needs: cores and GPUs (fractions allowed)."""

    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True)
class Outcome:
    """How one task ended. kind: `done`, or `error` with the last exception; attempts counts every try."""

    task: Any
    value: Any = None
    error: BaseException | None = None
    kind: str = "done"
    attempts: int = 1
