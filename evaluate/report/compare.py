"""`evaluate.run --compare RUN...`: several evaluations side by side, one table and one figure.

Runs of several protocols, such as all those of one checkpoint, also bring all their figures and tables into the page.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluate.features.encoders import RANDOM
from evaluate.features.handmade import HANDMADE
from evaluate.protocol import Figure, Table
from evaluate.report import page, pictures, results
from evaluate.report.words import Measure, label, measure, pairs_and_runs, sentence
from shared.cli import RequestError
from shared.pictures import figures

BASELINES = *HANDMADE, RANDOM     # kinds of checkpoints that no training has made
MOST_COLUMNS = 6      # metrics up to which each has a column; more are a line each, which a phone can hold


def compare(folders: Sequence[Path], out: Path) -> str:
    """Write OUT/metrics.json (`RUN/metric` -> percent), OUT/report.html and OUT/compare.png; returns the table as text.

    Runs of several protocols may stand together; what one has not measured is a dash. Raises RequestError for fewer
    than two runs and for a folder that holds no result, or a comparison.
    """
    if len(folders) < 2:
        raise RequestError(f"--compare {' '.join(map(str, folders))}: expected two or more folders of evaluations")
    documents = [results.read_metrics(folder) for folder in folders]
    for folder, document in zip(folders, documents):
        if document["protocol"] == "compare":
            raise RequestError(f"{folder} is a comparison itself; give the folders that it compares: "
                               f"{' '.join(one['folder'] for one in document['runs'])}")
    names = _names(folders)
    several = len({document["protocol"] for document in documents}) > 1
    # Of several pairs of splits the mean over all stands in the table, since the spread is over all.
    compared = [{**one, "metrics": one["mean"]} if pairs_and_runs(one)[0] > 1 else one for one in documents]
    methods = _methods(names, compared)
    columns: dict[str, tuple[str, str]] = {}          # (protocol, metric) by a name of both
    for document in documents:
        for metric in document["metrics"]:
            columns.setdefault(f"{document['protocol']} {metric}", (document["protocol"], metric))

    def matrix(part: str) -> np.ndarray:
        """(methods, metrics) percent, NaN for none."""
        return np.array([[next((one[part].get(metric) for one in some if one["protocol"] == protocol), None)
                          for protocol, metric in columns.values()] for some in methods.values()], np.float64)

    values, spreads, chance = matrix("metrics"), matrix("spread"), matrix("chance")
    table = _by_method(methods, columns, values, spreads) if len(columns) <= MOST_COLUMNS else \
        _by_metric(methods, columns, values, spreads, chance)
    out.mkdir(parents=True, exist_ok=True)
    notes = _unlike(names, documents)
    results.write_metrics(out, {
        "protocol": "compare", "runs": [{"name": name, "folder": str(folder), "protocol": document["protocol"]}
                                        for name, folder, document in zip(names, folders, documents)],
        **{part: {f"{name}/{metric}": value for name, document in zip(names, compared)
                  for metric, value in document[part].items()} for part in ("metrics", "spread", "chance")},
        "notes": notes})                              # first: by it OUT is known for a comparison
    path = out / "compare.png"
    grey = [all(one["checkpoint"].get("kind") in BASELINES for one in some) for some in methods.values()]
    figures.save(pictures.compare_figure(list(methods), _labels(columns),
                                         [measure(metric) for _, metric in columns.values()], values, spreads, chance,
                                         grey), path)
    caption = "Whiskers: one standard deviation over the runs; dotted: chance; grey: what no pre-training has made."
    parts = [page.lead_html(f"{name}. {sentence(document)}" if len(methods) > 1 else sentence(document))
             for name, document in zip(names, documents)] + [page.notes_html(notes)]
    title = f"Comparison of {len(names)} evaluations"
    if len(methods) == 1:
        title = f"{next(iter(methods))}: {', '.join(document['protocol'] for document in documents)}"
    else:
        parts += [page.figure_html(Figure(path, caption, wide=False)), page.table_html(table),
                  page.questions_html(columns.values())]
    page.write_page(out / page.REPORT, title, parts + (_sections(folders, names, documents, len(methods) == 1)
                                                       if several else []))
    return page.table_text(table)


def _methods(names: Sequence[str], documents: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """The evaluations that stand in one line: those of the same checkpoints, each by another protocol; by a name."""
    found: dict[tuple, list[tuple[str, Mapping]]] = {}
    for name, document in zip(names, documents):
        key = tuple(one.get("sha256") for one in document.get("checkpoints", [])) or name
        while any(document["protocol"] == other["protocol"] for _, other in found.get((key,), ())):
            key = key, name                            # the same protocol twice: other settings, a line of its own
        found.setdefault((key,), []).append((name, document))
    named = {}
    for some in found.values():
        first, document = some[0]
        own = "/".join(Path(document["checkpoint"]["checkpoint"]).parts[-2:]) if len(some) > 1 else first
        named[own if own not in named else f"{own} ({first})"] = [document for _, document in some]
    return named


def _by_method(methods: Mapping, columns: Mapping, values: np.ndarray, spreads: np.ndarray) -> Table:
    kinds = [measure(metric) for _, metric in columns.values()]
    rows = [[name, max(len(one.get("runs", [])) for one in some), *map(_cell, kinds, values[i], spreads[i])]
            for i, (name, some) in enumerate(methods.items())]
    return Table("Side by side", ["evaluation", "runs", *_labels(columns)], rows)


def _by_metric(methods: Mapping, columns: Mapping, values: np.ndarray, spreads: np.ndarray,
               chance: np.ndarray) -> Table:
    """A line a metric: every method, chance, and what an evaluation has measured beside its checkpoint."""
    beside: dict[str, dict[tuple[str, str], float]] = {}
    for some in methods.values():
        for document in some:
            for other, found in document.get("beside", {}).items():
                for metric, value in found.items():
                    beside.setdefault(other, {}).setdefault((document["protocol"], metric), value)
    rows = []
    for i, (words, at) in enumerate(zip(_labels(columns), columns.values())):
        kind, known = measure(at[1]), chance[:, i][np.isfinite(chance[:, i])]
        cells = [_cell(kind, value, spread) for value, spread in zip(values[:, i], spreads[:, i])]
        rows.append([words, *cells, kind.say(known[0]) if len(known) else None,
                     *(kind.say(found[at]) if at in found else None for found in beside.values())])
    return Table("Side by side", ["score", *methods, "chance", *beside], rows)


def _labels(columns: Mapping) -> list[str]:
    """The metrics in words, with their protocol where there are several."""
    several = len({protocol for protocol, _ in columns.values()}) > 1
    return [label(protocol, metric, several) for protocol, metric in columns.values()]


def _sections(folders: Sequence[Path], names: Sequence[str], documents: Sequence[Mapping], cards: bool) -> list[str]:
    """Every run's notes, figures and tables, and its numbers where no table above has them; then once what several
    show: learning curves, the store."""
    shown, seen = [_figures(folder, document) for folder, document in zip(folders, documents)], Counter()
    for some in shown:
        seen.update(some.keys())
    parts = []
    for name, document, some in zip(names, documents, shown):
        own = name.removesuffix(document["protocol"]).rstrip("/")
        title = f"{document['protocol']}: {own}" if own and not cards else document["protocol"]
        own = [figure for digest, figure in some.items() if seen[digest] == 1]
        parts += [page.section(title, (page.cards_html(document) if cards else "")
                               + page.notes_html(document.get("notes", ())) + page.figures_html(own))]
        parts += [page.subsection(table["title"], page.table_html(Table(**table)))
                  for table in document.get("tables", [])]
    common = {digest: figure for some in shown for digest, figure in some.items() if seen[digest] > 1}
    return [*parts, *([page.section("All of them", page.figures_html(list(common.values())))] if common else [])]


def _figures(folder: Path, document: Mapping) -> dict[bytes, Figure]:
    """A run's figures by the digest of their bytes. Raises RequestError for one that is gone."""
    found = {}
    for one in document.get("figures", []):
        path = (folder if folder.is_dir() else folder.parent) / one["file"]
        if not path.is_file():
            raise RequestError(f"{path} is gone, which the report of {folder} shows; run that evaluation again")
        found[hashlib.sha256(path.read_bytes()).digest()] = Figure(path, one["caption"], one["wide"])
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """Each folder by as little of its path's end as tells them apart. Raises RequestError for one that comes twice."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    if len(set(paths)) < len(paths):
        raise RequestError(f"--compare {' '.join(map(str, folders))}: expected every folder once")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _unlike(names: Sequence[str], documents: Sequence[dict]) -> list[str]:
    """A sentence for each thing that evaluations of one protocol do not share: nothing unlike is compared unsaid."""
    notes = []
    for what, pick in (("store", lambda d: d.get("store", {}).get("index")), ("splits", lambda d: d.get("splits")),
                       ("settings", lambda d: {k: v for k, v in d.get("settings", {}).items() if k != "view"}),
                       ("view", lambda d: d.get("settings", {}).get("view"))):
        for protocol in dict.fromkeys(document["protocol"] for document in documents):
            same = [(name, pick(document)) for name, document in zip(names, documents)
                    if document["protocol"] == protocol]
            other = [name for name, value in same if value != same[0][1]]
            if other:
                notes.append(f"{protocol}: {', '.join(other)} had another {what} than {same[0][0]}.")
    old = [name for name, document in zip(names, documents) if "boxes_ignored" not in document.get("counts", {})
           and document.get("settings", {}).get("detection", {}).get("boxes")]
    if old:
        notes.append(f"{', '.join(old)} counted a detector's boxes at keyframes that nobody annotated as wrong, as was "
                     "done once; evaluate again.")
    return notes


def _cell(kind: Measure, value: float, spread: float) -> str | None:
    if not np.isfinite(value):
        return None
    return f"{kind.say(value)} ± {kind.say(spread)}" if np.isfinite(spread) else kind.say(value)
