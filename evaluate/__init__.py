"""Checkpoints in, scores and pictures out: features, protocols, ablations, and the reports of all of them."""

import os
import runpy
import sys
from pathlib import Path

if sys.argv[:1] == ["-m"]:     # a command, `python -m evaluate.NAME`, of which this runs first
    home = runpy.run_path(str(Path(__file__).parents[1] / "shared/home.py"))
    home["begin"]("shared", rank=int(os.environ.get("RANK", 0)))
