"""Commands as processes of their own, several at a time, each with its log; none of them outlives this process."""

import ctypes
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

PR_SET_PDEATHSIG = 1     # prctl(2)
STOP_S = 90              # how long an ended process may take to save; torchrun gives its ranks 30 s
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Command:
    """argv; log: what it prints is appended there; environment: laid over ours."""

    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """code: exit code, negative for a signal; said: the one line of `cli.command` (`error: ...`, `stopped: ...`), or
    the last line of the log where there is none."""

    code: int
    said: str


Work = Generator[Command, Ended, None]     # its commands run one after the other; it may raise


@dataclass
class _Child:
    work: Work
    slot: int
    process: subprocess.Popen
    ready: int               # a descriptor that is readable once the process has ended
    log: Path
    since: int               # where its own output begins in the log


class Children:
    """Runs works side by side, one a slot. kept: descriptors that children hold open while they live (a lock's).

    Each child is a session of its own, so that a terminal's Ctrl-C reaches us alone; it gets SIGTERM when we end,
    however that happens.
    """

    def __init__(self, slots: int, kept: Sequence[int] = ()):
        self.free, self.kept, self.children = list(range(slots))[::-1], tuple(kept), []

    def run(self, works: Sequence[Callable[[int], Work]], tick: Callable[[], None], every_s: float = 5.0) -> None:
        """All of them, each called with its slot's number; tick: after each change and every `every_s` seconds.

        What a work raises ends the others, which save what they can, and is raised; so is KeyboardInterrupt.
        """
        waiting = list(works)[::-1]
        try:
            while waiting or self.children:
                while waiting and self.free:
                    slot = self.free.pop()
                    self._go_on(waiting.pop()(slot), slot, None)
                ended = wait([child.ready for child in self.children], every_s)
                for child in [child for child in self.children if child.ready in ended]:
                    self.children.remove(child)
                    os.close(child.ready)
                    self._go_on(child.work, child.slot, Ended(child.process.wait(), last_line(child.log, child.since)))
                tick()
        finally:
            self.stop()

    def _go_on(self, work: Work, slot: int, ended: Ended | None) -> None:
        try:
            command = work.send(ended)
        except StopIteration:
            self.free.append(slot)
            return
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with open(command.log, "ab") as log:
            log.write(f"$ {shlex.join(command.argv)}\n".encode())
            log.flush()
            since, parent = log.tell(), os.getpid()
            process = subprocess.Popen(command.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       env=os.environ | dict(command.environment), start_new_session=True,
                                       pass_fds=self.kept, preexec_fn=lambda: _die_with(parent))
        self.children.append(_Child(work, slot, process, os.pidfd_open(process.pid), command.log, since))

    def stop(self) -> None:
        """SIGTERM to every child, and wait until all have saved and ended; SIGKILL after STOP_S seconds."""
        for child in self.children:
            child.process.terminate()
        deadline = time.monotonic() + STOP_S
        for child in self.children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            os.close(child.ready)
        self.children = []


def _die_with(parent: int) -> None:
    """In the child, before its program: SIGTERM when the parent has gone, be it gone already."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def last_line(log: Path, since: int = 0) -> str:
    """The last `error:` or `stopped:` line of a log after its first `since` bytes, else its last line that says
    anything."""
    with open(log, "rb") as file:
        file.seek(since)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    return (told or lines or [""])[-1]
