"""What the alignment costs: the MCL step beside the seco-ta-sa and the MoCo step, same network, same batch; or what the
motion pathway costs: the MaCLR step beside the visual-only one.

    python tests/bench/step.py [--maclr] [--scale tiny reduced full] [--repeats N] [--device cpu|cuda]

Forward, backward and update on views made beforehand; the pipelines take turns, and ratios are medians over the turns
(first and third quartile beside them). On the CPU CPU seconds count, which others on the machine disturb least, and on
one thread, whose waiting does not count as work; on CUDA wall seconds. tiny: as the tiny pipelines; reduced:
r2plus1d_50 (MaCLR: slow_50 and its motion pathway) at a quarter of its width, 112x112, 8 clips; full: as the pipelines
but for the batch (CUDA alone).
"""

import argparse
import statistics
import time

import torch
from floors import tell

from shared.clips.views import Views
from shared.nn.backbones import build_backbone
from shared.nn.distributed import World, choose_device
from shared.recipes.pretraining import Pretraining
from shared.recipes.training import load_training
from train.maclr import MaCLR
from train.moco import Learner

PIPELINES = "seco-ta-sa", "mcl", "moco-ta-sa"          # the first is what the others are measured by
MACLR = "maclr-visual", "maclr", "maclr-narrow", "maclr-wide", "maclr-mm"
SCALES = {
    "tiny": ("-tiny", ()),
    "reduced": ("", ("model.width=16", "size=112", "batch=8", "bn_group=4", "queue=8192", "precision=float32")),
    "full": ("", ()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maclr", action="store_true", help="MaCLR and its ablations")
    parser.add_argument("--scale", nargs="*", choices=SCALES, help="default: tiny and reduced; on CUDA full")
    parser.add_argument("--repeats", type=int, default=0, help="turns (default: 60 tiny, 12 otherwise)")
    parser.add_argument("--batch", type=int, default=16, help="clips of the full scale (default 16)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"torch {torch.__version__} on {name}")
    for scale in args.scale or (("full",) if device.type == "cuda" else ("tiny", "reduced")):
        suffix, settings = SCALES[scale]
        settings = [*settings, f"batch={args.batch}"] if scale == "full" else settings
        recipes = {}
        for name in MACLR if args.maclr else PIPELINES:
            recipe = load_training(name + suffix, settings).recipe
            if scale == "reduced" and recipe.maclr:
                width = max(1, recipe.maclr.motion_width // 4)
                recipe = load_training(name, [*settings, f"motion_width={width}"]).recipe
            recipes[name] = recipe
        measure(scale, recipes, device, args.repeats or (60 if scale == "tiny" else 12))


def random_views(recipe: Pretraining, shape: tuple[int, int, int], device: torch.device) -> Views:
    batch, side, length = recipe.optimise.batch, recipe.sampling.size, recipe.sampling.geometry.length
    clips = [torch.randn(batch, 3, length, side, side, device=device) for _ in range(1 + recipe.sampling.keys)]
    second = None
    if recipe.maclr and recipe.maclr.reads:
        second = tuple(torch.rand(2, batch, 3, recipe.maclr.geometry.length, side, side, device=device))
    return Views(query=clips[0], keys=tuple(clips[1:]), motion=torch.rand(batch, *shape, device=device),
                 ids=torch.arange(batch, device=device), order=torch.arange(batch, device=device) % 2,
                 motion_clips=second)


class Stepper:
    """One pipeline's learner and its views; `step` is one update, timed until the device has done it."""

    def __init__(self, recipe: Pretraining, device: torch.device):
        torch.manual_seed(0)
        self.device = device
        method = MaCLR if recipe.maclr else Learner
        self.learner = method(lambda: build_backbone(recipe.model.backbone, recipe.model.width), recipe,
                              World(device=device)).to(device)
        self.optimizer = torch.optim.SGD([p for p in self.learner.parameters() if p.requires_grad], 1e-3, momentum=0.9)
        shape = self.learner.query.backbone.h_shape(recipe.sampling.geometry.length, recipe.sampling.size)[1:]
        self.views = random_views(recipe, shape, device)

    def step(self) -> float:
        """Seconds: of the CPU, or on the wall with CUDA."""
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        start = clock()
        self.learner(self.views, 0.5, 10)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start


def measure(scale: str, recipes: dict[str, Pretraining], device: torch.device, repeats: int) -> None:
    steppers = {name: Stepper(recipe, device) for name, recipe in recipes.items()}
    reference, recipe = next(iter(recipes.items()))
    length, side = recipe.sampling.geometry.length, recipe.sampling.size
    print(f"\n{scale}: {recipe.model.backbone}, {recipe.optimise.batch} clips of {length}x{side}x{side}, "
          f"{recipe.model.precision}, {repeats} turns")
    for stepper in steppers.values():
        for _ in range(3):
            stepper.step()
    seconds = {name: [] for name in steppers}
    for turn in range(repeats):
        names = list(steppers)
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            seconds[name].append(steppers[name].step())
    base = seconds[reference]
    print(f"{'pipeline':>12} {'step, ms':>9} {'clips/s':>8} {f'over {reference}':>17}   quartiles")
    for name, times in seconds.items():
        ratios = [time / reference for time, reference in zip(times, base)]
        first, middle, third = statistics.quantiles(ratios, n=4)
        step = statistics.median(times)
        if (reference, name) == ("seco-ta-sa", "mcl"):
            tell(f"step: mcl over seco-ta-sa, {scale}", middle)
        rate = recipe.optimise.batch / step
        print(f"{name:>12} {step * 1e3:>9.1f} {rate:>8.1f} {middle:>17.3f}   {first:.3f} to {third:.3f}")


if __name__ == "__main__":
    main()
