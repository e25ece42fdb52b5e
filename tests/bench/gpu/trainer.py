"""The trainer on the GPU beside the CPU: losses and gradients of every objective, bf16, compile, NCCL with one rank,
checkpoint and resume, and what a step too large for the device says. Uses the store of the packs stage.
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from stage import ROOT, Stage

sys.path.insert(0, str(ROOT / "tests/bench"))
from step import random_views

from shared.clips.views import Views
from shared.nn.backbones import build_backbone
from shared.nn.distributed import GATHER, World, parallel
from shared.recipes.training import load_training
from train.maclr import MaCLR
from train.moco import Learner

OBJECTIVES = "moco", "seco-ta-sa", "mcl", "mcl-v1", "mcl-v2", "maclr"
SETTINGS = "run.workers=4", "images_every=0", "batch=16", "bn_group=8"


def learner_of(recipe, device) -> Learner:
    """The same weights whatever the device: they are drawn on the CPU."""
    torch.manual_seed(0)
    method = MaCLR if recipe.maclr else Learner
    model = recipe.model
    return method(lambda: build_backbone(model.backbone, model.width, model.bn_eps), recipe,
                  World(device=torch.device(device))).to(device)


def moved(views: Views, device) -> Views:
    def there(value):
        if isinstance(value, tuple):
            return tuple(map(there, value))
        return value.to(device) if isinstance(value, torch.Tensor) else value
    return Views(**{name: there(value) for name, value in vars(views).items()})


def steps(learner, views, count=2) -> tuple[list[float], torch.Tensor]:
    """Losses of `count` updates, and the gradient of the first as one row on the CPU."""
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer, losses, gradient = torch.optim.SGD(trained, 0.01, momentum=0.9), [], None
    for _ in range(count):
        out = learner(views, 0.5, 1)
        out["loss"].backward()
        if gradient is None:
            gradient = torch.cat([p.grad.detach().double().cpu().flatten() for p in trained if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(out["loss"].item())
    return losses, gradient


def against_the_cpu(stage):
    """float32 without TF32: the difference is the order of additions."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name in OBJECTIVES:
        recipe = load_training(f"{name}-tiny", ["precision=float32", "batch=8", "bn_group=4"]).recipe
        learner = learner_of(recipe, "cpu")
        shape = learner.query.backbone.h_shape(recipe.sampling.geometry.length, recipe.sampling.size)[1:]
        torch.manual_seed(1)
        views = random_views(recipe, shape, torch.device("cpu"))
        (one, *more), gradient = steps(learner, views)
        found, there = steps(learner_of(recipe, stage.device), moved(views, stage.device))
        cosine = torch.nn.functional.cosine_similarity
        stage.put(f"{name}.loss", one)
        stage.put(f"{name}.relative_difference_step_1", abs(found[0] / one - 1))
        stage.put(f"{name}.relative_difference_step_2", abs(found[1] / more[0] - 1))
        stage.put(f"{name}.gradient_cosine", float(cosine(gradient, there, dim=0)))
        half = load_training(f"{name}-tiny", ["precision=bf16", "batch=8", "bn_group=4"]).recipe
        stage.put(f"{name}.bf16_gradient_cosine",
                  float(cosine(gradient, steps(learner_of(half, stage.device), moved(views, stage.device))[1], dim=0)))
    torch.backends.cudnn.allow_tf32 = True


def one_rank(stage):
    """The collectives that several ranks use, over NCCL (gloo in the dry run) with one."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("nccl" if stage.device == "cuda" else "gloo")
    rows = torch.arange(12.0, device=stage.device).view(4, 3)
    gathered, exchanged, summed = torch.empty_like(rows), torch.empty_like(rows), rows.clone()
    GATHER(gathered, rows)
    dist.all_reduce(summed)
    dist.all_to_all_single(exchanged, rows)
    net = parallel(torch.nn.Linear(3, 2).to(stage.device), World(0, 2, torch.device(stage.device)))
    net(rows).sum().backward()
    stage.put("one_rank.collectives_right", bool(all(torch.equal(rows, other) for other in
                                                     (gathered, summed, exchanged))))
    dist.destroy_process_group()


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def runs(stage):
    """The command as typed: a run of 8 steps, the same stopped after 4 and resumed, and compiled."""
    store = stage.work / f"store-{stage.device}"

    def train(out, *settings, codes=(0,), pipeline="mcl-tiny"):
        flags = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
        return stage.command("train/main.py", "--pipeline", pipeline, "--store", store, "--out", stage.work / out,
                             "--resume", "auto", *flags, codes=codes)
    for name in ("whole", "parts", "compiled", "too-large"):
        stage.fresh(name)
    train("whole", "steps=8")
    train("parts", "steps=4")
    train("parts", "steps=8")
    whole, parts = rows(stage.work / "whole"), rows(stage.work / "parts")
    stage.put("resume.relative_difference_of_the_last_loss", abs(parts[-1]["loss"] / whole[-1]["loss"] - 1))
    if stage.device == "cpu":
        return
    train("compiled", "steps=8", "run.compile=true")
    stage.put("compile.relative_difference_of_the_first_loss",
              abs(rows(stage.work / "compiled")[0]["loss"] / whole[0]["loss"] - 1))
    take = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.985), dtype=torch.uint8, device="cuda")
    _, printed = train("too-large", "steps=2", codes=(3,))
    del take
    print(printed[-600:])
    stage.put("out_of_memory.told_in_one_line", "does not fit into the memory" in printed
              and "Traceback" not in printed)


def main():
    stage = Stage("trainer", __doc__)
    against_the_cpu(stage)
    one_rank(stage)
    runs(stage)


if __name__ == "__main__":
    sys.exit(main())
