"""Moments over time of what a network says of every position: a baseline of motion that needs no training.

B clips, L frames of SxS pixels, C channels, T'xh'xw' positions.
"""

import dataclasses

import torch
from torch import Tensor, nn

from evaluate.features.encoders import Encoder
from evaluate.features.foreign import CLIP, Foreign
from shared.cli import RequestError, plural
from shared.nn.layers import Backbone

MEAN, MOMENTS = "mean", "moments"       # of features.pool
WEIGHTS = 1.0, 8.0, 4.0                 # of mean, variance and third moment (docs/method.md 1.7)


def temporal_moments(values: Tensor) -> Tensor:
    """(B, C, T', h', w') -> (B, 3 C): the mean, the variance and the third central moment over T' of every position,
    times WEIGHTS, each averaged over the positions."""
    apart = values - values.mean(2, keepdim=True)
    return torch.cat([weight * part.mean((2, 3, 4)) for weight, part in
                      zip(WEIGHTS, (values, apart ** 2, apart ** 3))], 1)


def positions(net: Backbone | Foreign, x: Tensor) -> Tensor:
    """(B, 3, L, S, S) -> (B, C, T', h', w'): what a network says of every position, a 2D net frame by frame. Raises
    RequestError where there are none."""
    if isinstance(net, Foreign):
        return net.positions(x)
    if not net.frames or x.shape[2] == 1:
        return net.output(*net.body(x))
    y = net.output(*net.body(x.transpose(1, 2).flatten(0, 1).unsqueeze(2)))          # (B L, C, 1, h', w')
    return y.squeeze(2).unflatten(0, (len(x), -1)).transpose(1, 2)


class Moments(nn.Module):
    """Temporal moments of a network's positions, as a network."""

    frames = False

    def __init__(self, net: Backbone | Foreign):
        super().__init__()
        self.net, self.name = net, f"{MOMENTS} of {net.name}"

    @property
    def features(self) -> int:
        return 3 * self.net.features

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, L, S, S) -> (B, 3 C)."""
        return temporal_moments(positions(self.net, x))

    def check(self, length: int, size: int) -> None:
        """Raises RequestError for clips that the network cannot take, or of which it gives a single time step."""
        if isinstance(self.net, Foreign):
            steps = self.net.with_positions(length, size)[1]
        else:
            steps = self.net.h_shape(1 if self.net.frames else length, size)[1] * (length if self.net.frames else 1)
        if steps < 2:
            raise RequestError(f"features.pool={MOMENTS}: {self.net.name} gives {plural(steps, 'time step')} of clips "
                               f"of {plural(length, 'frame')}, and moments over time take two or more; set a longer "
                               "clip, such as features.clip=16x2")


def pooled(encoder: Encoder, pool: str) -> Encoder:
    """The encoder, its features pooled by `mean`, as they are, or by `moments`. Raises RequestError where it has no
    positions."""
    if pool == MEAN or isinstance(encoder.net, Moments):
        return encoder
    if not isinstance(encoder.net, (Backbone, Foreign)):
        raise RequestError(f"{encoder.text} has no positions whose moments could be taken; expected a network, such as "
                           "hf:DIR, RUN/last.pt or random:NAME, with features.grid=1, or leave moments out")
    return dataclasses.replace(encoder, net=Moments(encoder.net), clip=CLIP if encoder.net.frames else encoder.clip)
