"""What `evaluate.run` is asked: its command line, checked before anything is read or run."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from evaluate.features.handmade import HANDMADE
from evaluate.features.moments import MOMENTS
from evaluate.folds import left_out
from evaluate.protocol import PROTOCOLS, Protocol, find_protocol, load_settings, share_settings
from evaluate.report import page, results
from evaluate.settings import Settings
from shared import cli
from shared.cli import RequestError
from shared.store.place import store_argument

WRITTEN = re.compile(rf"{results.METRICS}|{page.REPORT}|curves(-\d+)?\.png|store\.png|compare\.png|runs")    # into OUT



def arguments(argv: Sequence[str], about: str) -> argparse.Namespace:
    """The command line. Raises RequestError for what it cannot take."""
    parser = cli.Arguments(prog="python -m evaluate.run", description=about,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", help=f"{', '.join(PROTOCOLS)}; several by commas: each in OUT/PROTOCOL, and all "
                        "in one report")
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="FILE", help="RUN/last.pt, an exported "
                        f".safetensors, random:NAME[:seed], {', '.join(HANDMADE)}, hf:DIR, python:MODULE:NAME; several "
                        "(one a training seed) give a spread")
    parser.add_argument("--store", type=store_argument, help="packs: a folder, or a URL such as s3://bucket/prefix")
    parser.add_argument("--train-split", metavar="A", help="default train, else train1; several, by commas, with as "
                        "many test splits: the first pair is the headline, the mean is over all")
    parser.add_argument("--test-split", metavar="B", help="default test, test1 or val")
    parser.add_argument("--leave-out", action="append", default=[], metavar="group[=NAME]", help="instead of a test "
                        "split: every group of the training split (default: of all videos) is asked in turn, learnt "
                        "from the others; with NAME, which may be given repeatedly, this group alone")
    parser.add_argument("--holdout", type=float, metavar="SHARE", help="instead of splits: this share of the labelled "
                        "videos of every class is asked, learnt from the others; --seeds N draws N times")
    parser.add_argument("--by", choices=["group"], help="--holdout takes whole groups")
    parser.add_argument("--seeds", type=int, metavar="N", help="repeat with seeds 0 to N - 1 (default 1)")
    parser.add_argument("--samples", type=int, metavar="N", help="learn from so many of the training videos, drawn by "
                        "the seed, each class by its share, for linear, retrieval and finetune")
    parser.add_argument("--twins", type=store_argument, metavar="STORE2", help="ask the appearance-free twins too (of "
                        "preprocess.twins), and say what they keep, for linear and retrieval")
    parser.add_argument("--against", metavar="FILE", help="another checkpoint beside it, for protocols that show two")
    parser.add_argument("--beside", choices=[MOMENTS], help="a row of temporal moments of the same features beside the "
                        "result, for linear and retrieval")
    parser.add_argument("--annotations", type=cli.local, metavar="DIR", help="the dataset's official files, for "
                        "protocols whose classes are not the videos': verbs, detection; for lookalikes a CSV with "
                        "motion and look, default annotations.csv beside the videos")
    parser.add_argument("--cache", type=cli.local, help="where features are kept; default OUT/features, and those of "
                        "evaluations beside OUT are used too")
    parser.add_argument("--out", type=cli.local, help="metrics.json, report.html and figures go here")
    parser.add_argument("--compare", nargs="+", type=cli.local, metavar="RUN", help="--out folders, side by side")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="replace a setting of `evaluation:` in pipelines.yaml, such as clips=10")
    args = parser.parse_args(argv)
    if args.compare:
        unused = [name for name in ("protocol", "store", "train_split", "test_split", "leave_out", "holdout", "by",
                                   "against", "beside", "twins", "samples", "annotations", "cache", "checkpoint",
                                   "seeds") if getattr(args, name)] + ["set"] * bool(args.settings)
        if unused:
            raise RequestError(f"--compare takes --out only; --{unused[0].replace('_', '-')} does not go with it")
    missing = [name for name in (("out",) if args.compare else ("protocol", "checkpoint", "store", "out"))
               if not getattr(args, name)]
    if missing:
        raise RequestError(f"--{missing[0]} is missing; `python -m evaluate.run --help` lists all")
    args.leave_out, args.groups = left_out(args.leave_out)
    args.seeds = 1 if args.seeds is None else args.seeds
    if args.seeds < 1:
        raise RequestError(f"--seeds {args.seeds}; expected 1 or more")
    if args.holdout is not None and not 0 < args.holdout < 1:
        raise RequestError(f"--holdout {args.holdout:g}; expected a share between 0 and 1, such as 0.2")
    if args.holdout is not None and (args.train_split or args.test_split or args.leave_out or args.groups):
        raise RequestError("--holdout makes both splits; leave --train-split, --test-split and --leave-out out")
    if args.groups and (args.train_split or args.test_split):
        raise RequestError("--leave-out group=NAME makes both splits; leave --train-split and --test-split out")
    if args.samples is not None and args.samples < 1:
        raise RequestError(f"--samples {args.samples}; expected 1 or more")
    if args.samples and args.leave_out:
        raise RequestError("--samples does not go with --leave-out group, which learns from others for every group; "
                           "name one by --leave-out group=NAME")
    if args.by and args.holdout is None:
        raise RequestError("--by group goes with --holdout SHARE; --leave-out group asks every group in turn")
    return args


def each_protocol(args: argparse.Namespace) -> list[tuple[argparse.Namespace, Settings]]:
    """The command line and the settings of every protocol that is asked for. Raises RequestError."""
    names = [name.strip() for name in args.protocol.split(",")]
    if len(set(names)) < len(names):
        raise RequestError(f"--protocol {args.protocol}; expected each once")
    shared, protocols = share_settings(names, args.settings), {name: find_protocol(name) for name in names}
    caches, asked = [] if args.cache else sorted(args.out.absolute().parent.glob("*/features")), []
    for name, protocol in protocols.items():
        own = dict(protocol=name, settings=shared[name], caches=caches,
                   unsampled=args.samples if protocol.learns and "samples" not in protocol.may else None)
        if len(names) > 1:
            own |= dict(out=args.out / name, cache=args.cache or args.out / "features")
        for flag in ("against", "beside", "twins", "samples", "annotations"):
            if flag not in protocol.may and any(flag in other.may for other in protocols.values()):
                own[flag] = None
        if not protocol.learns and any(other.learns for other in protocols.values()):
            own["train_split"] = None
        one = argparse.Namespace(**vars(args) | own)
        asked.append((one, load_settings(name, one.settings)))
        _check(one, protocol)
        if one.beside == asked[-1][1].features.pool:
            raise RequestError(f"--beside {one.beside} puts temporal moments beside the mean, and features.pool is "
                               f"{MOMENTS} already; leave one of the two out")
    if len(names) > 1:
        check_out(args.out, "compare")
    return asked


def _check(args: argparse.Namespace, protocol: Protocol) -> None:
    """Refuse flags that the protocol does not take, and a lack of those that it needs."""
    for flag in ("against", "beside", "twins", "samples"):
        if getattr(args, flag) and flag not in protocol.takes:
            raise RequestError(f"--{flag} does not apply to {args.protocol}; leave it out")
    if args.train_split and not protocol.learns:
        raise RequestError(f"--train-split does not apply to {args.protocol}, which learns nothing; leave it out")
    if "annotations" not in protocol.optional and bool(args.annotations) != ("annotations" in protocol.takes):
        raise RequestError(f"--annotations does not apply to {args.protocol}; leave it out" if args.annotations else
                           f"--annotations is missing; {args.protocol} reads the dataset's official files in that DIR")
    if args.leave_out and (args.test_split or not protocol.grouped):
        raise RequestError("--leave-out group does not apply " + (f"to {args.protocol}; leave it out"
                           if not protocol.grouped else "with a --test-split; give one of the two"))


def check_out(out: Path, protocol: str) -> None:
    """Refuse an OUT that holds anything but an earlier evaluation by this protocol. Raises RequestError."""
    if out.is_file():
        raise RequestError(f"--out {out} is a file; expected a folder")
    there = {entry.name for entry in out.iterdir()} if out.exists() else set()
    beside = {"features", *PROTOCOLS} | {name for name in there if (out / name / results.METRICS).is_file()}
    ours = {name for name in there if name.startswith(".")} | beside
    if there & {results.METRICS, cli.LOCK}:
        ours |= set(filter(WRITTEN.fullmatch, there))
    if foreign := sorted(there - ours):
        what = "is a store of videos" if "store.json" in there else "is a training run" if "checkpoints" in there else \
            f"holds {foreign[0]}, which is no evaluation's"
        raise RequestError(f"--out {out} {what}; choose another folder for the results")
    if results.METRICS in there:
        before = results.read_metrics(out)["protocol"]
        if before != protocol:
            raise RequestError(f"--out {out} holds the results of {before}; choose another folder for {protocol}")
