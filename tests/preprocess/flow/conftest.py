"""Real frame pairs, and the GPU kernels as a plain C++ library."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

import preprocess.flow

KERNELS = Path(preprocess.flow.__file__).parent / "kernels"
TYPES = {np.int32: ctypes.c_int, np.float32: ctypes.c_float, np.float64: ctypes.c_double}
CLIPS = ("kinetics", "ucf101", "hmdb51", "ucf11")


@pytest.fixture(scope="session")
def real_frames(data_root):
    """Three neighbouring grey frames (3, H, W) uint8 of each of eight real videos, short side at most 256."""
    files = [file for name in CLIPS for file in sorted((data_root / "videos" / name).glob("*/*.*"))]
    out = []
    for file in files[::max(1, len(files) // 8)][:8]:
        video = cv2.VideoCapture(str(file))
        video.set(cv2.CAP_PROP_POS_FRAMES, 20)
        frames = [cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2GRAY) for _ in range(3)]
        shrink = min(1, 256 / min(frames[0].shape))
        out.append(np.stack([cv2.resize(f, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) for f in frames]))
    return out


class HostDevice:
    """BatchSolver's device on the CPU: numpy arrays, and the kernels looping over what would be their threads."""

    xp = np
    tile = (64, 32)

    def __init__(self, library):
        self.library = library

    def run(self, kernel, width, height, count, *args):
        getattr(self.library, kernel)(*[
            ctypes.c_void_p(arg.ctypes.data) if isinstance(arg, np.ndarray) else TYPES[type(arg)](arg) for arg in args])


@pytest.fixture(scope="session")
def host_device(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler: the GPU kernels' arithmetic cannot run on the CPU")
    library = tmp_path_factory.mktemp("kernels") / "tvl1.so"
    # No contraction beyond the kernels' own fmaf calls, so that rounding is what the source says.
    subprocess.run([compiler, "-O2", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-x", "c++",
                    "-o", library, KERNELS / "tvl1.cu"], check=True)
    return HostDevice(ctypes.CDLL(str(library)))
