"""Tables 1 and 2 of MCL: `python -m evaluate.ablation --store DIR --family tiny --seeds 5 --out DIR`.

Every row is trained by `torchrun train/main.py`, as a process, and evaluated by `python -m evaluate.run`, one seed of
all rows after the other. Stopped or killed at any point, the same command goes on; it ends in both tables, with means
and spreads over the seeds. The whole with eight devices and UCF101: `--family full --init moco_v2_200ep.pth.tar`.
"""

import argparse
import os
import time
from collections.abc import Sequence

from evaluate.ablation import report
from evaluate.ablation.children import Children
from evaluate.ablation.plan import BESIDE, FAMILIES, KNOWN, MACLR, REAL, ROWS, UNTRAINED, Plan, Run
from evaluate.ablation.runs import Ablation, claim
from evaluate.folds import left_out
from shared import cli
from shared.cli import Progress, RequestError, nearest
from shared.store.layout import damage_stops
from shared.store.place import store_argument


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises RequestError for what it cannot take."""
    parser = cli.Arguments(prog="python -m evaluate.ablation", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=store_argument, required=True, help="packs: a folder, or a URL")
    parser.add_argument("--out", type=cli.local, required=True, help="trainings, results, ablation.json, report.html")
    parser.add_argument("--family", choices=FAMILIES, default="tiny", help="tiny: NAME-tiny pipelines; full: the "
                        "paper's own; real: NAME-tiny, each pre-trained once for every group that is left out")
    parser.add_argument("--rows", help=f"by commas; default {','.join(ROWS)}; besides "
                        f"{','.join(BESIDE)}; or {','.join((UNTRAINED, *MACLR))}; of --family real "
                        f"{','.join(REAL)}, besides all others")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="trainings a row (default 5)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="seeds are S to S + N - 1 (default 0)")
    parser.add_argument("--protocols", help="of evaluate.run, by commas; default " + "; ".join(
        f"{name}: {','.join(family.protocols)}" for name, family in FAMILIES.items()))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="a setting of the training, of every row")
    parser.add_argument("--set-evaluation", action="append", default=[], metavar="KEY=VALUE", dest="evaluation",
                        help="a setting of `evaluation:` in pipelines.yaml, for the protocols that have it")
    parser.add_argument("--init", type=cli.local, metavar="FILE", help="2D ImageNet weights that every row starts from")
    parser.add_argument("--split", help="which videos are trained on; default the training list")
    parser.add_argument("--test-store", type=store_argument, metavar="DIR", help="evaluate there; default --store")
    parser.add_argument("--train-split", metavar="A", help="as of evaluate.run")
    parser.add_argument("--test-split", metavar="B", help="as of evaluate.run")
    parser.add_argument("--leave-out", action="append", default=[], metavar="group[=NAME]", help="as of "
                        "evaluate.run; with --family real pre-training leaves it out too")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side; cores and devices are "
                        "shared out among them")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="of torchrun, a run; default: the "
                        "devices over the jobs with --family full, else 1")
    args = parser.parse_args(argv)
    args.leave_out, args.groups = left_out(args.leave_out)
    for flag, value, least in (("--seeds", args.seeds, 1), ("--first-seed", args.first_seed, 0),
                               ("--jobs", args.jobs, 1), ("--processes", args.processes, 0)):
        if value < least:
            raise RequestError(f"{flag} {value}; expected {least} or more")
    family = FAMILIES[args.family]
    args.rows = _names(args.rows, family.rows, family.known, "--rows")
    args.protocols = _names(args.protocols, family.protocols, KNOWN, "--protocols")
    return args


def _names(text: str | None, default: Sequence[str], known: Sequence[str], flag: str) -> list[str]:
    """Names by commas, in the order of `known`. Raises RequestError for an unknown one."""
    if text is None:
        return list(default)
    asked = [name.strip() for name in text.split(",")]
    for name in asked:
        if name not in known:
            raise RequestError(f"{flag} {name!r} is unknown{nearest(name, known)}")
    return [name for name in known if name in asked]


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError and Stopped for shared.cli.command."""
    args = arguments(argv)
    with damage_stops(args.store):
        ablation = Ablation(Plan(args))
    lock = claim(args.out)
    try:
        return carry_out(ablation, lock)
    finally:
        os.close(lock)


def carry_out(ablation: Ablation, lock: int) -> int:
    """What is left, then both tables; returns the exit code."""
    before = [run for run in ablation.plan.runs if ablation.finished(run)]
    left = [run for run in ablation.plan.runs if run not in before]
    print(introduction(ablation, len(before)))
    started = time.monotonic()
    try:
        if left:
            work(ablation, left, ablation.args.jobs, lock)
    finally:
        path = report.write(ablation)        # what there is, after Ctrl-C as well
    print(f"\n{report.text(ablation)}\n")
    for run, line in ablation.troubles.items():
        print(f"{run.name}: {line}; {ablation.log(run)}")
    made = cli.plural(len(left) - len(ablation.troubles), "run")
    print(f"done: {made} in {cli.duration(time.monotonic() - started)}, {len(before)} there before, "
          f"{len(ablation.troubles)} stopped; look at {path}")
    return cli.FAILURES if ablation.troubles else cli.DONE


def introduction(ablation: Ablation, before: int) -> str:
    """What is about to run."""
    args, plan, processes = ablation.args, ablation.plan, ablation.slot(0).processes
    recipe, kept = plan.trainings[plan.runs[0]].recipe, plan.trainings[plan.runs[0]].kept
    kept = ", ".join(setting for setting in kept if not setting.startswith("optimise.seed="))
    steps, epochs = recipe.optimise.steps, recipe.optimise.epochs
    return (f"ablation {cli.plural(len(plan.runs), 'run')}: {cli.plural(len(args.rows), 'row')} "
            f"({', '.join(args.rows)}), seeds {plan.seeds[0]} to {plan.seeds[-1]}"
            + (f", each without {', '.join(plan.groups)} in turn" if plan.family.folds else "") +
            f"; {before} there before\n"
            f"run      {recipe.model.backbone}, {cli.plural(steps, 'step') if steps else cli.plural(epochs, 'epoch')} "
            f"of {cli.plural(recipe.optimise.batch, 'query', 'queries')}; "
            f"{', '.join(args.protocols)} on {plan.tested}; {args.jobs} side by side, "
            f"{cli.plural(processes, 'process', 'processes')} each"
            + (f"\nnote     as in {args.out} so far, since nothing asks for another: {kept}" if kept else ""))


def work(ablation: Ablation, left: Sequence[Run], jobs: int, lock: int) -> None:
    """All runs that are left, `jobs` at a time, with a line of progress over all of them."""
    costs = {run: ablation.plan.cost(run) for run in left}
    first = sum(costs[run] * ablation.share(run) for run in left)      # what an earlier command has done of them
    progress = Progress("ablation", sum(costs.values()) - first)

    def tick() -> None:
        done = sum(costs[run] * ablation.share(run) for run in left) - first
        ready = sum(run in ablation.ended for run in left)
        progress.update(done, "; ".join([f"{ready:,} of {cli.plural(len(left), 'run')}", *under_way(ablation)]))

    children = Children(jobs, (lock,))
    # The first makes the baselines of `controls`, which the others then find: two must not write them at once.
    alone = 1 if jobs > 1 and "controls" in ablation.args.protocols else 0
    for some in (left[:alone], left[alone:]):
        children.run([ablation.work(run) for run in some], tick)
    progress.close(text=f"{len(left):,} of {cli.plural(len(left), 'run')}")


def under_way(ablation: Ablation) -> list[str]:
    """The runs under way, with the step that their training has come to."""
    said = []
    for run in sorted(ablation.active, key=ablation.plan.runs.index):
        row = None if ablation.checkpoint(run) else ablation.last_row(run)
        said.append(run.name + (f" step {row['step']}" if row else ""))
    return said


if __name__ == "__main__":
    cli.command(main)
