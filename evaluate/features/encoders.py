"""What turns clips into features: a trained backbone, an exported or untrained one, a hand-made baseline, or others'
networks."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from evaluate.features.foreign import Foreign, Function
from evaluate.features.handmade import HANDMADE, MOVING
from evaluate.features.huggingface import Transformers
from evaluate.settings import FeatureSettings
from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.nn.backbones import EPS, build_backbone
from shared.nn.checkpoint import load_backbone, not_finite
from shared.nn.exported import export_files, is_export, load_export
from shared.nn.layers import Backbone
from shared.recipes.pretraining import FRAME_CLIP, FRAME_NETS

RANDOM = "random"
FOREIGN = {"hf": Transformers, "python": Function}
UNTRAINED_HF = f"{RANDOM}:hf:"
PAPER_CLIP, PAPER_SIZE = "16x2", 224                        # docs/method.md 1.7
COARSE = 112                                                # px, ours: of baselines that keep 16x16 cells
# What others are trained on: MaCLR's visual pathway (docs/method.md 2.1) and the small ones, ours.
VIEWS = {"slow_50": ("8x8", 224), "slow_tiny": ("4x4", 48), "r2plus1d_tiny": ("8x2", 48),
         **dict.fromkeys(("r2plus1d_18", "r2plus1d_18_tv", "r3d_18"), ("16x2", 112))}


@dataclass(frozen=True)
class Encoder:
    """net: a Backbone, Foreign, temporal moments of either, or one of HANDMADE, in eval mode; sha256: of the file, or
    of the weights where there is none; clip, size: the view that it was trained on; provenance: where it comes from,
    for the report; run: the folder of its training run, where it has one."""

    text: str
    net: nn.Module
    sha256: str
    clip: str
    size: int
    provenance: dict = field(hash=False)
    run: Path | None = None

    def check_view(self, geometry: ClipGeometry, size: int) -> None:
        """Raises RequestError for clips that the network cannot take."""
        if isinstance(self.net, Backbone):
            self.net.h_shape(geometry.length, size)
        elif hasattr(self.net, "check"):
            self.net.check(geometry.length, size)
        elif isinstance(self.net, MOVING) and geometry.length < 2:
            raise RequestError(f"{self.net.name} sees no motion in single frames, and the clip is {geometry}; expected "
                               "two frames or more, such as --set features.clip=16x2")


def asked_view(settings: FeatureSettings, own: Encoder | Foreign) -> tuple[ClipGeometry, int]:
    """Clip and size, what the settings leave open filled in from the network's own. Raises RequestError."""
    try:
        return ClipGeometry.parse(settings.clip or own.clip), settings.size or own.size
    except ValueError as error:
        raise RequestError(f"features.clip: {error}") from None


def open_encoder(text: str, device: torch.device | str = "cpu", seed: int = 0,
                 asked: FeatureSettings | None = None) -> Encoder:
    """A checkpoint of train/main.py, an export (.safetensors or its folder), random:NAME[:seed], hf:DIR,
    python:MODULE:NAME or a name of HANDMADE.

    `random:hf:DIR[:seed]` is that model untrained. seed: of `random:NAME` without one; asked: the view of others'
    networks that cannot take their own. Raises RequestError, in one line, for anything else and for damaged files.
    """
    text = str(text)
    if text in HANDMADE:
        size = COARSE if HANDMADE[text] in MOVING else PAPER_SIZE
        return Encoder(text, HANDMADE[text]().eval(), hashlib.sha256(text.encode()).hexdigest(), PAPER_CLIP, size,
                       {"kind": text, "backbone": text})
    if text.partition(":")[0] == RANDOM:
        return _untrained(text, device, seed, asked)
    if text.partition(":")[0] in FOREIGN:
        return _foreign(text, device, asked)
    path = Path(text)
    if is_export(path):
        path, _ = export_files(path)
        net, document = load_export(path, device)
        view, origin = document["architecture"], {"kind": "export", **document["provenance"]}
        recipe, run = document["recipe"], None
    else:
        net, origin = load_backbone(path, device)
        recipe, origin = origin["recipe"], {"kind": "checkpoint", **origin}
        view = recipe["sampling"]
        run = path.absolute().parent if path.parent.name != "checkpoints" else path.absolute().parent.parent
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    origin |= {"file": str(path), "backbone": net.name, "width": net.width, "features": net.features, "recipe": recipe}
    return Encoder(text, net, sha256, view["clip"], view["size"], origin, run)


def _foreign(text: str, device: torch.device | str, asked: FeatureSettings | None, seed: int | None = None) -> Encoder:
    """seed: of a Transformers model's initialisation, instead of its weights."""
    kind = text.partition(":")[0]
    net: Foreign = (FOREIGN[kind](text) if seed is None else Transformers(text, seed)).to(device)
    own = ClipGeometry.parse(net.clip), net.size
    try:
        net.check(own[0].length, own[1])
    except RequestError:
        if asked is None or (other := asked_view(asked, net)) == own:
            raise
        net.check(other[0].length, other[1])
    sha256 = hashlib.sha256(f"{net.identity} {weights_hash(net)}".encode()).hexdigest()
    origin = {"kind": kind, "backbone": net.name, "features": net.features, **net.origin}
    if seed is not None:
        text, origin = f"{RANDOM}:{text}:{seed}", {**origin, "kind": RANDOM, "seed": seed}
    return Encoder(text, net, sha256, net.clip, net.size, origin)


def _untrained(text: str, device, seed: int, asked: FeatureSettings | None) -> Encoder:
    if text.startswith(UNTRAINED_HF):
        folder, _, own = text.rpartition(":")
        known = own.isdecimal() and folder.startswith(UNTRAINED_HF)
        return _foreign((folder if known else text).partition(":")[2], device, asked, int(own) if known else seed)
    name, *rest = text.split(":")[1:] or [""]
    if len(rest) > 1 or not name or rest and not rest[0].isdecimal():
        raise RequestError(f"checkpoint {text!r}; expected random:NAME or random:NAME:seed, such as "
                           "random:r2plus1d_tiny:0")
    return untrained(name, int(rest[0]) if rest else seed, device)


def untrained(name: str, seed: int, device: torch.device | str = "cpu", width: int = 0,
              eps: float | None = None) -> Encoder:
    """A freshly initialised backbone. Raises RequestError for an unknown one; width, eps: as `build_backbone`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_backbone(name, width, eps)
    clip, size = VIEWS.get(name, (FRAME_CLIP if name in FRAME_NETS else PAPER_CLIP, PAPER_SIZE))
    origin = {"kind": RANDOM, "backbone": name, "width": net.width, "features": net.features, "seed": seed}
    return Encoder(f"{RANDOM}:{name}:{seed}", net.to(device).eval(), weights_hash(net), clip, size, origin)


def takes_seed(text: str) -> bool:
    """Whether the run's seed decides the weights: `random:NAME` without a seed of its own."""
    name, _, own = text.removeprefix(UNTRAINED_HF).rpartition(":")
    return text.startswith(UNTRAINED_HF) and not (name and own.isdecimal()) or \
        text.partition(":")[0] == RANDOM and text.count(":") == 1


def finite(encoder: Encoder, blocks: Iterable[tuple[np.ndarray, np.ndarray, int]],
           video: Callable[[int], str]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Blocks of (items (n,), vectors (n, C), clips) as they come. video(item): whose the vectors are.

    Raises RequestError, on all ranks alike, naming checkpoint and video, where a vector holds NaN or infinity.
    """
    for items, vectors, clips in blocks:
        wrong = ~np.isfinite(vectors).all(1)
        if wrong.any():
            refuse_features(encoder, video(int(items[wrong.argmax()])))
        yield items, vectors, clips


def refuse_features(encoder: Encoder, video: str, what: str = "features") -> None:
    """Raises RequestError for what the encoder gives for a video and is not finite."""
    weights = not_finite(encoder.net.state_dict())
    why = f"its weights are not, {weights} among them" if weights else "its weights are too large"
    raise RequestError(f"checkpoint {encoder.text}: the {what} of video {video!r} are not finite numbers ({why}): "
                       "its training diverged, or the file is damaged; choose another checkpoint")


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers, and over the epsilons of batch norms that are
    not PyTorch's own."""
    digest = hashlib.sha256()
    for eps in sorted({part.eps for part in module.modules() if isinstance(part, nn.BatchNorm3d)} - {EPS}):
        digest.update(f"eps {eps}\n".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())     # of any type
    return digest.hexdigest()
