"""Videos in, verified motion packs out: `python -m preprocess.run --dataset NAME`."""

from shared import cli

if __name__ == "__main__":
    cli.catch_interrupts()   # before the imports that take a while

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
from preprocess.session import Session, agree, check_place
from preprocess.synthetic import make_videos
from preprocess.task import FlowError, flow_parameters, make_pack
from shared.catalog import Catalog, open_catalog
from shared.cli import Progress, RequestError, Stopped, duration, size
from shared.clips import ClipGeometry
from shared.recipe import Pipeline, load_pipeline
from shared.store.layout import damage_stops

ENGINES = {"serial": SerialEngine}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises RequestError for what it cannot take."""
    parser = cli.Arguments(prog="python -m preprocess.run", description=__doc__)
    parser.add_argument("--dataset", required=True, help="a preset of pipelines.yaml: synthetic, folder, ucf101, ...")
    parser.add_argument("--recipe", help="what to compute: motion or maclr; default: the preset's recipe")
    parser.add_argument("--videos", type=cli.folder, help="where the videos are; default data/DATASET")
    parser.add_argument("--annotations", type=Path, help="folder: a CSV path,label,split,group; else the lists")
    parser.add_argument("--store", type=cli.folder, help="where the packs go; default stores/DATASET")
    parser.add_argument("--engine", default="serial", help="serial (the default): in this process, threads in a video")
    parser.add_argument("--flow", help="flow backend: auto (the default), cpu, cuda or opencv")
    parser.add_argument("--plan", action="store_true", help="print what it would take, and stop")
    parser.add_argument("--retry-failed", action="store_true", help="try the videos of failures.csv again")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="replace a setting of pipelines.yaml, such as clips.step=8")
    args = parser.parse_args(argv)
    if args.engine not in ENGINES:
        raise RequestError(f"--engine {args.engine!r} is not in this version{cli.nearest(args.engine, ENGINES)}")
    return args


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    args = arguments(argv)
    settings = args.settings + ([f"flow.backend={args.flow}"] if args.flow else [])
    pipeline = resolve(load_pipeline(args.dataset, args.recipe, settings))
    root = (args.videos or Path("data") / args.dataset).absolute()
    store = (args.store or Path("stores") / args.dataset).absolute()
    check_place(store, root)
    with damage_stops(store):
        agree(store, pipeline)
        catalog = find_videos(pipeline, root, args.annotations and args.annotations.absolute())
        try:
            if args.plan:
                return show_plan(Session.look(store, pipeline, catalog), args.retry_failed)
            with Session.open(store, pipeline, catalog) as session:
                return execute(session, args.retry_failed, ENGINES[args.engine]())
        except FlowError as error:
            raise Stopped(f"{error}; mend it, or choose another backend with --flow and another --store") from error


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
    if session.lost:
        out.append(f"{len(session.lost):,} packs of the index are not on disk; their videos are done again")
    if session.bad_records:
        out.append(f"{len(session.bad_records):,} records are damaged and left aside (first {session.bad_records[0]})")
    root = session.records[-1]["videos_root"] if session.records else str(session.catalog.root)
    if root != str(session.catalog.root):
        out.append(f"the store's videos came from {root} so far; ids that it holds count as done")
    missing = set(session.pipeline.preset.splits) - {split for v in session.catalog.videos for split in v.splits}
    if missing:
        out.append(f"no video is in split {', '.join(sorted(missing))}")
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
            if isinstance(outcome.error, OSError) and outcome.error.errno not in cli.FULL:
                raise Stopped(f"{outcome.error}; mend it, then run the same command again to go on") from outcome.error
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
