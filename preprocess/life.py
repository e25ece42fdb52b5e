"""Signs of life: what a run under way says of itself, in a small file of records/ that it renews and takes away.

Runs that make one store side by side know of one another by nothing else, and `preprocess.status` reads them.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from preprocess.account import Account
from preprocess.task import PackReport
from shared.cli import duration
from shared.store.lease import Busy
from shared.store.lock import make_folders
from shared.store.place import ObjectPath, Place
from shared.store.record import each_record, write_json_atomic

KIND = "life"
BEAT_S, QUIET_S = 10.0, 30.0          # between two signs; after which a run counts as dead
RECENT_S, STEP_S = 600.0, 10.0        # how far back the rate looks, and how finely


class Life:
    """The sign of this process, renewed by a thread from `start` to `close`. part: i/N of a part.

    `planned`, `begin` and `take` say what the run is at; times are seconds of the UNIX clock.
    """

    def __init__(self, store: Place, name: str, part: str = ""):
        self.name = name
        self.path, self.part = store / "records" / f"{KIND}-{name}.json", part
        self.facts = {"kind": KIND, "run": name, "part": part, "plan": "", "host": os.uname().nodename,
                      "pid": os.getpid(), "started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
        self.state, self.beats = "planning", 0
        self.packs_planned = self.failures = 0
        self.account = Account()
        self.under_way: dict[str, float] = {}
        self.unpublished: dict[str, tuple[int, int]] = {}      # packs of this run: videos, frames
        self.seen: dict[str, float] = {}
        self.recent: list[tuple[float, int, int]] = []
        self.guard, self.ended = threading.RLock(), threading.Event()
        self.thread = threading.Thread(target=self._renew, daemon=True)
        self.made: list[Path] = []

    def start(self) -> None:
        if isinstance(self.path, Path):
            make_folders(self.path.parent, self.made)
        try:
            self.beat()
        except FileNotFoundError:      # somebody swept what seemed left by a dead run
            self.beat()
        self.thread.start()

    def _renew(self) -> None:
        while not self.ended.wait(BEAT_S):
            with suppress(OSError):      # storage that does not answer, or a full disk: the work itself meets it too
                self.beat()

    def beat(self) -> None:
        with self.guard:
            self.beats += 1
            write_json_atomic(self.path, self.document())

    def document(self) -> dict:
        """What the file says. recent: [time, videos, frames] of the last minutes, made up to then."""
        now = time.time()
        return self.facts | {
            "state": self.state, "beats": self.beats, "now": now, "packs_planned": self.packs_planned,
            "failures": self.failures, "bytes": self.account.bytes,
            **{key: getattr(self.account, key) for key in ("packs", "videos", "frames")},
            "unpublished": self.unpublished,
            "under_way": {name: round(now - began, 1) for name, began in list(self.under_way.items())[:1000]},
            "workers": {name: told | {"seen": self.seen[name]} for name, told in self.account.workers.items()},
            "video_seconds": self.account.video_seconds(), "recent": self.recent}

    def planned(self, packs: int) -> None:
        """So many packs are this run's to make, and it begins now."""
        with self.guard:
            self.state, self.packs_planned, self.recent = "making packs", packs, [(time.time(), 0, 0)]

    def begin(self, pack: str) -> None:
        with self.guard:
            self.under_way[pack] = time.time()

    def lost(self, pack: str) -> None:
        with self.guard:
            self.under_way.pop(pack, None)

    def take(self, report: PackReport) -> None:
        """A pack has come to its end."""
        now = time.time()
        with self.guard:
            self.lost(report.task.name)
            self.account.take(report)
            if report.pack:
                self.unpublished[report.task.name] = len(report.videos), report.frames
            self.failures += len(report.failures)
            if report.worker:
                self.seen[report.worker] = now
            if len(self.recent) > 1 and self.recent[-1][0] - self.recent[-2][0] < STEP_S:
                self.recent.pop()
            self.recent.append((now, self.account.videos, self.account.frames))
            while len(self.recent) > 2 and self.recent[1][0] < now - RECENT_S:
                del self.recent[0]

    def published(self) -> None:
        with self.guard:
            self.unpublished.clear()

    def close(self) -> None:
        """Take the sign away, and the folders that nothing else has come into. A second call does nothing."""
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()
        with suppress(OSError):
            self.path.unlink()
        for folder in reversed(self.made):
            with suppress(OSError):
                folder.rmdir()


@dataclass(frozen=True)
class Sign:
    """A sign of life and the seconds since it was given, by the clock of the object storage or of this machine."""

    name: str
    document: dict
    age_s: float

    @property
    def alive(self) -> bool:
        return self.age_s <= QUIET_S


def signs(store: Place) -> list[Sign]:
    """The signs of all runs under way, and of those that were killed."""
    found = []
    for path, document in each_record(store, KIND):
        with suppress(FileNotFoundError):
            age = path.version_and_age()[1] if isinstance(path, ObjectPath) else time.time() - path.stat().st_mtime
            if isinstance(document, dict):
                found.append(Sign(path.name, document, age))
    return found


def parts_alive(store: Place, but: str = "") -> list[Sign]:
    """Signs of parts at work, but for the one of that name."""
    return [sign for sign in signs(store) if sign.document["part"] and sign.alive and sign.name != but]


def refuse_beside_a_run(store: Place) -> None:
    """For a part. Raises Busy where a run that is no part, and makes the whole store, is at work."""
    for sign in signs(store):
        if sign.alive and not sign.document["part"]:
            raise Busy(f"a run without --part is writing {store} ({_who(sign)}); wait until it ends, or stop it")


def await_silence(store: Place, own: str = "") -> None:
    """For whoever wants the store alone and holds its lock: parts hold the lock for moments only. Raises Busy where one
    lives, and waits at most QUIET_S for the signs of those that were killed to grow old. Removes these, and those of
    runs without --part, which the lock says are dead; not the one of the name `own`."""
    seen, told = {}, False
    while fresh := parts_alive(store):
        for sign in fresh:
            if seen.setdefault(sign.name, sign.document["beats"]) != sign.document["beats"]:
                raise Busy(f"part {sign.document['part']} is writing {store} ({_who(sign)}); wait until the parts end, "
                           "or stop them")
        if not told:
            print(f"part {fresh[0].document['part']} of {store} gave a sign {duration(fresh[0].age_s)} ago; watching "
                  f"for up to {QUIET_S:g} s whether it lives", file=sys.stderr, flush=True)
        told = True
        time.sleep(1)
    for sign in signs(store):
        if sign.name != own and not (sign.alive and sign.document["part"]):
            with suppress(FileNotFoundError):
                (store / "records" / sign.name).unlink()


def _who(sign: Sign) -> str:
    return f"process {sign.document['pid']} on {sign.document['host']}"
