"""Videos in, motion packs out: decoding, optical flow, motion maps, and the engines that spread them over workers."""

import runpy
import sys
from pathlib import Path

if sys.argv[:1] == ["-m"]:     # a command, `python -m preprocess.NAME`, of which this runs first
    runpy.run_path(str(Path(__file__).parents[1] / "shared/home.py"))["begin"]("shared")
