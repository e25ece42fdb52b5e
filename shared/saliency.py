"""Grad-CAM of a video network at h, the output of its last convolution (METHOD 1.7, Fig. 4 of MCL).

B clips, C channels and T'xh'xw' positions of h, D = 128. Pure torch; nothing here draws.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def grad_cam(h: Tensor, score: Tensor) -> Tensor:
    """ReLU(sum_c w_c h_c), w_c the mean over positions of d(score)/dh_c (Selvaraju et al. 2017, in three dimensions).

    h: (B, C, T', h', w'), part of the graph of score: (), the sum over the batch.
    Returns (B, T', h', w') float >= 0, detached.
    """
    gradient, = torch.autograd.grad(score, h)
    return torch.relu((gradient.mean((2, 3, 4), keepdim=True) * h).sum(1)).detach()


def similarity_cam(backbone: nn.Module, project: Callable[[Tensor], Tensor], query: Tensor, key: Tensor) -> Tensor:
    """3D Grad-CAM of the similarity q . k, pooled over time: what of the query's clip makes it like the key.

    backbone: shared.nn's, with body and tail; project: the head, (B, features) -> (B, D). query: (B, 3, L, S, S)
    float32; key: (B, D), of length 1. Runs in eval mode, so that no clip sees another and no BN statistic moves.
    Returns (B, h', w') float >= 0, detached.
    """
    training = backbone.training
    backbone.eval()
    try:
        with torch.enable_grad():
            h, rest = backbone.body(query)
            h = h.to(query.dtype).detach().requires_grad_()
            rest = rest.to(query.dtype).detach() if isinstance(rest, Tensor) else rest
            q = F.normalize(project(backbone.tail(h, rest)), dim=1)
            return grad_cam(h, (q * key).sum()).mean(1)
    finally:
        backbone.train(training)


def normalised(maps: Tensor) -> Tensor:
    """(B, h, w) -> the same over each map's largest value, in [0, 1]; a zero map stays zero. For display."""
    largest = maps.flatten(1).amax(1).clamp_min(torch.finfo(maps.dtype).tiny)
    return maps / largest[:, None, None]
