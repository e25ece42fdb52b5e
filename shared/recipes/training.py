"""pipelines.yaml's `pipelines:`, with settings laid over, as a checked `Training`: what train/main.py is asked for."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shared.cli import RequestError, nearest
from shared.nn.backbones import own_eps
from shared.recipes.pretraining import FRAME_CLIP, FRAME_NETS, Maclr, Pretraining, RunTraining, build_recipe
from shared.recipes.pretraining_checks import check, check_run
from shared.recipes.settings import apply_settings, build, follow, kept, load_document, spelt

SECTIONS = {field.name: field.type for field in dataclasses.fields(Pretraining)} | {"maclr": Maclr}


@dataclass(frozen=True)
class Training:
    """One resolved request: a pipeline's name, what to expect of it, its recipe, and what was derived on the way; kept:
    settings that follow the checkpoint's, not the pipeline's, as `key=value`."""

    name: str
    about: str
    recipe: Pretraining
    run: RunTraining
    notes: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def load_training(name: str, settings: Sequence[str] = (), path: Path | None = None,
                  stored: tuple[str, dict] | None = None) -> Training:
    """The pipeline `name` with `key=value` settings laid over it.

    A 2D backbone takes its clip and its alignment terms along where no setting names them; the notes say so. stored:
    the pipeline's name and the recipe of the run that is to go on, whose values stand wherever neither a setting nor
    the name of another pipeline asks for others.
    Raises RequestError for an unknown pipeline, key, type or value, naming the nearest right one.
    """
    document = load_document(path)
    pipelines = document["pipelines"]
    if name not in pipelines:
        raise RequestError(f"pipeline {name!r} is unknown{nearest(name, pipelines)}")
    tree = dict(pipelines[name])
    about = tree.pop("about", "")
    running = {"run": {**document["training"], **tree.pop("run", {})}}
    sections = {section: cls for section, cls in SECTIONS.items() if section in tree} | {"run": RunTraining}
    asked = {setting.partition("=")[0].strip() for setting in settings}

    def resolve(tree: dict) -> tuple[Pretraining, tuple[str, ...], dict]:
        applied = apply_settings(tree | running, sections, settings)
        run = applied.pop("run")
        return *_derive(build_recipe(tree), build_recipe(applied), asked), run

    recipe, notes, run = resolve(tree)
    alone = recipe
    if stored is not None:
        apart = [pipelines[name], pipelines[stored[0]]] if stored[0] in pipelines else pipelines.values()
        recipe, notes, run = resolve(follow(tree, spelt(Pretraining, stored[1]), sections, settings, apart))
    run = build(RunTraining, run, "run")
    check(recipe)
    check_run(run)
    return Training(name, about, recipe, run, notes, kept(dataclasses.asdict(alone), dataclasses.asdict(recipe)))


def _derive(before: Pretraining, recipe: Pretraining, asked: set[str]) -> tuple[Pretraining, tuple[str, ...]]:
    """What follows from the settings asked for, unless one names it: the length from epochs or steps, the epsilon of BN
    as a number, and a 2D net's clip and alignment terms."""
    named = {key.rpartition(".")[2] for key in asked}
    notes = []
    for key, other in (("epochs", "steps"), ("steps", "epochs")):
        if key in named and other not in named and getattr(recipe.optimise, key) > 0:
            recipe = replace(recipe, optimise=replace(recipe.optimise, **{other: 0}))
    if recipe.model.bn_eps == "auto":
        recipe = replace(recipe, model=replace(recipe.model, bn_eps=own_eps(recipe.model.backbone)))
    net, alignment = recipe.model.backbone, recipe.alignment
    if net not in FRAME_NETS or before.model.backbone in FRAME_NETS:
        return recipe, ()
    if "clip" not in named:
        recipe = replace(recipe, sampling=replace(recipe.sampling, clip=FRAME_CLIP))
        notes.append(f"{net} sees single frames: sampling.clip is {FRAME_CLIP}")
    dropped = [term for term in ("st", "t") if getattr(alignment, term) and not asked & {term, f"alignment.{term}"}]
    if alignment.variant != "none" and alignment.s and dropped:
        recipe = replace(recipe, alignment=replace(alignment, **dict.fromkeys(dropped, False)))
        notes.append(f"of the alignment terms only L_s applies to single frames: alignment.{' and '.join(dropped)} off")
    return recipe, tuple(notes)
