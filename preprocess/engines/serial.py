"""Tasks one after another in this process: for debugging, tests, and machines where nothing else may start."""

from collections.abc import Callable, Iterable, Iterator

from preprocess.engines import Outcome, Resources


class SerialEngine:
    """The contract as a loop. Ctrl-C and SIGTERM reach the caller; every other exception is an Outcome."""

    name = "serial"

    def map_unordered(self, fn: Callable, tasks: Iterable, resources: Resources = Resources(),
                      retries: int = 0) -> Iterator[Outcome]:
        for task in tasks:
            for attempt in range(1, retries + 2):
                try:
                    outcome = Outcome(task, fn(task), attempts=attempt)
                    break
                except Exception as error:
                    outcome = Outcome(task, error=error, kind="error", attempts=attempt)
            yield outcome

    def close(self) -> None:
        """Nothing was started."""
