"""This machine: what there is of it for tasks, and what a record says of it and of the versions."""

import importlib.metadata
import os
import platform
from contextlib import suppress
from pathlib import Path

from preprocess.flow import runs_here

PACKAGES = ("motionpack", "numpy", "av", "opencv-contrib-python", "numba", "simplejpeg", "zarr", "cupy-cuda12x",
            "cupy-cuda13x")
CGROUP = Path("/sys/fs/cgroup")
GPUS = Path("/proc/driver/nvidia/gpus")   # a folder a GPU, whichever of them this process may use


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


def machine_cores() -> int:
    """Cores of this machine, or as many as the control group of this process has the time of (a container)."""
    cores = len(os.sched_getaffinity(0))
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            quota, period = map(int, " ".join((CGROUP / name).read_text() for name in names).split())
            if quota > 0:   # -1: none
                cores = max(1, min(cores, round(quota / period)))
    return cores


def machine_memory() -> int:
    """Bytes of this machine, or of the control group that this process lives in (a container)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int((CGROUP / name).read_text()))
    return total


def task_cores(gpus: float) -> int:
    """The cores of a task that takes so many of this machine's GPUs, all tasks that they hold having equally many; all
    cores where it takes none."""
    tasks = len(list(GPUS.glob("*"))) / gpus if gpus else 1
    return max(1, int(machine_cores() / max(1, tasks)))
