"""What a damaged file may do to its reader, and what the plan makes of it."""

import operator
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from shared.videos.isolate import ChildProcess, Died, InProcess


@pytest.fixture
def child():
    child = ChildProcess()
    yield child
    child.close()


def test_calls_run_in_one_process_that_stays(child):
    first, second = (child.call(os.getpid, limit_s=600) for _ in range(2))
    assert first == second != os.getpid()
    assert child.call(operator.add, 2, 3, limit_s=600) == InProcess().call(operator.add, 2, 3, limit_s=600) == 5


def test_ctrl_c_in_a_terminal_does_not_reach_it(child):
    """From its first moment on: its imports take a while."""
    pid = child.call(os.getpid, limit_s=600)
    blocked = re.search(r"^SigBlk:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert int(blocked[1], 16) & 1 << signal.SIGINT - 1
    os.kill(pid, signal.SIGINT)
    assert child.call(os.getpid, limit_s=600) == pid
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_an_exception_comes_back_and_the_process_stays(child):
    pid = child.call(os.getpid, limit_s=600)
    with pytest.raises(FileNotFoundError) as caught:
        child.call(os.stat, "/nowhere/at/all", limit_s=600)
    assert caught.value.filename == "/nowhere/at/all" and child.call(os.getpid, limit_s=600) == pid


def test_a_death_is_told_and_the_next_call_has_a_new_process(child):
    pid = child.call(os.getpid, limit_s=600)
    with pytest.raises(Died, match=r"killed its process \(SIGSEGV\)"):
        child.call(os.kill, pid, signal.SIGSEGV, limit_s=600)
    with pytest.raises(Died, match=r"ended its process \(exit code 7\)"):
        child.call(os._exit, 7, limit_s=600)
    assert child.call(os.getpid, limit_s=600) != pid


def test_what_takes_too_long_is_ended(child):
    pid = child.call(os.getpid, limit_s=600)
    with pytest.raises(Died, match="took more than 0.2 s"):
        child.call(time.sleep, 3600, limit_s=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert child.call(operator.neg, 1, limit_s=600) == -1


def test_what_a_generator_yields_comes_one_by_one(child, tmp_path):
    for name in "abc":
        (tmp_path / name / name).mkdir(parents=True)
    for reader in (child, InProcess()):
        found = reader.stream(os.walk, str(tmp_path), limit_s=600)
        assert next(found)[0] == str(tmp_path)
        assert sorted(found) == sorted(list(os.walk(tmp_path))[1:])
    pid = child.call(os.getpid, limit_s=600)
    with pytest.raises(TypeError):
        next(child.stream(os.walk, "/nowhere/at/all", True, operator.neg, limit_s=600))
    assert child.call(os.getpid, limit_s=600) == pid


def test_a_generator_that_is_left_or_dies_takes_its_process_along(child, tmp_path):
    (tmp_path / "a").mkdir()
    pid = child.call(os.getpid, limit_s=600)
    found = child.stream(os.walk, str(tmp_path), limit_s=600)
    next(found)
    found.close()
    other = child.call(os.getpid, limit_s=600)
    assert other != pid
    found = child.stream(os.walk, "/", limit_s=600)
    next(found)
    os.kill(other, signal.SIGKILL)
    with pytest.raises(Died, match="SIGKILL"):
        list(found)


def test_another_thread_interrupts(child):
    child.call(os.getpid, limit_s=600)
    threading.Timer(0.3, child.interrupt).start()
    with pytest.raises(Died, match=r"killed its process \(SIGKILL\)"):
        child.call(time.sleep, 600, limit_s=600)
