"""A checkpoint's backbone for use elsewhere: `python -m evaluate.export --checkpoint FILE --out NAME.safetensors`.

NAME.safetensors holds the weights, NAME.json beside it the architecture, the view that it was trained on, the recipe,
where it comes from and under which terms it may be used.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes

from shared import cli
from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.clips.views import MEAN, STD
from shared.nn.backbones import build_backbone
from shared.nn.checkpoint import load_backbone, load_weights
from shared.nn.layers import Backbone
from shared.store.record import write_atomic

FORMAT = "motionpack.backbone 1"
UNSTATED = "not stated by the exporter"
NOTE_INIT = ("Weights that started from --init are derived from that file and under its terms too; the MoCo v2 weights "
             "that the paper starts from are CC BY-NC 4.0.")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises RequestError for shared.cli.command."""
    parser = cli.Arguments(prog="python -m evaluate.export", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a file of train/main.py, such as RUN/last.pt")
    parser.add_argument("--out", type=Path, required=True, help="NAME.safetensors; NAME.json is written beside it")
    parser.add_argument("--licence", default=UNSTATED, help="terms of the weights, such as an SPDX name")
    parser.add_argument("--data-licence", default=UNSTATED, help="terms of the videos that they were trained on")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors" or args.out.is_dir() or not args.out.absolute().parent.is_dir():
        raise RequestError(f"--out {args.out}: expected a file ending in .safetensors in a folder that exists")
    backbone, provenance = load_backbone(args.checkpoint)
    document = write_export(args.out, backbone, provenance, args.licence, args.data_licence)
    shape = document["architecture"]
    print(f"done: {args.out} ({cli.size(args.out.stat().st_size)}) and {args.out.with_suffix('.json').name}: "
          f"{shape['name']}, {shape['parameters']:,} parameters, clips {shape['clip']} of {shape['size']} px")
    return cli.DONE


def write_export(path: Path, backbone: Backbone, provenance: dict, licence: str = UNSTATED,
                 data_licence: str = UNSTATED) -> dict:
    """Write NAME.safetensors and NAME.json, each whole or not at all; returns the JSON's document.

    provenance: as `load_backbone` gives it, with `recipe`, whose `sampling` names the view.
    """
    recipe = provenance["recipe"]
    clip, size = recipe["sampling"]["clip"], recipe["sampling"]["size"]
    weights = tensor_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()},
                           metadata={"format": "pt", "motionpack": FORMAT})
    init = provenance.get("init")
    document = {
        "format": FORMAT,
        "weights": {"file": path.name, "sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)},
        "architecture": {
            "name": backbone.name, "width": backbone.width, "features": backbone.features, "frames": backbone.frames,
            "parameters": sum(parameter.numel() for parameter in backbone.parameters()), "clip": clip, "size": size,
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
    write_atomic(path, weights)
    write_atomic(path.with_suffix(".json"), (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return document


def load_export(path: Path, device: torch.device | str = "cpu") -> tuple[Backbone, dict]:
    """The exported backbone in eval mode, and its document.

    Raises RequestError, in one line, where either file is missing, damaged or not of the other.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise RequestError(f"{file} does not exist; expected NAME.safetensors and NAME.json, as `python -m "
                               "evaluate.export` writes them")
    try:
        document = json.loads(beside.read_text(encoding="utf-8"))
        known = document["format"], document["weights"]["sha256"]
        architecture = document["architecture"]
        name, width = architecture["name"], architecture["width"]
        document["recipe"], document["provenance"], architecture["clip"], architecture["size"]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{beside} describes no exported backbone ({type(error).__name__}: {error}); expected what "
                           "`python -m evaluate.export` wrote") from None
    if known[0] != FORMAT:
        raise RequestError(f"{beside} has format {known[0]!r}; this version reads {FORMAT!r}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != known[1]:
        raise RequestError(f"{path} is not the file that {beside.name} describes, or is damaged: SHA-256 differs; "
                           "export it again")
    try:
        weights = load_tensors(data)
    except safetensors.SafetensorError as error:
        raise RequestError(f"{path} is no safetensors file ({error}); export it again") from None
    backbone = build_backbone(name, width)
    load_weights(backbone, weights, path)
    return backbone.to(device).eval(), document


if __name__ == "__main__":
    cli.command(main)
