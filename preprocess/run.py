"""Videos in, verified motion packs out: `python -m preprocess.run --dataset NAME`."""

import argparse
import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from preprocess import cost as costing
from preprocess import drive, engines
from preprocess import flow as optical_flow
from preprocess.agreement import agree, check_place, stored_recipe
from preprocess.parts import Arrival, PartSession, parse_part
from preprocess.plan import Plan
from preprocess.session import Session
from preprocess.stages import FlowError, flow_parameters
from preprocess.synthetic import make_videos
from shared import cli
from shared.cli import RequestError, Stopped, duration, plural, size
from shared.clips.index import ClipGeometry
from shared.datasets.catalog import Catalog, open_catalog
from shared.datasets.headers import read_headers
from shared.datasets.sources import HELP, Sources, open_sources
from shared.recipes.preprocessing import Pipeline, load_pipeline
from shared.store.index import Index
from shared.store.layout import damage_stops
from shared.store.place import Place, store_argument
from shared.videos.isolate import ChildProcess, InProcess

ALONE = {"--address": "parts need no cluster, and a cluster no parts; leave one of them out",
         "--plan": "without --part it shows the plan of all",
         "--retry-failed": "run without --part once the parts have ended, which also closes the store"}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises RequestError for what it cannot take."""
    parser = cli.Arguments(prog="python -m preprocess.run", description=__doc__)
    parser.add_argument("--dataset", required=True, help="a preset of pipelines.yaml: synthetic, folder, ucf101, ...")
    parser.add_argument("--recipe", help="what to compute: motion or maclr; default: the preset's recipe")
    parser.add_argument("--videos", nargs="+", action="extend", metavar="SOURCE", help=f"where the videos are: {HELP}; "
                        "default data/DATASET")
    parser.add_argument("--annotations", type=cli.local, help="folder: a CSV path,label,split,group; else the lists")
    parser.add_argument("--store", type=store_argument, help="where the packs go: a folder, or a URL such as "
                        "s3://bucket/prefix; default stores/DATASET")
    parser.add_argument("--engine", default="dask", help="dask (the default): child processes, or the cluster at "
                        "--address; ray: likewise; serial: in this process, for debugging")
    parser.add_argument("--workers", type=int, help="packs made side by side; default: one a core, or one a GPU")
    parser.add_argument("--address", help="of a running cluster: tcp://HOST:8786 for dask, auto or HOST:6379 for ray")
    parser.add_argument("--part", metavar="i/N", help="make packs i, i+N, ... of a plan that N processes on any "
                        "machines share, with --workers 1 unless you say otherwise; slurm: by this task of a job array")
    parser.add_argument("--flow", help=f"flow backend: {', '.join(optical_flow.BACKENDS)} (default auto)")
    parser.add_argument("--plan", action="store_true", help="print what it would take, and stop")
    parser.add_argument("--retry-failed", action="store_true", help="try the videos of failures.csv again")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="replace a setting of pipelines.yaml, such as clips.step=8")
    args = parser.parse_args(argv)
    engines.check_request(args.engine, args.workers, args.address)
    if args.part is not None:
        args.part = parse_part(args.part)
        for flag, given in (("--address", args.address), ("--plan", args.plan), ("--retry-failed", args.retry_failed)):
            if given:
                raise RequestError(f"--part and {flag} do not go together: {ALONE[flag]}")
        args.workers = args.workers or (None if args.engine == "serial" else 1)
    return args


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    args = arguments(argv)
    settings = args.settings + ([f"flow.backend={args.flow}"] if args.flow else [])
    sources = open_sources([absolute("--videos", text) for text in args.videos or [f"data/{args.dataset}"]])
    store = absolute("--store", args.store or Path("stores", args.dataset))
    annotations = args.annotations and absolute("--annotations", args.annotations)
    for root in sources.roots:
        check_place(store, root)
    with damage_stops(store), Arrival(store, args.part) if args.part else nullcontext() as arrival:
        pipeline = load_pipeline(args.dataset, args.recipe, settings, stored=stored_recipe(store))
        if pipeline.recipe.packs.twin_seed is not None:
            raise RequestError(f"packs.twin_seed is {pipeline.recipe.packs.twin_seed}: only preprocess.twins adds to a "
                               f"store of twins; choose another --store than {store}, and leave that setting out")
        pipeline = resolve(pipeline, elsewhere=bool(args.address))
        agree(store, pipeline)
        return work(store, pipeline, find_videos(pipeline, sources, annotations, store), args, arrival)


def work(store: Place, pipeline: Pipeline, catalog: Catalog, args: argparse.Namespace,
         arrival: Arrival | None = None) -> int:
    """Plan, or make, what the catalog has and the store lacks; returns the exit code. arrival: as one of several
    parts."""
    reader = InProcess() if args.engine == "serial" else ChildProcess()
    try:
        if args.plan:
            return show_plan(Session.look(store, pipeline, catalog), args.retry_failed, reader)
        if arrival:
            return execute_part(arrival, pipeline, catalog, args, reader)
        with Session.open(store, pipeline, catalog) as session:
            return execute(session, args, reader)
    except FlowError as error:
        raise Stopped(f"{error}; mend it, or choose another backend with --flow, and another store") from error
    finally:
        reader.close()


def absolute(flag: str, place: Place | str) -> Place | str:
    """The path, or the URL, as every worker can use it. Raises RequestError for a relative one where the current folder
    is a copy that Ray made of --working-dir and will remove."""
    if isinstance(place, str) and ("://" in place or not place.strip()):
        return place
    place = Path(place) if isinstance(place, str) else place
    if isinstance(place, Path) and not place.is_absolute() and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise RequestError(f"{flag} {place} is relative, and a submitted Ray job runs in a temporary copy of its "
                           f"working folder; give an absolute path")
    return place.absolute()


def resolve(pipeline: Pipeline, elsewhere: bool = False) -> Pipeline:
    """The pipeline with the flow backend and every flow parameter spelt out, as the store records them.

    elsewhere: the work is another machine's, so that `cuda` needs no device here.
    """
    recipe = pipeline.recipe
    backend = recipe.flow.backend
    if not (elsewhere and backend == "cuda"):
        backend = optical_flow.resolve(backend)
    flow = replace(recipe.flow, backend=backend, **flow_parameters(recipe).to_dict())
    return replace(pipeline, recipe=replace(recipe, flow=flow))


def find_videos(pipeline: Pipeline, sources: Sources, annotations: Path | None, store: Place) -> Catalog:
    """The dataset's catalog; the synthetic videos are made first where they are not there yet. A folder is read as it
    was when the store took its first videos."""
    if pipeline.preset.generate:
        dials, root = pipeline.preset.generate, sources.folder
        if root is None:
            raise RequestError(f"--videos {sources}: the videos of {pipeline.dataset} are made in a folder; give one")
        make_videos(root, videos=dials.videos, backgrounds=dials.backgrounds, textures=dials.textures,
                    frames=dials.frames, height=dials.height, width=dials.width, seed=dials.seed,
                    lookalikes=dials.lookalikes)
        annotations = annotations or root / "annotations.csv"
    stored = {}
    if pipeline.preset.layout == "folder" and (store / "current").exists():
        stored = {row.id: (row.class_name, row.splits) for row in Index.load(store).rows()}
    fields, known = read_headers(store)
    if pipeline.shards.named() and pipeline.shards != fields:
        fields, known = pipeline.shards, {}
    return open_catalog(pipeline.preset.layout, sources, annotations, pipeline.dataset, stored, fields, known)


def show_plan(session: Session, retry_failed: bool, reader: InProcess | ChildProcess) -> int:
    """Print what the run would do and take; writes nothing."""
    plan, cost = prepare(session, retry_failed, reader)
    for pack in plan.packs:
        print(f"  pack {pack.name}  {pack.frame_size[0]}x{pack.frame_size[1]}  {plural(len(pack.videos), 'video')}  "
              f"{plural(pack.frames, 'frame')}")
    costing.refuse_if_too_large(cost, session.store)
    return cli.DONE


def prepare(session: Session, retry_failed: bool,
            reader: InProcess | ChildProcess) -> tuple[Plan, costing.Cost]:
    """What is to do and what it takes, printed."""
    plan = session.plan(retry_failed, reader)
    cost = costing.measure_cost(plan.packs, session.catalog, session.recipe, session.pipeline.run, reader, plan.probes)
    plan.packs = [replace(pack, frames=max(pack.frames, cost.packs.get(pack.name, 0))) for pack in plan.packs]
    backend = session.recipe.flow.backend
    print(costing.describe(plan, cost, session.catalog, len(session.done), backend), flush=True)
    for note in notes(session, plan):
        print(f"note     {note}", flush=True)
    return plan, cost


def execute_part(arrival: Arrival, pipeline: Pipeline, catalog: Catalog, args: argparse.Namespace,
                 reader: InProcess | ChildProcess) -> int:
    """The plan, where this part is the first; then its share of it. Returns FAILURES where some of that failed, or
    where headers told the plan's maker so."""
    failures = []
    if not arrival.plan:
        session = arrival.planner(pipeline, catalog)
        plan, cost = prepare(session, False, reader)
        costing.refuse_if_too_large(cost, session.store)
        arrival.write(session, plan, cost)
        failures = plan.failures
    on_gpu = pipeline.recipe.flow.backend == "cuda"        # whose cores decode for it
    run = replace(pipeline.run, threads=pipeline.run.threads or int(not on_gpu))
    session = PartSession(replace(pipeline, run=run), catalog, arrival)
    session.failures |= {row.video: row for row in failures}
    plan, cost = session.share(reader)
    print(f"part     {args.part}: {len(plan.packs):,} of the {plural(len(session.shared.packs), 'pack')} of "
          f"{session.shared.name}", flush=True)
    for note in session.remarks():
        print(f"note     {note}", flush=True)
    return execute(session, args, reader, (plan, cost))


def execute(session: Session, args: argparse.Namespace, reader: InProcess | ChildProcess,
            planned: tuple[Plan, costing.Cost] | None = None) -> int:
    """Plan, make every pack, publish, sum up. Returns DONE, or FAILURES where failures.csv has rows."""
    crew = None
    if args.address:   # a wrong one is told before hours of probing
        crew = drive.start(args.engine, args.workers, args.address, session.pipeline)
    status, begun = "stopped", False
    try:
        plan, cost = planned or prepare(session, args.retry_failed, reader)
        reader.close()
        costing.refuse_if_too_large(cost, session.store)
        if plan.packs and not crew:
            crew = drive.start(args.engine, args.workers, None, session.pipeline, len(plan.packs))
        session.begin(plan, args.engine, crew.engine.describe() if crew else {})
        begun = True
        if crew:
            drive.make_packs(session, plan, cost, crew)
        status = "failures" if session.failed else "done"
    finally:
        if crew:
            crew.engine.close()
        if begun:
            session.finish(status)
    print(summary(session))
    return cli.FAILURES if session.failed else cli.DONE


def notes(session: Session, plan: Plan) -> list[str]:
    """What the user should know before the work starts."""
    out, border = list(session.catalog.notes), session.recipe.motion.border_px
    if session.pipeline.kept:
        out.append(f"as in the store so far, since nothing asks for another: {', '.join(session.pipeline.kept)}")
    if covered := sum(len(pack.videos) for pack in plan.packs if 2 * border >= min(pack.frame_size)):
        out.append(f"{plural(covered, 'video is', 'videos are')} so small that the border of {border} px covers the "
                   f"frames: no motion is scored there (a new store with --set motion.border_px=0 scores all of it)")
    if session.catalog.absent:
        absent = plural(len(session.catalog.absent), "listed video is", "listed videos are")
        out.append(f"{absent} not on disk; the run's record has the list")
    if session.lost:
        out.append(f"{plural(len(session.lost), 'pack of the index is', 'packs of the index are')} not on disk; "
                   f"{'its' if len(session.lost) == 1 else 'their'} videos are done again")
    if session.bad_records:
        out.append(f"{plural(len(session.bad_records), 'record is', 'records are')} damaged and left aside (first "
                   f"{session.bad_records[0]})")
    here = str(session.catalog.sources)
    root = session.records[-1]["videos_root"] if session.records else here
    if root != here:
        out.append(f"the store's videos came from {root} so far; ids that it holds count as done")
    missing = set(session.pipeline.preset.splits) - {split for v in session.catalog.videos for split in v.splits}
    if missing:
        out.append(f"no video is in split {', '.join(sorted(missing))}")
    gone, struck = session.left()
    packed = [id for id in gone if id in session.videos]
    failed = [id for id in gone if id not in session.videos]
    reindex = f"python -m preprocess.reindex {cli.typed(session.store)}"
    drops = f"`{reindex} --drop-missing {' '.join(map(cli.typed, session.catalog.sources.texts))}` drops "
    if packed:
        out.append(f"{plural(len(packed), 'video of the store is', 'videos of the store are')} not under "
                   f"{here} and still in use (first {', '.join(packed[:3])}); what was renamed or "
                   f"moved counts twice: {drops}{'it' if len(packed) == 1 else 'them'}")
    if failed:
        out.append(f"{plural(len(failed), 'failure is of a video that is', 'failures are of videos that are')} no "
                   f"longer under {here} (first {', '.join(failed[:3])}); {drops}"
                   f"{'it' if len(failed) == 1 else 'them'}")
    if struck:
        out.append(f"{plural(len(struck), 'video of the store is', 'videos of the store are')} not listed and still in "
                   f"use (first {', '.join(struck[:3])}); `{reindex} --drop {shlex.quote(struck[0])}` drops one")
    if stale := session.stale():
        packed = plural(stale, "packed video has", "packed videos have")
        out.append(f"{packed} another class, group or other splits in the annotations now; the store keeps "
                   f"those it has; `{reindex} --annotations CSV` changes them")
    return out


def summary(session: Session) -> str:
    """The closing lines."""
    counts, wall = session.counts(), time.monotonic() - session.started
    lines = [f"done: {plural(counts['videos'], 'video')}, {plural(counts['frames'], 'frame')} in "
             f"{plural(counts['packs'], 'pack')} ({size(counts['bytes'])}) in {duration(wall)}; the store "
             f"{session.store} holds {plural(counts['store_videos'], 'video')}"]
    short = sum(1 for row in session.videos.values() if row.frames < min(
        ClipGeometry.parse(g).span for g in session.recipe.clips.geometries))
    if short:
        lines.append(f"{plural(short, 'video is', 'videos are')} shorter than a clip: training leaves such out, "
                     "evaluation loops them")
    if session.failed:
        reasons = Counter(row.reason for row in session.failed).most_common(3)
        shown = "; ".join(f"{number} x {reason}" for reason, number in reasons)
        lines.append(f"{plural(len(session.failed), 'failure')} in {session.store / 'failures.csv'} ({shown}); "
                     f"--retry-failed tries them again")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.command(main)
