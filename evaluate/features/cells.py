"""Features that keep where: what an encoder says of its positions, in GxG cells of the view, not their mean (ours).

B clips, L frames of SxS pixels, C channels.
"""

import dataclasses

from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.features.encoders import Encoder
from evaluate.features.handmade import HANDMADE
from evaluate.features.moments import pooled, positions
from evaluate.settings import Pooled
from shared.cli import RequestError
from shared.clips.index import ClipGeometry
from shared.nn.layers import Backbone


class Cells(nn.Module):
    """A network's positions, or a hand-made baseline's picture, averaged over time and in GxG cells, as a network."""

    def __init__(self, encoder: Encoder, grid: int):
        super().__init__()
        self.net, self.encoder, self.grid, self.frames = encoder.net, encoder, grid, encoder.net.frames
        self.handmade = isinstance(encoder.net, tuple(HANDMADE.values()))
        self.name = f"{grid}x{grid} cells of {encoder.net.name}"
        self.features = encoder.net.features * grid ** 2 // (encoder.net.size ** 2 if self.handmade else 1)      # C G G

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, L, S, S) -> (B, C G G): for each channel the cells, row by row."""
        if self.handmade:
            maps = self.net(x).unflatten(1, (-1, self.net.size, self.net.size))
        else:
            maps = positions(self.net, x).mean(2)
        return F.adaptive_avg_pool2d(maps, self.grid).flatten(1)

    def check(self, length: int, size: int) -> None:
        """Raises RequestError for clips that the encoder cannot take, or of which it gives fewer positions than cells.
        """
        self.encoder.check_view(ClipGeometry(length, 1), size)
        rows, columns = [self.net.size] * 2 if self.handmade else self.net.h_shape(length, size)[2:]
        if min(rows, columns) < self.grid:
            raise RequestError(f"features.grid is {self.grid}, and {self.net.name} gives {rows}x{columns} positions of "
                               f"clips of {size} pixels; set a smaller grid or a larger features.size")


def as_asked(encoder: Encoder, settings: Pooled) -> Encoder:
    """The encoder, its features pooled as the settings say. Raises RequestError for one that cannot be."""
    encoder = pooled(encoder, settings.pool)
    if settings.grid == 1:
        return encoder
    if not isinstance(encoder.net, (Backbone, *HANDMADE.values())):
        raise RequestError(f"features.grid is {settings.grid}; cells are taken of networks of this package and of "
                           f"hand-made baselines, with pool=mean, and not of {encoder.net.name}: set grid=1")
    return dataclasses.replace(encoder, net=Cells(encoder, settings.grid))
