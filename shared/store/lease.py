"""One writing run a store at a time, on object storage: a lease instead of a kernel's lock.

STORE/.lock names its holder and is renewed every BEAT_S seconds; what has not been renewed for LEASE_S seconds belongs
to a dead run and may be taken over. A holder that was paused for so long finds its lock changed and stops. The fence
that holds without any clock is `current`: it is replaced only if it is what it was when this run took the store.
"""

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from shared.cli import RequestError, Stopped
from shared.store.object_path import Conflict, ObjectPath

LOCK = ".lock"
LEASE_S, BEAT_S = 30.0, 5.0
GO_ON = "run the same command again to go on"

class Busy(RequestError):
    """Another run holds the store."""


_held: dict[str, "Lease"] = {}  # by the store's URL, in this process


class Lease:
    """The right to write a store, renewed by a thread until `release`. `confirm` raises Stopped once it is lost."""

    def __init__(self, store: ObjectPath, patience_s: float = 0.0):
        self.store, self.lock, self.current = store, store / LOCK, store / "current"
        self.holder = {"owner": uuid.uuid4().hex, "host": os.uname().nodename, "pid": os.getpid(),
                       "since": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "lease_s": LEASE_S}
        self.beats, self.renewed, self.lost = 0, time.monotonic(), False
        self.guard, self.ended = threading.Lock(), threading.Event()
        self.version = self._acquire(patience_s)
        self._try_conditions()
        self.published = _version(self.current)
        self.thread = threading.Thread(target=self._renew, daemon=True)
        self.thread.start()

    def _bytes(self) -> bytes:
        return (json.dumps({**self.holder, "beats": self.beats}) + "\n").encode()

    def _acquire(self, patience_s: float) -> str:
        """The lock's version. Waits at most LEASE_S for a holder that shows no life; raises Busy for one that does for
        longer than patience_s, and Stopped where nobody else seems to hold the lock and it cannot be had for as long.
        """
        seen, began = None, time.monotonic()
        deadline = began + patience_s + 2 * LEASE_S
        while True:
            try:
                return self.lock.put_if(self._bytes(), None)
            except Conflict:
                pass
            try:
                version, age = self.lock.version_and_age()
                holder = json.loads(self.lock.read_bytes())
            except FileNotFoundError:   # released a moment ago
                self._pause(deadline)
                continue
            if seen is None:
                seen, since = version, time.monotonic()
                if age <= holder["lease_s"] and not patience_s:
                    print(f"{self.store} was held a moment ago by process {holder['pid']} on {holder['host']}; "
                          f"watching for up to {holder['lease_s']:g} s whether it lives", file=sys.stderr, flush=True)
            if version != seen and time.monotonic() - began > patience_s:
                raise Busy(f"another run is writing {self.store} (process {holder['pid']} on "
                           f"{holder['host']}); wait until it ends, or stop it")
            if version != seen:
                seen, since = version, time.monotonic()
            if max(age, time.monotonic() - since) > holder["lease_s"]:
                try:
                    return self.lock.put_if(self._bytes(), version)
                except Conflict:
                    pass  # it lives after all, or another run was faster
            self._pause(deadline)

    def _pause(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise Stopped(f"{self.lock} could not be had: it comes and goes, or the storage contradicts itself; look "
                          f"whether other runs write {self.store}, then {GO_ON}")
        time.sleep(BEAT_S / 10)

    def _try_conditions(self) -> None:
        """Say so where the server takes every write whatever its condition, as older S3 servers do."""
        self.beats += 1
        try:
            self.version = self.lock.put_if(self._bytes(), None)
        except Conflict:
            return
        print(f"note: the storage of {self.store} ignores conditional writes (If-None-Match), so nothing keeps a "
              "second run from writing at the same time; see that there is none", file=sys.stderr, flush=True)

    def _renew(self) -> None:
        while not self.ended.wait(BEAT_S):
            try:
                self._beat()
            except OSError:
                continue  # the storage does not answer: the next beat, or the next write, tries again
            if self.lost:
                return

    def _beat(self) -> None:
        with self.guard:
            if self.lost:
                return
            self.beats += 1
            began = time.monotonic()
            try:
                self.version = self.lock.put_if(self._bytes(), self.version)
                self.renewed = began
            except Conflict:
                self.lost = True

    def confirm(self) -> None:
        """Make sure, before something is written or removed, that no other run can hold the store for a while."""
        if time.monotonic() - self.renewed > self.holder["lease_s"] / 3:
            self._beat()
        if self.lost:
            raise Stopped(f"another run has taken over {self.store}, because this one was not heard of for "
                          f"{self.holder['lease_s']:g} s; what that run does not hold, it makes again: let it work")

    def publish(self, generation: str) -> None:
        """Put a generation of the index in force, if `current` is as this run left it."""
        self.confirm()
        try:
            self.published = self.current.put_if(f"{generation}\n".encode(), self.published)
        except Conflict as error:
            self.lost = True
            raise Stopped(f"{self.current} was replaced by another run; nothing of it was changed; {GO_ON}") from error

    def release(self) -> None:
        """Give the store back; a lock that another run has taken stays."""
        self.ended.set()
        self.thread.join()
        with suppress(OSError):  # storage that does not answer now: the lease runs out by itself
            self._beat()
            if not self.lost:
                self.lock.unlink()


def _version(path: ObjectPath) -> str | None:
    try:
        return path.version_and_age()[0]
    except FileNotFoundError:
        return None


@contextmanager
def store_lease(store: ObjectPath, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the store while writing. Raises Busy when another run, here or elsewhere, holds it for longer than that."""
    if store.url in _held:
        raise RequestError(f"this process is writing {store} already")
    lease = _held[store.url] = Lease(store, patience_s)
    try:
        yield
    finally:
        del _held[store.url]
        lease.release()


def held(store: ObjectPath) -> Lease:
    """The lease under which this process writes the store. Raises Stopped where it has none or has lost it."""
    if store.url not in _held:
        raise RuntimeError(f"{store} is written without store_lock")
    _held[store.url].confirm()
    return _held[store.url]


def is_leased(store: ObjectPath) -> bool:
    """Whether a run is writing the store now, or was killed less than its lease ago."""
    try:
        _, age = (store / LOCK).version_and_age()
        return age <= json.loads((store / LOCK).read_bytes())["lease_s"]
    except FileNotFoundError:
        return False
