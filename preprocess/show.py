"""Pictures of a store: `python -m preprocess.show STORE --video ID --out PNG`; without --video an overview of it;
`--html DIR` makes a page of all of it, `--list [TEXT]` prints its ids, `--table PARQUET` writes a row a clip.
`--source VIDEO --out PNG` needs no store.

A video's picture: frames of its most moving clip, flow, motion boundary, motion map, T-motion with the chosen clips,
S-motion with hot cells and crops. Flow and boundary are computed again from the stored frames, the rest is as stored.
"""

import difflib
import re
import sys
from bisect import bisect_left
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from preprocess.page.write import VIDEOS, write_page
from preprocess.picture import video_picture
from shared import cli
from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.pictures import figures, overview
from shared.pictures.census import store_picture
from shared.recipes.preprocessing import Recipe, build, read_description
from shared.store.index import Index, read_failures
from shared.store.layout import damage_stops
from shared.store.place import Place, store_argument
from shared.store.reader import StoreReader

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
SEARCHED = 5000  # ids compared letter by letter for the nearest one; more would take seconds


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    parser = cli.Arguments(prog="python -m preprocess.show", description=__doc__)
    parser.add_argument("store", nargs="?", type=store_argument, help="a folder, or a URL such as s3://bucket/prefix")
    parser.add_argument("--source", metavar="VIDEO", help="without a store: one file through every "
                        "stage, with headers, flow, maps, clips, timings and the exact error")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="of --source: replace a setting of pipelines.yaml, such as flow.preset=fast")
    parser.add_argument("--video", metavar="ID", help="a video of the store; default: an overview of all")
    parser.add_argument("--clips", metavar="LxS", help="clip geometry; default: the recipe's first")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", metavar="PNG", type=cli.local, help="the picture")
    what.add_argument("--html", metavar="DIR", type=cli.local, help="a page to look at the whole store, in a folder of "
                      "its own: numbers, classes, suspicious videos, a list of all")
    what.add_argument("--list", metavar="TEXT", nargs="?", const="", help="print the ids that hold TEXT, one a line")
    what.add_argument("--table", metavar="PARQUET", type=cli.local, help="a row a clip: start, score, hot mask, "
                      "S-motion cells (docs/tokens.md); overwrites nothing")
    parser.add_argument("--videos", metavar="N", type=int, help=f"of --html: videos with pictures; default {VIDEOS}")
    args = parser.parse_args(argv)
    if args.html is None and args.videos is not None or args.out is None and args.video is not None:
        raise RequestError("--videos belongs to --html, and --video to --out")
    if (args.store is None) == (args.source is None):
        raise RequestError("expected a store, or --source VIDEO without one")
    if args.source and (args.out is None or args.video or args.clips):
        raise RequestError("--source VIDEO goes with --out PNG and --set, and with nothing else")
    if args.settings and not args.source:
        raise RequestError("--set belongs to --source: what a store shows was made with the settings that it keeps")
    if args.videos is not None and args.videos < 0:
        raise RequestError(f"--videos {args.videos}; expected a number of videos, 0 or more")
    if args.out and (args.out.suffix.lower() != ".png" or not args.out.absolute().parent.is_dir() or args.out.is_dir()):
        raise RequestError(f"--out {args.out}: expected a file ending in .png in a folder that exists")
    if args.table:
        check_table(args.table)
    if args.source:
        from preprocess.source import show_source  # what runs need, such as engines, and pictures of a store do not

        return show_source(args.source, args.out, args.settings)
    with damage_stops(args.store):
        index = Index.load(args.store)
        if args.list is not None:
            return list_ids(index, args.list)
        document = read_description(args.store)
        recipe = build(Recipe, document["recipe"], "")
        geometry = _geometry(args.clips, recipe, args.store)
        if args.table is not None:
            from preprocess.table import write_table  # pyarrow is an extra

            print(write_table(args.table, StoreReader(args.store, index=index), recipe, geometry))
            return cli.DONE
        if args.html is not None:
            videos = VIDEOS if args.videos is None else args.videos
            print(write_page(args.html, index, document, recipe, geometry, videos) / "index.html")
            return cli.DONE
        if args.video is None:
            figure = overview.store_figure(store_picture(index, document, geometry))
        else:
            check_known(index, args.video)
            reader = StoreReader(args.store, index=index)
            figure = figures.video_figure(video_picture(reader, args.video, recipe, geometry))
    figures.save(figure, args.out)
    print(args.out)
    return cli.DONE


def check_table(path: Path) -> None:
    """Raises RequestError where the table cannot be written."""
    if path.suffix.lower() != ".parquet" or not path.absolute().parent.is_dir():
        raise RequestError(f"--table {path}: expected a file ending in .parquet in a folder that exists")
    if path.exists():
        raise RequestError(f"--table {path} is there already and is not overwritten; choose another name, or remove it")
    if find_spec("pyarrow") is None:
        raise RequestError('--table needs a package that is missing here; pip install "motionpack[parquet]"')


def _geometry(text: str | None, recipe: Recipe, store: Place) -> ClipGeometry:
    """Raises RequestError for a geometry that the store does not have."""
    geometries = recipe.clips.geometries
    if text is not None and text not in geometries:
        try:
            lacking = ClipGeometry.parse(text)
        except ValueError as error:
            raise RequestError(f"--clips: {error}; the store has {', '.join(geometries)}") from None
        raise RequestError(f"--clips {text}: the store has {', '.join(geometries)}; add another with "
                           f"`python -m preprocess.reindex {cli.typed(store)} --clips {lacking}`")
    return ClipGeometry.parse(text or geometries[0])


def list_ids(index: Index, text: str) -> int:
    """Print the ids that hold `text` in any case, one a line; control characters are escaped."""
    found = [video for video in index.id if text.casefold() in video.casefold()]
    sys.stdout.reconfigure(errors="surrogateescape")
    for video in found:
        print(video if video.isprintable() else CONTROL.sub(lambda one: repr(one[0])[1:-1], video))
    if not found:
        print(f"no id of the store's {len(index):,} holds {text!r}", file=sys.stderr)
    return cli.DONE


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
    ids = f"`python -m preprocess.show {cli.typed(index.store)} --list` prints its ids"
    hint = f"did you mean {close[0]!r}?" if close else ids
    raise RequestError(f"{index.store} holds no video {video!r}; {hint}")


if __name__ == "__main__":
    cli.command(main)
