"""Every command, where another `shared`, `train` or `evaluate` comes first on the path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Whatever runs as `python -m ...`, and the one script.
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
           for package in ("preprocess", "evaluate") for path in sorted((ROOT / package).rglob("*.py"))
           if '\nif __name__ == "__main__":\n' in path.read_text()]
SCRIPT = ROOT / "train/main.py"


@pytest.fixture
def other(tmp_path):
    """Makes packages of these names that are not ours; returns the folder that they lie in."""
    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / "other" / name).mkdir(parents=True)
            (tmp_path / "other" / name / "__init__.py").write_text("")
        return tmp_path / "other"
    return make


def start(folder: Path, *command: str, path: list[Path]) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, *command, "--help"], cwd=folder, env=environment, capture_output=True,
                          text=True, timeout=300)


def test_all_commands_are_asked():
    assert {"preprocess.run", "preprocess.check", "evaluate.run", "evaluate.ablation"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_another_shared_is_named_in_one_line(module, other, tmp_path):
    """`evaluate` itself is ours here: where it is not, nothing of ours runs that could speak."""
    folder = other("shared")
    done = start(tmp_path, "-m", module, path=[folder, ROOT])
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"error: Python finds the package `shared` in {folder}/shared/__init__.py, expected ")
    assert f"export PYTHONPATH={ROOT}$" in done.stderr


@pytest.mark.parametrize("command", [*MODULES, SCRIPT], ids=str)
def test_what_fails_while_modules_are_imported_is_a_fault_of_ours(command, tmp_path):
    """Never exit code 1, which means that failures are listed."""
    (tmp_path / "numpy.py").write_text("raise ImportError('no\\nnumpy')")
    words = ("-m", command) if command in MODULES else (str(command),)
    done = start(tmp_path, *words, path=[tmp_path, ROOT])
    first, *_, last = done.stderr.splitlines()
    assert done.returncode == 70 and first.startswith("Traceback") and last.startswith("fault: ImportError: no numpy;")


@pytest.mark.parametrize("name", ["shared", "train"])
def test_the_trainer_names_either_package_in_one_line(name, other, tmp_path):
    done = start(tmp_path, str(SCRIPT), path=[other(name), ROOT])
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"the package `{name}` in " in done.stderr


def test_code_that_nobody_has_installed_says_so(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", str(SCRIPT), "--help"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)           # -S: without site no editable install is seen
    assert done.returncode == 2 and done.stderr.startswith("error: Python finds the package `shared` nowhere, expected")
    assert done.stderr.count("\n") == 1


def test_what_the_line_says_helps(other, tmp_path):
    done = start(tmp_path, "-m", "preprocess.check", path=[ROOT, other("shared", "preprocess")])
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


def test_in_the_repository_s_folder_its_own_come_first(other):
    done = start(ROOT, "-m", "preprocess.check", path=[other("shared", "preprocess")])
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
