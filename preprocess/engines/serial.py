"""Tasks one after another in this process: for debugging, tests, and machines where nothing else may start."""

import os
from collections.abc import Callable, Iterable, Iterator

from preprocess.engines import RETRIES, Outcome, Resources


class SerialEngine:
    """The contract as a loop. Ctrl-C and SIGTERM reach the caller; every other exception is an Outcome.

    Limits of time and memory are not held here: to end a task would be to end this process.
    """

    name, slots = "serial", 1

    def map_unordered(self, fn: Callable, tasks: Iterable, resources: Resources = Resources(),
                      retries: int = RETRIES) -> Iterator[Outcome]:
        worker = f"{os.uname().nodename}:{os.getpid()}"
        for task in tasks:
            for attempt in range(1, retries + 2):
                try:
                    outcome = Outcome(task, fn(task), attempts=attempt, worker=worker)
                    break
                except Exception as error:
                    outcome = Outcome(task, error=error, kind="error", attempts=attempt, worker=worker)
            yield outcome

    def describe(self) -> dict:
        return {"engine": self.name, "slots": self.slots}

    def close(self) -> None:
        """Nothing was started."""
