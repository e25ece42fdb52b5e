"""Projection heads of the contrastive objectives (docs/method.md 1.3)."""

from torch import nn


class Projection(nn.Sequential):
    """Linear, ReLU, Linear: (B, features) -> (B, dim), not normalised; the caller takes the L2 norm. No BN inside."""

    def __init__(self, features: int, hidden: int = 2048, dim: int = 128):
        super().__init__(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
