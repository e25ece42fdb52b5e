"""Videos in, verified motion packs out: `python -m preprocess.run --dataset NAME`."""

import argparse
import functools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from preprocess import flow as optical_flow
from preprocess import plan as planning
from preprocess.engines.serial import SerialEngine
from preprocess.session import Session
from preprocess.synthetic import make_videos
from preprocess.task import flow_parameters, make_pack
from shared import cli
from shared.catalog import Catalog, open_catalog
from shared.cli import Progress, RequestError, duration, size
from shared.clips import ClipGeometry
from shared.recipe import Pipeline, load_pipeline
from shared.store.layout import damage_stops

ENGINES = {"serial": SerialEngine}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m preprocess.run", description=__doc__)
    parser.add_argument("--dataset", required=True, help="a preset of pipelines.yaml: synthetic, folder, ucf101, ...")
    parser.add_argument("--recipe", help="what to compute; default: the preset's recipe")
    parser.add_argument("--videos", type=Path, help="where the videos are; default data/DATASET")
    parser.add_argument("--annotations", type=Path, help="folder: a CSV path,label,split,group; else the lists")
    parser.add_argument("--store", type=Path, help="where the packs go; default stores/DATASET")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="serial", help="default: serial")
    parser.add_argument("--flow", choices=("auto", "cpu", "cuda", "opencv"), help="flow backend; default auto")
    parser.add_argument("--plan", action="store_true", help="print what it would take, and stop")
    parser.add_argument("--retry-failed", action="store_true", help="try the videos of failures.csv again")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="replace a setting of pipelines.yaml, such as clips.step=8")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    args = arguments(argv)
    settings = args.settings + ([f"flow.backend={args.flow}"] if args.flow else [])
    pipeline = resolve(load_pipeline(args.dataset, args.recipe, settings))
    root = (args.videos or Path("data") / args.dataset).absolute()
    store = (args.store or Path("stores") / args.dataset).absolute()
    catalog = find_videos(pipeline, root, args.annotations and args.annotations.absolute())
    with damage_stops(store):
        if args.plan:
            return show_plan(Session.look(store, pipeline, catalog), args.retry_failed)
        with Session.open(store, pipeline, catalog) as session:
            return execute(session, args.retry_failed, ENGINES[args.engine]())


def resolve(pipeline: Pipeline) -> Pipeline:
    """The pipeline with the flow backend and every flow parameter spelt out, as the store records them."""
    recipe = pipeline.recipe
    backend = optical_flow.resolve(recipe.flow.backend)
    flow = replace(recipe.flow, backend=backend, **flow_parameters(recipe).to_dict())
    return replace(pipeline, recipe=replace(recipe, flow=flow))


def find_videos(pipeline: Pipeline, root: Path, annotations: Path | None) -> Catalog:
    """The dataset's catalog; the synthetic videos are made first where they are not there yet."""
    if pipeline.preset.generate:
        dials = pipeline.preset.generate
        make_videos(root, videos=dials.videos, backgrounds=dials.backgrounds, textures=dials.textures,
                    frames=dials.frames, height=dials.height, width=dials.width, seed=dials.seed)
        annotations = annotations or root / "annotations.csv"
    return open_catalog(layout=pipeline.preset.layout, root=root, annotations=annotations, dataset=pipeline.dataset)


def show_plan(session: Session, retry_failed: bool) -> int:
    """Print what the run would do and take; writes nothing."""
    plan, recipe = session.plan(retry_failed), session.recipe
    cost = planning.measure_cost(plan.packs, session.catalog, recipe, session.pipeline.run)
    print(planning.describe(plan, cost, session.catalog, len(session.done), recipe.flow.backend))
    for note in notes(session):
        print(f"note     {note}")
    for pack in plan.packs:
        print(f"  pack {pack.name}  {pack.frame_size[0]}x{pack.frame_size[1]}  {len(pack.videos)} videos  "
              f"{pack.frames:,} frames")
    planning.refuse_if_too_large(cost, session.store)
    return cli.DONE


def execute(session: Session, retry_failed: bool, engine) -> int:
    """Plan, make every pack, publish, sum up. Returns DONE, or FAILURES where failures.csv has rows."""
    plan = session.plan(retry_failed)
    recipe, run = session.recipe, session.pipeline.run
    cost = planning.measure_cost(plan.packs, session.catalog, recipe, run)
    print(planning.describe(plan, cost, session.catalog, len(session.done), recipe.flow.backend), flush=True)
    for note in notes(session):
        print(f"note     {note}", flush=True)
    planning.refuse_if_too_large(cost, session.store)
    session.begin(plan, engine.name)
    status = "stopped"
    try:
        make_packs(session, plan, cost, engine)
        status = "failures" if session.failures else "done"
    finally:
        engine.close()
        session.finish(status)
    print(summary(session))
    return cli.FAILURES if session.failures else cli.DONE


def notes(session: Session) -> list[str]:
    """What the user should know before the work starts."""
    out = list(session.catalog.notes)
    if session.catalog.absent:
        out.append(f"{len(session.catalog.absent):,} listed videos are not on disk; the run's record lists them")
    if stale := session.stale():
        out.append(f"{stale:,} packed videos have another class, group or other splits in the annotations now; the "
                   f"store keeps those it was made with (a new --store takes the new ones)")
    return out


def make_packs(session: Session, plan: planning.Plan, cost: planning.Cost, engine) -> None:
    """Run the tasks; videos whose headers were wrong are planned again once all others are done."""
    progress = Progress("packs", max(cost.frames, 1))
    began, count = time.monotonic(), {"videos": 0, "frames": 0}

    def tell(videos: int, frames: int) -> None:
        count["videos"] += videos
        count["frames"] += frames
        elapsed = time.monotonic() - began
        progress.update(count["frames"], f"{count['videos']:,} videos ({count['videos'] / elapsed:.2f}/s), "
                                         f"{count['frames']:,} frames ({count['frames'] / elapsed:.1f}/s), "
                                         f"{len(session.failures):,} failures")

    packs = plan.packs
    while packs:
        tasks = planning.tasks_of(packs, session.catalog, session.store, session.recipe, session.hash,
                                  session.pipeline.run, session.attempts(), session.kept())
        misplanned = []
        for outcome in engine.map_unordered(functools.partial(make_pack, tell=tell), tasks):
            if outcome.error is not None:
                raise outcome.error
            session.take(outcome.value)
            misplanned += outcome.value.misplanned
        packs = session.replan(misplanned, plan)
    progress.close(text=f"{count['videos']:,} videos, {count['frames']:,} frames")


def summary(session: Session) -> str:
    """The closing lines."""
    counts, wall = session.counts(), time.monotonic() - session.started
    lines = [f"done: {counts['videos']:,} videos, {counts['frames']:,} frames in {counts['packs']:,} packs "
             f"({size(counts['bytes'])}) in {duration(wall)}; the store {session.store} holds "
             f"{counts['store_videos']:,} videos"]
    short = sum(1 for row in session.videos.values() if row.frames < min(
        ClipGeometry.parse(g).span for g in session.recipe.clips.geometries))
    if short:
        lines.append(f"{short:,} videos are shorter than a clip: training leaves them out, evaluation loops them")
    if session.failures:
        reasons = Counter(row.reason for row in session.failures.values()).most_common(3)
        shown = "; ".join(f"{number} x {reason}" for reason, number in reasons)
        lines.append(f"{len(session.failures):,} failures in {session.store / 'failures.csv'} ({shown}); "
                     f"--retry-failed tries them again")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.command(main)
