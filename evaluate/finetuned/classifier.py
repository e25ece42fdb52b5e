"""A backbone with one linear layer, and its answers as what `evaluate.features.extract` takes.

B clips of L frames, SxS pixels, C features, K classes.
"""

import dataclasses
import hashlib

import torch
from torch import Tensor, nn

from evaluate.features.encoders import Encoder, weights_hash
from shared.nn.layers import Backbone


class Classifier(nn.Module):
    """backbone and head, Linear(C, K); classes: K names in its order."""

    def __init__(self, backbone: Backbone, classes: list[str]):
        super().__init__()
        self.backbone, self.head, self.classes = backbone, nn.Linear(backbone.features, len(classes)), classes

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 3, L, S, S) -> logits (B, K) float32; keep: (B, C) factors of dropout."""
        features = self.backbone(x).float()
        with torch.autocast(x.device.type, enabled=False):
            return self.head(features if keep is None else features * keep)


class Probabilities(nn.Module):
    """A classifier whose vector of a clip is its softmax (K,): the mean over clips and crops is the video's."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier, self.features = classifier, len(classifier.classes)
        self.name = f"{classifier.backbone.name}+fc"

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.classifier(x), 1)


def answering(encoder: Encoder, classifier: Classifier) -> Encoder:
    """The encoder that the classifier was trained from, with the classifier's probabilities for features."""
    weights = f"{weights_hash(classifier)} {classifier.classes}"
    return dataclasses.replace(encoder, net=Probabilities(classifier).eval(),
                               sha256=hashlib.sha256(weights.encode()).hexdigest())
