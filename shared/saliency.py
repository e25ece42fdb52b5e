"""What a video network looks at, at h, the output of its last convolution: Grad-CAM and the aligned map of MCL.

B clips, C channels and T'xh'xw' positions of h, D = 128. Pure torch; nothing here draws. docs/method.md 1.4, 1.7.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def differentiate(backbone: nn.Module, clips: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """h of the clips and g = d(score)/dh, both (B, C, T', h', w'), detached.

    backbone: shared.nn's, in the mode that it is in; clips: (B, 3, L, S, S) float32 or float64; score: the pooled
    features (B, C) -> (), the sum over the clips. Only what follows h is differentiated.
    """
    with torch.no_grad():
        h, rest = backbone.body(clips)
    with torch.enable_grad():
        h = h.to(clips.dtype).requires_grad_()
        rest = rest.to(clips.dtype) if isinstance(rest, Tensor) else rest
        gradient, = torch.autograd.grad(score(backbone.tail(h, rest)), h)
    return h.detach(), gradient


def grad_cam(h: Tensor, gradient: Tensor) -> Tensor:
    """ReLU(sum_c w_c h_c), w_c the mean of g_c over its positions (Selvaraju et al. 2017, in three dimensions).

    h, gradient: (B, C, T', h', w'), the latter d(score)/dh of a score that is a sum over the batch.
    Returns (B, T', h', w') >= 0.
    """
    return aligned_map("v2", h, gradient)


def aligned_map(variant: str, h: Tensor, gradient: Tensor | None, per_step: bool = False) -> Tensor:
    """M (B, T', h', w'): v1 sum_c h_c (Eq. 4, signed), v2 ReLU(sum_c w_c h_c) (Eq. 5), v3 ReLU(sum_c w_c g_c) (Eq. 6).

    gradient: g, not used by v1. w_c is the mean of g_c over its positions, or over those of each time step (`per_step`,
    released code).
    """
    if variant == "v1":
        return h.sum(1)
    weights = gradient.mean((3, 4) if per_step else (2, 3, 4), keepdim=True)     # (B, C, T' or 1, 1, 1)
    return torch.relu((weights * (h if variant == "v2" else gradient)).sum(1))


def similarity_cam(backbone: nn.Module, project: Callable[[Tensor], Tensor], query: Tensor, key: Tensor) -> Tensor:
    """3D Grad-CAM of the similarity q . k, pooled over time: what of the query's clip makes it like the key.

    backbone: shared.nn's, with body and tail; project: the head, (B, features) -> (B, D). query: (B, 3, L, S, S)
    float32; key: (B, D), of length 1. Runs in eval mode, so that no clip sees another and no BN statistic moves.
    Returns (B, h', w') float >= 0, detached.
    """
    training = backbone.training
    backbone.eval()
    try:
        h, gradient = differentiate(backbone, query, similarity(project, key))
        return grad_cam(h, gradient).mean(1)
    finally:
        backbone.train(training)


def similarity(project: Callable[[Tensor], Tensor], key: Tensor) -> Callable[[Tensor], Tensor]:
    """The score q . k summed over the batch, as a function of the pooled features (B, C); key: (B, D) of length 1."""
    return lambda features: (F.normalize(project(features), dim=1) * key).sum()


def normalised(maps: Tensor) -> Tensor:
    """(B, h, w) -> the same over each map's largest value, in [0, 1]; a zero map stays zero. For display."""
    largest = maps.flatten(1).amax(1).clamp_min(torch.finfo(maps.dtype).tiny)
    return maps / largest[:, None, None]
