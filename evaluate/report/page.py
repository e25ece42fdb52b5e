"""report.html of an evaluation: its results as people read them.

The page needs nothing but itself: figures are data URIs, the style is inside. It reads on a phone and in print.
"""

import base64
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from evaluate.protocol import Figure, Table
from evaluate.report.results import METRICS, plain
from evaluate.report.words import BASELINES, PERCENT, measure, questions, sentence
from shared.store.record import write_atomic

REPORT = "report.html"
NUMBER = re.compile(r"[-+]?[\d.]+( ± [\d.]+)?(; \d+ of \d+| \(\d+ of \d+\))?( %)?")
HEAD = 16             # characters of a column's name a line, in a terminal
WHOLE = 16            # characters of a name that is not broken, on a page
STYLE = """
*{box-sizing:border-box}body{margin:0 auto;padding:1.2rem 1rem 3rem;max-width:62rem;background:#fff;color:#1c2228;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1,p,figcaption{overflow-wrap:anywhere}h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0}
h2{font-size:1.12rem;margin:2.2rem 0 .6rem;padding-top:.5rem;border-top:1px solid #dde2e7}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.5rem 0}.quiet{color:#5a6570;font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:1rem 0}
.card{border:1px solid #dde2e7;border-radius:.5rem;padding:.6rem .8rem}.card b{display:block;font-size:1.75rem;
line-height:1.2;font-variant-numeric:tabular-nums}.card>span{display:block;color:#5a6570;font-size:.82rem}
.lead{font-size:1.08rem;margin:.6rem 0 1rem}.quiet table{color:#8a949d}
.card .name{color:#1f5a94;font-weight:600;font-size:.9rem}
.notes{border-left:4px solid #e8a33d;background:#fdf7ec;padding:.4rem .9rem;margin:1rem 0}.notes p{margin:.3rem 0}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}table{border-collapse:collapse;font-size:.9rem;width:100%}
th,td{padding:.32rem .6rem;text-align:left;border-bottom:1px solid #e8ecef;vertical-align:top}
th{color:#5a6570;font-weight:600;border-bottom:2px solid #cfd6dc}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums}td.n{white-space:nowrap}td.key{color:#5a6570;white-space:nowrap}td.value{overflow-wrap:anywhere}
figure{margin:1rem 0;break-inside:avoid}figure img{max-width:100%;height:auto;display:block}
figcaption{color:#5a6570;font-size:.85rem;margin-top:.3rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:0 1.2rem}
.figures .wide{grid-column:1/-1}details{margin:.4rem 0}summary{cursor:pointer;color:#1f5a94}
.w{white-space:nowrap}@media(max-width:34rem){body{font-size:15px}td.key{white-space:normal}figure{overflow-x:auto}
.wide img{max-width:44rem}.scroll td:first-child{min-width:8.5rem}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}h2,h3{break-after:avoid}.scroll{overflow:visible}
table{font-size:9pt}th,td{padding:.2rem .5rem}.card{break-inside:avoid}figure img{max-height:15cm}
.figures{grid-template-columns:1fr 1fr}.figures .half img{max-height:11cm}tr{break-inside:avoid}a{color:inherit}
details::details-content{content-visibility:visible;block-size:auto}details>*{display:block}}
"""


def write_report(out: Path, document: Mapping, figures: Sequence[Figure], title: str) -> Path:
    """OUT/report.html of `document`, with the figures inside."""
    parts = [lead_html(sentence(document)), cards_html(document), notes_html(document["notes"])]
    if len(document["runs"]) > 1:
        parts.append(section("Runs", table_html(_runs_table(document))))
    if figures:
        parts.append(section("Figures", figures_html(figures)))
    parts += [section(table["title"], table_html(Table(**table))) for table in document["tables"]]
    parts.append(section("How it was measured", keys_html({
        **document["store"], **_splits(document["splits"]),
        "seeds": document["seeds"], "counts": document["counts"],
        **{f"settings: {name}": values for name, values in document["settings"].items()}})))
    for number, checkpoint in enumerate(document["checkpoints"], 1):
        name = "Checkpoint" if len(document["checkpoints"]) == 1 else f"Checkpoint {number}"
        parts.append(section(name, keys_html(checkpoint)))
    made = f"motionpack {document['versions']['motionpack']}, {document['created']}"
    parts.append(f'<p class="quiet">{escape(made)}; the same numbers for programs: {METRICS}</p>')
    return write_page(out / REPORT, title, parts)


def figures_html(figures: Sequence[Figure]) -> str:
    return f'<div class="figures">{"".join(map(figure_html, figures))}</div>' if figures else ""


def _splits(splits: Mapping) -> dict:
    if splits["train"] == [None] and splits["leave_out"] is None:
        return {"videos": [split or "all" for split in splits["test"]]}
    if splits["leave_out"] is None:
        samples = {"training samples": splits["samples"]} if "samples" in splits else {}
        return {"train split": splits["train"], **samples, "test split": splits["test"]}
    return {"videos": [split or "all" for split in splits["train"]],
            "tested": "each group in turn, learnt from the others"}


def write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    """A page of `parts` (HTML), whole or not at all."""
    head = (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{STYLE}</style>')
    body = "\n".join(part for part in parts if part)
    page = f"{head}</head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


def figure_html(figure: Figure) -> str:
    """The figure with its bytes inside."""
    data = base64.b64encode(Path(figure.path).read_bytes()).decode()
    return (f'<figure class="{"wide" if figure.wide else "half"}"><img alt="{escape(figure.caption)}" '
            f'src="data:image/png;base64,{data}"><figcaption>{escape(figure.caption)}</figcaption></figure>\n')


def section(title: str, body: str) -> str:
    """A heading (text) and what is under it (HTML)."""
    return f"<h2>{escape(title)}</h2>\n{body}"


def subsection(title: str, body: str) -> str:
    """As `section`, one level down."""
    return f"<h3>{escape(title)}</h3>\n{body}"


def lead_html(text: str) -> str:
    """The sentence that a page begins with."""
    return f'<p class="lead">{joined(escape(text))}</p>'


def joined(text: str) -> str:
    """With every unit on the line of its number."""
    return text.replace(" %", "\u00a0%")


def cards_html(document: Mapping) -> str:
    """The checkpoint's numbers, large, each with what it asks, its interval and chance; fixed maps are no card."""
    cards = []
    for name, value in document["metrics"].items():
        if name.startswith(BASELINES):
            continue
        kind, lines = measure(name), []
        if (spread := document["spread"].get(name)) is not None:
            mean = kind.say(document["mean"][name])        # over all splits; the headline is of the first pair
            lines.append(f"{mean if mean != kind.say(value) else ''} ± {kind.say(spread)} over "
                         f"{len(document['runs'])} runs")
        if name in document["interval"]:
            lines.append(f"95 %: {PERCENT.span(document['interval'][name])}")
        if name in document["chance"]:
            lines.append(f"chance {kind.say(document['chance'][name])}")
        cards.append(f'<div class="card"><span class="name">{breaking(kind.words)}</span><b>{kind.say(value)}</b>'
                     + "".join(f"<span>{line}</span>" for line in lines)
                     + f"<span>{escape(kind.asks)}</span></div>")
    return f'<div class="cards">{"".join(cards)}</div>' + _beside_html(document)


def _beside_html(document: Mapping) -> str:
    """What stands beside the checkpoint, in grey: baselines and fixed maps."""
    methods = list(document.get("beside", {}))
    names = [name for name in document["metrics"]
             if not name.startswith(BASELINES) and any(name in document["beside"][method] for method in methods)]
    if not names:
        return ""
    rows = [[measure(name).words, *(measure(name).say(found[name]) if (found := document["beside"][method]).get(name)
                                    is not None else None for method in methods)] for name in names]
    return f'<div class="quiet">{table_html(Table("Beside it", ["baselines beside it", *methods], rows))}</div>'


def notes_html(notes: Sequence[str]) -> str:
    return f'<div class="notes">{"".join(f"<p>{escape(note)}</p>" for note in notes)}</div>' if notes else ""


def _runs_table(document: Mapping) -> Table:
    """A line a run, named by what tells the runs apart, then mean and spread."""
    names, runs = list(document["metrics"]), document["runs"]
    telling = [key for key in ("checkpoint", "train_split", "test_split", "seed")
               if len({run[key] for run in runs}) > 1]
    rows = [(" / ".join(str(run[key]) for key in telling), run["metrics"]) for run in runs]
    rows += [("mean", document["mean"]), ("sd", document["spread"])]
    return Table("Runs", [" / ".join(telling).replace("_", " "), *(measure(name).words for name in names)],
                 [[label, *(measure(name).say(values[name]) for name in names)] for label, values in rows])


def questions_html(asked: Iterable[tuple[str, str]]) -> str:
    """What each (protocol, metric) asks, and its unit."""
    return section("What is asked", table_html(Table("", ("score", "what it asks"), questions(asked))))


def table_html(table: Table) -> str:
    numeric = [any(map(_is_number, (row[i] for row in table.rows))) for i in range(len(table.columns))]
    kind = [' class="n"' if one else "" for one in numeric]
    head = "".join(f"<th{c}>{breaking(name)}</th>" for name, c in zip(table.columns, kind))
    body = "".join("<tr>" + "".join(f"<td{c}>{_cell(value)}</td>" for value, c in zip(row, kind)) + "</tr>\n"
                   for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def table_text(table: Table) -> str:
    """The table for a terminal; long column names take several lines."""
    cells = [["-" if cell is None else f"{cell:z.1f}" if isinstance(cell, float) else str(cell) for cell in row]
             for row in table.rows]
    heads = [textwrap.wrap(name, max([HEAD, *map(len, own)]), break_long_words=False)
             for name, *own in zip(table.columns, *cells)]
    lines = [*([head[i] if i < len(head) else "" for head in heads] for i in range(max(map(len, heads)))), *cells]
    first, *widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(some, widths))]).rstrip()
                     for name, *some in lines)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) or isinstance(value, str) and bool(NUMBER.fullmatch(value))


def _cell(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:z.1f}"
    return f"{value:,}" if isinstance(value, int) else breaking(str(value))


def breaking(text: str) -> str:
    """Text as HTML whose long names and paths may take several lines, and whose short ones stay whole."""
    def word(found: re.Match) -> str:
        if len(found[0]) > WHOLE:
            return re.sub("([_/])", r"\1<wbr>", found[0])
        return f'<span class="w">{found[0]}</span>' if "-" in found[0] else found[0]
    return re.sub(r"\S+", word, escape(text))


def keys_html(values: Mapping) -> str:
    """Nested settings as a table of two columns; a large part folds away."""
    rows, folded = [], ""
    for key, value in values.items():
        if isinstance(value, Mapping) and len(json.dumps(value, default=plain)) > 600:
            folded += f"<details><summary>{escape(str(key))}</summary>{keys_html(value)}</details>"
        else:
            rows.append(f'<tr><td class="key">{escape(str(key))}</td>'
                        f'<td class="value">{escape(_words(value))}</td></tr>')
    return f'<table><tbody>{"".join(rows)}</tbody></table>{folded}'


def _words(value) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(one)}".replace("_", " ") for key, one in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_words, value)) or "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "–" if value is None or value == "" else str(value)
