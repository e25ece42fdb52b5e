"""The score whose gradient tells what a network looks at: the similarity of query and key, or a class.

B clips, L frames of SxS pixels, C features, D = 128.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.features.encoders import RANDOM, Encoder
from evaluate.features.foreign import Foreign
from shared.cli import RequestError, nearest
from shared.nn.backbones import build_backbone
from shared.nn.checkpoint import FINETUNED, load_finetuned, load_weights, read
from shared.nn.heads import Projection
from shared.nn.layers import Backbone
from shared.recipes.pretraining import Augment, Pretraining, Sampling, build_recipe
from shared.recipes.training import load_training
from shared.saliency import similarity

SIMILARITY, CLASS, AUTO = "similarity", "class", "auto"
QUERY, KEY = "query.heads.inter.", "key.heads.inter."           # in a checkpoint's `learner`
KEY_BACKBONE = "key.backbone."


@dataclass(frozen=True)
class Towers:
    """query, key: backbones in eval mode, one and the same where nothing else is known; project, project_key: pooled
    features (B, C) -> (B, D); head, classes: of a classifier, whose score is then taken instead; chosen: the class
    asked for, None for the one that the classifier says.

    sampling, augment: the laws by which training drew the view of the key; group: clips that shared BN statistics in
    training; per_step: whether the channel weights of the aligned map were taken time step by time step; note: how the
    score is formed, for the report.
    """

    query: Backbone
    key: Backbone
    project: nn.Module
    project_key: nn.Module
    head: nn.Linear | None
    chosen: int | None
    sampling: Sampling
    augment: Augment
    group: int
    per_step: bool
    note: str

    @torch.no_grad()
    def keys(self, backbone: Backbone, clips: Tensor) -> Tensor:
        """(B, 3, L, S, S) -> (B, D) of length 1. backbone: `key`, or a copy of it in train mode."""
        return F.normalize(self.project_key(backbone(clips)), dim=1)

    @torch.no_grad()
    def said(self, clips: Tensor) -> Tensor:
        """(B,) int64: the class whose score is taken of every clip."""
        if self.chosen is not None:
            return torch.full((len(clips),), self.chosen, device=clips.device)
        return self.head(self.query(clips)).argmax(1)

    def score(self, target: Tensor) -> Callable[[Tensor], Tensor]:
        """Pooled features (B, C) -> (), summed over the clips. target: `keys` (B, D), or with a head `said` (B,)."""
        if self.head is None:
            return similarity(self.project, target)
        return lambda features: self.head(features).gather(1, target[:, None]).sum()


def open_towers(encoder: Encoder, device: torch.device, of: str = AUTO, class_name: str = "") -> Towers:
    """What the encoder's file holds beside its backbone.

    of: `similarity`, `class`, or `auto`: the class where there is a classifier. A checkpoint of train/main.py gives
    both encoders with their heads of the inter term; `random:NAME` heads from its own seed, as an untrained learner has
    them; an export, a classifier's too, a bare backbone and others' networks give the cosine of pooled features.
    Raises RequestError for what has no positions, no classifier or no such class.
    """
    if not isinstance(encoder.net, (Backbone, Foreign)):
        raise RequestError(f"{encoder.text} has no map of positions, so nothing says where it looks; expected a "
                           "checkpoint, an export or random:NAME")
    kind, state = encoder.provenance.get("kind"), {}
    if kind == "checkpoint":
        state = read(encoder.provenance["file"], device)
        kind = state.get("kind", kind)
    pretrained = kind in ("checkpoint", "export")
    recipe = build_recipe(encoder.provenance["recipe"]) if pretrained else _usual(encoder.net)
    towers = Towers(
        encoder.net, encoder.net, nn.Identity(), nn.Identity(), None, None, recipe.sampling, recipe.augment,
        max(2, encoder.provenance.get("bn_group") or recipe.contrast.bn_group), recipe.alignment.weights_per_step,
        f"{encoder.text} holds no projection head and no key encoder: the similarity is the cosine of pooled features, "
        "of both views by the one backbone.")
    exported = str(encoder.provenance.get("file", "")).endswith(".safetensors")     # a classifier's is its backbone
    if kind == FINETUNED and of != SIMILARITY and not exported:
        towers = _classifier(encoder, device, class_name, towers)
    elif of == CLASS:
        raise RequestError(f"saliency.of is class, and {encoder.text} holds no classifier; expected a finetuned.pt of "
                           "--protocol finetune, or of=similarity")
    elif kind == "checkpoint":
        towers = _trained(encoder, device, recipe, state["learner"], towers)
    elif kind == RANDOM and isinstance(encoder.net, Backbone):
        towers = _untrained(encoder, device, recipe, towers)
    if class_name and towers.head is None:
        raise RequestError(f"saliency.class_name is {class_name!r}, and the score is a similarity; leave it out")
    return towers


def _usual(net: Backbone) -> Pretraining:
    """The recipe of MCL at its size, for a network that was not pre-trained."""
    return load_training("mcl-tiny" if net.name.endswith("_tiny") else "mcl").recipe


def _trained(encoder: Encoder, device: torch.device, recipe: Pretraining, weights: dict, towers: Towers) -> Towers:
    path = encoder.provenance["file"]

    def part(module: nn.Module, prefix: str) -> nn.Module:
        load_weights(module, {name.removeprefix(prefix): value for name, value in weights.items()
                              if name.startswith(prefix)}, path)
        return module.to(device).eval()

    net, model = encoder.net, recipe.model
    project, project_key = (part(Projection(net.features, model.hidden, model.dim), prefix) for prefix in (QUERY, KEY))
    return dataclasses.replace(
        towers, key=part(build_backbone(net.name, net.width, net.eps), KEY_BACKBONE), project=project,
        project_key=project_key, note="The score is the similarity q . k of the inter head: query encoder on the clip, "
                                      "key encoder on another view of it, drawn from the run's seed.")


def _untrained(encoder: Encoder, device: torch.device, recipe: Pretraining, towers: Towers) -> Towers:
    """One head, drawn after the backbone from the same seed; at step 0 the key encoder is a copy of the query's."""
    net = encoder.net
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(encoder.provenance["seed"])
        build_backbone(net.name, net.width, net.eps)
        head = Projection(net.features, recipe.model.hidden, recipe.model.dim).to(device).eval()
    return dataclasses.replace(towers, project=head, project_key=head, note=(
        f"{encoder.text} is untrained: its projection head is drawn from the same seed, its key encoder is a copy, as "
        "at the first step of training."))


def _classifier(encoder: Encoder, device: torch.device, class_name: str, towers: Towers) -> Towers:
    found = load_finetuned(encoder.provenance["file"], device)
    classes: Sequence[str] = list(found.classes)
    if class_name and class_name not in classes:
        raise RequestError(f"saliency.class_name is {class_name!r}{nearest(class_name, classes)}")
    return dataclasses.replace(
        towers, query=found.backbone, head=found.head, chosen=classes.index(class_name) if class_name else None,
        note=f"The score is the logit of {f'class {class_name!r}' if class_name else 'the class that the network says'}"
             " for the clip, before the softmax.")
