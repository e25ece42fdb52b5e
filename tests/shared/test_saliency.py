"""Grad-CAM against its definition in plain loops, and what it must not do."""

import pytest
import torch
from torch.nn import functional as F

from shared.nn.backbones import build_backbone
from shared.nn.heads import Projection
from shared.saliency import grad_cam, normalised, similarity_cam


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build_backbone("r2plus1d_tiny", 4).double(), Projection(32, 12, 8).double()


def test_against_the_definition():
    torch.manual_seed(1)
    h, weight = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64).requires_grad_(), torch.randn(2, 3, 2, 4, 5).double()
    gradient, = torch.autograd.grad((weight * h.square()).sum(), h)
    assert torch.allclose(gradient, 2 * weight * h.detach())
    h = h.detach()
    cam = grad_cam(h, gradient)
    for b in range(2):
        for t in range(2):
            for y in range(4):
                for x in range(5):
                    value = sum(gradient[b, c].mean() * h[b, c, t, y, x].item() for c in range(3))
                    assert cam[b, t, y, x].item() == pytest.approx(max(0.0, value.item()))


def test_of_a_similarity(net):
    backbone, head = net
    head = Projection(backbone.features, 12, 8).double()
    backbone.train()
    running = {name: value.clone() for name, value in backbone.named_buffers()}
    query = torch.randn(2, 3, 8, 24, 24, dtype=torch.float64)
    key = F.normalize(torch.randn(2, 8, dtype=torch.float64), dim=1)
    with torch.no_grad():                     # as it is called where nothing is trained
        cam = similarity_cam(backbone, head, query, key)
    _, steps, *cells = backbone.h_shape(8, 24)
    assert cam.shape == (2, *cells) and cam.min() >= 0 and steps > 1
    assert backbone.training and all(p.grad is None for p in (*backbone.parameters(), *head.parameters()))
    assert all(torch.equal(value, running[name]) for name, value in backbone.named_buffers())
    # In eval mode a clip's map does not depend on its companions.
    alone = similarity_cam(backbone, head, query[:1], key[:1])
    assert torch.allclose(cam[:1], alone, rtol=1e-4)
    # A key of the opposite sign wants what this one does not.
    assert not torch.allclose(similarity_cam(backbone, head, query, -key), cam)


def test_normalised_for_display():
    maps = torch.tensor([[[0.0, 2.0]], [[0.0, 0.0]]])
    assert normalised(maps).tolist() == [[[0, 1]], [[0, 0]]]
