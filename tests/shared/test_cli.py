"""What every command says and takes alike."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared import cli
from shared.cli import RequestError, plural
from shared.store.lock import is_locked, store_lock


@pytest.mark.parametrize("number, words, said", [
    (0, ["video"], "0 videos"), (1, ["video"], "1 video"), (2, ["video"], "2 videos"),
    (1234, ["frame"], "1,234 frames"),
    (1, ["class", "classes"], "1 class"), (1_000_000, ["class", "classes"], "1,000,000 classes"),
    (1, ["video is", "videos are"], "1 video is"), (0, ["video is", "videos are"], "0 videos are")])
def test_plural(number, words, said):
    assert plural(number, *words) == said


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    """Lustre that is mounted without them says ENOSYS."""
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(cli.fcntl, "flock", flock)
    with pytest.raises(RequestError, match=r"^--out .*: its file system has no locks .*; mount it with them"):
        cli.hold(tmp_path, "--out")
    with pytest.raises(RequestError, match="^--store .*no locks"), store_lock(tmp_path):
        pass
    assert not is_locked(tmp_path)


def test_a_name_that_is_no_utf_8_leaves_as_it_came():
    """As in the locale en_US.UTF-8, where Python's stdout is strict."""
    program = "from shared import cli; cli.command(lambda argv: print('\\udce9') or 0)"
    done = subprocess.run([sys.executable, "-c", program],
                          env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"\xe9\n"), done.stderr


@pytest.fixture
def parser():
    parser = cli.Arguments(prog="show")
    parser.add_argument("store")
    parser.add_argument("--video")
    parser.add_argument("--drop", nargs="+", default=[])
    parser.add_argument("--list", nargs="?", const="")
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--plan", action="store_true")
    return parser


@pytest.mark.parametrize("video", ["-_abc", "--07WQ2iBlw_000001", "-", "-k8x", "-1", "-a/-b.mp4", "a=b", "-a=b"])
def test_an_id_that_begins_with_a_dash_is_a_value(parser, video):
    for words in (["--video", video], [f"--video={video}"]):
        for line in (["s", *words, "--plan"], ["--plan", *words, "s"]):
            args = parser.parse_args(line)
            assert (args.video, args.store, args.plan) == (video, "s", True)
    assert parser.parse_args(["s", "--drop", "a", video, "b", "--plan"]).drop == ["a", video, "b"]
    assert parser.parse_args(["s", "--list", video]).list == video


def test_flags_stay_flags(parser):
    args = parser.parse_args(["s", "--list", "--plan", "-k", "8"])
    assert (args.list, args.plan, args.k) == ("", True, 8)
    assert parser.parse_args(["s", "-k8"]).k == 8 and parser.parse_args(["--", "-s"]).store == "-s"


@pytest.mark.parametrize("line, words", [
    (["s", "--video", "--plan"], "argument --video: expected one argument"),
    (["s", "--video", "--plam"], "argument --video: expected one argument"),
    (["s", "--drop", "a", "--vidoe", "x"], "unrecognized arguments: --vidoe x; did you mean '--video'?"),
    (["s", "-z"], "unrecognized arguments: -z"),
    (["s", "-k", "--x9"], "argument -k: invalid int value: '--x9'"),
])
def test_what_is_no_value_is_refused(parser, line, words):
    with pytest.raises(RequestError) as caught:
        parser.parse_args(line)
    assert words in str(caught.value) and "\0" not in str(caught.value)


@pytest.fixture
def leave(monkeypatch):
    """leave(error) -> the exit code of a command that raises it; signals and hooks come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(cli, "_came", [])       # other tests were told to stop in this very process

    def leave(error, *more):
        def main(argv):
            raise error
        with pytest.raises(SystemExit) as caught:
            cli.command(main, *more)
        return caught.value.code
    yield leave
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("error, code, said", [
    (RequestError("no such thing"), 2, "error: no such thing"),
    (cli.Stopped("the cluster is gone"), 3, "stopped: the cluster is gone"),
    (KeyboardInterrupt("SIGTERM"), 3, "stopped: SIGTERM; go on"),
    (FileNotFoundError(errno.ENOENT, "No such file", "/a"), 2, "error: /a: No such file; check the path"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "/" + 300 * "x"), 2, "x ... x"),
    (OSError(errno.ELOOP, "Too many levels", "/a"), 2, "error: /a: Too many levels; check the path"),
    (OSError(errno.EIO, "Input/output error", "/a"), 3, "stopped: /a: Input/output error; go on"),
    (OSError(errno.ENOSPC, "No space", "/a"), 3, "stopped: no space left for /a (No space); free some, then go on"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 3, "in the temporary folder"),
])
def test_what_is_no_fault_of_ours_is_one_line(leave, capsys, error, code, said):
    assert leave(error, "go on") == code
    line, = capsys.readouterr().err.splitlines()
    assert said in line and len(line) < 400


@pytest.mark.parametrize("error", [TypeError("a\nb"), AssertionError(), KeyError("x"), OSError("no number"),
                                   FileNotFoundError(errno.ENOENT, "of no file")])
def test_a_fault_of_ours_keeps_its_traceback_and_leaves_with_70(leave, capsys, error):
    assert leave(error) == 70
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback") and last.startswith(f"fault: {type(error).__name__}")


def test_a_full_disk_is_named_whatever_a_library_makes_of_it(tmp_path):
    path = tmp_path / "x.pt"
    for inner in (None, "/spool"):
        with pytest.raises(OSError, match="No space") as caught, cli.writing(path):
            try:
                raise OSError(errno.ENOSPC, "No space", inner)
            except OSError:
                raise RuntimeError("unexpected pos 2944 vs 2838")   # noqa: B904 (as torch has it)
        assert caught.value.filename == (inner or str(path)) and caught.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="ours"), cli.writing(path):
        raise RuntimeError("ours")


def test_before_the_work_begins(tmp_path):
    """What fails while a command's modules are imported, and a current folder that was removed."""
    begin = f"import os, sys; sys.path.insert(0, {str(Path(cli.__file__).parents[1])!r}); from shared import cli; "
    fault = subprocess.run([sys.executable, "-c", begin + "cli.catch_interrupts(); import json.nowhere"],
                           capture_output=True, text=True)
    assert fault.returncode == 70 and fault.stderr.splitlines()[-1].startswith("fault: ModuleNotFoundError")
    gone = subprocess.run([sys.executable, "-c", begin + f"os.chdir({str(tmp_path)!r}); os.rmdir({str(tmp_path)!r}); "
                           "cli.catch_interrupts()"], capture_output=True, text=True)
    line, = gone.stderr.splitlines()
    assert gone.returncode == 2 and line.startswith("error: the current folder cannot be read")


def test_torchrun_is_told_what_to_say_last(leave, monkeypatch, tmp_path):
    """In the file that it reads of a process that failed."""
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    for error, line in ((RequestError("no\nthing"), "error: no thing"), (ZeroDivisionError("d"), "fault: Zero")):
        leave(error)
        assert json.loads(path.read_text())["message"]["message"].startswith(line)
