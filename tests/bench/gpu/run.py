"""Everything that a GPU has to show, in stages, the most valuable first, within a budget: `make gpu`.

    python tests/bench/gpu/run.py --out DIR [--kit DIR] [--budget SECONDS] [--stages flow packs ...] [--device cpu]

Each stage is a process with its own limit. What it finds is in DIR/<stage>.json as soon as it is known, what it prints
in DIR/log.txt; a stage that fails or runs out of time costs no other. The last takes what time is left, and goes on
when it is said again: `make gpu-ablation`. `--device cpu` is the dry run: the same stages,
small, on the CPU. The closing table has every figure beside its estimate (estimates.py). docs/gpu.md has the steps on
a machine without network.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Limits in seconds. On the CPU the dry run takes as long as it takes.
STAGES = {"flow": 90, "packs": 75, "trainer": 110, "steps": 100, "features": 60, "tests": 90, "ablation": 600}
LEAST = 10          # seconds under which no stage is begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--kit", type=Path, default=HERE.parents[2] / "gpu-kit")
    parser.add_argument("--budget", type=float, default=420, help="seconds for all stages (default 420)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    end, outcomes = time.monotonic() + args.budget, {}
    with (args.out / "log.txt").open("a") as log:
        for name in args.stages:
            limit = min(STAGES[name] if args.device == "cuda" else args.budget, end - time.monotonic())
            start = time.monotonic()
            outcomes[name] = stage(name, limit, args, log) if limit >= LEAST else "not begun: the budget is spent"
            say(log, f"== {name}: {outcomes[name]}, {time.monotonic() - start:.0f} s")
        if args.device == "cuda":
            summary(args.out, log)
    late = {"ablation"} & set(args.stages[1:])       # which may well run out of time behind others
    return int(any(outcome != "done" and not (name in late and outcome.startswith(("out of time", "not begun")))
                   for name, outcome in outcomes.items()))


def stage(name: str, limit: float, args: argparse.Namespace, log) -> str:
    """Run one; how it ended. Its output goes to the log line by line, and to the terminal."""
    (args.out / f"{name}.json").unlink(missing_ok=True)      # figures of an earlier run
    flags = ["--out", args.out, "--kit", args.kit, "--device", args.device]
    words = ["-m", "pytest", "-q", "-n", "0", "-m", "gpu", *gpu_tests()] if name == "tests" else \
        [HERE / f"{name}.py", *flags]
    say(log, f"\n== {name}, at most {limit:.0f} s")
    process = subprocess.Popen(list(map(str, ["timeout", "-k", "5", int(limit), sys.executable, "-u", *words])),
                               cwd=HERE.parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        say(log, line.rstrip())
    code = process.wait()
    return {0: "done", 124: "out of time", 137: "out of time"}.get(code, f"failed with exit code {code}")


def gpu_tests() -> list[Path]:
    """The files with tests marked `gpu`: others import what such a machine lacks, and take its time to collect."""
    return [file for file in sorted(HERE.parents[1].rglob("test_*.py")) if "mark.gpu" in file.read_text()]


def say(log, line: str) -> None:
    print(line, flush=True)
    log.write(line + "\n")
    log.flush()


def summary(out: Path, log) -> None:
    """Every figure beside its estimate, where there is one; twice over or under it is marked."""
    from estimates import estimates
    expected = estimates()
    say(log, f"\n{'figure':48} {'measured':>12} {'estimate':>12}  unit")
    for file in sorted(out.glob("*.json")):
        for name, (value, unit) in json.loads(file.read_text())["values"].items():
            key = f"{file.stem}.{name}"
            guess = expected.get(key, (None, ""))[0]
            mark = "" if guess is None or not value or 0.5 <= value / guess <= 2 else "  <- look"
            value, guess = (f"{number:.5g}" if isinstance(number, float) else number for number in (value, guess))
            say(log, f"{key:48} {value!s:>12} {'' if guess is None else guess:>12}  {unit}{mark}")


if __name__ == "__main__":
    sys.exit(main())
