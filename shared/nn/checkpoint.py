"""Checkpoints: written whole or not at all, read without executing anything that they hold (weights_only).

A checkpoint is a dictionary: `format`, `pipeline`, `recipe`, `run`, `step`, `epoch`, `learner` (both encoders, heads,
queues with pointers), `optimizer`, `scheduler`, `sampler`, `rng` (one entry a rank), `provenance`. What fine-tuning
leaves is smaller: `format`, `kind` ("finetuned"), `recipe`, `backbone`, `head`, `classes`, `request` (what decided the
numbers), `curve`, `provenance`.
"""

import errno
import lzma
import os
import pickle
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shared.cli import RequestError, writing
from shared.nn.backbones import EPS, build_backbone
from shared.nn.layers import Backbone
from shared.recipes.pretraining import Pretraining, build_recipe
from shared.store.record import fsync_directory, hidden_name

FORMAT = 1
BACKBONE = "query.backbone."     # the encoder that is evaluated, inside `learner`
KEYS = ("format", "pipeline", "recipe", "run", "step", "epoch", "learner", "optimizer", "scheduler", "sampler", "rng",
        "provenance")
FINETUNED = "finetuned"
FINETUNED_KEYS = ("format", "kind", "recipe", "backbone", "head", "classes", "request", "curve", "provenance")
# What reading a damaged file may raise; of OSError only what a wrong place in the file and wrong packed data give.
DAMAGE = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, struct.error,
          zlib.error, lzma.LZMAError, OSError)
STEP_NAME = re.compile(r"step-(\d{8})\.pt")


def save(path: Path, state: dict) -> None:
    """Write `state` so that `path` has its name only when every byte of it is on disk."""
    path = Path(path)
    hidden = hidden_name(path)
    try:
        with writing(path), open(hidden, "xb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)
    fsync_directory(path.parent)


def load(path: Path, device: torch.device | str = "cpu") -> dict:
    """A checkpoint of train/main.py, every checksum verified. Raises RequestError, in one line, for anything else."""
    return read(path, device, KEYS)


def load_recipe(path: Path) -> tuple[str, dict]:
    """The pipeline's name and the recipe of a checkpoint, whose tensors are not read. Raises RequestError as `load`."""
    state = read(path, "cpu", KEYS, tensors=False)
    recipe_of(state, path)
    return state["pipeline"], state["recipe"]


def read(path: Path, device: torch.device | str = "cpu", keys: tuple[str, ...] = (), tensors: bool = True) -> dict:
    """A dictionary that `save` wrote, every checksum verified. Raises RequestError, in one line, for anything else, and
    where it lacks one of `keys`. tensors: False leaves them on disk, and their checksums alone."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if tensors and (bad := archive.testzip()) is not None:
                raise RequestError(f"{path} is damaged: {bad} does not match its checksum; take an older checkpoint")
        state = torch.load(path, map_location=device, weights_only=True, mmap=not tensors)
    except FileNotFoundError:
        if path.is_symlink():
            raise RequestError(f"{path} leads to {os.readlink(path)}, which is gone; lead it to another checkpoint, or "
                               "choose a new folder") from None
        raise RequestError(f"{path} does not exist; expected a checkpoint such as RUN/last.pt") from None
    except IsADirectoryError:
        raise RequestError(f"{path} is a folder; expected a checkpoint, such as its last.pt") from None
    except DAMAGE as error:
        if isinstance(error, RequestError) or isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise RequestError(f"{path} is no checkpoint of motionpack, or is damaged ({type(error).__name__}); expected a "
                           "file that train/main.py wrote, such as RUN/last.pt") from None
    state = state if isinstance(state, dict) else {}
    return _whole(state, keys, path) if keys else state


def _whole(state: dict, keys: tuple[str, ...], path: Path) -> dict:
    missing = [key for key in keys if key not in state]
    if missing:
        raise RequestError(f"{path} is no checkpoint of motionpack: it has no {', '.join(missing)}; expected a file "
                           "that train/main.py wrote, such as RUN/last.pt")
    if type(state["format"]) is not int or state["format"] != FORMAT:
        raise RequestError(f"{path} has checkpoint format {repr(state['format'])[:60]}; this version reads {FORMAT}")
    return state


@contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """What the block takes from a checkpoint and finds of another kind or shape is one RequestError: any file can call
    itself a checkpoint. For blocks that do nothing else."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        if isinstance(error, RequestError):
            raise
        said = " ".join(str(error).split())[:200]
        raise RequestError(f"{path} holds what no checkpoint of this version does ({type(error).__name__}: {said}); "
                           "expected a file that train/main.py or evaluate.run wrote, such as RUN/last.pt") from error


def load_backbone(path: Path, device: torch.device | str = "cpu") -> tuple[Backbone, dict]:
    """The trained query backbone, or a fine-tuned one, in eval mode, and where it comes from.

    Returns the backbone and a dictionary: the checkpoint's provenance with `pipeline`, `recipe`, `step`, `epoch`.
    Raises RequestError, in one line, for a damaged or a foreign file.
    """
    state = read(path, device)
    if state.get("kind") == FINETUNED:
        found = _finetuned(state, path, device)
        with well_formed(path):
            return found.backbone, {**found.provenance, "recipe": found.recipe}
    state = _whole(state, KEYS, path)
    with well_formed(path):
        return _trained(state, path, device)


def _trained(state: dict, path: Path, device) -> tuple[Backbone, dict]:
    model = recipe_of(state, path).model
    weights = {key.removeprefix(BACKBONE): value for key, value in state["learner"].items() if key.startswith(BACKBONE)}
    backbone = fill_backbone(model.backbone, model.width, model.bn_eps, weights, path)
    known = {key: state[key] for key in ("pipeline", "recipe", "step", "epoch")}
    return backbone.to(device).eval(), {**state["provenance"], **known}


@dataclass(frozen=True)
class Finetuned:
    """A supervised classifier: backbone in eval mode, head (features -> K), the K classes' names in its order."""

    backbone: Backbone
    head: torch.nn.Linear
    classes: list[str]
    recipe: dict
    provenance: dict


def load_finetuned(path: Path, device: torch.device | str = "cpu") -> Finetuned:
    """What fine-tuning left in `path` (RUN's finetuned.pt). Raises RequestError, in one line, for anything else."""
    state = read(path, device)
    if state.get("kind") != FINETUNED:
        raise RequestError(f"{path} holds no classifier; expected a finetuned.pt of `evaluate.run --protocol finetune`")
    return _finetuned(state, path, device)


def _finetuned(state: dict, path: Path, device) -> Finetuned:
    state = _whole(state, FINETUNED_KEYS, path)
    with well_formed(path):
        model, weights = state["recipe"]["model"], state["head"]
        eps = model.get("bn_eps", EPS)
        backbone = fill_backbone(model["backbone"], model["width"], eps, state["backbone"], path)
        head = torch.nn.Linear(backbone.features, len(state["classes"]))
        load_weights(head, weights, path)
        return Finetuned(backbone.to(device).eval(), head.to(device).eval(), list(state["classes"]), state["recipe"],
                         state["provenance"])


def recipe_of(state: dict, path: Path) -> Pretraining:
    """The checkpoint's recipe. Raises RequestError where this version does not know its settings."""
    try:
        return build_recipe(state["recipe"])
    except RequestError as error:
        raise RequestError(f"{path} was written by another version: {error}") from None


def fill_backbone(name: str, width: int, eps: float, weights: dict, path: Path) -> Backbone:
    """The backbone that `weights` of a file are of. Nothing is allocated before names and shapes are its own: a file
    may claim any width. Raises RequestError."""
    try:
        with torch.device("meta"):
            backbone = build_backbone(name, width, eps)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"{path} says {name!r} of width {width!r}, which no network can have "
                           f"({str(error).splitlines()[0]})") from None
    _check_shapes(backbone, weights, path)
    backbone = backbone.to_empty(device="cpu")
    backbone.load_state_dict(weights)
    return backbone


def load_weights(module: torch.nn.Module, weights: dict, path: Path) -> None:
    """load_state_dict with its pages of complaints as one RequestError."""
    _check_shapes(module, weights, path)
    module.load_state_dict(weights)


def curve_of(state: dict) -> list[list]:
    """Rows (update, loss, accuracy) of a fine-tuning, in `well_formed`."""
    return [[int(update), float(loss), float(accuracy)] for update, loss, accuracy in state["curve"]]


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict, path: Path) -> None:
    """SGD's momenta from a file, in `well_formed`; rates and all other numbers stay the optimizer's own. Raises
    RequestError."""
    groups = [{**group, "params": None} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, groups):      # numbers are the request's, whatever the file says
        group.update({**own, "params": group["params"]})
    for parameter, held in optimizer.state.items():
        if (momentum := held.get("momentum_buffer")) is not None and momentum.shape != parameter.shape:
            raise RequestError(f"{path}: a momentum buffer is {tuple(momentum.shape)}, expected "
                               f"{tuple(parameter.shape)}; take another checkpoint")


def _check_shapes(module: torch.nn.Module, weights: dict, path: Path) -> None:
    wanted = module.state_dict()
    off = sorted(wanted.keys() ^ weights.keys(), key=str)
    off = off or sorted(key for key in wanted if not isinstance(weights[key], torch.Tensor) or
                        wanted[key].shape != weights[key].shape or
                        weights[key].is_complex() or
                        wanted[key].is_floating_point() > weights[key].is_floating_point())
    if off:
        raise RequestError(f"{path} holds other weights than its recipe says, {len(off)} in all, first {off[0]}; "
                           "it was written by another version")


def not_finite(weights: dict[str, torch.Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where all are finite."""
    return next((name for name, tensor in weights.items() if not torch.isfinite(tensor).all()), None)


def rng_state() -> dict:
    """The state of every global generator of this process, as what weights_only loads."""
    name, keys, place, has_gauss, gauss = np.random.get_state()
    return {"torch": torch.get_rng_state(), "python": random.getstate(),
            "numpy": (name, torch.from_numpy(keys.astype(np.int64)), place, has_gauss, gauss),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def set_rng_state(state: dict) -> None:
    """Inverse of `rng_state`; a generator of a device that one of the two machines lacks is left alone."""
    name, keys, place, has_gauss, gauss = state["numpy"]
    torch.set_rng_state(state["torch"].cpu())
    random.setstate(_tuples(state["python"]))
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), place, has_gauss, gauss))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


class Folder:
    """The checkpoints of one run: RUN/checkpoints/step-NNNNNNNN.pt, and RUN/last.pt, a link to the newest.

    keep: how many of the newest stay; those named by `save(..., forever=True)` stay always, as epoch-NNNN.pt.
    """

    def __init__(self, run: Path, keep: int):
        self.run, self.folder, self.keep = Path(run), Path(run) / "checkpoints", keep
        self.last = self.run / "last.pt"

    def save(self, state: dict, epoch: int | None = None) -> Path:
        """Write a checkpoint, point last.pt at it, keep the `keep` that were written last on the way to it.

        epoch: epochs completed where this checkpoint is to stay for good.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / (f"step-{state['step']:08d}.pt" if epoch is None else f"epoch-{epoch:04d}.pt")
        save(path, state)
        hidden = hidden_name(self.last)
        hidden.symlink_to(path.relative_to(self.run))
        os.replace(hidden, self.last)
        fsync_directory(self.run)
        steps = {int(match[1]): name for name in self.folder.iterdir() if (match := STEP_NAME.fullmatch(name.name))}
        # Later steps are what a run that went back to an older checkpoint left behind: they go first.
        for step in sorted(steps, key=lambda step: (step <= state["step"], step))[:-self.keep]:
            steps[step].unlink()
        return path
