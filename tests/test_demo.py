"""`make demo` as it stands in the Makefile, with few videos and rows, and a step."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_demo_ends_in_a_report_that_begins_with_what_moves(tmp_path):
    ended = subprocess.run(["make", "--no-print-directory", "demo", f"PY={sys.executable}", f"DEMO={tmp_path}",
                            "VIDEOS=24", "STEPS=1", "ROWS=untrained,mcl-v1"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1].strip() == f"{tmp_path}/results/report.html"
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("store.png", "video.png"))
    page = (tmp_path / "results/report.html").read_text()
    first, second, *_ = re.findall(r'<img alt="([^"]*)"', page)
    assert first.startswith("Where it moves in 6 test videos") and second.startswith("Every dot is a seed")
    shown, rest, *_ = re.findall("<p>(.*?)</p>", page)
    assert re.match(r"Shown: ([\w-]+ says|no row says clearly) best where .*untrained -?\d\.\d\d, mcl-v1 -?\d\.\d\d;",
                    shown)
    assert rest.startswith("Not shown: ") and page.index(rest) < page.index("<img")
