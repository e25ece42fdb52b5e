"""Going on from a checkpoint: what must agree, what may differ, and what is said about it."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from shared.cli import RequestError, plural
from shared.clips.loader import Sampler
from shared.nn import checkpoint
from shared.nn.distributed import World
from shared.recipes.pretraining import build_recipe
from shared.recipes.settings import differences
from shared.recipes.training import Training
from shared.schedule import Schedule
from train.moco import Learner


def restore(path: Path, training: Training, provenance: dict, learner: Learner, optimizer: torch.optim.Optimizer,
            sampler: Sampler, world: World, say: Callable) -> tuple[int, dict]:
    """Take everything from a checkpoint; returns the steps done and the provenance to go on with.

    Raises RequestError where the checkpoint is of another recipe, other stores, other weights or another world size.
    """
    state = checkpoint.load(path, world.device)
    stored = state["provenance"]
    asked, longer = training.recipe, list(stored.get("longer", ()))
    made = build_recipe(state["recipe"])
    planned, steps = (Schedule.of(recipe.optimise, sampler.steps).steps for recipe in (made, asked))
    if steps > planned:
        asked = replace(asked, optimise=replace(asked.optimise, epochs=made.optimise.epochs, steps=made.optimise.steps))
    if different := differences(asdict(made), asdict(asked)):
        raise RequestError(f"{path} was made with another recipe: {'; '.join(different)}; use its settings or another "
                           "--out")
    if different := store_differences(stored["stores"], provenance["stores"]):
        raise RequestError(f"{path} was made from other data: {'; '.join(different)}; use its --store and --split, or "
                           "another --out")
    if provenance["init"] and provenance["init"]["sha256"] != (stored["init"] or {}).get("sha256"):
        raise RequestError(f"{path} did not start from --init {provenance['init']['file']}; leave --init out, since "
                           "the checkpoint holds all weights, or choose another --out")
    before, now = stored["world_size"], world.size
    resharded = list(stored["resharded"])
    if before != now:
        if not training.run.reshard:
            raise RequestError(f"{path} was made by {plural(before, 'process', 'processes')} and this run has {now}, "
                               f"which gives other BN groups and other losses; start {before}, "
                               "or add --set reshard=true")
        resharded.append({"step": state["step"], "from": before, "to": now})
        say(f"reshard  from {before} to {plural(now, 'process', 'processes')} at step {state['step']:,}: BN groups of "
            f"{plural(provenance['bn_group'], 'clip')}, {stored['bn_group']} before; the losses are not those of an "
            "unbroken run")
    if steps > planned:
        longer.append({"step": state["step"], "from": planned, "to": steps})
        say(f"longer   from {planned:,} to {plural(steps, 'step')} at step {state['step']:,}: the learning rate's "
            "cosine and the order loss's weight follow the new length from here; one planned so long has other losses")
    for name in ("threads", "device"):
        if stored[name] != provenance[name]:
            say(f"note     {name} was {stored[name]}, is {provenance[name]}: losses may differ in their last bits")
    checkpoint.load_weights(learner, state["learner"], path)
    if type(state["step"]) is not int or not 0 <= state["step"] <= planned:
        raise RequestError(f"{path} says step {state['step']!r} of {planned:,}; take another checkpoint")
    checkpoint.load_optimizer(optimizer, state["optimizer"], path)
    sampler.load_state_dict(state["sampler"])
    checkpoint.set_rng_state(state["rng"][world.rank % before])
    return state["step"], {**provenance, "init": stored["init"], "resharded": resharded, "longer": longer}


def store_differences(stored: list[dict], asked: list[dict]) -> list[str]:
    """Where two lists of stores differ in what was trained on. Where they lie may change, and so may labels, other
    videos and clip geometries; a checkpoint that does not tell the videos asks for the same index."""
    told = all("used" in store for store in stored)
    ignored = {"store", *(("index", "recipe_hash", "short", "undivided") if told else ("used",))}

    def numbered(stores):
        return {f"store {i}": {key: value for key, value in store.items() if key not in ignored}
                for i, store in enumerate(stores, 1)}
    return [f"{one.partition('.')[0]} has other videos in that split now, or cut or made otherwise"
            if ".used: " in one else one for one in differences(numbered(stored), numbered(asked))]
