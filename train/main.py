"""Pre-training from packs: `python train/main.py --pipeline NAME --store STORE --out RUN`; with several processes
`torchrun --nproc-per-node N train/main.py ...`.
"""

import os
import runpy
from pathlib import Path

RANK = int(os.environ.get("RANK", 0))

if __name__ == "__main__":
    home = runpy.run_path(str(Path(__file__).resolve().parents[1] / "shared/home.py"))
    home["begin"]("shared", "train", rank=RANK)
    # Threads that spin while they wait take the cores from the loader's workers: up to 10x a step on busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import dataclasses
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version

import torch
import torch.distributed as dist

from shared import cli
from shared.cli import Progress, RequestError, Stopped, duration, plural, size
from shared.clips.data import ClipData
from shared.clips.loader import Loader, Sampler, fitting, worker_count
from shared.clips.views import make_views
from shared.datasets.catalog import ONE_SIDED
from shared.nn import checkpoint
from shared.nn.backbones import build_backbone
from shared.nn.distributed import World, close_world, open_world, parallel, reduce_logs
from shared.nn.inflate import inflate
from shared.nn.together import Interrupt, agree, every, lost_peer, raise_first, together
from shared.recipes.pretraining import Pretraining, RunTraining
from shared.recipes.training import Training, load_training
from shared.schedule import Schedule
from shared.store.place import store_argument
from train.maclr import MaCLR
from train.moco import Learner, aligns
from train.record import LAST, Meter, Record, claim, peak_memory
from train.resume import restore

PACKAGES = "motionpack", "torch", "kornia", "numpy"
RESUME = "the same command with --resume auto goes on"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises RequestError for what it cannot take."""
    parser = cli.Arguments(prog="python train/main.py", description=__doc__)
    parser.add_argument("--pipeline", required=True, help="a name of pipelines.yaml, such as mcl-tiny")
    parser.add_argument("--store", required=True, action="append", metavar="DIR", type=store_argument,
                        help="packs: a folder, or a URL; may be given repeatedly")
    parser.add_argument("--out", required=True, type=cli.local, metavar="RUN", help="where checkpoints and metrics go")
    parser.add_argument("--split", help="which videos; default the training list: train, else train1")
    parser.add_argument("--init", type=cli.local, metavar="FILE", help="2D ImageNet weights: MoCo v2's or "
                        "torchvision's")
    parser.add_argument("--resume", choices=["auto"], help="go on from RUN/last.pt where there is one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="replace a setting, such as epochs=20")
    if any(word.partition("=")[0] == "--run" for word in argv):
        raise RequestError("--run is spelt --out here: torchrun would take --run for its own --run-path; say --out RUN")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    args = arguments(argv)
    last = args.out / LAST
    stored = checkpoint.load_recipe(last) if args.resume and os.path.lexists(last) else None
    training = load_training(args.pipeline, args.settings, stored=stored)
    world = open_world()
    threads = prepare_torch(training, world)
    with ExitStack() as stack:
        stack.callback(close_world, world)
        try:
            return train(args, training, world, threads, stack)
        except torch.OutOfMemoryError as error:
            raise Stopped(too_large(training.recipe, world, error)) from error
        except RuntimeError as error:
            if lost_peer(error, world):
                raise Stopped(f"another process of this run ended ({str(error).splitlines()[0]}); {RESUME}") from error
            raise


def too_large(recipe: Pretraining, world: World, error: torch.OutOfMemoryError) -> str:
    """What to do where a step does not fit into the device's memory: half the batch, in whole BN groups a process."""
    batch, share = recipe.optimise.batch, world.size * recipe.contrast.bn_group
    less = batch // 2 // share * share
    return (f"a step of optimise.batch {batch} does not fit into the memory of {world.device} "
            f"({str(error).split('. GPU')[0].strip('.')}); "
            + (f"set --set batch={less}, with another --out since a run keeps its batch, or " if less else "")
            + "use a smaller sampling.size, or more processes")


def prepare_torch(training: Training, world: World) -> int:
    """Threads, seeds, determinism where torch has it; returns the number of threads."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = training.run.threads or max(1, len(os.sched_getaffinity(0)) // local)
    torch.set_num_threads(threads)
    torch.manual_seed(training.recipe.optimise.seed)
    if world.device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    else:
        torch.backends.cudnn.benchmark = True
    return threads


def train(args: argparse.Namespace, training: Training, world: World, threads: int, stack: ExitStack) -> int:
    """The run, from claiming its folder to the closing summary; what it opens, the stack closes."""
    recipe, run, device = training.recipe, training.run, world.device
    say = print if world.main else lambda *_, **__: None
    with together(world):
        data = ClipData(args.store, recipe.sampling, recipe.augment, args.split, recipe.optimise.seed,
                        motion=aligns(recipe.alignment), maclr=recipe.maclr)
        check_batch(recipe, data, world)
        sampler = Sampler(len(data), recipe.optimise.batch, recipe.optimise.seed, world.rank, world.size)
        schedule = Schedule.of(recipe.optimise, sampler.steps)
        if recipe.model.init_head and not args.init and not (args.resume and os.path.lexists(args.out / LAST)):
            raise RequestError("model.init_head is true, but there is no --init file whose head could be taken; add "
                               "--init FILE, or leave init_head out")
        learner, init = build_learner(training, args.init, world)
        provenance = {"stores": data.provenance(), "init": init, "world_size": world.size, "threads": threads,
                      "bn": learner.shuffle.mode, "bn_group": learner.shuffle.group, "device": device.type,
                      "versions": {name: version(name) for name in PACKAGES}, "resharded": [], "longer": []}
        trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, recipe.optimise.lr, recipe.optimise.momentum,
                                    weight_decay=recipe.optimise.weight_decay)
        if world.main:
            stack.callback(os.close, claim(args.out, args.resume == "auto"))
        folder, first = checkpoint.Folder(args.out, run.keep), 0
        if args.resume and os.path.lexists(folder.last):     # a link to what is gone is refused, not begun anew
            with checkpoint.well_formed(folder.last):
                first, provenance = restore(folder.last, training, provenance, learner, optimizer, sampler, world, say)
    target_shape = learner.query.backbone.h_shape(recipe.sampling.geometry.length, recipe.sampling.size)[1:]
    introduce(training, data, schedule, learner, provenance, first, say)
    if first == schedule.steps:
        say(f"nothing to do: {folder.last} is complete at step {first}")
        return cli.DONE
    if run.compile:
        learner.compile()
    model = parallel(learner, world)
    control = dist.new_group(backend="gloo") if world.size > 1 else None
    record = stack.enter_context(Record(args.out, first)) if world.main else None
    progress = Progress(training.name, schedule.steps - first) if world.main else None
    started = saved_at = time.monotonic()
    saved = first
    meter, total = Meter(recipe.optimise.batch), Meter(recipe.optimise.batch)

    def save(done: int, position: dict) -> None:
        states = every(checkpoint.rng_state(), world, control)
        if world.main:
            epochs = done // schedule.steps_per_epoch if done % schedule.steps_per_epoch == 0 else 0
            forever = epochs and run.every_epochs and epochs % run.every_epochs == 0
            folder.save({"format": checkpoint.FORMAT, "pipeline": training.name, "recipe": recipe.to_dict(),
                         "run": dataclasses.asdict(run), "step": done, "epoch": schedule.epoch(done),
                         "learner": learner.state_dict(), "optimizer": optimizer.state_dict(),
                         "scheduler": dataclasses.asdict(schedule), "sampler": position, "rng": states,
                         "provenance": provenance}, epochs if forever else None)

    with Interrupt(world) as interrupt, Loader(data, sampler, worker_count(run.workers), device) as loader:
        batches = iter(loader)
        for step in range(first, schedule.steps):
            waiting = time.monotonic()
            batch, trouble = fetched(batches)
            waited = time.monotonic() - waiting

            # step = updates done so far: between two updates all ranks agree on whether to save, and whether to stop.
            due = step > saved and (is_due(step, schedule, run)
                                    or 0 < run.checkpoint_minutes * 60 < time.monotonic() - saved_at)
            broken, stop, due = agree([trouble is not None, interrupt.reason is not None, due], world, control)
            if broken:
                raise_first(every(trouble, world, control))
            if due or stop and step > saved:
                save(step, {**sampler.state_dict(), "epoch": batch.epoch, "step": batch.step})
                saved, saved_at = step, time.monotonic()
            if stop:
                raise Stopped(f"{interrupt.reason or 'interrupted'} after step {step} of {schedule.steps}; "
                              + (f"{folder.last} holds it; " if saved else "") + RESUME)

            views = make_views(batch, recipe.augment, recipe.sampling.size, target_shape if data.motion else None,
                               device, recipe.maclr)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            out = model(views, schedule.progress(step), schedule.epoch(step))
            out["loss"].backward()
            out["grad_norm"] = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
            logs = reduce_logs(out, world)
            if not (math.isfinite(logs["loss"]) and math.isfinite(logs["grad_norm"])):
                names = [data.name(number) for number in batch.ids.tolist()]
                ranks = every((float(out["loss"].detach()), names), world, control)
                raise Stopped(not_finite(step + 1, logs, ranks, saved))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            meter.add(waited)
            total.add(waited)
            if record and ((step + 1) % run.log_every == 0 or step + 1 == schedule.steps):
                record.row({"step": step + 1, "epoch": schedule.epoch(step), **logs, "lr": schedule.rate(step),
                            **meter.rates()})
                meter = Meter(recipe.optimise.batch)
            if record and run.images_every and step % (run.images_every * schedule.steps_per_epoch) == 0:
                record.picture(learner, views, step + 1)
            if progress:
                progress.update(step + 1 - first, f"step {step + 1}/{schedule.steps}, {total.line(logs)}")
    save(schedule.steps, sampler.state_dict())
    if world.main:
        progress.close(schedule.steps - first, f"step {schedule.steps}/{schedule.steps}, {total.line(logs)}")
        marks = ", ".join(f"{name} {size(count)}" for name, count in peak_memory(device).items())
        print(f"done     {plural(schedule.steps, 'step')} in {duration(time.monotonic() - started)}; "
              f"{total.line(logs)}\n"
              f"memory   at most: {marks}\n"
              f"look at  {folder.last}, {args.out}/metrics.jsonl, `tensorboard --logdir {args.out}`")
    return cli.DONE


def check_batch(recipe: Pretraining, data: ClipData, world: World) -> None:
    """Raises RequestError where batch, clips, videos, ranks and BN groups do not go together, with settings that do."""
    batch, bn, asked = recipe.optimise.batch, recipe.contrast.bn, recipe.contrast.bn_group
    split = bn == "split" or bn == "auto" and world.size == 1

    def fit(videos: int) -> str:
        """What is to be set; "" where nothing is, "-" where nothing helps."""
        fits, group = fitting(batch, max(2, asked) if split else 1, videos, world.size)
        return "".join([f" --set batch={fits}"] * (fits != batch) +
                       [f" --set bn_group={group}"] * (split and group != asked)) if fits else "-"

    add = fit(len(data))
    if not add:
        return
    ways = [f"add{add}"] * (add != "-")
    least = (2 if split else 1) * world.size
    clips, videos = data.shorter(wanted) if len(data) < (wanted := max(batch, least)) else ("", 0)
    if clips and (more := fit(videos)) != "-":
        ways.append(f"for shorter clips, which {plural(videos, 'video is', 'videos are')} long enough for, "
                    f"add{clips}{more}")
    expected = "no more than there are, in whole groups on every process" if ways else \
        f"at least {least}: bring more or longer ones, or use fewer processes"
    raise RequestError(f"optimise.batch is {batch} over {plural(world.size, 'process', 'processes')}"
                       f"{f', contrast.bn_group {asked}' if split else ''}, and "
                       f"{plural(len(data), 'video is', 'videos are')} long enough for a clip of {data.geometry} "
                       f"({plural(data.span, 'frame')}; {data.short:,} shorter); expected {expected}"
                       f"{': ' * bool(ways)}{'; or '.join(ways)}")


def build_learner(training: Training, init: Path | None, world: World) -> tuple[Learner, dict | None]:
    """The learner on its device, and what --init gave."""
    recipe, model, taken = training.recipe, training.recipe.model, None
    method = MaCLR if recipe.maclr else Learner
    learner = method(lambda: build_backbone(model.backbone, model.width, model.bn_eps), recipe, world)
    if init:
        head = learner.query.heads["inter"] if model.init_head else None
        taken = dataclasses.asdict(inflate(init, learner.query.backbone, model.stem_tap, head))
        learner.key.load_state_dict(learner.query.state_dict())
    return learner.to(world.device), taken


def introduce(training: Training, data: ClipData, schedule: Schedule, learner: Learner, provenance: dict, first: int,
              say) -> None:
    """What is about to run, on rank 0."""
    optimise, model, world = training.recipe.optimise, training.recipe.model, learner.world
    say(f"pipeline {training.name}: {training.about}")
    apart = f"{maclr.shift_min_s:g} s between two clips" if (maclr := training.recipe.maclr) else "one in each half"
    splits = ", ".join(sorted({s["split"] for s in data.provenance()}))
    say(f"data     {plural(len(data), 'video')} of split {splits}, clips {data.geometry}; {data.short:,} shorter than "
        f"a clip left out, {data.undivided:,} too short for {apart}")
    if data.left_out:
        say(f"note     {plural(data.left_out, 'video')} of group {', '.join(data.sampling.leave_out)} left out")
    say(f"run      steps {first} to {schedule.steps}, {schedule.steps_per_epoch:,} an epoch of "
        f"{plural(optimise.batch, 'query', 'queries')}; {model.backbone} in {model.precision}; "
        f"{plural(world.size, 'process', 'processes')} on {world.device.type} with "
        f"{plural(provenance['threads'], 'thread')}; BN {learner.shuffle.mode}, groups of {learner.shuffle.group}")
    if maclr and maclr.reads:
        say(f"motion   {maclr.motion_input}, clips {maclr.motion_clip}, {learner.motion_query.backbone.name} of width "
            f"{learner.motion_query.backbone.width}; terms {', '.join(learner.weights)}")
    sided = sorted({entry["dataset"] for entry in data.provenance()}.intersection(ONE_SIDED))
    if sided and training.recipe.augment.flip_p:
        say(f"note     clips are flipped, and the classes of {', '.join(sided)} tell left from right: flip_p=0 keeps "
            "them apart")
    kept = training.kept and (f"as in the run so far, since nothing asks for another: {', '.join(training.kept)}",)
    for note in (*training.notes, *kept, *learner.notes):
        say(f"note     {note}")
    if provenance["init"]:
        say(f"init     {provenance['init']['file']}, SHA-256 {provenance['init']['sha256']}")
    elif not maclr and model.backbone != "r2plus1d_tiny" and not first:
        say("note     without --init: the paper's numbers start from ImageNet MoCo weights and are out of reach")


def is_due(done: int, schedule: Schedule, run: RunTraining) -> bool:
    """Whether a checkpoint follows `done` updates by count: every so many steps, and at epochs that are kept."""
    return bool(run.checkpoint_steps and done % run.checkpoint_steps == 0
                or run.every_epochs and done % (run.every_epochs * schedule.steps_per_epoch) == 0)


def fetched(batches) -> tuple:
    """The next batch and None, or None and what went wrong, which the ranks tell one another first."""
    try:
        return next(batches), None
    except Stopped as stop:
        return None, ("Stopped", f"{stop}; {RESUME}")


def not_finite(step: int, logs: dict, ranks: list[tuple[float, list[str]]], saved: int) -> str:
    """The line that names step, losses and videos; those of the ranks whose own loss is not finite, or all."""
    bad = [names for loss, names in ranks if not math.isfinite(loss)] or [names for _, names in ranks]
    losses = ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
    return (f"step {step} is not finite, before the update: {losses}; videos {', '.join(sum(bad, []))}; nothing of "
            f"it is saved, the last checkpoint is of step {saved}: look at these videos, or lower lr in a new --out")


if __name__ == "__main__":
    cli.command(main, RESUME, RANK)
