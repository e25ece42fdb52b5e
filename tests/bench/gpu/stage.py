"""What the stages of `make gpu` share: their arguments, and results that lie on disk as soon as they are known."""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from shared.store.record import write_json_atomic

ROOT = Path(__file__).resolve().parents[3]


class Stage:
    """A stage of `name`: device `cuda`, or `cpu` for a dry run, in which everything is small; kit: the folder that
    kit.py made; work: a scratch folder that the stages share."""

    def __init__(self, name: str, about: str):
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--out", type=Path, default=Path("gpu-results"))
        parser.add_argument("--kit", type=Path, default=ROOT / "gpu-kit")
        parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "motionpack-gpu")
        parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
        args = parser.parse_args()
        self.device, self.small, self.kit, self.work = args.device, args.device == "cpu", args.kit, args.work
        self.work.mkdir(parents=True, exist_ok=True)
        args.out.mkdir(parents=True, exist_ok=True)
        self.path = args.out / f"{name}.json"
        self.values = {"stage": name, "device": self.device, "versions": versions(self.device), "values": {}}
        torch.manual_seed(0)

    def fresh(self, name: str) -> Path:
        """A path of the scratch folder, without what an earlier run has left there."""
        shutil.rmtree(self.work / name, ignore_errors=True)
        return self.work / name

    def put(self, name: str, value, unit: str = "") -> None:
        """One figure, written at once; a stage that runs out of time loses none."""
        value = round(value, 7) if isinstance(value, float) else value
        self.values["values"][name] = [value, unit]
        write_json_atomic(self.path, self.values)
        print(f"{name:48} {value:.6g} {unit}" if isinstance(value, float) else f"{name:48} {value} {unit}", flush=True)

    def command(self, *words, codes=(0,)) -> tuple[float, str]:
        """A command of ours, as typed; its seconds and what it printed. Raises RuntimeError for another exit code."""
        start = time.monotonic()
        done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        if done.returncode not in codes:
            raise RuntimeError(f"{' '.join(map(str, words))} left with {done.returncode}:\n{done.stdout[-3000:]}")
        return time.monotonic() - start, done.stdout

    def seconds(self, work, repeats: int = 7) -> float:
        """Median of `work()`, until the device has done it, after two runs to warm up."""
        times = []
        for turn in range(2 + repeats):
            start = time.perf_counter()
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()
            times += [time.perf_counter() - start] * (turn >= 2)
        return float(np.median(times))


def versions(device: str) -> dict:
    """Of what computes, and on what."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
             "cores": len(os.sched_getaffinity(0)), "commit": commit()}
    if device == "cuda":
        import cupy
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cupy": cupy.__version__,
                  "driver": cupy.cuda.runtime.driverGetVersion()}
    return found


def commit() -> str:
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
