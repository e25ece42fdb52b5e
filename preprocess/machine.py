"""What a record says of where it was made: the versions and the machine that decide the numbers."""

import importlib.metadata
import os
import platform
from pathlib import Path

from preprocess.flow import runs_here

PACKAGES = ("motionpack", "numpy", "av", "opencv-contrib-python", "numba", "simplejpeg", "zarr", "cupy-cuda12x",
            "cupy-cuda13x")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    out = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def device(backend: str) -> dict[str, str | int]:
    """This machine: processor, cores, memory; with flow on a GPU its name too, where it is here."""
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    out = {"host": platform.node(), "cpu": cpu, "cores": os.cpu_count() or 1,
           "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)}
    if backend == "cuda" and runs_here(backend):
        from preprocess.flow.cuda import device_name
        out["gpu"] = device_name()
    return out
