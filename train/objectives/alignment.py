"""Motion alignment loss, MAL (MCL section 3.3, Eqs. 4-7; docs/method.md 1.4).

B queries, C channels and T'xh'xw' positions of h, M the aligned map, m the target.
"""

from functools import partial

import torch
from torch import Tensor

from shared.cli import RequestError
from shared.recipes.pretraining import Alignment
from shared.saliency import aligned_map

TERMS = "st", "s", "t"


def aligns(settings: Alignment) -> bool:
    """Whether the settings ask for any alignment at all."""
    return settings.variant != "none" and settings.weight > 0 and any(getattr(settings, term) for term in TERMS)


def motion_alignment(similarity: Tensor, h: Tensor, target: Tensor, settings: Alignment) -> dict[str, Tensor]:
    """MAL of the queries and what is logged of it.

    similarity: () sum over the batch of q . k1, unscaled, the key detached. h: (B, C, T', h', w') float32 or float64,
    that tensor from which the similarity was computed. target: (B, T', h', w') ST-motion >= 0, px/frame per px.
    Returns `mal` (mean over the batch of the switched terms' sum, unweighted), `mal_st`, `mal_s`, `mal_t` where
    switched on, and `dead_maps`, `zero_targets`: clips whose map or target is zero everywhere. Such a target costs
    nothing; such a map costs what an orthogonal one costs.
    Raises RequestError where the part behind h was compiled, or where the target is of another shape.
    """
    if target.shape != (len(h), *h.shape[2:]):
        raise RequestError(f"motion target of shape {tuple(target.shape)}; expected {(len(h), *h.shape[2:])}, the "
                           "positions of h; use Backbone.h_shape for the target's shape")
    gradient = None if settings.variant == "v1" else gradient_maps(similarity, h)
    aligned = aligned_map(settings.variant, h, gradient, settings.weights_per_step)
    if not aligned.requires_grad:
        raise RuntimeError("the aligned map has no gradient, so MAL would train nothing (create_graph lost)")
    moving = ~_zero(target.flatten(1))
    costs = {term: torch.where(moving, cost, 0) for term, cost in alignment_costs(aligned, target, settings).items()}
    logs = {f"mal_{term}": cost.mean() for term, cost in costs.items()}
    with torch.no_grad():
        counts = {"dead_maps": _zero(aligned.flatten(1)).sum(), "zero_targets": (~moving).sum()}
    return {"mal": torch.stack(list(logs.values())).sum(), **logs, **counts}


def gradient_maps(similarity: Tensor, h: Tensor) -> Tensor:
    """g = d(q . k+)/dh (above Eq. 5), (B, C, T', h', w'), itself differentiable.

    Raises RequestError where anything between h and the similarity was compiled: torch.compile gives no second
    derivative.
    """
    if (name := compiled_between(similarity, h)) is not None:
        raise RequestError(f"the alignment loss differentiates the part behind h twice, and {name} is compiled, which "
                           "has no second derivative; compile Backbone.body alone (compile=true does)")
    return torch.autograd.grad(similarity, h, create_graph=True)[0]


def compiled_between(similarity: Tensor, h: Tensor) -> str | None:
    """The name of a compiled node of the graph that leads from the similarity to h, or None.

    Where h and what was made of it left one compiled function together, no edge leads to h.
    """
    edge = torch.autograd.graph.get_gradient_edge(h)
    todo, seen, reached = [similarity.grad_fn], {edge.node}, False
    while todo:
        for node, output in todo.pop().next_functions:
            reached |= node is edge.node and output == edge.output_nr
            if node is None or node in seen:
                continue
            if "CompiledFunction" in node.name():
                return node.name()
            seen.add(node)
            todo.append(node)
    return edge.node.name() if not reached and "CompiledFunction" in edge.node.name() else None


def alignment_costs(aligned: Tensor, target: Tensor, settings: Alignment) -> dict[str, Tensor]:
    """Cost (B,) of each switched term, by the settings' form (Eq. 7; docs/method.md 1.4). Zero targets: the caller.

    renormalised: pooled maps are normalised, each term is 2 - 2 cos. literal: the normalised ST map is pooled and not
    normalised again. released: 1 - cos, and the ST term time step by time step, weighted by a softmax over the steps of
    the target's sum times `softmax_scale` (153 puts our target into the units of the release).
    """
    if settings.form == "literal":
        cost = literal_cost
    elif settings.form == "released":
        cost = partial(released_cost, scale=settings.softmax_scale)
    else:
        cost = renormalised_cost
    return {term: cost(term, aligned, target) for term in TERMS if getattr(settings, term)}


def pooled(term: str, maps: Tensor) -> Tensor:
    """(B, T', h', w') -> (B, n): all of it (st), its mean over time (s), its mean over space (t) (Eq. 2)."""
    if term == "st":
        return maps.flatten(1)
    return maps.mean(1).flatten(1) if term == "s" else maps.mean((2, 3))


def renormalised_cost(term: str, aligned: Tensor, target: Tensor) -> Tensor:
    return 2 * (1 - cosine(pooled(term, aligned), pooled(term, target)))


def literal_cost(term: str, aligned: Tensor, target: Tensor) -> Tensor:
    direction, dead = unit(aligned.flatten(1))
    difference = pooled(term, direction.view_as(aligned)) - unit(pooled(term, target))[0]
    # A pooled unit map has at most the squared length 1/T' (s) or 1/(h'w') (t): so much an orthogonal one costs.
    length = {"st": 1, "s": 1 / aligned.shape[1], "t": 1 / aligned[0, 0].numel()}[term]
    return torch.where(dead, 1 + length, difference.square().sum(1))


def released_cost(term: str, aligned: Tensor, target: Tensor, scale: float) -> Tensor:
    if term != "st":
        return 1 - cosine(pooled(term, aligned), pooled(term, target))
    steps = target.flatten(2)                                                    # (B, T', h'w')
    share = torch.softmax(scale * steps.sum(2), 1)
    cost = 1 - cosine(aligned.flatten(2).flatten(0, 1), steps.flatten(0, 1)).view_as(share)
    return (share * torch.where(_zero(steps), 0, cost)).sum(1)                   # a still step has no direction either


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(..., n) each -> (...): 0 where either is zero everywhere, and no gradient there."""
    (a, dead), (b, _) = unit(a), unit(b)
    return torch.where(dead, 0, (a * b).sum(-1))


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., n) -> x over its L2 norm, and (...,) where it is zero everywhere (there it stays zero, without NaN).

    Any scale is taken: x is first divided by its largest magnitude, which the norm cancels, so that it is a constant to
    the gradient. Products of two gradients are so small that their squares would vanish in float32.
    """
    largest = x.detach().abs().amax(-1, keepdim=True)
    dead = largest == 0
    x = x / torch.where(dead, 1, largest)
    squares = x.square().sum(-1, keepdim=True)
    return x / torch.where(dead, 1, squares).sqrt(), dead.squeeze(-1)


def _zero(x: Tensor) -> Tensor:
    """(..., n) -> (...,) bool."""
    return (x == 0).all(-1)
