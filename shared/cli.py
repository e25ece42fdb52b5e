"""What every command shares: exit codes, the one-line refusal, the progress line."""

import difflib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

DONE, FAILURES, REFUSED, STOPPED = 0, 1, 2, 3


class RequestError(ValueError):
    """The request itself is wrong: one line saying what arrived, what was expected, what to do. Exit code 2."""


class Stopped(Exception):
    """The run had to stop before its end; the message says how to go on. Exit code 3."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, or the list of all names."""
    names = sorted(map(str, names))
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def command(main: Callable[[list[str]], int], resume: str = "run the same command again to go on") -> None:
    """Run `main(argv)` and leave with the contract's exit code.

    Users' mistakes become one line on stderr (2); Ctrl-C, SIGTERM and a full disk become one line and 3.
    Anything else is a bug of ours and keeps its traceback.
    """
    def on_sigterm(signum, frame):
        raise KeyboardInterrupt("SIGTERM")

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        code = main(sys.argv[1:])
    except RequestError as error:
        code = _say(f"error: {error}", REFUSED)
    except Stopped as stop:
        code = _say(f"stopped: {stop}", STOPPED)
    except KeyboardInterrupt as interrupt:
        code = _say(f"stopped: {str(interrupt) or 'interrupted'}; {resume}", STOPPED)
    except BrokenPipeError:
        # The reader of our output left (`| head`): point stdout elsewhere so that the interpreter's flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = STOPPED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        code = _say(f"stopped: no space left for {error.filename or 'the store'}; free some, then {resume}", STOPPED)
    sys.exit(code)


def _say(line: str, code: int) -> int:
    print(" ".join(str(line).split()), file=sys.stderr, flush=True)
    return code


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 05 s, 7 h 20 min, 12 days 3 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} days {seconds % 86400 // 3600} h"


def size(count: float) -> str:
    """Bytes as people read them: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


class Progress:
    """One line that rewrites itself on a terminal, or a plain line every `plain_s` seconds elsewhere.

    `update(done, text)` says how much of `total` is done; the ETA follows from the rate since the start.
    """

    def __init__(self, label: str, total: float, stream=None, plain_s: float = 15.0):
        self.label, self.total = label, total
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.wait = 0.2 if self.terminal else plain_s
        self.start = self.last = time.monotonic()
        self.width = 0

    def update(self, done: float, text: str = "", force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.last < self.wait:
            return
        self.last = now
        elapsed = now - self.start
        share = min(1.0, done / self.total) if self.total else 1.0
        eta = f", ETA {duration(elapsed * (1 - share) / share)}" if 0 < share < 1 else ""
        line = f"{self.label} {share:4.0%}{', ' + text if text else ''}, {duration(elapsed)}{eta}"
        if self.terminal:
            self.stream.write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def close(self, done: float | None = None, text: str = "") -> None:
        """End the line; on a terminal always, elsewhere only when the work was long enough to have been shown."""
        if self.terminal or time.monotonic() - self.start > 2:
            self.update(self.total if done is None else done, text, force=True)
        if self.terminal and self.width:
            self.stream.write("\n")
            self.stream.flush()
