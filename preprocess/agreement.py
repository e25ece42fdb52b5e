"""What a request and the store that it names must agree on before anything is made: place, dataset and recipe."""

import re
from dataclasses import replace
from pathlib import Path

from shared.cli import RequestError, typed
from shared.recipes.preprocessing import Pipeline, Recipe, read_description
from shared.recipes.settings import differences, spelt
from shared.store.place import Place


def check_place(store: Place, root: Path, flag: str = "--store") -> None:
    """Refuse a folder, or a prefix of objects, that is no store, before anything in it is touched. flag: that named it.

    Raises RequestError.
    """
    if store == root or store in root.parents:
        raise RequestError(f"{flag} {store} holds the videos of {root}; choose a folder of its own")
    if not store.exists() or (store / "store.json").exists():
        return
    if not store.is_dir():
        raise RequestError(f"{flag} {store} is a file; expected a folder")
    if (store / "packs").is_dir():
        raise RequestError(f"{store} has packs but no store.json; `python -m preprocess.reindex {typed(store)}` "
                           f"restores it from the records")
    if any(not re.fullmatch(r"\.lock|\..+\.[0-9a-f]{32}\.partial", entry.name) for entry in store.iterdir()
           if entry.name != "records" or not all(re.fullmatch(r"life-.+|\..+", sign.name) for sign in entry.iterdir())):
        raise RequestError(f"{store} is no store and not empty; choose a new or an empty folder")


def stored_recipe(store: Place) -> dict | None:
    """The recipe that the store was made with; None where there is no store."""
    return read_description(store)["recipe"] if (store / "store.json").exists() else None


def agree(store: Place, pipeline: Pipeline, flag: str = "--store") -> tuple[Pipeline, tuple[str, ...]]:
    """The pipeline as the store has it, and the store's classes. Raises RequestError where they cannot agree."""
    if not (store / "store.json").exists():
        return pipeline, ()
    stored = read_description(store)
    if stored["dataset"] != pipeline.dataset:
        raise RequestError(f"{store} holds the dataset {stored['dataset']!r}, asked was {pipeline.dataset!r}; "
                           f"choose another {flag}")
    recipe = pipeline.recipe
    geometries = tuple(stored["recipe"]["clips"]["geometries"])
    if set(recipe.clips.geometries) <= set(geometries):
        # A geometry that reindex has added since is made for new packs too.
        recipe = replace(recipe, clips=replace(recipe.clips, geometries=geometries))
    different = differences(spelt(Recipe, stored["recipe"]), spelt(Recipe, recipe.to_dict()))
    if different:
        added = set(recipe.clips.geometries) - set(geometries)
        adding = " && ".join(f"python -m preprocess.reindex {typed(store)} --clips {clips}" for clips in sorted(added))
        hint = f"; add what clips it lacks with `{adding}`" if added and len(different) == 1 else ""
        raise RequestError(f"{store} was made with another recipe: {'; '.join(different)}; use the store's settings or "
                           f"another {flag}{hint}")
    return replace(pipeline, recipe=recipe), tuple(stored["classes"])
