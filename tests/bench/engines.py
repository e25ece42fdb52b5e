"""The engines: what each makes of every fault, and what scheduling costs. Takes a few minutes.

    python tests/bench/engines.py [serial dask ray]

24 tasks, each fault in one of them, two workers, two retries, limits of 4 s and 400 MiB: the outcome, the tries, the
calls that were counted, and the seconds from the start of the run to the outcome. Then 4,000 tasks that do nothing,
each with 64 paths as a pack's task has: milliseconds a task, and how much the driver's memory grew (with Dask the
scheduler is in this process; with Ray the driver is a child, which is counted too).
"""

import os
import platform
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent.parent / "preprocess/engines"
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])

import faults  # noqa: E402
import psutil  # noqa: E402

from preprocess.engines import ENGINES, Resources, open_engine  # noqa: E402

SCRIPT = {3: "raise-once", 5: "raise", 8: "kill-once", 11: "kill", 14: "hang", 17: "grow", 20: "unportable"}
DEADLY = {"kill-once", "kill", "hang", "grow"}
LIMITS = Resources(memory=400 << 20, timeout=4)
TASKS, PATHS = 4000, 64


def conformance(engine) -> None:
    script = {n: kind for n, kind in SCRIPT.items() if engine.name != "serial" or kind not in DEADLY}
    with tempfile.TemporaryDirectory() as folder:
        began, rows, fine = time.perf_counter(), [], []
        for o in engine.map_unordered(faults.act, [faults.Fault(n, script.get(n, "fine"), folder) for n in range(24)],
                                      LIMITS, retries=2):
            seconds, calls = time.perf_counter() - began, faults.calls(folder, o.task.number)
            if o.task.kind == "fine":
                fine.append((o.kind, o.attempts, calls, seconds))
            else:
                rows.append((o.task.number, o.task.kind, o.kind, o.attempts, calls, seconds, o.error))
        wall = time.perf_counter() - began
    for _, fault, kind, attempts, calls, seconds, error in sorted(rows):
        print(f"| {engine.name} | {fault} | {kind} | {attempts} | {calls} | {seconds:.1f} | {error or ''} |")
    print(f"| {engine.name} | {len(fine)} innocent | {', '.join(sorted({f[0] for f in fine}))} | at most "
          f"{max(f[1] for f in fine)} | {sum(f[2] for f in fine)} | {max(f[3] for f in fine):.1f} | all 24 in "
          f"{wall:.1f} s |", flush=True)


def overhead(engine) -> tuple[float, float, float]:
    """ms a task, MB of growth of this process over the second half, MB over all."""
    list(engine.map_unordered(faults.nothing, range(20)))
    before, began, middle = memory(engine), time.perf_counter(), 0
    tasks = ((number, tuple(f"videos/class_{number:04d}/video_{n:06d}.mp4" for n in range(PATHS)))
             for number in range(TASKS))
    for done, outcome in enumerate(engine.map_unordered(faults.nothing, tasks), 1):
        assert outcome.kind == "done", outcome
        if done == TASKS // 2:
            middle = memory(engine)
    seconds, after = time.perf_counter() - began, memory(engine)
    return seconds / TASKS * 1e3, (after - middle) / 1e6, (after - before) / 1e6


def memory(engine) -> int:
    """Resident bytes of the driver: this process, and the one in which Ray's driver runs."""
    processes = [os.getpid()] + ([engine.process.pid] if engine.name == "ray" else [])
    return sum(psutil.Process(pid).memory_info().rss for pid in processes)


def main(names: list[str]) -> None:
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    print(f"{cpu}, {len(os.sched_getaffinity(0))} cores\n\n| engine | fault | outcome | tries | calls | s | error |\n"
          "|---|---|---|---|---|---|---|", flush=True)
    costs, starts = {}, {}
    for name in names or list(ENGINES):
        began = time.perf_counter()
        engine = open_engine(name, None if name == "serial" else 2)
        starts[name] = time.perf_counter() - began
        try:
            conformance(engine)
            costs[name] = overhead(engine)
        finally:
            engine.close()
    print(f"\n| engine | start s | ms a task | {TASKS:,} tasks s | driver MB, all | of it in the second half |\n"
          "|---|---|---|---|---|---|")
    for name, (each, half, growth) in costs.items():
        print(f"| {name} | {starts[name]:.1f} | {each:.2f} | {each * TASKS / 1e3:.1f} | {growth:.0f} | {half:.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
