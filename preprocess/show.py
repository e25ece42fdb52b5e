"""Pictures of a store: `python -m preprocess.show STORE --video ID --out PNG`; without --video an overview of it.

A video's picture: frames of its most moving clip, flow, motion boundary, motion map, T-motion with the chosen clips,
S-motion with hot cells and crops. Flow and boundary are computed again from the stored frames, the rest is as stored.
"""

import difflib
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from preprocess import flow as optical_flow
from preprocess.task import flow_parameters
from shared import cli, motion
from shared.cli import RequestError
from shared.clips.index import ClipGeometry, draw_crop, unpack_mask
from shared.pictures import figures, overview
from shared.pictures.census import store_picture
from shared.recipes.preprocessing import Recipe, build
from shared.store.index import Index, read_failures
from shared.store.layout import damage_stops
from shared.store.place import store_argument
from shared.store.reader import StoreReader
from shared.store.record import read_json

SHOWN_FRAMES, SHOWN_CROPS = 6, 3
SEED = 0  # of the crops: one store, one picture
SEARCHED = 5000  # ids compared letter by letter for the nearest one; more would take seconds


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    parser = cli.Arguments(prog="python -m preprocess.show", description=__doc__)
    parser.add_argument("store", type=store_argument, help="a folder, or a URL such as s3://bucket/prefix")
    parser.add_argument("--video", metavar="ID", help="a video of the store; default: an overview of all")
    parser.add_argument("--clips", metavar="LxS", help="clip geometry; default: the recipe's first")
    parser.add_argument("--out", metavar="PNG", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.out.suffix.lower() != ".png" or not args.out.absolute().parent.is_dir() or args.out.is_dir():
        raise RequestError(f"--out {args.out}: expected a file ending in .png in a folder that exists")
    with damage_stops(args.store):
        index = Index.load(args.store)
        document = read_json(args.store / "store.json")
        recipe = build(Recipe, document["recipe"], "")
        geometry = _geometry(args.clips, recipe)
        if args.video is None:
            figure = overview.store_figure(store_picture(index, document, geometry))
        else:
            check_known(index, args.video)
            reader = StoreReader(args.store, index=index)
            figure = figures.video_figure(video_picture(reader, args.video, recipe, geometry))
    figures.save(figure, args.out)
    print(args.out)
    return cli.DONE


def _geometry(text: str | None, recipe: Recipe) -> ClipGeometry:
    """Raises RequestError for a geometry that the store does not have."""
    geometries = recipe.clips.geometries
    if text is not None and text not in geometries:
        raise RequestError(f"--clips {text}: the store has {', '.join(geometries)}; "
                           f"add another with preprocess.reindex --clips LxS")
    return ClipGeometry.parse(text or geometries[0])


def check_known(index: Index, video: str) -> None:
    """Raises RequestError for an id that the index does not list, with why or with the nearest one."""
    if video in index:
        return
    for row in read_failures(index.store):
        if row.video == video:
            raise RequestError(f"video {video!r} failed and is not in the store: {row.reason}")
    ids = index.id
    if len(ids) > SEARCHED:
        place, name = bisect_left(ids, video), Path(video).stem
        alike = [one for one in ids if name and name in one]
        ids = ids[max(0, place - SEARCHED // 2):place + SEARCHED // 2] + alike[:SEARCHED]
    close = difflib.get_close_matches(video, ids, n=1) or [one for one in ids if video and video in one][:1]
    hint = f"did you mean {close[0]!r}?" if close else "its ids are the first column of videos.csv in the index"
    raise RequestError(f"{index.store} holds no video {video!r}; {hint}")


def video_picture(reader: StoreReader, video: str, recipe: Recipe, geometry: ClipGeometry) -> figures.VideoPicture:
    """Reads and computes all that the picture of one video needs; six frames pass through TV-L1."""
    row, clips = reader.index.row(video), reader.clips(video, geometry)
    shown = int(clips.start[clips.score.argmax()]) if len(clips.start) else None
    if shown is None:
        sampled = np.arange(row.frames)
    else:
        sampled = shown + geometry.stride * np.arange(geometry.length)
    number = sampled[np.linspace(0, len(sampled) - 1, min(SHOWN_FRAMES, len(sampled))).round().astype(int)]
    frames = reader.frames(video, number)
    flow = _flow(reader, video, number, row.frames, recipe)
    maps = reader.motion(video, int(sampled[0]), int(sampled[-1]) + 1).astype(np.float32)[sampled - sampled[0]]
    cells = maps.shape[1:]
    s_motion = motion.s_motion(motion.zero_border(maps, -(-recipe.motion.border_px // motion.CELL)))
    hot, boxes = np.zeros(cells, bool), []
    if shown is not None:
        hot = unpack_mask(clips.hot_mask[clips.score.argmax()], cells)
        rng = np.random.default_rng(SEED)
        boxes = [draw_crop(rng, hot) for _ in range(SHOWN_CROPS)]
    labels = [row.class_name or "unlabelled", ", ".join(row.splits) or "no split", cli.plural(row.frames, "frame"),
              f"{row.fps:.4g} frames/s", "{}x{} px".format(*frames.shape[1:3])] + [row.note] * bool(row.note)
    if shown is None:
        labels.append(f"too short for a clip of {geometry} ({geometry.span} frames)")
    return figures.VideoPicture(
        title=video, facts="   |   ".join(labels), number=number, frames=frames, flow=flow,
        boundary=motion.edges(flow, recipe.motion.derivative), motion=maps[np.searchsorted(sampled, number)],
        t_motion=reader.t_motion(video), clips=clips, span=geometry.span, shown=shown, s_motion=s_motion, hot=hot,
        boxes=boxes)


def _flow(reader: StoreReader, video: str, number: np.ndarray, frames: int, recipe: Recipe) -> np.ndarray:
    """Flow from each frame of `number` to the next, (n, 2, H, W) float32 px/frame; the last one has its neighbour's."""
    first = np.minimum(number, frames - 2)
    pairs = reader.frames(video, np.stack([first, first + 1], axis=1).ravel())
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pairs])
    return optical_flow.tvl1(grey[::2], grey[1::2], preset=flow_parameters(recipe), backend="cpu")


if __name__ == "__main__":
    cli.command(main)
