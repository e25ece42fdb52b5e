"""Rows of MCL's Tables 1 and 2 at tiny scale, with the steps that a GPU affords, in the time that is left.

The packs are made here, of generated videos: sixteen cores make them in seconds, and the wheels leave no room for them
in what travels. Each row is 2,000 steps where a CPU is given 150. Stopped by its limit, it goes on when said again;
every run that is whole stays, and its figures are in ablation.json as soon as the report is.
"""

import json
import os
import sys

from stage import Stage

ROWS = "untrained", "moco", "seco-ta-sa", "mcl-v1", "mcl"


def main():
    stage = Stage("ablation", __doc__)
    store, out = stage.work / "generated", stage.work / f"ablation-{stage.device}"
    videos, steps, size = (48, 2, 32) if stage.small else (384, 2000, 64)
    stage.command("-m", "preprocess.run", "--dataset", "synthetic", "--videos", stage.work / "generated-videos",
                  "--store", store, "--engine", "serial", *settings(
                      f"generate.videos={videos}", "textures=1", "generate.frames=48", "height=64", "width=64"),
                  codes=(0, 1))
    stage.command(
        "-m", "evaluate.ablation", "--store", store, "--out", out, "--rows", ",".join(ROWS), "--seeds", 1,
        "--protocols", "controls", "--jobs", 1 if stage.small else 4,
        *settings(f"steps={steps}", f"size={size}", "bn_group=16",
                  f"run.workers={1 if stage.small else max(1, (os.cpu_count() or 4) // 5)}"),
        *settings("features.size=64", "features.clips=2", "moments=4", "untrained=1", "supervised_steps=0",
                  f"run.device={stage.device}", flag="--set-evaluation"))
    for name, value in json.loads((out / "ablation.json").read_text())["metrics"].items():
        stage.put(name, value)


def settings(*texts, flag="--set"):
    return [word for text in texts for word in (flag, text)]


if __name__ == "__main__":
    sys.exit(main())
