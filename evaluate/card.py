"""The model card of an exported backbone: Markdown with the front matter that model hubs read."""

import json
from collections.abc import Mapping, Sequence

PATENT = ("The authors of MaCLR call their method patent pending; this is a reconstruction of it, and their terms are "
          "theirs to state.")


def text(document: Mapping) -> str:
    """README.md for what config.json says (`evaluate.export.describe`). Names from outside stand in code spans, where
    they are no markup."""
    shape, origin, recipe = document["architecture"], document["provenance"], document["recipe"]
    length, stride = shape["clip"].split("x")
    clip = "single frames" if shape["clip"] == "1x1" else f"clips of {length} frames, every {_ordinal(int(stride))}"
    trained = f"the pipeline {code(origin['pipeline'])}" if "pipeline" in origin else "fine-tuning"
    parts = [
        _front(document),
        f"# {shape['name']}, trained by {trained}",
        f"A video backbone of {shape['parameters']:,} parameters. It turns {clip}, {shape['size']}x{shape['size']} "
        f"pixels, into {shape['features']:,} numbers. It has no classifier.",
        "## Use",
        "```python\nimport shared.nn                          # of motionpack\n"
        "net, transform = shared.nn.load(\"DIR\")   # this folder\n"
        f"features = net(transform(frames))         # (T, H, W, 3) uint8 RGB -> (1, {shape['features']}) float32\n```",
        "`transform(frames, clips=20)` gives 20 clips spread evenly over the video; the mean of their features is the "
        f"video's. It scales the short side to {shape['short_edge']} pixels, cuts out the middle and normalises by "
        "ImageNet's mean and standard deviation.",
        "## Training data", _data(origin.get("stores", [])),
        "## Recipe", _recipe(origin, recipe),
        "## Scores", _scores(document.get("scores", [])),
        "## Licence", _licence(document["licence"], recipe)]
    return "\n\n".join(parts) + "\n"


def code(value) -> str:
    """Text from outside as a code span on one line."""
    return f"`{' '.join(str(value).replace('`', chr(39)).split()) or ' '}`"


def _ordinal(number: int) -> str:
    return {1: "frame", 2: "second frame"}.get(number, f"{number}th frame")


def _front(document: Mapping) -> str:
    stated = document["licence"]["weights"]
    licence = stated.lower() if stated.replace("-", "").replace(".", "").replace("+", "").isalnum() else "other"
    lines = [f"license: {json.dumps(licence)}", "library_name: motionpack", "pipeline_tag: feature-extraction",
             "tags: [video, self-supervised-learning, motion]"]
    if licence == "other":
        lines.insert(1, f"license_name: {json.dumps(stated)}")
    return "\n".join(["---", *lines, "---"])


def _data(stores: Sequence[Mapping]) -> str:
    rows = [(code(one.get("dataset", "unknown")), code(one.get("split") or "all"), _count(one.get("videos"))) for one in
            stores]
    return _table(("dataset", "split", "videos"), rows) if rows else "Not recorded."


def _recipe(origin: Mapping, recipe: Mapping) -> str:
    rows = [("pipeline", code(origin.get("pipeline", "fine-tuning"))),
            ("updates", _count(origin.get("step"))), ("epochs", _count(origin.get("epoch")))]
    for section, names in {"optimise": ("batch", "lr", "seed"), "contrast": ("queue", "temperature"),
                           "alignment": ("variant", "form")}.items():
        values = recipe.get(section, {})
        rows += [(f"{section}.{name}", code(values[name])) for name in names if name in values]
    init = origin.get("init")
    rows.append(("started from", f"{code(init['file'])}, SHA-256 {code(init['sha256'])}" if init else "random weights"))
    return f"{_table(('setting', 'value'), rows)}\n\nAll settings stand in `config.json`, under `recipe`."


def _scores(scores: Sequence[Mapping]) -> str:
    if not scores:
        return "None were given with the export."
    rows = []
    for one in scores:
        splits = one["splits"]
        asked = " and ".join(" from ".join(filter(None, pair[::-1])) for pair in zip(
            map(_said, splits["train"]), map(_said, splits["test"])))
        for name, value in one["metrics"].items():
            chance = one["chance"].get(name)
            rows.append((one["protocol"], code(name), f"{value:.1f}", "" if chance is None else f"{chance:.1f}",
                         code(one["dataset"]), asked))
    return _table(("protocol", "metric", "%", "chance, %", "dataset", "tested on"), rows)


def _said(split: str | None) -> str:
    return code(split) if split else ""


def _licence(licence: Mapping, recipe: Mapping) -> str:
    rows = [(name, code(terms)) for name, terms in licence.items()]
    return _table(("of", "terms"), rows) + (f"\n\n{PATENT}" if "maclr" in recipe else "")


def _count(value) -> str:
    return f"{value:,}" if isinstance(value, int) else "not recorded"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in (names, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(names)}", *lines[1:]])
