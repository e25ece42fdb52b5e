"""Backbones for use elsewhere, as evaluate.export leaves them: weights, and a JSON that says what they are.

`shared.nn.load(path)` opens every form in which a trained backbone comes.
"""

import hashlib
import json
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load as load_tensors

from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.clips.resampling import MEAN, STD
from shared.nn.backbones import EPS
from shared.nn.checkpoint import fill_backbone, load_backbone, not_finite
from shared.nn.layers import Backbone
from shared.nn.transform import EDGE, Transform

FORMAT = "motionpack.backbone 1"
MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"     # of a folder to be published


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[Backbone, Transform]:
    """A trained backbone in eval mode, and what turns a video's frames into its input.

    path: a folder of `python -m evaluate.export --hub`, NAME.safetensors of `--out`, or a checkpoint such as
    RUN/last.pt. `net(transform(frames))` is the feature, (1, C) float32, of frames (T, H, W, 3) uint8 RGB.
    Raises RequestError, in one line, for a missing, damaged or foreign file and for weights that are not finite;
    nothing that a file holds is executed.
    """
    path = Path(path)
    if is_export(path):
        net, document = load_export(path, device)
        seen = document["architecture"]
    else:
        net, origin = load_backbone(path, device)
        seen = origin["recipe"]["sampling"]
    check_finite(net, path)
    return net, Transform(1, ClipGeometry.parse(seen["clip"]), seen["size"], round(seen["size"] * EDGE))


def check_finite(net: Backbone, path: Path) -> None:
    """Raises RequestError for weights that hold NaN or infinity."""
    name = not_finite(net.state_dict())
    if name:
        raise RequestError(f"{path}: its weights are not finite numbers, {name} among them: its training diverged, or "
                           "the file is damaged; choose another checkpoint")


def is_export(path: Path) -> bool:
    """Whether the path has the form of an export: a folder or a .safetensors file."""
    return path.suffix == ".safetensors" or path.is_dir()


def export_files(path: Path) -> tuple[Path, Path]:
    """The weights and the JSON of an export, which is a folder or its NAME.safetensors. Raises RequestError."""
    weights = path / MODEL if path.is_dir() else path
    if path.is_dir() and not weights.is_file():
        raise RequestError(f"{path} is a folder without {MODEL}; expected one that `python -m evaluate.export --hub` "
                           "wrote, or a checkpoint, such as its last.pt")
    described = weights.with_suffix(".json")
    if weights.name == MODEL and not described.is_file():
        described = weights.with_name(CONFIG)
    for file in (weights, described):
        if not file.is_file():
            raise RequestError(f"{file} does not exist; expected NAME.safetensors and NAME.json, or a folder with "
                               f"{MODEL} and {CONFIG}, as `python -m evaluate.export` writes them")
    return weights, described


def load_export(path: Path, device: torch.device | str = "cpu") -> tuple[Backbone, dict]:
    """The exported backbone in eval mode, and its document. path: as `export_files` takes it.

    Raises RequestError, in one line, where either file is missing, damaged or not of the other.
    """
    file, described = export_files(Path(path))
    document = _describe(described)
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != document["weights"]["sha256"]:
        raise RequestError(f"{file} is not the file that {described.name} describes, or is damaged: SHA-256 differs; "
                           "export it again")
    try:
        weights = load_tensors(data)
    except safetensors.SafetensorError as error:
        raise RequestError(f"{file} is no safetensors file ({error}); export it again") from None
    architecture = document["architecture"]
    return fill_backbone(architecture["name"], architecture["width"], architecture["bn_eps"], weights,
                         file).to(device).eval(), document


def _describe(path: Path) -> dict:
    """The JSON beside the weights, every key that is read of the kind that it must be. Raises RequestError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        form, architecture = document["format"], document["architecture"]
        ClipGeometry.parse(architecture["clip"])
        architecture.setdefault("bn_eps", EPS)          # of exports from before it was said
        kinds = [(document["weights"]["sha256"], str), (architecture["name"], str), (architecture["width"], int),
                 (architecture["size"], int), (architecture["bn_eps"], float), (document["recipe"], dict),
                 (document["provenance"], dict)]
        for value, kind in kinds:
            if type(value) is not kind:
                raise TypeError(f"{str(value)[:60]!r} is no {kind.__name__}")
        if not 1 <= architecture["size"] <= 4096:
            raise ValueError(f"size {architecture['size']}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"{path} describes no exported backbone ({type(error).__name__}: {error}); expected what "
                           "`python -m evaluate.export` wrote") from None
    if form != FORMAT:
        raise RequestError(f"{path} has format {form!r}; this version reads {FORMAT!r}")
    if [architecture.get("mean"), architecture.get("std")] != [list(MEAN), list(STD)]:
        raise RequestError(f"{path}: mean {architecture.get('mean')} and std {architecture.get('std')} are not "
                           f"ImageNet's, {MEAN} and {STD}, by which this version normalises")
    return document
