"""Ratios of the benchmarks, kept in a file, against floors.yaml: python tests/bench/floors.py RATIOS

A benchmark says `tell(name, value)`; where the environment names a file, BENCH_RATIOS, the value is kept there, a line
of JSON each. `make bench` does so, and ends with this comparison: exit code 1 where a value misses its floor, or a name
of floors.yaml was not measured. A floor is `exact`, `least` or `most`.
"""

import json
import os
import sys
from pathlib import Path

import yaml

FLOORS = Path(__file__).with_name("floors.yaml")


def tell(name: str, value: float) -> None:
    """Keep a ratio or a count of this run; the last one of a name counts."""
    if path := os.environ.get("BENCH_RATIOS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "value": round(float(value), 4)}) + "\n")


def missed(value: float | None, floor: dict[str, float]) -> str:
    """Why a value is not good enough; "" where it is."""
    if value is None:
        return "was not measured"
    for rule, good in (("exact", lambda limit: value == limit), ("least", lambda limit: value >= limit),
                       ("most", lambda limit: value <= limit)):
        if rule in floor and not good(floor[rule]):
            return f"expected {rule} {floor[rule]:g}"
    return ""


def main(path: str) -> int:
    values = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        values[told["name"]] = told["value"]
    bad = 0
    for name, floor in yaml.safe_load(FLOORS.read_text(encoding="utf-8")).items():
        why = missed(values.get(name), floor)
        bad += bool(why)
        print(f"{'MISSED' if why else 'holds':7} {name}: {values.get(name, '-')}{'; ' + why if why else ''}")
    print(f"{bad} floors missed, {len(values)} values in {path}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
