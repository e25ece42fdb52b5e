"""Probes of frozen features: neighbours that vote, whose background the nearest has, and the motion within a video.

Q queries, G gallery videos, K classes, C features, n clips a video, T'xh'xw' positions of h, P = T'h'w'.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evaluate.features.cache import FeatureCache
from evaluate.features.encoders import Encoder
from evaluate.features.extract import View, read_ahead
from evaluate.features.handmade import MeanImage
from evaluate.features.moments import positions
from evaluate.features.vectors import collect, share_out
from evaluate.frozen.retrieval import nearest
from evaluate.settings import RunEvaluation
from shared.cli import Progress
from shared.nn.distributed import World
from shared.store.reader import StoreReader


def vote(neighbours: np.ndarray, classes: int) -> np.ndarray:
    """The class (Q,) that most of the neighbours have; among equals the one whose neighbours stand further in front.

    neighbours: (Q, k) labels in [0, K), nearest first.
    """
    # The front's advantage halves from place to place and never sums up to a vote.
    weight = 1 + 0.5 ** np.arange(2.0, min(neighbours.shape[1], 48) + 2)
    weight = np.concatenate([weight, np.ones(neighbours.shape[1] - len(weight))])
    return (np.eye(classes)[neighbours] * weight[:, None]).sum(1).argmax(1)


def nearest_other(vectors: np.ndarray) -> np.ndarray:
    """(Q,) row of each vector's nearest by cosine among the others, equals by row. Raises ValueError for one vector."""
    rows, _ = nearest(vectors, vectors, 2)
    own = rows[:, 0] == np.arange(len(rows))
    return np.where(own, rows[:, 1], rows[:, 0])


def chance_shared(labels: np.ndarray) -> float:
    """How often two different videos, drawn blindly, share their label."""
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))


@dataclass(frozen=True)
class Motion:
    """What a probe says of the clips of V videos. dense (V, n, T', h', w'): the motion there; energy (V, n): that of
    the whole clip. Both up to a constant of the video."""

    dense: np.ndarray
    energy: np.ndarray


class Ridge:
    """Linear regression with an L2 penalty from running sums: videos come and go, C x C numbers stay.

    Rows and targets are centred within each video, so that only what changes within a video is learnt.
    """

    def __init__(self, features: int, device: torch.device):
        self.sums = torch.zeros(features, features + 1, dtype=torch.float64, device=device)
        self.rows = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """One video: x (N, C), y (N,)."""
        x, y = x.double() - x.double().mean(0), y.double() - y.double().mean()
        self.sums += x.T @ torch.cat([x, y[:, None]], 1)
        self.rows += len(x)

    def solve(self, penalty: float, world: World) -> Tensor:
        """(C,) float64; penalty: a share of each channel's variance. A channel that never changes weighs nothing."""
        if world.size > 1:
            torch.distributed.all_reduce(self.sums), torch.distributed.all_reduce(self.rows)
        covariance, with_target = self.sums[:, :-1] / self.rows, self.sums[:, -1] / self.rows
        variance = covariance.diagonal()
        changes = variance > 1e-12 * variance.max().clamp_min(torch.finfo(torch.float64).tiny)
        scale = torch.where(changes, variance, 1).rsqrt() * changes
        system = covariance * scale[:, None] * scale + penalty * torch.eye(len(scale), dtype=scale.dtype,
                                                                           device=scale.device)
        system.diagonal().add_((~changes).to(scale.dtype) + 1e-9)
        return torch.linalg.solve(system, with_target * scale) * scale


def motion_probe(encoder: Encoder, reader: StoreReader, train: np.ndarray, taught: np.ndarray, test: np.ndarray,
                 view: View, penalty: float, run: RunEvaluation, cache: FeatureCache, key: dict,
                 world: World) -> Motion | None:
    """Learn motion from the features at the positions of h on `train`, say it on `test`; None on all ranks but rank 0.

    train, test: positions in the index; taught (V, n, T', h', w'): true motion of the training videos, on every rank;
    view: whose n clips are looked at; key: what the answer depends on besides. Nothing of the network moves.
    """
    grid, clips = taught.shape[2:], view.clips

    def learn() -> list[Tensor]:
        probes = [Ridge(dense_width(encoder, grid), world.device) for _ in range(2)]
        rows = np.arange(world.rank, len(train), world.size)
        progress = Progress("dense probe", len(rows)) if world.main else None
        for done, (row, maps) in enumerate(zip(rows, _walk(encoder, reader, train[rows], view, grid, run, world))):
            target = torch.from_numpy(np.array(taught[row])).to(maps.device)
            probes[0].add(maps.flatten(2).transpose(1, 2).flatten(0, 1), target.flatten())
            probes[1].add(maps.mean((2, 3, 4)), target.mean((1, 2, 3)))
            if progress:
                progress.update(done + 1)
        if progress:
            progress.close()
        return [probe.solve(penalty, world).float() for probe in probes]

    def say(positions: np.ndarray, weights: list[Tensor]) -> Iterator[Tensor]:
        for maps in _walk(encoder, reader, positions, view, grid, run, world):
            dense, energy = torch.einsum("ncthw,c->nthw", maps, weights[0]), maps.mean((2, 3, 4)) @ weights[1]
            yield torch.cat([dense.flatten(1), energy[:, None]], 1).flatten()

    def produce(missing: np.ndarray):
        weights = learn()
        return share_out(missing, width, lambda mine: say(mine, weights), lambda _: clips, world, "of the dense probe")

    width = clips * (int(np.prod(grid)) + 1)
    found = collect({"probe": 1, "checkpoint": encoder.sha256, "backbone": encoder.net.name, "grid": list(grid),
                     "penalty": penalty, "setting": view.to_dict(), **key}, test, width, cache, world, produce).vectors
    if found is None:
        return None
    said = np.asarray(found).reshape(len(test), clips, -1)
    return Motion(said[..., :-1].reshape(len(test), clips, *grid), said[..., -1])


def _walk(encoder: Encoder, reader: StoreReader, positions: np.ndarray, view: View, grid: tuple[int, int, int],
          run: RunEvaluation, world: World) -> Iterator[Tensor]:
    """Features (n, C, T', h', w') float32 of every video's clips, in order."""
    for frames, places, weights in read_ahead(reader, positions, view, run):
        images = view.images(torch.from_numpy(frames).to(world.device))
        parts = [dense_features(encoder, images[:, torch.from_numpy(places[at:at + run.batch]).to(world.device)]
                                .transpose(0, 1), grid) for at in range(0, len(places), run.batch)]
        yield torch.cat(parts).repeat_interleave(torch.from_numpy(weights).to(world.device), 0)


@torch.no_grad()
def dense_features(encoder: Encoder, clips: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(u, 3, L, S, S) -> (u, C, T', h', w'): the last block's output, whose mean is the video's feature.

    The mean image has at every position its own pixels there, the same at all times.
    """
    net = encoder.net
    if isinstance(net, MeanImage):
        side = _patch(grid)
        image = F.adaptive_avg_pool2d(clips.mean(2), (grid[1] * side, grid[2] * side))
        return F.pixel_unshuffle(image, side)[:, :, None].expand(-1, -1, grid[0], -1, -1)
    return positions(net, clips)


def dense_width(encoder: Encoder, grid: tuple[int, int, int]) -> int:
    return 3 * _patch(grid) ** 2 if isinstance(encoder.net, MeanImage) else encoder.net.features


def _patch(grid: tuple[int, int, int]) -> int:
    return max(1, MeanImage.size // max(grid[1:]))


def prior_corrected(said: np.ndarray, truth: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """(N,) correlation over the positions of each clip of what `prior` does not explain: the partial correlation.

    said, truth: (N, P); prior: (P,), the fixed map of the training videos. NaN where the truth is the prior, up to
    scale and a constant, or constant; 0 where what was said is.
    """
    said, truth = (_residual(np.asarray(values, np.float64), np.asarray(prior, np.float64)) for values in (said, truth))
    return _cosines(said, truth)


def _residual(values: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """(N, P) without the mean and without the prior; rounding is taken off."""
    centred, prior = values - values.mean(1, keepdims=True), prior - prior.mean()
    length = prior @ prior
    out = centred - np.outer(centred @ prior / length, prior) if length else centred
    largest = np.abs(values).max(1, keepdims=True)
    return np.where(np.abs(out).max(1, keepdims=True) > 1e-6 * largest, out, 0)


def spearman(said: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(V,) rank correlation over the clips of each video; equals share their mean rank. said, truth: (V, n).

    NaN where the truth never changes, 0 where what was said does not.
    """
    said, truth = (np.stack([_rank(line) for line in values]) for values in (said, truth))
    return _cosines(said - said.mean(1, keepdims=True), truth - truth.mean(1, keepdims=True))


def _rank(line: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(line, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = (a * b).sum(1)
    out = np.divide(product, lengths[0] * lengths[1], out=np.zeros(len(a)), where=(lengths[0] > 0) & (lengths[1] > 0))
    return np.where(lengths[1] > 0, out, np.nan)
