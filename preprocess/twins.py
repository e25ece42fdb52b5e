"""Appearance-free twins of a store: `python -m preprocess.twins STORE --out STORE2`.

STORE2 holds, under the same ids, labels, groups and splits, each video of STORE as noise that moves by the video's own
flow: no single frame says anything, motion says all. Its maps and clips are computed from its own frames.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from preprocess import engines, run
from preprocess import flow as optical_flow
from preprocess.agreement import agree, check_place, stored_recipe
from preprocess.noise import Twin
from shared import cli
from shared.cli import RequestError
from shared.datasets.catalog import Catalog, Video
from shared.datasets.scan import Scan
from shared.datasets.sources import Sources
from shared.recipes.preprocessing import Pipeline, Recipe, load_pipeline, read_description
from shared.recipes.settings import differences, spelt
from shared.store.index import Index
from shared.store.layout import damage_stops
from shared.store.place import Place, store_argument


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises RequestError for what it cannot take."""
    parser = cli.Arguments(prog="python -m preprocess.twins", description=__doc__.split("\n")[0])
    parser.add_argument("store", type=store_argument, help="the videos' packs: a folder, or a URL such as "
                        "s3://bucket/prefix")
    parser.add_argument("--out", required=True, type=store_argument, help="where the twins' packs go, likewise")
    parser.add_argument("--seed", type=int, help="of the noise; default: that of OUT so far, else 0")
    parser.add_argument("--engine", default="dask", help="as in preprocess.run: dask (the default), ray or serial")
    parser.add_argument("--workers", type=int, help="packs made side by side; default: one a core, or one a GPU")
    parser.add_argument("--address", help="of a running cluster: tcp://HOST:8786 for dask, auto or HOST:6379 for ray")
    parser.add_argument("--flow", help=f"flow backend: {', '.join(optical_flow.BACKENDS)}; default: STORE's")
    parser.add_argument("--plan", action="store_true", help="print what it would take, and stop")
    parser.add_argument("--retry-failed", action="store_true", help="try the videos of OUT's failures.csv again")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="replace a setting of `run:` in pipelines.yaml, such as run.window=32; what is computed "
                        "follows STORE")
    args = parser.parse_args(argv)
    engines.check_request(args.engine, args.workers, args.address)
    for setting in args.settings:
        if not setting.startswith("run."):
            raise RequestError(f"--set {setting}: what is computed of twins follows the store of the videos; expected "
                               "a setting of where and how, such as run.window=32")
    return args


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    args = arguments(argv)
    store, out = run.absolute("STORE", args.store), run.absolute("--out", args.out)
    check_apart(store, out)
    with damage_stops(store):
        index, document = Index.load(store), read_description(store)
    with damage_stops(out):
        pipeline = twin_pipeline(store, out, document, args)
        catalog = find_twins(index, document, pipeline)
        check_same(index, out)
        agree(out, pipeline, "--out")
        return run.work(out, pipeline, catalog, args)


def check_apart(store: Place, out: Place) -> None:
    """Raises RequestError where OUT is STORE, lies in it or holds it, or is no place for a store."""
    one, other = (place.resolve() if isinstance(place, Path) else place for place in (store, out))
    if one == other or one in other.parents or other in one.parents:
        raise RequestError(f"--out {out} and the store of the videos, {store}, are one or lie in one another; choose "
                           "another --out")
    check_place(out, store, "--out")


def twin_pipeline(store: Place, out: Place, document: dict, args: argparse.Namespace) -> Pipeline:
    """The store's pipeline, or OUT's where it has begun, with the seed. Raises RequestError for what is no twin."""
    if document["recipe"]["packs"].get("twin_seed") is not None:
        raise RequestError(f"{store} holds twins already; expected the store of the videos that they are twins of")
    begun = stored_recipe(out)
    made = begun and begun["packs"].get("twin_seed")
    if begun and made is None:
        raise RequestError(f"--out {out} holds videos, not twins; choose another --out")
    seed = args.seed if args.seed is not None else made or 0
    if begun and seed != made:
        raise RequestError(f"--out {out} holds twins of seed {made}, asked was {seed}; choose another --out, or leave "
                           "--seed out")
    if begun and (different := differences(_own(begun), _own(document["recipe"]))):
        raise RequestError(f"--out {out} holds twins of videos that were made otherwise: {'; '.join(different)}; "
                           "choose another --out")
    settings = [f"packs.twin_seed={seed}", *([f"flow.backend={args.flow}"] if args.flow else []), *args.settings]
    pipeline = load_pipeline(document["dataset"], None, settings, stored=begun or document["recipe"])
    return replace(run.resolve(pipeline, elsewhere=bool(args.address)), kept=())


def _own(recipe: dict) -> dict:
    """What twins take over from their videos' store."""
    tree = spelt(Recipe, recipe)
    del tree["packs"]["twin_seed"], tree["flow"]["backend"], tree["clips"]["geometries"]
    return tree


def find_twins(index: Index, document: dict, pipeline: Pipeline) -> Catalog:
    """Every video of the store as its twin."""
    seed = pipeline.recipe.packs.twin_seed
    videos = tuple(Video(row.id, row.path, row.label, row.class_name, row.group, row.splits,
                         Twin(index.store, index.generation, row.id, pipeline.recipe, seed)) for row in index.rows())
    return Catalog(document["dataset"], index.store, tuple(document["classes"]), videos, (), 0,
                   scan=Scan([video.path for video in videos]), sources=Sources((str(index.store),), (index.store,)))


def check_same(index: Index, out: Place) -> None:
    """Raises RequestError where OUT holds a twin of a video that the store does not have, or has otherwise."""
    begun = Index.load(out) if (out / "current").exists() else ()
    for row in begun.rows() if begun else ():
        if row.id not in index or index.row(row.id).frames < row.frames:
            raise RequestError(f"--out {out} holds a twin of {row.id}, which {index.store} does not have so; choose "
                               "another --out")


if __name__ == "__main__":
    cli.command(main)
