"""What `python -m evaluate.embed` does: features of all videos into OUT, then the neighbours of one."""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from evaluate.embedding import neighbours
from evaluate.embedding.files import FolderVideos
from evaluate.embedding.kept import FAILURES, FEATURES, PARQUET, RECORD, TABLE, Finished, Kept, read_finished
from evaluate.embedding.sources import Item, StoreVideos, Videos
from evaluate.embedding.work import embed, embed_all
from evaluate.features.cells import as_asked
from evaluate.features.encoders import Encoder, open_encoder
from evaluate.features.extract import View
from evaluate.features.vectors import from_main
from evaluate.protocol import Table, load_sections
from evaluate.report.page import table_text
from evaluate.settings import RunEvaluation, Settings
from shared import cli
from shared.cli import RequestError, plural
from shared.clips.index import ClipGeometry
from shared.datasets.sources import single_file
from shared.nn.distributed import World, close_world, open_world
from shared.nn.together import together
from shared.pictures import figures
from shared.recipes.settings import recorded
from shared.store.layout import StoreError, damage_stops
from shared.store.lease import store_lease
from shared.store.objects import whole
from shared.store.place import ObjectPath, Place, as_place
from shared.store.tables import FailureRow
from shared.videos.streams import VideoError

PACKAGES = "motionpack", "torch", "numpy", "av"
SEARCHED = 5000       # ids compared letter by letter for the nearest one
LONGEST = 80          # characters of an id in a file's name
NOT_A_NAME = re.compile(r"[^\w.-]")


def run(args: argparse.Namespace) -> int:
    """Returns the exit code. Raises RequestError and Stopped."""
    settings = load_sections(("features",), args.settings)
    if args.format == "parquet" and find_spec("pyarrow") is None:
        raise RequestError('--format parquet needs a package that is missing here; pip install "motionpack[parquet]"')
    world = open_world(settings.run.device)
    try:
        torch.set_num_threads(settings.run.threads or
                              max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        code = cli.DONE
        if args.checkpoint:
            code = make(args, settings, world)
        if args.query and world.main:
            show_nearest(args, settings.run, world.device)
        return code
    finally:
        close_world(world)


def make(args: argparse.Namespace, settings: Settings, world: World) -> int:
    """Every video's features into OUT. Returns FAILURES where there are any."""
    began, out, kept = time.monotonic(), args.out, None
    with contextlib.ExitStack() as stack:
        with together(world), damage_stops(args.store or ""):
            encoder = as_asked(open_encoder(args.checkpoint, world.device, asked=settings.features), settings.features)
            view = dataclasses.replace(View.of(settings.features, encoder), step=args.step or 0)
            videos = StoreVideos(args.store) if args.store else folder(args.videos, settings.run)
            details = describe(encoder, videos, settings, world)
            if world.main:
                stack.enter_context(held(out))
                kept = Kept(out, {"checkpoint": encoder.sha256, "backbone": encoder.net.name, "per": args.per,
                                  "view": view.to_dict(), "source": videos.to_dict()}, encoder.net.features)
                stack.callback(kept.close)
                missing = kept.missing(videos.items)
                kept.add(videos.failures)
        missing = from_main(missing if kept else None, world)
        try:
            embed_all(encoder, videos, missing, view, args.per == "clip", settings.run, world,
                      kept.add if kept else lambda outcomes: None)
        except BaseException:
            if kept:
                kept.save()
            raise
        if not kept:
            return cli.DONE
        parquet = args.format == "parquet" or (out / PARQUET).exists()          # or it would not be that of the others
        document = kept.finish(videos.items, details, parquet)
        counts = document["counts"]
        rows, width = document["shape"]
        short = sum(one.frames < view.geometry.span for one in kept.known.values())
        if short:
            print(f"note     {plural(short, 'video is', 'videos are')} shorter than a clip of {view.geometry} "
                  f"({view.geometry.span} frames): their frames are repeated")
        files = [FEATURES, TABLE, *([PARQUET] if parquet else []), RECORD]
        print(f"done: {plural(counts['videos'], 'video')}, {rows:,} rows of {width:,} numbers, in {out}: "
              f"{', '.join(files)}; "
              + (f"{plural(len(missing), 'video')} computed in {cli.duration(time.monotonic() - began)}" if missing else
                 "all were there"))
        if counts["failures"]:
            print(f"{plural(counts['failures'], 'video')} could not be used, or not whole: {out / FAILURES}")
            return cli.FAILURES
        return cli.DONE


def folder(texts: Sequence[str | Place], run: RunEvaluation) -> FolderVideos:
    """Videos as --videos names them, or one file. Raises RequestError."""
    return FolderVideos(texts, apart=run.workers != 0)


def sources(args: argparse.Namespace, found: Finished, run: RunEvaluation) -> Videos:
    """Where pictures of OUT's videos are: in what is given, else in what it was made from. Raises RequestError."""
    made = found.document["request"]["source"]
    if args.videos or not args.store and "videos" in made:
        given = made["videos"]
        return folder(args.videos or ([given] if isinstance(given, str) else given), run)
    return StoreVideos(args.store or as_place(made["store"]))


@contextlib.contextmanager
def held(out: Place):
    """OUT is this process's own. Raises RequestError where it is another's, or no folder."""
    if isinstance(out, ObjectPath):
        with store_lease(out):
            yield
        return
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; expected a folder")
    out.mkdir(parents=True, exist_ok=True)
    lock = cli.hold(out, "--out")
    try:
        yield
    finally:
        os.close(lock)


def describe(encoder: Encoder, videos: Videos, settings: Settings, world: World) -> dict:
    """How the features are made, for embed.json. Raises RequestError for a checkpoint whose own words are no plain
    data."""
    said = {"text": encoder.text, "sha256": encoder.sha256, **encoder.provenance}
    if "file" in said:
        said["file"] = str(Path(said["file"]).absolute())
    document = {"checkpoint": said,
                "settings": recorded(Settings, {name: dataclasses.asdict(getattr(settings, name))
                                               for name in ("features", "run")}),
                "source": videos.details(),
                "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
                "processes": world.size, "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}}
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"checkpoint {encoder.text}: its provenance is no plain data ({error}); expected a file "
                           "that train/main.py wrote") from None
    return document


def show_nearest(args: argparse.Namespace, run: RunEvaluation, device: torch.device) -> None:
    """Print the videos nearest to --query, and draw them into OUT."""
    with contextlib.closing(read_finished(args.out)) as found:
        ids, vectors = neighbours.of_videos(found.ids, found.vectors)
        labels = dict(zip(found.ids, found.labels))
        videos = sources(args, found, run)
        items = {item.id: item for item in videos.items}
        query = known_id(args.query, ids, videos)
        if query is not None:
            asked, picture = vectors[ids.index(query)], frame_of(videos, items.get(query))
        else:
            asked, picture = encode_file(as_place(args.query), found, run, device)
        near = neighbours.neighbours(asked, ids, [labels[one] for one in ids], vectors, args.k, query)
    if not near:
        raise RequestError(f"{args.out} holds features of no other video; expected several")
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(videos.opened())
        frames = [frame_of(videos, items.get(one.id), reader) for one in near]
    about = neighbours.Neighbour(query or as_place(args.query).name, labels.get(query, ""), 1.0)
    drawn = args.out / f"neighbours-{NOT_A_NAME.sub('_', about.id)[-LONGEST:]}.png"
    with whole(drawn) as local:
        figures.save(neighbours.strip(about, picture, near, frames), local)
    print(table_text(Table("", ("nearest", "label", "cosine"),
                           [(one.id, one.label or None, f"{one.cosine:.4f}") for one in near])))
    print(f"look at  {drawn}")


def known_id(asked: str, ids: list[str], videos: Videos) -> str | None:
    """The video of OUT that is asked for; None for a file that is none of them. Raises RequestError."""
    if asked in ids:
        return asked
    path = as_place(asked)
    if path.is_file():
        if single_file([path]) is None:
            raise RequestError(f"--query {asked} is an archive; expected one of its videos, as {TABLE} of OUT names it")
        files = {video.id: video.file(videos.place) for video in videos.videos.values()} if \
            isinstance(videos, FolderVideos) else {}
        inside = {str(getattr(file, "place", file)): id for id, file in files.items()}
        found = inside.get(str(path.absolute()))
        return found if found in ids else None
    raise RequestError(f"--query {asked!r} is neither a video of OUT nor a file{cli.nearest(asked, ids[:SEARCHED])}")


def encode_file(path: Place, found: Finished, run: RunEvaluation,
                device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """The feature (C,) of a video file, made as those of OUT, and its middle frame. Raises RequestError."""
    made, said = found.document["request"], found.document["checkpoint"]
    text = said.get("file", said["text"])
    asked = load_sections(("features",), [f"features.{key}={value}" for key, value in
                                     found.document["settings"]["features"].items() if key in ("pool", "grid")])
    seen = made["view"]
    pooled = dataclasses.replace(asked.features, clip=seen["clip"], size=seen["size"])
    encoder = as_asked(open_encoder(text, device, asked=pooled), pooled)
    if encoder.sha256 != made["checkpoint"]:
        raise RequestError(f"{text} is not the checkpoint of {found.out} any more: its SHA-256 is "
                           f"{encoder.sha256[:12]}, was {made['checkpoint'][:12]}; put the old one back, or embed anew")
    view = View(seen["clips"], ClipGeometry.parse(seen["clip"]), seen["size"], seen["short_edge"],
                step=seen.get("step", 0))
    videos = folder([path], run)
    per_clip = made["per"] == "clip"
    *_, (outcomes, _, _) = embed(encoder, videos, videos.items, view, per_clip, run, device)
    if isinstance(outcomes[0], FailureRow):
        raise RequestError(f"--query {path}: {outcomes[0].reason}")
    return outcomes[0].vectors.mean(0), frame_of(videos, videos.items[0])


def frame_of(videos: Videos, item: Item | None, reader=None) -> np.ndarray:
    """(H, W, 3) uint8: the video's middle frame; grey where it is gone."""
    with contextlib.suppress(VideoError, StoreError), contextlib.ExitStack() as stack:
        if item is not None:
            return videos.middle(reader or stack.enter_context(videos.opened()), item)
    return np.full((48, 64, 3), 200, np.uint8)
