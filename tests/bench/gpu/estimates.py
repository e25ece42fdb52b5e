"""What an H200 should show, from bytes and operations: `python tests/bench/gpu/estimates.py` prints the table.

Constants are public ones of the device, or measured on this project's CPU machines where it says so.
"""

import contextlib
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from step import random_views

from preprocess.flow import parameters
from preprocess.flow.batch import STEPS
from preprocess.flow.cuda import TILE
from shared.nn.backbones import build_backbone
from shared.nn.distributed import World
from shared.recipes.training import load_training
from train.maclr import MaCLR
from train.moco import Learner

PEAK = 790e12                # dense bf16 products of 8192 x 8192 with random values, operations/s
COPY = 4.3e12                # bytes/s, read and written
ISSUE = 132 * 4 * 32 * 1.98e9        # instructions of a thread a second: multiprocessors, schedulers, lanes, clock
ITERATION = 142              # instructions of iterate's loop a pixel: (0x2ff0 - 0xc80) / 16 / 4 in sm_90's machine code
HALO = TILE[0] * TILE[1] / ((TILE[0] - 2 * STEPS) * (TILE[1] - 2 * STEPS))      # pixels computed over pixels kept
OF_PEAK, OF_ISSUE = 0.25, 0.6         # shares that code of this kind tends to reach
LOADER = 160                 # clips a second a core, tests/bench/loader.py
KINETICS = 240_000, 66e6     # videos, pairs


def flops(pipeline: str, batch: int) -> float:
    """Operations of one update, counted on tensors without values."""
    recipe = load_training(pipeline, [f"batch={batch}", f"bn_group={min(8, batch)}"]).recipe
    device, model = torch.device("meta"), recipe.model
    with device:
        learner = (MaCLR if recipe.maclr else Learner)(
            lambda: build_backbone(model.backbone, model.width, model.bn_eps), recipe, World(device=device))
    shape = learner.query.backbone.h_shape(recipe.sampling.geometry.length, recipe.sampling.size)[1:]
    real, torch.autocast = torch.autocast, lambda *_, **__: contextlib.nullcontext()      # it knows no meta
    try:
        with FlopCounterMode(display=False) as counter:
            learner(random_views(recipe, shape, device), 0.5, 10)["loss"].backward()
    finally:
        torch.autocast = real
    return counter.get_total_flops()


def pixel_iterations(preset: str, height: int = 256, width: int = 340) -> int:
    """Of one pair."""
    settings = parameters(preset)
    area = sum(h * w for h, w in settings.levels(int(height * settings.scale), int(width * settings.scale)))
    return area * settings.warps * settings.outer * settings.iterations


def estimates() -> dict[str, tuple[float, str]]:
    """stage.figure -> (value, how it was got)."""
    found = {"flow.copy_bandwidth": (COPY / 1e9, "measured on such a device")}
    bound = ISSUE / (ITERATION * HALO)
    found["flow.iterate.exact.4_a_launch"] = OF_ISSUE * bound / 1e9, f"at most {bound / 1e9:.0f} by its instructions"
    found["flow.iterate.exact.4_a_launch.over_64_B_ceiling"] = OF_ISSUE * bound * 64 / COPY, "the same"
    for preset in ("default", "fast", "half"):
        rate = ISSUE * OF_ISSUE / (ITERATION * HALO) / pixel_iterations(preset)
        found[f"flow.{preset}.batch_256.graph.pairs_a_second"] = rate, f"{OF_ISSUE:.0%} of the instructions"
        found[f"flow.{preset}.kinetics400"] = KINETICS[1] / rate / 3600, "66 million pairs at that rate"
    for name in ("moco", "seco-ta-sa", "mcl", "maclr"):
        work = flops(name, 64)
        found[f"steps.{name}.batch_64.step"] = work / (PEAK * OF_PEAK) * 1e3, f"{work / 1e12:.1f} TFLOP, {OF_PEAK:.0%}"
        found[f"steps.{name}.batch_64.clips_a_second"] = 64 * PEAK * OF_PEAK / work, "the same"
        found[f"steps.{name}.batch_64.of_the_bf16_peak"] = OF_PEAK, "the aim"
    return found


def main():
    known = estimates()
    for name, (value, how) in known.items():
        print(f"{name:48} {value:>12.5g}  {how}")
    for what, videos, epochs in (("MCL on UCF101 (split 1)", 9_537, 200), ("MCL on Kinetics-400", 240_000, 400)):
        rate = known["steps.mcl.batch_64.clips_a_second"][0]
        print(f"{what}, {epochs} epochs: {videos * epochs / rate / 3600:.2g} GPU-hours at {rate:.0f} queries/s; 16 "
              f"cores feed {16 * LOADER / 4:.0f} queries/s of four clips")


if __name__ == "__main__":
    main()
