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

from evaluate.asked import arguments, check_out, each_protocol
from evaluate.features.cache import FeatureCache
from evaluate.features.cells import as_asked
from evaluate.features.encoders import Encoder, open_encoder, takes_seed
from evaluate.features.extract import View, choose
from evaluate.features.moments import pooled
from evaluate.folds import INSTEAD, TRAIN, check_apart, check_unseen, default_split
from evaluate.frozen.beside import with_moments
from evaluate.holdout import group_split_names, holdout_names, sample_name
from evaluate.protocol import Figure, Request, find_protocol, used
from evaluate.report import compare, page, pictures, results
from evaluate.settings import FeatureSettings, Settings
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


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    args = arguments(argv, __doc__)
    if args.compare:
        check_out(args.out, "compare")
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
    twins = check_twins(index, args.twins, bool(args.holdout or args.samples)) if args.twins else None
    seen = settings.saliency if args.protocol == "saliency" else settings.features
    encoders = [as_asked(open_encoder(text, world.device, asked=seen), settings.features) for text in args.checkpoint]
    for encoder in encoders:
        check_unseen(index, document["dataset"], encoder, [test or train for train, test in pairs])
    view = check_alike(encoders, args.checkpoint, seen)
    if args.beside:
        check_alike([pooled(encoder, args.beside) for encoder in encoders], args.checkpoint, seen)
    if world.main:
        check_out(args.out, args.protocol)
        args.out.mkdir(parents=True, exist_ok=True)
        stack.callback(os.close, cli.hold(args.out, "--out"))
    cache = FeatureCache(args.cache or args.out / "features", args.caches)
    module, runs, paired = importlib.import_module(find_protocol(args.protocol).module), [], []
    asked = itertools.product(zip(args.checkpoint, encoders), pairs, range(1 if args.holdout else args.seeds))
    for number, ((text, encoder), (train, test), seed) in enumerate(asked):      # alike on every rank
        if takes_seed(text) and seed:
            encoder = as_asked(open_encoder(text, world.device, seed, seen), settings.features)
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
    if args.unsampled:
        remarks.append(f"--samples {args.unsampled} does not apply to {args.protocol}, which took all training videos.")
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


def check_alike(encoders: Sequence[Encoder], texts: Sequence[str], settings: FeatureSettings) -> View:
    """The view that all share. Raises RequestError for checkpoints that cannot stand for one another."""
    if len({encoder.sha256 for encoder in encoders}) < len(texts):
        raise RequestError(f"--checkpoint {' '.join(texts)}; expected each once, and these hold the same weights twice")
    views = [View.of(settings, encoder) for encoder in encoders]
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


def _folder_name(number: int, train: str | None, test: str | None, seed: int) -> str:
    parts = [f"{number:02d}", *(re.sub(r"[^\w.-]", "_", name) for name in (train, test) if name), f"seed{seed}"]
    return "-".join(parts)


if __name__ == "__main__":
    cli.command(main, rank=RANK)
