"""`evaluate.run --compare RUN...`: several evaluations side by side, one table and one figure."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluate import pictures, report
from evaluate.protocol import Figure, Table
from shared import figures
from shared.cli import RequestError


def compare(folders: Sequence[Path], out: Path) -> str:
    """Write OUT/metrics.json (`RUN/metric` -> percent), OUT/report.html and OUT/compare.png; returns the table as text.

    Runs of several protocols may stand together; what one has not measured is a dash. Raises RequestError for fewer
    than two runs and for a folder that holds no result.
    """
    if len(folders) < 2:
        raise RequestError(f"--compare {' '.join(map(str, folders))}: expected two or more folders of evaluations")
    documents = [report.read_metrics(folder) for folder in folders]
    names = _names(folders)
    several = len({document["protocol"] for document in documents}) > 1
    columns: dict[str, tuple[str, str]] = {}          # shown name -> (protocol, metric)
    for document in documents:
        for metric in document["metrics"]:
            label = f"{document['protocol']} {metric}" if several else metric
            columns.setdefault(label, (document["protocol"], metric))

    def matrix(part: str) -> np.ndarray:
        return np.array([[document[part].get(metric) if document["protocol"] == protocol else None
                          for protocol, metric in columns.values()] for document in documents], np.float64)

    values, spreads, chance = matrix("metrics"), matrix("spread"), matrix("chance")
    rows = [[name, len(document.get("runs", [])), *map(_cell, values[i], spreads[i])]
            for i, (name, document) in enumerate(zip(names, documents))]
    table = Table("Side by side", ["evaluation", "runs", *(f"{column}, %" for column in columns)], rows)
    path = out / "compare.png"
    figures.save(pictures.compare_figure(names, list(columns), values, spreads, chance), path)
    notes = _unlike(names, documents)
    report.write_metrics(out, {
        "protocol": "compare", "runs": [{"name": name, "folder": str(folder), "protocol": document["protocol"]}
                                        for name, folder, document in zip(names, folders, documents)],
        "metrics": {f"{name}/{metric}": value for name, document in zip(names, documents)
                    for metric, value in document["metrics"].items()},
        "spread": {f"{name}/{metric}": value for name, document in zip(names, documents)
                   for metric, value in document["spread"].items()},
        "chance": {f"{name}/{metric}": value for name, document in zip(names, documents)
                   for metric, value in document["chance"].items()}, "notes": notes})
    caption = "Percent; whiskers: one standard deviation over the runs; dotted: chance."
    report.write_page(out / report.REPORT, f"Comparison of {len(names)} evaluations", [
        report.notes_html(notes), report.table_html(table), report.figure_html(Figure(path, caption))])
    return _text(table)


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
    return notes


def _cell(value: float, spread: float) -> str | None:
    if not np.isfinite(value):
        return None
    return f"{value:.1f} ± {spread:.1f}" if np.isfinite(spread) else f"{value:.1f}"


def _text(table: Table) -> str:
    """The table for a terminal."""
    lines = [["-" if cell is None else str(cell) for cell in row] for row in (table.columns, *table.rows)]
    first, *widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths))])
                     for name, *cells in lines)
