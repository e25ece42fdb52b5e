"""A checkpoint's numbers and pictures: `python -m evaluate.run --protocol P --checkpoint FILE --store DIR --out DIR`.

`--compare RUN...` puts finished evaluations side by side. With several devices: `torchrun -m evaluate.run ...`.
"""

import os

RANK = int(os.environ.get("RANK", 0))

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")     # see train/main.py: fine-tuning has the same workers

import argparse
import contextlib
import dataclasses
import importlib
import itertools
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from evaluate.features.cache import FeatureCache
from evaluate.features.cells import as_asked
from evaluate.features.encoders import Encoder, open_encoder, takes_seed
from evaluate.features.extract import View, choose
from evaluate.features.handmade import HANDMADE
from evaluate.features.moments import MOMENTS, pooled
from evaluate.folds import INSTEAD, TRAIN, check_apart, check_unseen, default_split, left_out
from evaluate.frozen.beside import with_moments
from evaluate.holdout import group_split_names, holdout_names, sample_name
from evaluate.protocol import PROTOCOLS, Figure, Protocol, Request, find_protocol, load_settings, share_settings, used
from evaluate.report import compare, page, pictures, results
from evaluate.settings import Settings
from evaluate.twins import add_twins, check_twins, kept_line
from shared import cli
from shared.cli import RequestError, plural
from shared.clips.index import ClipGeometry
from shared.nn.distributed import World, close_world, open_world
from shared.pictures import figures, overview
from shared.pictures.census import store_picture
from shared.recipes.preprocessing import read_description
from shared.store.index import Index
from shared.store.layout import StoreError, damage_stops
from shared.store.place import store_argument

WRITTEN = re.compile(rf"{results.METRICS}|{page.REPORT}|curves(-\d+)?\.png|store\.png|compare\.png|runs")    # into OUT


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises RequestError for what it cannot take."""
    parser = cli.Arguments(prog="python -m evaluate.run", description=__doc__,
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


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    args = arguments(argv)
    if args.compare:
        _check_out(args.out, "compare")
        print(compare.compare(args.compare, args.out))
        print(f"look at  {args.out / page.REPORT}")
        return cli.DONE
    asked = each_protocol(args)
    world = open_world(asked[0][1].run.device)
    try:
        with damage_stops(args.store), contextlib.ExitStack() as stack:
            for one, settings in asked:
                torch.set_num_threads(settings.run.threads or max(1, len(os.sched_getaffinity(0)) //
                                                                  int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
                evaluate(one, settings, world, stack)
        if len(asked) > 1 and world.main:
            compare.compare([one.out for one, _ in asked], args.out)
            print(f"look at  {args.out / page.REPORT}")
        return cli.DONE
    finally:
        close_world(world)


def each_protocol(args: argparse.Namespace) -> list[tuple[argparse.Namespace, Settings]]:
    """The command line and the settings of every protocol that is asked for. Raises RequestError."""
    names = [name.strip() for name in args.protocol.split(",")]
    if len(set(names)) < len(names):
        raise RequestError(f"--protocol {args.protocol}; expected each once")
    shared, protocols = share_settings(names, args.settings), {name: find_protocol(name) for name in names}
    caches, asked = [] if args.cache else sorted(args.out.absolute().parent.glob("*/features")), []
    for name, protocol in protocols.items():
        own = dict(protocol=name, settings=shared[name], caches=caches)
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
    if len(names) > 1:
        _check_out(args.out, "compare")
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


def evaluate(args: argparse.Namespace, settings: Settings, world: World, stack: contextlib.ExitStack) -> int:
    """Every run, then what they say together; OUT is this process's own until the stack closes."""
    started = time.monotonic()
    index, document = Index.load(args.store), read_description(args.store)
    if (named := len(document["classes"])) <= (most := index.label.max(initial=-1)):
        raise StoreError(f"{args.store / 'store.json'}: names {cli.plural(named, 'class', 'classes')}, and the index "
                         f"has labels up to {most}")
    pairs = split_pairs(index, args)
    for train, _ in pairs if args.samples else ():
        choose(index, sample_name(train, args.samples, 0))
    twins = check_twins(index, args.twins) if args.twins else None
    encoders = [as_asked(open_encoder(text, world.device), settings.features) for text in args.checkpoint]
    for encoder in encoders:
        check_unseen(index, document["dataset"], encoder, [test or train for train, test in pairs])
    view = check_alike(encoders, args.checkpoint, settings)
    if args.beside:
        check_alike([pooled(encoder, args.beside) for encoder in encoders], args.checkpoint, settings)
    if world.main:
        _check_out(args.out, args.protocol)
        args.out.mkdir(parents=True, exist_ok=True)
        stack.callback(os.close, cli.hold(args.out, "--out"))
    cache = FeatureCache(args.cache or args.out / "features", args.caches)
    module, runs, paired = importlib.import_module(find_protocol(args.protocol).module), [], []
    asked = itertools.product(zip(args.checkpoint, encoders), pairs, range(1 if args.holdout else args.seeds))
    for number, ((text, encoder), (train, test), seed) in enumerate(asked):      # alike on every rank
        if takes_seed(text) and seed:
            encoder = as_asked(open_encoder(text, world.device, seed), settings.features)
        out = args.out / "runs" / _folder_name(number, train, test, seed)
        if world.main:
            out.mkdir(parents=True, exist_ok=True)
        learnt = sample_name(train, args.samples, seed) if args.samples else train
        request = Request(args.protocol, encoder, args.store, learnt, test, bool(args.leave_out), seed, settings, cache,
                          out, world, args.against, args.annotations)
        result = module.run(request)
        if args.beside:
            result = with_moments(module.run, request, result)
        if args.twins:
            if world.main:
                (out / "twins").mkdir(exist_ok=True)
            with damage_stops(args.twins):
                paired.append((result, module.run(dataclasses.replace(request, store=args.twins, out=out / "twins"))))
        if world.main:
            runs.append(results.Run(encoder.text, train, test, seed, result))
    if not world.main:
        return cli.DONE
    chosen, remarks = used(args.protocol, settings), results.notes(encoders, index, document, pairs, world)
    if args.seeds > 1 and all(run.result.metrics == runs[0].result.metrics for run in runs):
        remarks.append(f"All {len(runs)} runs gave the same numbers: nothing in them depends on the seed. A spread "
                       "needs checkpoints of several training seeds, or several splits.")
    if args.samples:
        remarks.append(f"Learnt from {plural(args.samples, 'training video')}, drawn by the seed: of every class its "
                       "share, one at least.")
    if "features" in chosen:
        chosen["view"] = view.to_dict()
    store = {"store": str(args.store), "dataset": document["dataset"], "index": index.generation,
             "recipe_hash": document["recipe_hash"]}
    summary = results.summarise(args.protocol, runs, chosen, [results.origin(encoder) for encoder in encoders], store,
                                remarks)
    if args.samples:
        summary["splits"]["samples"] = args.samples
    if twins:
        add_twins(summary, twins, [pair for pair, run in zip(paired, runs) if
                                   (run.train_split, run.test_split) == pairs[0]])
    shown = [*runs[0].result.figures, *background_figures(args.out, encoders, index, document)]
    summary["figures"] = results.listed(args.out, shown)
    results.write_metrics(args.out, summary)
    name = f"{args.protocol}: {encoders[0].text}{f' and {len(encoders) - 1} more' if len(encoders) > 1 else ''} on " \
           f"{Path(str(args.store)).name}"
    path = page.write_report(args.out, summary, shown, name)
    print(f"{results.summary_line(summary, path)}; {cli.duration(time.monotonic() - started)}")
    if twins:
        print(kept_line(summary))
    return cli.DONE


def split_pairs(index: Index, args: argparse.Namespace,
                instead: Sequence[str] = INSTEAD) -> list[tuple[str | None, str | None]]:
    """(train, test) names of every run. instead: what the command takes in the place of splits. Raises RequestError for
    splits that are not there or share videos."""
    if args.leave_out:
        choose(index, args.train_split, "--train-split")
        return [(args.train_split, None)]
    protocol = find_protocol(args.protocol)
    if args.groups:
        pairs = [group_split_names(name) for name in args.groups]
        for pair in pairs:
            choose(index, pair[1])
        return pairs
    if args.holdout is not None:
        pairs = [holdout_names(args.holdout, args.by or "video", seed) for seed in range(args.seeds)]
        for train, _ in pairs:
            choose(index, train)
        return pairs
    if not protocol.learns:
        tests = args.test_split.split(",") if args.test_split else [None]
        for test in tests:
            choose(index, test, "--test-split")
        return [(None, test) for test in tests]
    instead = () if args.train_split or args.test_split or not protocol.grouped else instead
    trains = default_split(index, args.train_split, TRAIN, "--train-split", instead).split(",")
    tests = default_split(index, args.test_split, protocol.tests, "--test-split", instead).split(",")
    if len(trains) != len(tests):
        raise RequestError(f"--train-split names {plural(len(trains), 'split')}, --test-split {len(tests)}; expected "
                           "as many of each")
    for train, test in zip(trains, tests):
        choose(index, train, "--train-split"), choose(index, test, "--test-split")
        check_apart(index, train, test)
    return list(zip(trains, tests))


def check_alike(encoders: Sequence[Encoder], texts: Sequence[str], settings: Settings) -> View:
    """The view that all share. Raises RequestError for checkpoints that cannot stand for one another."""
    if len({encoder.sha256 for encoder in encoders}) < len(texts):
        raise RequestError(f"--checkpoint {' '.join(texts)}; expected each once, and these hold the same weights twice")
    views = [View.of(settings.features, encoder) for encoder in encoders]
    for text, encoder, view in zip(texts, encoders, views):
        if (encoder.net.name, view) != (encoders[0].net.name, views[0]):
            raise RequestError(f"{text} is {encoder.net.name} on {view.geometry} of {view.size} px, {texts[0]} is "
                               f"{encoders[0].net.name} on {views[0].geometry} of {views[0].size} px; several "
                               "--checkpoint are one method's seeds: evaluate others by themselves and use --compare")
    return views[0]


def background_figures(out: Path, encoders: Sequence[Encoder], index: Index, document: dict) -> list[Figure]:
    """The learning curves of every pre-training whose run is at hand, and the store's overview."""
    shown = []
    for number, encoder in enumerate(encoders, 1):
        rows = results.read_rows(encoder.run / "metrics.jsonl") if encoder.run else []
        if len(rows) > 1:
            path = out / ("curves.png" if number == 1 else f"curves-{number}.png")
            figures.save(pictures.curves_figure(rows), path)
            shown.append(Figure(path, f"Learning curves of the pre-training of {encoder.text}, "
                                f"{plural(len(rows), 'logged step')}; strong lines: running means."))
    picture = store_picture(index, document, ClipGeometry.parse(document["recipe"]["clips"]["geometries"][0]))
    figures.save(overview.store_figure(picture), out / "store.png")
    return [*shown, Figure(out / "store.png", f"The store: {plural(len(index), 'video')} of {document['dataset']}.")]


def _check_out(out: Path, protocol: str) -> None:
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


def _folder_name(number: int, train: str | None, test: str | None, seed: int) -> str:
    parts = [f"{number:02d}", *(re.sub(r"[^\w.-]", "_", name) for name in (train, test) if name), f"seed{seed}"]
    return "-".join(parts)


if __name__ == "__main__":
    cli.command(main, rank=RANK)
