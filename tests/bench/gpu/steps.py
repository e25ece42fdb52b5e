"""Full-size updates of the papers' recipes: clips a second, MCL over its base, share of the bf16 peak, memory; and of
`mcl` fed from the store of the packs stage, the share of time that it waits for data. Dry run: the tiny recipes.
"""

import json
import sys

import torch
from stage import ROOT, Stage

sys.path.insert(0, str(ROOT / "tests/bench"))
from estimates import PEAK, flops
from step import Stepper

from shared.recipes.training import load_training

PIPELINES = "seco-ta-sa", "mcl", "moco", "maclr"
BATCHES = 64, 128, 256, 384, 512


def main():
    stage = Stage("steps", __doc__)
    suffix = "-tiny" if stage.small else ""
    for batch in BATCHES[:1]:
        for name in PIPELINES:
            measure(stage, name + suffix, 8 if stage.small else batch)
    fed(stage, suffix)
    if not stage.small:
        for batch in BATCHES[1:]:        # until it does not fit
            if not measure(stage, "mcl", batch):
                break


def measure(stage, name: str, batch: int) -> bool:
    """One pipeline at one batch; whether it fitted."""
    recipe = load_training(name, [f"batch={batch}", f"bn_group={min(8, batch)}"]).recipe
    if stage.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        stepper = Stepper(recipe, torch.device(stage.device))
        seconds = stage.seconds(stepper.step, 2 if stage.small else 8)
    except torch.OutOfMemoryError:
        stage.put(f"{name}.batch_{batch}", "does not fit")
        return False
    stage.put(f"{name}.batch_{batch}.step", seconds * 1e3, "ms")
    stage.put(f"{name}.batch_{batch}.clips_a_second", batch / seconds, "queries/s")
    if stage.device == "cuda":
        stage.put(f"{name}.batch_{batch}.of_the_bf16_peak", flops(name, batch) / seconds / PEAK, "share")
        stage.put(f"{name}.batch_{batch}.memory", torch.cuda.max_memory_allocated() / 2 ** 30, "GiB")
    return True


def fed(stage, suffix: str):
    """`train/main.py` on real packs: whether the loader keeps up."""
    store, out = stage.work / f"store-{stage.device}", stage.fresh("fed")
    batch, steps = (8, 4) if stage.small else (32, 24)      # the kit gives some fifty videos
    stage.command("train/main.py", "--pipeline", "mcl" + suffix, "--store", store, "--out", out, *(
        word for setting in (f"batch={batch}", "bn_group=8", f"steps={steps}", "images_every=0", "log_every=1",
                             f"run.workers={1 if stage.small else 14}") for word in ("--set", setting)))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][steps // 2:]
    stage.put("fed.clips_a_second", sum(row["clips_per_s"] for row in rows) / len(rows), "queries/s")
    stage.put("fed.waiting_for_data", sum(row["data_wait"] for row in rows) / len(rows), "share")


if __name__ == "__main__":
    sys.exit(main())
