"""`make demo` and `make proof` as they stand in the Makefile, with few videos and rows, and a step."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from preprocess.synthetic import make_videos

ROOT = Path(__file__).resolve().parents[1]


def make(*words):
    return subprocess.run(["make", "--no-print-directory", f"PY={sys.executable}", *words], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.mark.slow
def test_the_demo_ends_in_a_report_that_begins_with_what_moves(tmp_path):
    ended = make("demo", f"DEMO={tmp_path}", "VIDEOS=24", "STEPS=1", "ROWS=untrained,mcl-v1")
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


@pytest.mark.slow
def test_the_proof_asks_a_group_that_nothing_has_learnt_from(tmp_path):
    data, out = tmp_path / "data", tmp_path / "proof"
    made = make_videos(data / "videos/hands", videos=32, seed=0, backgrounds=2, textures=2, frames=32,
                       height=64, width=64)
    with open(data / "INDEX.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "dataset", "class", "group", "note"])
        for number, video in enumerate(made):
            rows.writerow([video.relative_to(data), "hands", video.parent.name, f"scene_{number // 16}", "a, b"])
        rows.writerow(["videos/others/one.mp4", "others", "one", "scene_0", ""])
    words = "proof", f"DATA={data}", f"PROOF={out}", "SET=hands", "GROUP=scene_0", "SEEDS=1", "STEPS=1", \
        "ROWS=untrained,mcl-moco-v1"
    ended = make(*words)
    assert ended.returncode == 0, ended.stderr
    report = Path(ended.stdout.splitlines()[-1].removeprefix("The report: "))
    assert report.is_file()
    found = json.loads((report.parent / "ablation.json").read_text())
    assert found["rows"] == ["untrained", "mcl-moco-v1"] and "untrained/scene_0/linear/top1" in found["metrics"]
    assert "done: 0 runs" in (again := make(*words).stdout) and "2 there before" in again
    missing = make("proof", f"DATA={tmp_path}", f"PROOF={tmp_path}/none")
    assert missing.returncode == 2 and "INDEX.csv is missing" in missing.stderr
