"""Files that appear whole or not at all, and the lock."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cli import RequestError
from shared.store.layout import StoreError
from shared.store.lock import is_locked, store_lock
from shared.store.record import (json_bytes, parse_json, read_json, read_records, write_atomic, write_json_atomic,
                                 write_record)

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
