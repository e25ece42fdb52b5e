"""Softmax or logistic regression on frozen features by SGD, reading the training vectors from where they lie, memory or
disk.

N training videos, M test videos, C features, K classes.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.settings import Softmax
from shared.cli import Progress, RequestError

RUN = 64            # consecutive rows read at once: ids, and so files, stand class by class
BUFFER = 256        # such runs, from everywhere, that are shuffled together
MOMENTUM = 0.9


def softmax_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, settings: Softmax, normalise: bool,
                   seed: int, device: torch.device | str = "cpu") -> np.ndarray:
    """Logits (M, K) of one linear layer trained with cross-entropy; features standardised by the training videos'.

    train (N, C), test (M, C): arrays or memory maps, read in parts: at most 16,384 rows at once; labels (N,) in [0, K),
    or (N, K) bool where several may hold: then the binary cross-entropy, summed over classes.
    normalise: features to length 1 first. The same seed gives the same logits. Raises RequestError where it diverges.
    """
    prepare = Standard(train, normalise, device)
    several = labels.ndim == 2
    classes = labels.shape[1] if several else int(labels.max()) + 1
    layer = nn.Linear(train.shape[1], classes).to(device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    steps = settings.epochs * math.ceil(len(train) / settings.batch)
    optimizer = torch.optim.SGD(layer.parameters(), settings.lr, MOMENTUM, weight_decay=settings.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    progress = Progress("softmax", settings.epochs)
    for epoch in range(settings.epochs):
        for rows in batches(len(train), settings.batch, np.random.default_rng((seed, epoch))):
            x, y = prepare(train[rows]), torch.from_numpy(labels[rows]).to(device)
            if several:
                loss = F.binary_cross_entropy_with_logits(layer(x), y.float(), reduction="sum") / len(y)
            else:
                loss = F.cross_entropy(layer(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        progress.update(epoch + 1, f"loss {loss.item():.3f}")
    progress.close()
    with torch.no_grad():
        scores = np.concatenate([layer(prepare(test[first:first + RUN * BUFFER])).cpu().numpy()
                                 for first in range(0, len(test), RUN * BUFFER)])
    if not np.isfinite(scores).all():
        raise RequestError(f"the softmax layer diverged at lr={settings.lr:g}, weight_decay={settings.weight_decay:g}: "
                           "its answers are not finite; lower softmax.lr")
    return scores


class Standard:
    """Vectors as float32 on the device, of length 1 if asked, less the training mean, over its standard deviation."""

    def __init__(self, train: np.ndarray, normalise: bool, device):
        self.normalise, self.device = normalise, device
        total = squares = 0.0
        for first in range(0, len(train), RUN * BUFFER):
            some = self._raw(train[first:first + RUN * BUFFER]).double()
            total, squares = total + some.sum(0), squares + (some ** 2).sum(0)
        self.mean = total / len(train)
        deviation = (squares / len(train) - self.mean ** 2).clamp_min(0).sqrt()
        # A feature that never varies tells nothing: it becomes 0, whatever a test video has there.
        self.scale = torch.where(deviation > 1e-6 * self.mean.abs(), 1 / deviation, 0.0)

    def _raw(self, vectors: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.array(vectors, np.float32)).to(self.device)
        return F.normalize(x, dim=1) if self.normalise else x

    def __call__(self, vectors: np.ndarray) -> Tensor:
        return ((self._raw(vectors).double() - self.mean) * self.scale).float()


def batches(count: int, size: int, rng: np.random.Generator):
    """Row numbers in batches, every row once: runs of rows in random order, a buffer of them shuffled at a time."""
    runs = rng.permutation(-(-count // RUN))
    left = np.empty(0, np.int64)
    for first in range(0, len(runs), BUFFER):
        rows = np.concatenate([np.arange(run * RUN, min((run + 1) * RUN, count)) for run in runs[first:first + BUFFER]])
        left = np.concatenate([left, rng.permutation(rows)])
        while len(left) >= size:
            yield np.sort(left[:size])      # in the file's order
            left = left[size:]
    if len(left):
        yield np.sort(left)
