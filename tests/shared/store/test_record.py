"""Files that appear whole or not at all, and the lock."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cli import RequestError
from shared.store import lock
from shared.store.layout import StoreError
from shared.store.lock import is_locked, store_lock
from shared.store.record import (
    json_bytes,
    parse_json,
    read_json,
    read_records,
    write_atomic,
    write_json_atomic,
    write_record,
)

documents = st.dictionaries(st.text(max_size=4).filter(lambda key: key != "crc32c"), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    min_size=1, max_size=4)


@given(documents, st.integers(0))
def test_json_round_trips_and_every_flipped_bit_is_noticed(document, bit):
    data = bytearray(json_bytes(document))
    assert parse_json(bytes(data), "x") == document
    assert list(json.loads(data)) == [*document, "crc32c"]
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    with pytest.raises(StoreError, match="x: does not match its checksum"):
        parse_json(bytes(data), "x")


@pytest.mark.parametrize("document", [{}, {"crc32c": 1}, {"a": float("nan")}])
def test_documents_that_no_file_can_hold(document):
    with pytest.raises(ValueError):
        json_bytes(document)


def test_atomic_replacement(tmp_path, monkeypatch):
    path = tmp_path / "store.json"
    write_json_atomic(path, {"a": 1})
    write_json_atomic(path, {"a": 2})
    assert read_json(path) == {"a": 2}

    def crash(*args):
        raise OSError(28, "disk full")
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError):
        write_atomic(path, b"new")
    assert read_json(path) == {"a": 2} and os.listdir(tmp_path) == ["store.json"]


def test_records(tmp_path):
    assert read_records(tmp_path) == {}
    write_record(tmp_path, "2-b", {"engine": "dask"})
    path = write_record(tmp_path, "1-a", {"engine": "serial"})
    assert path == tmp_path / "records/1-a.json"
    assert read_records(tmp_path) == {"1-a": {"engine": "serial"}, "2-b": {"engine": "dask"}}
    path.write_bytes(path.read_bytes().replace(b"serial", b"Serial"))
    with pytest.raises(StoreError, match="1-a.json"):
        read_records(tmp_path)


HOLD = """
import sys
sys.path.insert(0, sys.argv[2])
from shared.store.lock import store_lock
with store_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_one_run_at_a_time(tmp_path, request):
    store = tmp_path / "store"
    assert not is_locked(store)
    with store_lock(store):
        assert is_locked(store)
        with pytest.raises(RequestError, match="another run is writing"):
            with store_lock(store):
                pass
    assert not is_locked(store)
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(store), str(request.config.rootpath)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RequestError):
            with store_lock(store):
                pass
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    with store_lock(store):  # the kernel let go of the killed run's lock
        assert os.path.getsize(store / ".lock") == 0


def test_a_glance_refuses_no_run(tmp_path, monkeypatch):
    """check holds the lock, shared, for an instant: a run that starts just then waits for it."""
    monkeypatch.setattr(lock, "PATIENCE_S", 300)
    (tmp_path / ".lock").touch()
    fd = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    timer = threading.Timer(0.2, os.close, [fd])
    timer.start()
    with store_lock(tmp_path):
        assert is_locked(tmp_path)
    timer.join()


@pytest.mark.parametrize("existing", ["", "a", "a/b/store"])
def test_what_was_never_written_leaves_no_trace(tmp_path, existing):
    (tmp_path / existing).mkdir(parents=True, exist_ok=True)
    store = tmp_path / "a/b/store"
    for error in (None, RequestError("refused")):
        try:
            with store_lock(store):
                assert os.listdir(store) == [".lock"]
                if error:
                    raise error
        except RequestError as caught:
            assert caught is error
        assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
            "/".join(existing.split("/")[:i + 1]) for i in range(existing.count("/") + 1) if existing]


def test_what_was_written_stays(tmp_path):
    store = tmp_path / "a/store"
    with store_lock(store):
        (store / "store.json").write_text("x")
    assert sorted(os.listdir(store)) == [".lock", "store.json"]


def test_a_lock_file_that_was_removed_is_not_held(tmp_path, monkeypatch):
    """A run waits on the file that its holder removes: it must lock the file that others find."""
    real, first = fcntl.flock, []

    def flock(fd, how):
        real(fd, how)
        if not first:
            first.append(fd)
            (tmp_path / ".lock").unlink()
    monkeypatch.setattr(fcntl, "flock", flock)
    with store_lock(tmp_path):
        assert (tmp_path / ".lock").exists() and is_locked(tmp_path)
        with pytest.raises(RequestError, match="another run"):
            with store_lock(tmp_path):
                pass


CONTEND = """
import sys, os
sys.path.insert(0, sys.argv[2])
from shared.cli import RequestError
from shared.store import lock
from shared.store.lock import store_lock
lock.PATIENCE_S = 300
held = 0
for _ in range(150):
    try:
        with store_lock(sys.argv[1]):
            os.close(os.open(sys.argv[3], os.O_CREAT | os.O_EXCL))  # fails where another holds it too
            os.unlink(sys.argv[3])
            held += 1
    except RequestError:
        pass
print(held)
"""


def test_never_two_holders_while_the_folder_comes_and_goes(tmp_path, request):
    arguments = [str(tmp_path / "a/store"), str(request.config.rootpath), str(tmp_path / "held")]
    children = [subprocess.Popen([sys.executable, "-c", CONTEND, *arguments], stdout=subprocess.PIPE, text=True)
                for _ in range(3)]
    held = [int(child.communicate(timeout=600)[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0] and min(held) > 0
    # Who made a folder may find the next holder's lock or folder in it; then it stays, empty.
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} <= {"a", "a/store"}


@pytest.mark.parametrize("name", ["afile", "afile/x", "afile/x/y", "n" * 300])
def test_places_where_no_store_can_be(tmp_path, name):
    (tmp_path / "afile").write_text("x")
    with pytest.raises(RequestError, match=r"--store .*expected a folder.*choose another"):
        with store_lock(tmp_path / name):
            pass
    assert os.listdir(tmp_path) == ["afile"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, code):
    real = os.open

    def refuse(path, *args, **options):
        if str(path).endswith(".lock"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **options)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RequestError, match=os.strerror(code)):
        with store_lock(tmp_path / "a/store"):
            pass
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_run_itself_passes(tmp_path):
    with pytest.raises(PermissionError):
        with store_lock(tmp_path):
            raise PermissionError(errno.EACCES, "denied", "elsewhere")


def test_a_place_that_takes_no_new_folders(monkeypatch):
    """As a mistyped automount: mkdir answers ENOENT for ever, as /proc does."""
    monkeypatch.setattr(lock, "PATIENCE_S", 0.1)
    with pytest.raises(RequestError, match="/proc/nowhere: cannot be made here .*check the path and that its disk"):
        with lock.store_lock(Path("/proc/nowhere/store")):
            pass
