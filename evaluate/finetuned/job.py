"""Supervised training of a backbone and one linear layer (docs/method.md 1.7), resumable, on any number of ranks.

B clips a forward over all ranks, C features, K classes. Every draw is a function of (seed, epoch, video) or (seed,
update), and BN statistics are those of `bn_group` clips: neither an interruption nor the number of ranks changes them.
"""

import copy
import dataclasses
import math
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.features.encoders import Encoder
from evaluate.features.extract import View
from evaluate.finetuned.classifier import Classifier
from evaluate.finetuned.labelled import LabelledClips
from evaluate.finetuned.rand_augment import rand_augment
from evaluate.settings import Finetune, RunEvaluation
from shared.cli import Progress, RequestError, Stopped
from shared.clips.loader import Batch, Loader, Sampler, worker_count
from shared.clips.resampling import resize
from shared.clips.sampling import generator
from shared.clips.views import augment
from shared.nn import checkpoint
from shared.nn.backbones import build_backbone
from shared.nn.distributed import World, average_buffers, parallel, reduce_logs
from shared.nn.layers import Backbone
from shared.nn.norm import split_batch_norm
from shared.nn.together import Interrupt, agree, every, raise_first, together
from shared.recipes.settings import differences, recorded
from shared.schedule import Schedule

FINETUNED, TRAINING = "finetuned.pt", "training.pt"
CHECKPOINT_S = 300    # a long training is saved every so many seconds
HEAD_STD = 0.01       # ours
TEST_ONLY = "crops", "test_size"
RESUME = "the same command goes on"


@dataclasses.dataclass
class Job:
    """One training: what is trained, on what; group: clips that share BN statistics."""

    encoder: Encoder
    data: LabelledClips
    split: str | None
    settings: Finetune
    view: View
    seed: int
    group: int

    @property
    def schedule(self) -> Schedule:
        """In updates; what is left of the last forwards of a run counts for none."""
        s = self.settings
        updates = s.steps or max(1, s.epochs * self.forwards // s.accumulate)
        return Schedule(updates, max(1, self.forwards // s.accumulate), s.lr, 0, 0.0)

    @property
    def forwards(self) -> int:
        """Forwards an epoch."""
        return len(self.data) // self.settings.batch

    @property
    def request(self) -> dict:
        """What decides the numbers, the test apart."""
        net, store = self.encoder.net, self.data.provenance()[0]
        return {"checkpoint": self.encoder.sha256, "backbone": net.name, "width": net.width,
                "clip": str(self.view.geometry), "size": self.view.size, "seed": self.seed, "bn_group": self.group,
                "store": {key: store[key] for key in ("index", "recipe_hash")}, "split": self.split,
                "samples": self.data.samples.digest,
                "finetune": recorded(Finetune, {key: value for key, value in dataclasses.asdict(self.settings).items()
                                                if key not in TEST_ONLY})}

    def find(self, path: Path, world: World) -> dict | None:
        """The file's content; None where it is not there. Raises RequestError where it is of another request."""
        if not path.exists():
            return None
        state = checkpoint.read(path, world.device, ("format", "request"))
        with checkpoint.well_formed(path):
            different = differences(state["request"], self.request)
        if different:
            raise RequestError(f"{path} was made from another request: {'; '.join(different)}; use its settings or "
                               "another --out")
        return state

    def build(self, backbone: Backbone) -> Classifier:
        """What is trained, about this backbone."""
        return Classifier(backbone, self.data.classes)

    def classifier(self, backbone: dict, head: dict) -> Classifier:
        """In eval mode, with these weights, of finetuned.pt or just trained."""
        net = self.encoder.net
        made = self.build(build_backbone(net.name, net.width, net.eps))
        made.backbone.load_state_dict(backbone)
        made.head.load_state_dict(head)
        return made.eval()

    def start(self) -> Classifier:
        """Before the first update, in training mode."""
        model = self.build(copy.deepcopy(self.encoder.net))
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        with torch.no_grad():
            drawn = generator(self.seed, 0, 0, 0).normal(0, HEAD_STD, tuple(model.head.weight.shape))
            model.head.weight.copy_(torch.from_numpy(drawn))
            model.head.bias.zero_()
        return split_batch_norm(model, self.group).train()

    def kept(self, update: int, part: int, world: World) -> Tensor | None:
        """(B / ranks, C) dropout of this rank's clips: 0 or 1 / (1 - p), drawn for the whole batch."""
        p, batch = self.settings.dropout, self.settings.batch
        if not p:
            return None
        drawn = generator(self.seed, 1 + update, part, 0).random((batch, self.encoder.net.features), np.float32)
        share = batch // world.size
        mine = torch.from_numpy(drawn[world.rank * share:(world.rank + 1) * share]).to(world.device)
        return (mine >= p).float() / (1 - p)

    def train(self, run: RunEvaluation, world: World, out: Path) -> Classifier:
        """Every update from OUT/training.pt on, or from the start; leaves OUT/finetuned.pt in its place."""
        settings, schedule, device = self.settings, self.schedule, world.device
        model = self.start().to(device)
        trained = list(model.parameters())
        optimizer = torch.optim.SGD(trained, settings.lr, settings.momentum, weight_decay=settings.weight_decay,
                                    nesterov=settings.nesterov)
        sampler = Sampler(len(self.data), settings.batch, self.seed, world.rank, world.size)
        labels, curve, first = torch.from_numpy(self.data.samples.labels), [], 0
        with together(world):
            state = self.find(out / TRAINING, world)
            if state:
                with checkpoint.well_formed(out / TRAINING):
                    checkpoint.load_weights(model, state["classifier"], out / TRAINING)
                    checkpoint.load_optimizer(optimizer, state["optimizer"], out / TRAINING)
                    sampler.load_state_dict(state["sampler"])
                    curve, first = checkpoint.curve_of(state), state["step"]
                    if type(first) is not int or not 0 <= first <= schedule.steps or len(curve) != first:
                        raise ValueError(f"update {first!r} of {schedule.steps}, and {len(curve)} on its curve")
        net = parallel(model, world)
        control = dist.new_group(backend="gloo") if world.size > 1 else None
        progress = Progress("finetune", schedule.steps - first) if world.main else None
        started = saved_at = time.monotonic()

        def save(done: int, position: dict) -> None:
            if world.main:
                checkpoint.save(out / TRAINING, {
                    "format": checkpoint.FORMAT, "request": self.request, "step": done, "sampler": position,
                    "classifier": model.state_dict(), "optimizer": optimizer.state_dict(), "curve": curve})

        with Interrupt(world) as interrupt, Loader(self.data, sampler, worker_count(run.workers), device) as loader:
            batches = iter(loader)
            for update in range(first, schedule.steps):
                sums: dict[str, Tensor] = {}
                for part in range(settings.accumulate):
                    position = sampler.state_dict()
                    batch, trouble = fetched(batches)
                    # Between two updates all ranks agree on whether to save, and whether to stop.
                    due = time.monotonic() - saved_at > CHECKPOINT_S
                    broken, stop, due = agree([trouble is not None, interrupt.reason is not None, due], world, control)
                    if broken:
                        raise_first(every(trouble, world, control))
                    if not part and update > first and (due or stop):
                        save(update, position)
                        saved_at = time.monotonic()
                    if not part and stop:
                        raise Stopped(f"{interrupt.reason or 'interrupted'} after update {update} of "
                                      f"{schedule.steps}; {RESUME}")
                    last = part + 1 == settings.accumulate
                    with nullcontext() if last or world.size == 1 else net.no_sync():
                        logs = self.backward(net, batch, labels, self.kept(update, part, world), device)
                    sums = {name: sums.get(name, 0) + value for name, value in logs.items()}
                self.update(optimizer, trained, schedule.rate(update), reduce_logs(sums, world), update, curve)
                average_buffers(model, world)
                if progress:
                    done = update + 1 - first
                    rate = done * settings.batch * settings.accumulate / (time.monotonic() - started)
                    progress.update(done, f"update {update + 1}/{schedule.steps}, {rate:.3g} clips/s, loss "
                                          f"{curve[-1][1]:.3f}, accuracy {curve[-1][2]:.2f}")
            stop, = agree([interrupt.reason is not None], world, control)
        if progress:
            progress.close(text=f"{schedule.steps} updates, loss {curve[-1][1]:.3f}, accuracy {curve[-1][2]:.2f}")
        finished = self.finish(model, curve, world, out)
        if stop:
            raise Stopped(f"{interrupt.reason or 'interrupted'} after the last update; {RESUME}")
        return finished

    def clips(self, batch: Batch, device) -> Tensor:
        """(B / ranks, 3, L, S, S) float32, normalised: resized, RandAugment, flip, in the released code's order."""
        settings, size, (crops, *_) = self.settings, self.view.size, batch.arrays(device)
        clips = torch.empty(len(crops), 3, self.view.geometry.length, size, size, device=device)
        for clip, (crop,), number in zip(clips, crops, batch.ids.tolist()):
            rng = generator(self.seed, batch.epoch, number, 1)
            clip.copy_(rand_augment(resize(crop, size), rng, settings.rand_n, settings.rand_m))
        return augment(clips, batch.views[:, 0], self.data.augment)

    def backward(self, net: nn.Module, batch: Batch, labels: Tensor, keep: Tensor | None, device) -> dict[str, Tensor]:
        """One forward of the batch and its gradient, added up; loss and accuracy as shares of the update's."""
        x, wanted = self.clips(batch, device), labels[batch.ids].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            logits = net(x, keep)
        loss = F.cross_entropy(logits.float(), wanted) / self.settings.accumulate
        loss.backward()
        right = (logits.detach().argmax(1) == wanted).float().mean() / self.settings.accumulate
        return {"loss": loss.detach(), "accuracy": right}

    def update(self, optimizer: torch.optim.Optimizer, trained: list, rate: float, logs: dict[str, float], update: int,
               curve: list) -> None:
        """Clip, step, and a row (update, loss, accuracy) of the curve. Raises Stopped for what is not finite."""
        norm = float(nn.utils.clip_grad_norm_(trained, self.settings.clip_norm or math.inf))
        if not (math.isfinite(logs["loss"]) and math.isfinite(norm)):
            raise Stopped(f"update {update + 1} is not finite, before it was made: loss {logs['loss']:.4g}, gradient "
                          f"{norm:.4g}; lower finetune.lr in a new --out")
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append([update + 1, logs["loss"], logs["accuracy"]])

    def finish(self, model: Classifier, curve: list, world: World, out: Path) -> Classifier:
        """Write OUT/finetuned.pt, which ends the need for OUT/training.pt."""
        origin, net = self.encoder.provenance, self.encoder.net
        backbone, head = model.backbone.state_dict(), model.head.state_dict()
        learnt = {**self.data.provenance()[0], "split": self.split, "labels": True,
                  "unlabelled": self.data.samples.unlabelled}
        if world.main:
            checkpoint.save(out / FINETUNED, {
                "format": checkpoint.FORMAT, "kind": checkpoint.FINETUNED, "request": self.request, "curve": curve,
                "backbone": backbone, "head": head, "classes": self.data.classes,
                "recipe": {"sampling": {"clip": str(self.view.geometry), "size": self.view.size},
                           "model": {"backbone": net.name, "width": net.width, "bn_eps": net.eps},
                           "finetune": dataclasses.asdict(self.settings)},
                "provenance": {
                    "kind": checkpoint.FINETUNED, "pipeline": "finetune", "step": len(curve), "seed": self.seed,
                    "epoch": len(curve) * self.settings.accumulate // self.forwards, "bn_group": self.group,
                    "init": origin.get("init"), "stores": [*origin.get("stores", []), learnt],
                    "start": {"checkpoint": self.encoder.text, "sha256": self.encoder.sha256,
                              **{key: origin[key] for key in ("kind", "pipeline", "step") if key in origin}},
                    "world_size": world.size, "device": world.device.type,
                    "versions": {name: version(name) for name in ("motionpack", "torch", "kornia", "numpy")}}})
            (out / TRAINING).unlink(missing_ok=True)
        return self.classifier(backbone, head).to(world.device)


def fetched(batches) -> tuple:
    """The next batch and None, or None and what went wrong, which the ranks tell one another first."""
    try:
        return next(batches), None
    except Stopped as stop:
        return None, ("Stopped", f"{stop}; {RESUME}")
