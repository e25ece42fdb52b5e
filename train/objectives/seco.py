"""The contrastive terms: inter (InfoNCE, MCL Eq. 3), intra and order (SeCo; docs/method.md 1.3).

B queries, P positives a query (1 or 3), K keys of the queue, D = 128. Embeddings have length 1; keys carry no gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def inter_loss(q: Tensor, positives: Sequence[Tensor], negatives: Tensor, temperature: float,
               excluded: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """InfoNCE of P * B rows, each of the positives against the queue (Eq. 3): their mean.

    q: (B, D); positives: P of (B, D); negatives: (K, D); excluded: (B, K) bool, negatives that do not count.
    Returns the loss and the share of rows whose positive is nearer than every negative.
    """
    against = q @ negatives.T / temperature                                      # (B, K), shared by the P rows
    if excluded is not None:
        against = against.masked_fill(excluded, torch.finfo(against.dtype).min)  # finite: a row may lose all of them
    nearest = against.detach().amax(1)
    total = against.logsumexp(1)
    rows = torch.stack([(q * k).sum(1) / temperature for k in positives])        # (P, B)
    return (torch.logaddexp(rows, total) - rows).mean(), (rows > nearest).to(q.dtype).mean()


def intra_loss(q: Tensor, same: Tensor, others: Sequence[Tensor], temperature: float) -> Tensor:
    """2-way softmaxes between k1, the query's own clip, and each other clip of its video: mean of the rows.

    q, same: (B, D); others: k2 and k3, (B, D) each.
    """
    near = (q * same).sum(1)
    return torch.stack([F.softplus(((q * k).sum(1) - near) / temperature) for k in others]).mean()


def order_loss(logits: Tensor, order: Tensor) -> Tensor:
    """Is the query before (0) or after (1) the pair (k2, k3)? logits: (B, 2); order: (B,) int64."""
    return F.cross_entropy(logits, order)


@torch.no_grad()
def in_batch_accuracy(q: Tensor, keys: Tensor, first: int = 0) -> Tensor:
    """Share of queries nearer to their own key than to any other of the batch (docs/method.md 1.3).

    q: (B, D) of this rank; keys: (W * B, D), the k1 of the global batch; the key of query i is keys[first + i].
    Unlike the accuracy over the queue it cannot rise because the positive is merely the newest key.
    """
    own = torch.arange(first, first + len(q), device=q.device)
    return ((q @ keys.T).argmax(1) == own).to(q.dtype).mean()
