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
def real_frames(request):
    """Three neighbouring grey frames (3, H, W) uint8 of each of eight real videos, short side at most 256: of
    ../shared/data, or of what `make gpu-kit` has brought to a machine without it."""
    files = sorted((Path(__file__).resolve().parents[3] / "gpu-kit/clips").glob("*/*"))
    if not files:
        root = request.getfixturevalue("data_root") / "videos"
        files = [file for name in CLIPS for file in sorted((root / name).glob("*/*.*"))]
    out = []
    for file in files[::max(1, len(files) // 8)][:8]:
        video = cv2.VideoCapture(str(file))
        video.set(cv2.CAP_PROP_POS_FRAMES, 20)
        frames = [cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2GRAY) for _ in range(3)]
        shrink = min(1, 256 / min(frames[0].shape))
        out.append(np.stack([cv2.resize(f, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) for f in frames]))
    return out


# What follows a kernel's arrays, and how many values of four bytes each array has for it.
ARGUMENTS = {
    "downscale": ("fine_w fine_h w h scale n", ("fine_w * fine_h * n", "w * h * n")),
    "upscale": ("coarse_w coarse_h w h scale_x scale_y factor n", ("2 * coarse_w * coarse_h * n", "2 * w * h * n")),
    "interleave": ("w h n", ("w * h * n", "4 * w * h * n")),
    "warp": ("w h n", ("w * h * n", "4 * w * h * n", "2 * w * h * n", "4 * w * h * n")),
    "median": ("w h size n", ("2 * w * h * n", "2 * w * h * n", "n")),
    "iterate": ("w h steps taut theta limit n",
                ("2 * w * h * n", "4 * w * h * n", "4 * w * h * n", "2 * w * h * n", "4 * w * h * n")),
    "primal_step": ("w h theta limit n", ("2 * w * h * n", "4 * w * h * n", "4 * w * h * n", "w * h * n", "n")),
    "dual_step": ("w h taut n", ("2 * w * h * n", "4 * w * h * n", "n")),
    "column_sums": ("w h n", ("w * h * n", "w * n", "n")),
    "stop": ("w limit pairs n", ("w * pairs", "pairs")),
    "split": ("w h n", ("2 * w * h * n", "2 * w * h * n")),
}


class HostDevice:
    """BatchSolver's device on the CPU: numpy arrays, and the kernels looping over what would be their threads.

    Every array must reach as far as the kernel will go. guarded: for a library built with the address sanitizer; a
    kernel gets a copy of just so many bytes, so that one step beyond, read or written, ends the process.
    """

    xp = np
    tile = (64, 32)

    def __init__(self, library, guarded=False):
        self.library, self.guarded, self.launches = library, guarded, 0
        self.libc = ctypes.CDLL(None)
        self.libc.malloc.restype = ctypes.c_void_p

    def run(self, kernel, width, height, count, *args):
        arrays = [arg for arg in args if isinstance(arg, np.ndarray)]
        scalars = args[len(arrays):]
        names, extents = ARGUMENTS[kernel]
        known = dict(zip(names.split(), scalars, strict=True))
        sizes = [4 * int(eval(extent, {}, known)) for extent in extents]
        for array, needed in zip(arrays, sizes, strict=True):
            assert array.flags.c_contiguous and array.itemsize == 4 and array.nbytes >= needed, (kernel, known)
        places = [array.ctypes.data for array in arrays]
        if self.guarded:
            places = [self.libc.malloc(ctypes.c_size_t(needed)) for needed in sizes]
            for place, array, needed in zip(places, arrays, sizes):
                ctypes.memmove(place, array.ctypes.data, needed)
        getattr(self.library, kernel)(*map(ctypes.c_void_p, places), *(TYPES[type(arg)](arg) for arg in scalars))
        if self.guarded:
            for place, array, needed in zip(places, arrays, sizes):
                ctypes.memmove(array.ctypes.data, place, needed)
                self.libc.free(ctypes.c_void_p(place))
        self.launches += 1


@pytest.fixture(scope="session")
def build_kernels():
    return _build_kernels


def _build_kernels(folder, *options) -> Path:
    """The kernels as a C++ library; no contraction beyond their own fmaf calls, so that rounding is the source's."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler: the GPU kernels' arithmetic cannot run on the CPU")
    library = folder / "tvl1.so"
    subprocess.run([compiler, "-O2", "-march=native", "-ffp-contract=off", *options, "-shared", "-fPIC", "-x", "c++",
                    "-o", library, KERNELS / "tvl1.cu"], check=True)
    return library


@pytest.fixture(scope="session")
def host_device(tmp_path_factory):
    return HostDevice(ctypes.CDLL(str(_build_kernels(tmp_path_factory.mktemp("kernels")))))
