"""A slice of tests/bench/fuzz.py: damaged files through the real command."""

import random

import pytest

from tests.bench import fuzz


@pytest.mark.slow
def test_damaged_files_end_no_run_and_pass_with_no_wrong_count(data_root, tmp_path):
    files = sorted(path for path in (data_root / "odd").iterdir() if 0 < path.stat().st_size < 200_000)
    tally = fuzz.fuzz(files, tmp_path, count=20, rng=random.Random(0), batch=20)
    assert tally.wrong == {} and sum(tally.outcomes.values()) == 20
    assert {"kept whole", "failed: not a video"} <= tally.outcomes.keys()


def test_the_same_seed_makes_the_same_files(tmp_path):
    files = [tmp_path / name for name in ("a.mp4", "b.avi")]
    for number, path in enumerate(files):
        path.write_bytes(random.Random(number).randbytes(5000))
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append([(path.name, path.read_bytes())
                     for path in fuzz.mutated(files, tmp_path / name, 40, random.Random(3))])
    assert made[0] == made[1] and len({data for _, data in made[0]}) > 30
