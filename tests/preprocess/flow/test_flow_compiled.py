"""Compiling where numba finds no writable folder for its disk cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preprocess.flow import tvl1

ROOT = Path(__file__).resolve().parents[3]
TRIVIAL = """
from preprocess.flow.compiled import cached_njit

@cached_njit(nogil=True)
def double(x):
    return 2 * x

@cached_njit(["int64(int64)"], nogil=True)
def triple(x):
    return 3 * x
"""


def run(folder, *command, writable):
    """Python in `folder`; unless `writable`, what stands where each of numba's cache folders would be is a file."""
    blocked = folder / "file"
    blocked.write_text("")
    if not writable:
        for package in (folder, folder / "preprocess/flow"):
            (package / "__pycache__").write_text("")
    home = folder / "home" if writable else blocked / "home"
    environment = {key: value for key, value in os.environ.items() if key not in ("NUMBA_CACHE_DIR", "PYTHONPATH")}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True,
                          check=True)


@pytest.fixture
def install(tmp_path):
    """A copy of what the flow imports."""
    for package in ("preprocess", "shared"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("writable", [True, False])
def test_without_a_cache_folder_functions_compile_and_say_so_once(install, writable):
    (install / "trivial.py").write_text(TRIVIAL)
    done = run(install, "-c", "import trivial; print(trivial.double(4), trivial.triple(5))", writable=writable)
    assert done.stdout == "8 15\n"
    assert done.stderr.count("\n") == done.stderr.count("no writable folder for numba's cache") == (not writable)
    assert bool(list((install / "__pycache__").glob("trivial.*.nbi"))) == writable


@pytest.mark.slow
def test_tvl1_runs_from_a_read_only_install(install):
    frames = np.random.default_rng(0).integers(0, 255, (2, 32, 40), np.uint8)
    np.save(install / "frames.npy", frames)
    done = run(install, "-c", "import numpy as np; from preprocess.flow import tvl1; f = np.load('frames.npy'); "
               "np.save('flow.npy', tvl1(f[0], f[1], backend='cpu'))", writable=False)
    assert done.stderr.count("\n") == 1 and "no writable folder" in done.stderr
    np.testing.assert_array_equal(np.load(install / "flow.npy"), tvl1(*frames, backend="cpu"))
