"""What an ablation leaves: ablation.json, report.html, and the tables as text."""

import dataclasses
import json
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path

import numpy as np

from evaluate.ablation import finding, groups, tables
from evaluate.ablation.plan import BARE, Run
from evaluate.ablation.runs import Ablation
from evaluate.ablation.tables import PAPER, PAPER_COLUMN, Scores
from evaluate.metrics import mean_spread
from evaluate.protocol import Figure, Table
from evaluate.recognition import PREDICTIONS, read_predictions
from evaluate.report import page, results
from shared import cli
from shared.pictures import figures
from shared.store.record import write_atomic

FILE = "ablation.json"
LAST = 50       # steps over which the in-batch accuracy is averaged


def collect(ablation: Ablation) -> tuple[Scores, list[dict]]:
    """The headline scores of what is finished, and a row a run with everything that it measured."""
    values, chance, rows = {}, {}, []
    for run in ablation.plan.runs:
        record = ablation.checkpoint(run)
        found = {protocol: ablation.found(run, protocol) for protocol in ablation.plan.protocols(run)}
        there = {protocol: document for protocol, document in found.items() if document}
        status = ablation.troubles.get(run) or ("done" if record and len(there) == len(found) else "not finished")
        rows.append({"row": run.row, "seed": run.seed, **({} if run.group is None else {"group": run.group}),
                     "status": status,
                     "checkpoint": record and record["checkpoint"], "sha256": record and record["sha256"],
                     "training": {} if run.row in BARE else _summary(ablation, run),
                     "metrics": {f"{protocol}/{name}": value for protocol, document in there.items()
                                 for name, value in document["metrics"].items()},
                     "chance": {f"{protocol}/{name}": value for protocol, document in there.items()
                                for name, value in document["chance"].items()}})
        for protocol, document in there.items():
            for name in tables.headlines(protocol, document["metrics"]):
                column = tables.column(protocol, name, run.group)
                values.setdefault(column, {}).setdefault(run.row, {})[run.seed] = document["metrics"][name]
                if name in document["chance"]:
                    chance[column] = document["chance"][name]
    backbone = ablation.plan.trainings[ablation.plan.runs[0]].recipe.model.backbone
    paper = PAPER.get(backbone, {}) if ablation.args.family == "full" and PAPER_COLUMN in values else {}
    return Scores(values, chance, ablation.plan.seeds, paper), rows


def asked(ablation: Ablation) -> list[groups.Asked]:
    """What was said of every video of each group that is left out, by all runs that are finished."""
    plan, made = ablation.plan, []
    for group in plan.groups if groups.PROTOCOL in ablation.args.protocols else ():
        right, counts, chance = {}, {}, 0.0
        for run in plan.runs:
            document = ablation.found(run, groups.PROTOCOL) if run.group == group else None
            if document:
                path = next(ablation.result(run, groups.PROTOCOL).glob(f"runs/*/{PREDICTIONS}"))
                right.setdefault(run.row, {})[run.seed] = read_predictions(path)
                counts, chance = document["counts"], document["chance"][groups.METRIC]
        if right:
            shared = f"{cli.plural(counts['test_videos'], 'video')}, learnt from {counts['train_videos']:,} others; "
            made.append(groups.Asked(f"Group {group}", right, chance, shared))
    return made


def write(ablation: Ablation) -> Path:
    """OUT/ablation.json and OUT/report.html of what is finished so far; returns the page's path."""
    scores, rows = collect(ablation)
    recipes = {run.row: training.recipe for run, training in ablation.plan.trainings.items()}
    if ablation.plan.family.folds:
        compared = [*groups.tables(asked(ablation)),
                    *(table for group in ablation.plan.groups for table in groups.other_scores(scores, group))]
    else:
        compared = tables.tables(scores, recipes)
    found = [*compared, *_trainings(ablation, rows)]
    everything = {}
    for row in rows:
        for name, value in row["metrics"].items():
            everything.setdefault("/".join(filter(None, (row["row"], row.get("group"), name))), []).append(value)
    means = {name: mean_spread(found) for name, found in everything.items()}
    args, notes = ablation.args, _notes(ablation, rows, bool(scores.paper))
    said = finding.sentences(scores, args.rows)
    measured = {"family": args.family, "store": str(args.store), "evaluated on": str(ablation.plan.tested),
                "dataset": ablation.plan.dataset, "splits": ablation.plan.all_splits, "seeds": ablation.plan.seeds,
                "rows": list(args.rows), "protocols": list(args.protocols), "settings": list(args.settings),
                "evaluation settings": list(args.evaluation), "init": str(args.init) if args.init else None}
    document = {**measured, "metrics": {name: mean for name, (mean, _) in means.items()},
                "spread": {name: spread for name, (_, spread) in means.items()},
                "count": {name: len(found) for name, found in everything.items()}, "runs": rows,
                "recipes": {row: recipe.to_dict() for row, recipe in recipes.items()},
                "tables": [dataclasses.asdict(table) for table in found], "finding": said, "notes": notes,
                "versions": {name: version(name) for name in results.PACKAGES},
                "created": datetime.now(UTC).isoformat(timespec="seconds")}
    write_atomic(args.out / FILE, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    shown = finding.pictures(ablation, scores, recipes)
    if scores.values:
        present = [row for row in args.rows if any(row in column for column in scores.values.values())]
        path = args.out / "ablation.png"
        figures.save(tables.figure(scores, present), path)
        shown.append(Figure(path, "Every dot is a seed; bars: mean and one standard deviation; dotted: chance"
                            + ("; hollow: the paper." if scores.paper else "."), wide=False))
    parts = [*(f"<p>{page.joined(escape(sentence))}</p>" for sentence in said), *map(page.figure_html, shown),
             page.notes_html(notes),
             *(page.section(table.title, page.table_html(table)) for table in found),
             page.questions_html(map(scores.asked, scores.columns)) if scores.values else "",
             page.section("How it was measured", page.keys_html(measured | {"rows": [
                 f"{row}: {finding.meaning(row, recipes[row])}" for row in args.rows]})),
             f'<p class="quiet">motionpack {escape(document["versions"]["motionpack"])}, {document["created"]}; '
             f"the same numbers for programs: {FILE}; every evaluation's own report: "
             f"results{'/GROUP' * ablation.plan.family.folds}/ROW-seedN/PROTOCOL</p>"]
    named = ", ".join(args.rows) if len(args.rows) <= tables.FEW else f"{len(args.rows)} rows"
    return page.write_page(args.out / page.REPORT, f"{named}: {cli.plural(len(ablation.plan.seeds), 'seed')}, "
                           + ("each group left out" if ablation.plan.family.folds else f"{args.family} nets"), parts)


def text(ablation: Ablation) -> str:
    """The tables for a terminal."""
    document = json.loads((ablation.out / FILE).read_text(encoding="utf-8"))
    return "\n\n".join(f"{table['title']}\n{page.table_text(Table(**table))}" for table in document["tables"])


def _summary(ablation: Ablation, run: Run) -> dict[str, float]:
    """in_batch_accuracy, loss: means over the last 50 logged steps; steps; seconds: of all of them."""
    rows = results.read_rows(ablation.folder(run) / "metrics.jsonl")
    if not rows:
        return {}
    batch, steps = ablation.plan.trainings[run].recipe.optimise.batch, np.diff([0, *(row["step"] for row in rows)])
    means = {name: float(np.mean([row[name] for row in rows[-LAST:]])) for name in ("in_batch_accuracy", "loss")}
    return {**means, "steps": rows[-1]["step"],
            "seconds": float(sum(batch * step / row["clips_per_s"] for step, row in zip(steps, rows)))}


def _trainings(ablation: Ablation, rows: list[dict]) -> list[Table]:
    """How the trainings went: seeds that are done, in-batch accuracy (does the query find its key?), time."""
    made = []
    for name in dict.fromkeys(row["row"] for row in rows if row["row"] not in BARE):
        own = [row for row in rows if row["row"] == name]
        known = [row["training"] for row in own if row["training"]]
        accuracy = [100 * one["in_batch_accuracy"] for one in known]
        made.append([name, f"{sum(row['status'] == 'done' for row in own)} of {len(own)}",
                     *((*map(float, (sum(accuracy) / len(accuracy), min(accuracy))),
                        cli.duration(sum(one["seconds"] for one in known) / len(known))) if known else (None,) * 3)])
    return [Table("Trainings", ["row", "seeds done", "in-batch accuracy, %", "the least", "time of one"],
                  made)] if made else []


def _notes(ablation: Ablation, rows: list[dict], paper: bool) -> list[str]:
    """What a reader must know; paper: whether its numbers stand beside ours."""
    args, plan, notes = ablation.args, ablation.plan, []
    if plan.family.folds:
        notes.append("Neither pre-training nor the probe has seen a video of the group that is asked. Intervals over "
                     "videos take them for independent; where several are cut from one recording, the true ones are "
                     "wider.")
    if args.family != "full":
        notes.append("Small nets and short trainings: an experiment on what the parts do here, not the paper's Tables "
                     "1 and 2, which need its data, backbones and ImageNet weights.")
    elif not args.init:
        notes.append("Without --init: the paper's numbers start from ImageNet MoCo weights and are out of reach.")
    if paper and plan.dataset != "ucf101":
        notes.append(f"The paper's column is of UCF101, ours of {plan.dataset}.")
    notes.append(f"One seed, {plan.seeds[0]}: how much another would change is not known." if len(plan.seeds) == 1 else
                 f"Every seed from {plan.seeds[0]} to {plan.seeds[-1]} is counted; none was chosen, and none left out "
                 "but where a line below says so.")
    notes += [f"{row['row']}, {'group {}, '.format(row['group']) if 'group' in row else ''}seed {row['seed']}: "
              f"{row['status']}." for row in rows if row["status"] != "done"]
    return notes
