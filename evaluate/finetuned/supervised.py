"""A backbone and one linear layer trained on labels, all layers (docs/method.md 1.7); evaluate.finetuned.job trains."""

import dataclasses
from pathlib import Path

from evaluate.features.encoders import Encoder
from evaluate.features.extract import View
from evaluate.finetuned.classifier import Classifier
from evaluate.finetuned.job import FINETUNED, RESUME, TRAINING, Job
from evaluate.finetuned.labelled import Cropping, LabelledClips
from evaluate.folds import Samples
from evaluate.settings import Finetune, RunEvaluation
from shared.cli import RequestError, Stopped, plural
from shared.clips.loader import fitting
from shared.datasets.catalog import ONE_SIDED
from shared.nn import checkpoint
from shared.nn.distributed import World
from shared.nn.layers import Backbone
from shared.nn.together import lost_peer, together
from shared.recipes.preprocessing import read_description
from shared.store.index import Index
from shared.store.place import Place


def check_trainable(encoder: Encoder) -> None:
    """Raises RequestError for baselines, networks of others, moments and cells."""
    if not isinstance(encoder.net, Backbone):
        raise RequestError(f"checkpoint {encoder.text} has no weights to train here; give a checkpoint of ours, or "
                           "random:NAME to train from scratch, with features.pool=mean and features.grid=1")


def train_supervised(encoder: Encoder, store: Place | str, split: str | None, settings: Finetune, view: View,
                     run: RunEvaluation, seed: int, world: World, out: Path,
                     samples: Samples | None = None) -> Classifier:
    """The encoder's backbone and a fresh layer, trained on the split's labelled videos; in eval mode, on every rank.

    `encoder` stays as it is. view: clip geometry and size of the crops; samples: instead of the split's videos.
    OUT/finetuned.pt holds the result, for `--checkpoint` too; where it is there it is read. OUT/training.pt goes on
    where it was killed. Raises RequestError for an encoder that cannot be trained, a split without labels, a batch that
    does not fit, and an OUT of another request; Stopped, once the state is saved, for an interruption, and for a loss
    that is not finite.
    """
    check_trainable(encoder)
    with together(world):
        cropping = Cropping(view.geometry, settings.area_min, settings.area_max, settings.aspect_min,
                            settings.aspect_max)
        if samples is None:
            samples = Samples.of_split(Index.load(store), split)
        settings = dataclasses.replace(settings, flip=flips(settings, read_description(store)))
        data = LabelledClips(store, samples, cropping, settings.flip, seed)
        check_batch(settings, data, world)
        job = Job(encoder, data, split, settings, view, seed, min(settings.bn_group, settings.batch // world.size))
    return carry_out(job, run, world, out)


def carry_out(job: Job, run: RunEvaluation, world: World, out: Path) -> Classifier:
    """The job's classifier, read from OUT/finetuned.pt or trained; in eval mode, on every rank (train_supervised)."""
    with together(world):
        held = job.find(out / FINETUNED, world)
        for stale in (*out.glob(".*.partial"), *([out / TRAINING] if held else [])) if world.main else ():
            stale.unlink(missing_ok=True)         # what a killed run left half-written, or no longer needs
    if held:
        with checkpoint.well_formed(out / FINETUNED):
            return job.classifier(held["backbone"], held["head"]).to(world.device)
    try:
        return job.train(run, world, out)
    except RuntimeError as error:
        if lost_peer(error, world):
            raise Stopped(f"another process of this run ended ({str(error).splitlines()[0]}); {RESUME}") from error
        raise


def flips(settings: Finetune, document: dict) -> bool:
    """Whether training clips are flipped; document: of the store. `auto`: where classes do not tell left from right."""
    return document["dataset"] not in ONE_SIDED if settings.flip == "auto" else bool(settings.flip)


def check_batch(settings: Finetune, data: LabelledClips, world: World) -> None:
    """Raises RequestError where the batch does not fit the videos, the ranks or the BN groups."""
    fits, _ = fitting(settings.batch, settings.bn_group, len(data), world.size)
    if fits != settings.batch:
        raise RequestError(f"finetune.batch is {settings.batch} over {plural(world.size, 'process', 'processes')}, "
                           f"finetune.bn_group {settings.bn_group}, and {data.samples.name} holds "
                           f"{plural(len(data), 'labelled sample')}; expected no more than there are, in whole groups "
                           "of at least 2 on every process: "
                           + (f"add --set finetune.batch={fits}" if fits else "bring more, or use fewer processes"))
