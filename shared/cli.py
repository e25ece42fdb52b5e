"""What every command shares: exit codes, the one-line refusal, the progress line."""

import argparse
import difflib
import errno
import fcntl
import io
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

DONE, FAILURES, REFUSED, STOPPED, FAULT = 0, 1, 2, 3, 70
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
FAREWELL_S = 60   # how long other ranks wait for torchrun to end them once rank 0 has spoken
NO_LOCKS = errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP
LOCK = ".lock"    # of a folder that a command writes; see `hold`
_came: list[str] = []   # why this process was told to stop
UNREACHABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST,
               errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV)


class RequestError(ValueError):
    """The request itself is wrong: one line saying what arrived, what was expected, what to do. Exit code 2."""


class Stopped(Exception):
    """The run had to stop before its end; the message says how to go on. Exit code 3."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, or the list of all names."""
    names = sorted(set(map(str, names)))
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"


class Arguments(argparse.ArgumentParser):
    """A parser whose complaints are RequestErrors of one line, and which takes no abbreviated flags.

    What follows an option that takes a value is its value, also where it begins with `-` as some ids do
    (`--video -_abc`), unless it is a flag of the command or, beginning with `--`, resembles one.
    """

    LITERAL = "\0"   # stands before such a value until it is read: no argument of a process can hold it

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args=None, namespace=None):
        args, option = list(sys.argv[1:] if args is None else args), None
        for i, word in enumerate(args):
            name, given, _ = word.partition("=")
            known = self._option_string_actions.get(name)
            if word == "--":
                break
            if known:
                option = known if known.nargs != 0 and not given else None
            elif option:
                if word.startswith("-") and not (
                        word.startswith("--") and difflib.get_close_matches(name, self._option_string_actions)):
                    args[i] = self.LITERAL + word
                option = option if option.nargs == "+" else None
        return super().parse_known_args(args, namespace)

    def _get_value(self, action, text):
        return super()._get_value(action, text.removeprefix(self.LITERAL))

    def error(self, message: str):
        flag = next((word.split("=")[0] for word in message.split() if word.startswith("-")), "")
        hint = nearest(flag, self._option_string_actions) if message.startswith("unrecognized arguments: -") else ""
        raise RequestError(f"{message}{hint}; `{self.prog} --help` lists all")


def local(text: str) -> Path:
    """An argument that names a folder or file of this machine. Refused are an empty one, which would mean the current
    folder, a URL, which would become a folder of that name, and what lies behind a link that leads nowhere."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a path is empty; give one, or . for the current folder")
    path = Path(text)
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL; expected a path on this machine")
    if dead := next((place for place in (path, *path.parents) if place.is_symlink() and not place.exists()), None):
        raise argparse.ArgumentTypeError(f"{dead} is a link to {os.readlink(dead)}, which is not there; make that, or "
                                         "give another path")
    return path


def typed(place: Path | str) -> str:
    """A path or URL as it is typed into a shell, for the commands that messages suggest: quoted where it has to be, and
    no flag where it begins with `-`."""
    return shlex.quote(f"./{place}" if str(place).startswith("-") else str(place))


def hold(place: Path, flag: str) -> int:
    """Lock a folder for this process; returns the descriptor that holds the lock until it is closed.

    flag: the argument that named the folder. Raises RequestError where another process holds it.
    """
    lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        flock(lock, fcntl.LOCK_EX, f"{flag} {place}")
    except BaseException as error:
        os.close(lock)
        if not isinstance(error, BlockingIOError):
            raise
        raise RequestError(f"{flag} {place} is in use by another process; wait for its end, or choose another "
                           "folder") from None
    return lock


def flock(file: int, operation: int, where: str) -> None:
    """`fcntl.flock` that waits for nobody. Raises BlockingIOError where another process holds the lock, RequestError
    where the file system has none."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise RequestError(f"{where}: its file system has no locks ({error.strerror}); mount it with them (Lustre: -o "
                           "flock), or choose a folder on another") from error


def catch_interrupts(rank: int = 0) -> list[str]:
    """Ctrl-C and SIGTERM become KeyboardInterrupt, said at once; before `command` runs, one line and exit code 3.

    The first statement of a command's module: importing numba takes a while, and people interrupt that too. Returns the
    reasons of the signals that have come: Python drops an exception that is raised in a callback of its own, as an
    import has many. rank: under torchrun, which ends slow ranks once rank 0 has left: rank 0 alone speaks.
    """
    def on_signal(number, frame):
        if rank == 0:
            print("stopping ...", file=sys.stderr, flush=True)
        _came.append("interrupted" if number == signal.SIGINT else "SIGTERM")
        raise KeyboardInterrupt(_came[-1])

    def hook(kind, error, trace):
        if not issubclass(kind, KeyboardInterrupt):
            os._exit(_fault(error))
        os._exit(STOPPED if rank else _say(f"stopped: {error or 'interrupted'} before the work began", STOPPED))

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    sys.excepthook = hook
    try:
        os.getcwd()
    except OSError as error:
        sys.exit(_say(f"error: the current folder cannot be read ({error.strerror}): it was removed or moved; cd to "
                      "one that is there", REFUSED))
    return _came


def command(main: Callable[[list[str]], int], resume: str = "run the same command again to go on",
            rank: int = 0) -> None:
    """Run `main(argv)` and leave with the contract's exit code.

    Users' mistakes, files that cannot be reached among them, become one line on stderr (2); Ctrl-C, SIGTERM, a full
    disk and storage that fails or does not answer become one line and 3. Anything else is a fault of ours: its
    traceback, one line, and 70. rank: under torchrun; what all ranks stop for alike, rank 0 says, and the others leave
    after it.
    """
    came = catch_interrupts(rank)
    threading.excepthook = _thread_fault
    if isinstance(sys.stdout, io.TextIOWrapper):      # names of files need be no UTF-8; they leave as they came
        sys.stdout.reconfigure(errors="surrogateescape")
    say = _say if rank == 0 else _leave_last
    try:
        if came:
            raise KeyboardInterrupt(came[0])
        code = main(sys.argv[1:])
    except RequestError as error:
        code = say(f"error: {error}", REFUSED)
    except Stopped as stop:
        code = say(f"stopped: {stop}", STOPPED)
    except KeyboardInterrupt as interrupt:
        code = say(f"stopped: {str(interrupt) or 'interrupted'}; {resume}", STOPPED)
    except BrokenPipeError:
        # The reader of our output left (`| head`): point stdout elsewhere so that the interpreter's flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _say(f"stopped: the reader of the output left; {resume}", STOPPED)
    except Exception as error:
        cause = full_disk(error) or error
        if not isinstance(cause, OSError) or not (cause.errno in FULL or cause.errno and cause.filename):
            code = _fault(error)
        elif cause.errno in FULL:
            where = cause.filename or f"what this command writes, or in the temporary folder {tempfile.gettempdir()}"
            code = _say(f"stopped: no space left for {where} ({cause.strerror}); free some, then {resume}", STOPPED)
        elif cause.errno in UNREACHABLE:
            code = _say(f"error: {_shown(cause)}; check the path and its permissions", REFUSED)
        else:
            code = _say(f"stopped: {_shown(cause)}; {resume}", STOPPED)
    sys.exit(code)


def full_disk(error: BaseException | None) -> OSError | None:
    """The full disk that `error` is or comes from: libraries turn it into errors of their own."""
    while error and not (isinstance(error, OSError) and error.errno in FULL):
        error = error.__cause__ or error.__context__
    return error


def _thread_fault(args) -> None:
    """A library's thread that meets a full disk says nothing: who waits for it raises that."""
    if not full_disk(args.exc_value):
        threading.__excepthook__(args)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """A full disk that the block meets is an OSError that names `path`, where no other file is named by then."""
    try:
        yield
    except Exception as error:
        if (full := full_disk(error)) is None or full is error and full.filename:
            raise
        raise OSError(full.errno, full.strerror, full.filename or str(path)) from error


def told_to_stop(reason: str) -> None:
    """For handlers of a signal that take the place of `catch_interrupts`'s."""
    _came.append(reason)


def _leave_last(line: str, code: int) -> int:
    """torchrun ends all ranks at the first that leaves: that must be rank 0, whose line people read. Where a signal
    came, it is ending them already, and kills after half a minute who is still there."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(code))
    if not _came:
        time.sleep(FAREWELL_S)
    return code


def _say(line: str, code: int) -> int:
    line = " ".join(part.strip() for part in str(line).splitlines())    # blanks within a path stay
    print(line, file=sys.stderr, flush=True)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):   # torchrun ends what it has to say with this
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}}, file)
    return code


def _fault(error: BaseException) -> int:
    traceback.print_exception(error)
    said = " ".join(str(error).split())[:300]
    return _say(f"fault: {type(error).__name__}{': ' + said if said else ''}; a fault of motionpack, not of the "
                "request: please report it with the lines above", FAULT)


def _shown(error: OSError) -> str:
    """The path, shortened where it is the fault, and what the system said of it."""
    name = str(error.filename)
    return f"{name if len(name) < 200 else name[:90] + ' ... ' + name[-90:]}: {error.strerror}"


def plural(number: int, one: str, many: str = "") -> str:
    """A number with what it counts: 1 video, 1,234 videos. many: where the plural is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


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
        self.stream = stream or sys.stderr or open(os.devnull, "w")
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
