"""MaCLR's objective: L_vv + w (L_vm + L_mv), and L_mm by a switch (docs/method.md 2.2: our reconstruction).

B queries, W ranks, K keys of a queue, D = 128. Embeddings have length 1; keys carry no gradient.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from shared.recipes.pretraining import Pretraining
from train.objectives.seco import in_batch_accuracy, inter_loss

# term: the pathways of its query and of its key; its negatives lie in the queue of the key's pathway.
TERMS = {"vv": ("visual", "visual"), "vm": ("visual", "motion"), "mv": ("motion", "visual"), "mm": ("motion", "motion")}
PATHWAYS = "visual", "motion"


def term_weights(settings: Pretraining) -> dict[str, float]:
    """The weights of the terms that are on, in the order of TERMS."""
    maclr = settings.maclr
    weights = {"vv": settings.contrast.inter, "vm": maclr.cross_weight * maclr.vm, "mv": maclr.cross_weight * maclr.mv,
               "mm": float(maclr.mm)}
    return {term: weight for term, weight in weights.items() if weight > 0}


def term_heads(terms: Mapping[str, float], pathway: str, shared: bool) -> dict[str, str]:
    """The head of a pathway that each term reads, for those of the terms that involve the pathway.

    Within a pathway (vv, mm) it is `inter`, across the two (vm, mv) `cross`; a pathway that has only one of the two
    roles, or that shares one head between them, has `inter` alone.
    """
    mine = [term for term in TERMS if term in terms and pathway in TERMS[term]]
    across = {term for term in mine if len(set(TERMS[term])) > 1}
    apart = not shared and 0 < len(across) < len(mine)
    return {term: "cross" if apart and term in across else "inter" for term in mine}


def maclr_term(query: Tensor, key: Tensor, negatives: Tensor, gathered: Tensor, first: int, temperature: float,
               excluded: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """One InfoNCE term and its accuracies over the queue and within the batch.

    query, key: (B, D); negatives: (K, D), as they were before this step's keys; gathered: (W * B, D) keys of all ranks,
    of which this rank's begin at `first`; excluded: (B, K) bool, negatives that do not count.
    """
    loss, accuracy = inter_loss(query, [key], negatives, temperature, excluded)
    return loss, accuracy, in_batch_accuracy(query, gathered, first)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """L = L_vv + w (L_vm + L_mv) [+ L_mm] of the terms that are on."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
