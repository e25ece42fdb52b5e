"""numba.njit with its disk cache, and without one where the disk offers no place for it."""

import sys
from functools import cache

from numba import njit


@cache
def _say(reason: str) -> None:
    print(f"flow: {reason}; every process compiles for itself (set NUMBA_CACHE_DIR to a writable folder)",
          file=sys.stderr, flush=True)


def cached_njit(*args, **options):
    """As `numba.njit(cache=True)`. Numba refuses where neither the package, nor NUMBA_CACHE_DIR, nor the user's cache
    folder can be written, as in a read-only install: then without the cache, said once a process on stderr."""
    def decorate(function):
        try:
            return njit(*args, cache=True, **options)(function)
        except RuntimeError as error:
            if not str(error).startswith("cannot cache function"):
                raise
            _say("no writable folder for numba's cache of compiled code")
            return njit(*args, **options)(function)
    return decorate
