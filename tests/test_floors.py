"""The floors of `make bench`: every name is told by a benchmark that it runs, and a slow commit shows."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

BENCH = Path(__file__).parent / "bench"


@pytest.fixture
def floors(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import floors
    yield floors
    del sys.modules["floors"]


def test_every_floor_is_measured_by_make_bench(floors):
    made = re.findall(r"tests/bench/(\w+)\.py", (BENCH.parents[1] / "Makefile").read_text().partition("\nbench:\n")[2]
                      .partition("\nlearn:")[0])
    told = "".join((BENCH / f"{name}.py").read_text() for name in made)
    for name in yaml.safe_load(floors.FLOORS.read_text()):
        head, _, tail = name.rpartition(", ")
        assert f'tell("{name}"' in told or f'tell(f"{head}, {{' in told, name


def test_a_value_below_its_floor_shows(floors, tmp_path, monkeypatch, capsys):
    file = tmp_path / "bench.jsonl"
    monkeypatch.setenv("BENCH_RATIOS", str(file))
    wanted = yaml.safe_load(floors.FLOORS.read_text())
    for name, floor in wanted.items():
        floors.tell(name, 0)                                 # of a broken run before: the last value counts
        floors.tell(name, next(iter(floor.values())))
    assert floors.main(str(file)) == 0
    floors.tell("store: files a pack", 24)
    floors.tell("clusters: two workers over one, dask", 1.2)
    assert floors.main(str(file)) == 1
    said = capsys.readouterr().out
    assert "MISSED  store: files a pack: 24.0; expected exact 23" in said and "2 floors missed" in said
    file.write_text("".join(json.dumps({"name": name, "value": 1}) + "\n" for name in list(wanted)[:1]))
    assert floors.main(str(file)) == 1 and "- was" not in capsys.readouterr().err
