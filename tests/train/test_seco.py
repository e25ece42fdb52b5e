"""Inter, intra and order against plain loops in float64: values, gradients, and the accuracies beside them."""

import math

import pytest
import torch
from torch.nn import functional as F

from train.objectives.seco import in_batch_accuracy, inter_loss, intra_loss, order_loss

TAU = 0.1


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


@pytest.fixture
def vectors():
    """q (4, 6), k1, k2, k3 (4, 6) each, queue (9, 6): length 1, float64; q is near k1, or a two-way softmax of
    differences 20 temperatures wide would be flat to finite differences."""
    rng = torch.Generator().manual_seed(1)
    q, *keys = F.normalize(torch.randn(4, 4, 6, generator=rng, dtype=torch.float64), dim=2)
    keys[0] = F.normalize(q + 0.3 * keys[0], dim=1)
    keys[1] = F.normalize(q + 0.5 * keys[1], dim=1)
    queue = torch.randn(9, 6, generator=rng, dtype=torch.float64)
    queue[:2] = q[:2] + 0.1 * queue[:2]                                           # nearer than the positives
    return q, keys, F.normalize(queue, dim=1)


def info_nce(q, positives, negatives, excluded=None):
    """Eq. 3 row by row, with lists of floats; the share of rows won."""
    rows, won = [], 0
    for positive in positives:
        for i, (query, key) in enumerate(zip(q.tolist(), positive.tolist())):
            others = [dot(query, n) / TAU for j, n in enumerate(negatives.tolist())
                      if excluded is None or not excluded[i][j]]
            own = dot(query, key) / TAU
            rows.append(-math.log(math.exp(own) / (math.exp(own) + sum(map(math.exp, others)))))
            won += all(own > s for s in others)
    return sum(rows) / len(rows), won / len(rows)


@pytest.mark.parametrize("count", [1, 3])
def test_inter_equals_the_loops(count, vectors):
    q, keys, queue = vectors
    loss, accuracy = inter_loss(q, keys[:count], queue, TAU)
    assert (loss.item(), accuracy.item()) == pytest.approx(info_nce(q, keys[:count], queue))
    assert 0 < accuracy < 1


def test_excluded_negatives_do_not_count(vectors):
    q, keys, queue = vectors
    excluded = torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    excluded[2] = True                                                            # a query without any negative
    loss, accuracy = inter_loss(q, keys, queue, TAU, excluded)
    assert (loss.item(), accuracy.item()) == pytest.approx(info_nce(q, keys, queue, excluded.tolist()))
    q = q.clone().requires_grad_()
    gradient = torch.autograd.grad(inter_loss(q, keys, queue, TAU, excluded)[0], q)[0]
    assert gradient.isfinite().all() and not gradient[2].any() and gradient[0].any()


def test_large_logits_do_not_overflow(vectors):
    q, keys, queue = (x.float() if isinstance(x, torch.Tensor) else [k.float() for k in x] for x in vectors)
    loss, _ = inter_loss(q, [-q], torch.cat([queue, q]), 1e-3)
    assert loss.item() == pytest.approx(2000, rel=1e-3)                           # positive at -1, a negative at 1


def test_intra_equals_the_loops(vectors):
    q, (same, *others), _ = vectors
    rows = []
    for other in others:
        for query, k1, k in zip(q.tolist(), same.tolist(), other.tolist()):
            good, bad = math.exp(dot(query, k1) / TAU), math.exp(dot(query, k) / TAU)
            rows.append(-math.log(good / (good + bad)))
    assert intra_loss(q, same, others, TAU).item() == pytest.approx(sum(rows) / len(rows))


def test_order_is_the_cross_entropy_of_the_true_side():
    logits = torch.tensor([[1.0, 3.0], [2.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(3)) + math.log(2)) / 3
    assert order_loss(logits, torch.tensor([1, 1, 0])).item() == pytest.approx(expected)


def test_gradients_pass_gradcheck(vectors):
    q, keys, queue = vectors
    q = q.requires_grad_()
    excluded = torch.arange(36).view(4, 9) % 4 == 0
    assert torch.autograd.gradcheck(lambda q: inter_loss(q, keys, queue, TAU, excluded)[0], q)
    assert torch.autograd.gradcheck(lambda q: intra_loss(q, keys[0], keys[1:], TAU), q)
    logits = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: order_loss(x, torch.tensor([0, 1, 1, 0, 1])), logits)


def test_in_batch_accuracy_looks_for_the_own_key_of_the_global_batch():
    keys = torch.eye(6)
    q = torch.stack([keys[2], keys[3], keys[0]])                                  # ranks hold rows 0-2 and 3-5
    assert in_batch_accuracy(q, keys, first=2) == pytest.approx(2 / 3)
    assert in_batch_accuracy(q, keys, first=3) == 0
    assert in_batch_accuracy(torch.ones(3, 6), torch.ones(6, 6), first=3) == 0    # a collapsed net finds nothing


@pytest.mark.gpu
def test_losses_on_the_gpu_are_the_cpus(gpu, vectors):
    excluded = torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    logits, order = vectors[0][:, :2], torch.tensor([0, 1, 1, 0])

    def losses(device):
        q, *keys, queue, out, two, turns = (one.to(device) for one in (vectors[0], *vectors[1], vectors[2], excluded,
                                                                       logits, order))
        return [*inter_loss(q, keys, queue, TAU, out), *inter_loss(q, keys[:1], queue, TAU),
                intra_loss(q, keys[0], keys[1:], TAU), order_loss(two, turns), in_batch_accuracy(q, keys[0])]
    for one, other in zip(losses("cpu"), losses(gpu)):
        torch.testing.assert_close(torch.as_tensor(other).cpu(), torch.as_tensor(one), rtol=1e-9, atol=1e-12)
