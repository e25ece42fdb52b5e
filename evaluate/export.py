"""A checkpoint's backbone for use elsewhere: `python -m evaluate.export --checkpoint FILE --hub DIR`.

DIR then holds model.safetensors, config.json (the architecture, the view that it was trained on, the recipe, where it
comes from and under which terms it may be used) and README.md, its model card. `--out NAME.safetensors` writes the
first two alone, as NAME.safetensors and NAME.json. `shared.nn.load` opens either.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import save as tensor_bytes

from evaluate import card
from evaluate.features.encoders import FOREIGN
from evaluate.report.results import read_metrics
from shared import cli
from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.clips.resampling import MEAN, STD
from shared.nn.checkpoint import load_backbone
from shared.nn.exported import CARD, CONFIG, FORMAT, MODEL, check_finite, is_export, load_export
from shared.nn.layers import Backbone
from shared.nn.transform import EDGE
from shared.store.record import write_atomic

UNSTATED = "not stated by the exporter"
NOTE_INIT = ("Weights that started from --init are derived from that file and under its terms too; the MoCo v2 weights "
             "that the paper starts from are CC BY-NC 4.0.")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError for shared.cli.command."""
    parser = cli.Arguments(prog="python -m evaluate.export", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=cli.local, required=True, help="a file of train/main.py, such as "
                        "RUN/last.pt, a finetuned.pt, or another export")
    parser.add_argument("--hub", type=cli.local, metavar="DIR", help="model.safetensors, config.json and README.md go "
                        "here")
    parser.add_argument("--out", type=cli.local, metavar="NAME.safetensors", help="instead: this file, and NAME.json "
                        "beside")
    parser.add_argument("--licence", default=UNSTATED, help="terms of the weights, such as an SPDX name")
    parser.add_argument("--data-licence", default=UNSTATED, help="terms of the videos that they were trained on")
    parser.add_argument("--scores", nargs="+", type=cli.local, default=[], metavar="DIR", help="--out folders of "
                        "evaluate.run on this checkpoint, whose numbers go into config.json and README.md")
    args = parser.parse_args(argv)
    if bool(args.hub) == bool(args.out):
        raise RequestError(f"{'both' if args.hub else 'neither'} of --hub and --out given; expected --hub DIR for a "
                           "folder to publish, or --out NAME.safetensors")
    if str(args.checkpoint).partition(":")[0] in FOREIGN:
        raise RequestError(f"--checkpoint {args.checkpoint}: evaluate.export writes networks of ours; those of others "
                           "stay where they are")
    target = _hub(args.hub) if args.hub else _file(args.out)
    if is_export(args.checkpoint):
        backbone, known = load_export(args.checkpoint)
        provenance = {**known["provenance"], "recipe": known["recipe"]}
        of = {known["weights"]["sha256"]}
    else:
        backbone, provenance = load_backbone(args.checkpoint)
        with args.checkpoint.open("rb") as file:
            of = {hashlib.file_digest(file, "sha256").hexdigest()}
    check_finite(backbone, args.checkpoint)
    _check_plain(provenance, args.checkpoint)
    document, weights = describe(target.name, backbone, provenance, args.licence, args.data_licence)
    of.add(document["weights"]["sha256"])
    document |= {"scores": [score_of(folder, of) for folder in args.scores]} if args.scores else {}
    target.parent.mkdir(parents=True, exist_ok=True)
    described = target.with_name(CONFIG) if args.hub else target.with_suffix(".json")
    _write(target, described, document, weights)
    if args.hub:
        write_atomic(target.with_name(CARD), card.text(document).encode("utf-8", "backslashreplace"))
    shape = document["architecture"]
    print(f"done: {target} ({cli.size(target.stat().st_size)}), {described.name}{f' and {CARD}' if args.hub else ''}: "
          f"{shape['name']}, {shape['parameters']:,} parameters, clips {shape['clip']} of {shape['size']} px")
    return cli.DONE


def _hub(folder: Path) -> Path:
    """Where the weights go. Raises RequestError for what would be overwritten: people edit model cards."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"--hub {folder} is a file; expected a folder")
    for name in (MODEL, CONFIG, CARD):
        if (folder / name).exists():
            raise RequestError(f"--hub {folder} holds a {name} already; move it away, or choose a new folder")
    return folder / MODEL


def _file(path: Path) -> Path:
    if path.suffix != ".safetensors" or path.is_dir() or not path.absolute().parent.is_dir():
        raise RequestError(f"--out {path}: expected a file ending in .safetensors in a folder that exists")
    described = path.with_suffix(".json")
    for file in (path, described):
        if file.exists() and not _is_ours(described):
            raise RequestError(f"--out {path}: {file.name} is there already and is no export of ours; move it away, or "
                               "choose another name")
    return path


def _is_ours(described: Path) -> bool:
    try:
        return json.loads(described.read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def score_of(folder: Path, checkpoints: set[str]) -> dict:
    """What an evaluation found: protocol, dataset, splits, metrics and chance. checkpoints: SHA-256 of the files that
    hold the weights. Raises RequestError for the evaluation of others."""
    found = read_metrics(folder)
    origin, store = found.get("checkpoint") or {}, found.get("store") or {}
    if origin.get("sha256") not in checkpoints:
        raise RequestError(f"--scores {folder} is of another checkpoint, {origin.get('checkpoint')}; expected "
                           "evaluations of the one that is exported")
    if len(found["runs"]) > 1:
        raise RequestError(f"--scores {folder} is of {len(found['runs'])} runs; expected one: a mean over several "
                           "checkpoints, splits or seeds is no score of this one")
    return {"protocol": found["protocol"], "dataset": store.get("dataset"), "splits": found["splits"],
            "metrics": found["metrics"], "chance": found["chance"], "interval": found["interval"]}


def _check_plain(provenance: dict, path: Path) -> None:
    """Raises RequestError where what a checkpoint says of itself is not what a checkpoint says: anyone can make one."""
    try:
        stores, init, recipe = provenance.get("stores", []), provenance.get("init"), provenance["recipe"]
        ClipGeometry.parse(recipe["sampling"]["clip"])
        right = (type(recipe["sampling"]["size"]) is int and all(isinstance(part, dict) for part in recipe.values())
                 and all(isinstance(store, dict) for store in stores)
                 and (init is None or {type(init["file"]), type(init["sha256"])} == {str}))
        json.dumps(provenance, allow_nan=False)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError):      # tensors are any of these
        right = False
    if not right:
        raise RequestError(f"{path}: its recipe or provenance is not what train/main.py writes; expected a checkpoint "
                           "such as RUN/last.pt")


def write_export(path: Path, backbone: Backbone, provenance: dict) -> None:
    """NAME.safetensors and NAME.json of a backbone, each whole or not at all."""
    _write(path, path.with_suffix(".json"), *describe(path.name, backbone, provenance))


def _write(path: Path, described: Path, document: dict, weights: bytes) -> None:
    write_atomic(path, weights)
    write_atomic(described, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def describe(name: str, backbone: Backbone, provenance: dict, licence: str = UNSTATED,
             data_licence: str = UNSTATED) -> tuple[dict, bytes]:
    """The document that describes the weights, and their file of that name, as bytes.

    provenance: as `load_backbone` gives it, with `recipe`, whose `sampling` names the view.
    """
    recipe = provenance["recipe"]
    clip, size = recipe["sampling"]["clip"], recipe["sampling"]["size"]
    weights = tensor_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()},
                           metadata={"format": "pt"})      # one key: of several the order, and so the bytes, vary
    init = provenance.get("init")
    document = {
        "format": FORMAT,
        "weights": {"file": name, "sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)},
        "architecture": {
            "name": backbone.name, "width": backbone.width, "bn_eps": backbone.eps, "features": backbone.features,
            "frames": backbone.frames, "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
            "clip": clip, "size": size, "short_edge": round(size * EDGE),
            "input": "(B, 3, L, S, S) float32, RGB in [0, 1] less `mean`, over `std`", "mean": list(MEAN),
            "std": list(STD), "h": list(backbone.h_shape(ClipGeometry.parse(clip).length, size)),
            "output": f"(B, {backbone.features}) float32, the global average of the last block"},
        "recipe": recipe,
        "provenance": {key: value for key, value in provenance.items() if key != "recipe"},
        "licence": {"weights": licence, "training data": data_licence, "code": "Apache-2.0",
                    "initialisation": f"{init['file']}, SHA-256 {init['sha256']}. {NOTE_INIT}" if init else
                    "random; no weights of others"},
        "motionpack": version("motionpack"),
    }
    return document, weights


if __name__ == "__main__":
    cli.command(main)
