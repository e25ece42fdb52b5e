"""Features of videos as files: `python -m evaluate.embed --checkpoint FILE --store DIR --out DIR`.

OUT gets features.npy (float32, a row a video), videos.csv, whose lines are in the same order, and embed.json, which
says by what they were made. `--videos SOURCE` instead of `--store` decodes video files, without a store. `--query
VIDEO` shows the nearest videos. Run the same command again to go on after a stop, and after new videos. With several
devices: `torchrun --nproc-per-node N -m evaluate.embed ...`.
"""

import argparse
import os
from collections.abc import Sequence

from shared import cli
from shared.cli import RequestError
from shared.datasets.sources import HELP
from shared.store.place import store_argument

RANK = int(os.environ.get("RANK", 0))


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises RequestError for what it cannot take."""
    parser = cli.Arguments(prog="python -m evaluate.embed", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", metavar="FILE", help="RUN/last.pt, an export, random:NAME[:seed], "
                        "mean-image, hf:DIR or python:MODULE:NAME")
    parser.add_argument("--store", type=store_argument, help="packs: a folder, or a URL such as s3://bucket/prefix; no "
                        "labels or splits are needed")
    parser.add_argument("--videos", nargs="+", action="extend", metavar="SOURCE", help="instead of --store: video "
                        f"files, read where they lie: {HELP}")
    parser.add_argument("--out", type=store_argument, help="where the features go: a folder, or a URL", required=True)
    parser.add_argument("--per", choices=["video", "clip"], default="video", help="a row a video, the mean over its "
                        "clips (default), or a row a clip, with its first frame in the column `start`")
    parser.add_argument("--step", type=int, metavar="FRAMES", help="frames from one clip's start to the next; default: "
                        "`clips` of them (20), spread evenly over the video")
    parser.add_argument("--format", choices=["npy", "parquet"], default="npy", help="parquet: features.parquet too, "
                        "the table and the features in one file")
    parser.add_argument("--query", metavar="VIDEO", help="an id, or a video file or its URL: draws the videos of OUT "
                        "that are nearest to it; needs no --checkpoint where OUT is finished")
    parser.add_argument("-k", type=int, default=8, metavar="N", help="how many of them (default 8)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="replace a "
                        "setting of `evaluation.features` or `evaluation.run` in pipelines.yaml, such as clips=10")
    args = parser.parse_args(argv)
    if args.store and args.videos:
        raise RequestError("--store and --videos are both given; expected one of them")
    if not args.query and not args.checkpoint:
        raise RequestError("--checkpoint is missing; `python -m evaluate.embed --help` lists all")
    if args.checkpoint and not args.store and not args.videos:
        raise RequestError("neither --store nor --videos is given; expected a store of preprocess.run, or a folder of "
                           "videos")
    for flag, value in (("--step", args.step), ("-k", args.k)):
        if value is not None and value < 1:
            raise RequestError(f"{flag} {value}; expected at least 1")
    return args


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    args = arguments(argv)
    # Not among the imports above: the processes that decode videos begin by importing this module.
    from evaluate.embedding import command

    return command.run(args)


if __name__ == "__main__":
    cli.command(main, rank=RANK)
