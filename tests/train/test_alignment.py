"""MAL against plain loops in float64, at its edges (still targets, dead maps, tiny gradients), at h and elsewhere."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from shared.cli import RequestError
from shared.recipes.pretraining import Alignment
from train.moco import SMOOTH
from train.objectives.alignment import TERMS, aligned_map, alignment_costs, gradient_maps, motion_alignment, unit

FORMS = "renormalised", "literal", "released"
DEFAULT = Alignment(variant="v3", st=True, s=True, t=True, form="renormalised", weight=1.0, weights_per_step=False,
                    double_epochs=0, layer="conv")


def adapted(**changes) -> Alignment:
    return dataclasses.replace(DEFAULT, **changes)


def total_cost(aligned, target, settings) -> torch.Tensor:
    return torch.stack(list(alignment_costs(aligned, target, settings).values())).sum()


def oracle(aligned: list, target: list, form: str) -> dict[str, float]:
    """Costs of one clip from nested lists [t][y][x], by docs/method.md 1.4; the target moves, the map lives."""
    steps, rows, columns = len(aligned), len(aligned[0]), len(aligned[0][0])
    cells = list(itertools.product(range(rows), range(columns)))

    def flat(maps):
        return [maps[t][y][x] for t in range(steps) for y, x in cells]

    def over_time(maps):
        return [sum(maps[t][y][x] for t in range(steps)) / steps for y, x in cells]

    def over_space(maps):
        return [sum(maps[t][y][x] for y, x in cells) / len(cells) for t in range(steps)]

    def normalised(values):
        length = math.sqrt(sum(v * v for v in values))
        return [v / length for v in values] if length else values

    def squared(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b))

    pools = {"st": flat, "s": over_time, "t": over_space}
    if form == "renormalised":
        return {k: squared(normalised(p(aligned)), normalised(p(target))) for k, p in pools.items()}
    if form == "literal":
        unit_map = iter(normalised(flat(aligned)))
        unit_map = [[[next(unit_map) for _ in range(columns)] for _ in range(rows)] for _ in range(steps)]
        return {k: squared(p(unit_map), normalised(p(target))) for k, p in pools.items()}
    costs = {k: 1 - sum(a * b for a, b in zip(normalised(p(aligned)), normalised(p(target)))) for k, p in pools.items()}
    weights = [math.exp(sum(target[t][y][x] for y, x in cells)) for t in range(steps)]
    costs["st"] = 0
    for t in range(steps):
        a, b = (normalised([maps[t][y][x] for y, x in cells]) for maps in (aligned, target))
        if any(b):
            costs["st"] += weights[t] / sum(weights) * (1 - sum(x * y for x, y in zip(a, b)))
    return costs


@pytest.mark.parametrize("form", FORMS)
def test_costs_equal_the_loops(form):
    rng = torch.Generator().manual_seed(1)
    aligned = torch.rand(6, 3, 4, 2, generator=rng, dtype=torch.float64) - 0.3
    aligned[0] = aligned[0].relu()
    target = torch.rand(6, 3, 4, 2, generator=rng, dtype=torch.float64).square()
    aligned[1, 2] = 0                                                             # a dead time step, a still one
    target[2, 0] = 0
    found = alignment_costs(aligned, target, adapted(form=form))
    for i in range(6):
        expected = oracle(aligned[i].tolist(), target[i].tolist(), form)
        for term in TERMS:
            assert float(found[term][i]) == pytest.approx(expected[term], abs=1e-12), (i, term)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("term", TERMS)
def test_costs_pass_gradcheck(form, term):
    rng = torch.Generator().manual_seed(2)
    aligned = torch.rand(2, 2, 3, 2, generator=rng, dtype=torch.float64).add(0.1).requires_grad_()
    target = torch.rand(2, 2, 3, 2, generator=rng, dtype=torch.float64)
    only = adapted(form=form, **{other: other == term for other in TERMS})
    assert torch.autograd.gradcheck(lambda m: total_cost(m, target, only), aligned)
    assert torch.autograd.gradgradcheck(lambda m: total_cost(m, target, only), aligned)


def test_literal_pools_without_normalising_again():
    """docs/method.md 1.4: Eq. 7 to the letter shrinks the pooled maps, so that even a perfect map costs something."""
    target = torch.rand(1, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    costs = {form: alignment_costs(target, target, adapted(form=form)) for form in FORMS}
    assert all(float(cost) == pytest.approx(0, abs=1e-12) for form in ("renormalised", "released")
               for cost in costs[form].values())
    assert float(costs["literal"]["st"]) == pytest.approx(0, abs=1e-12)
    assert costs["literal"]["s"] > 0.1 and costs["literal"]["t"] > 0.1


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-25, 15), st.floats(-6, 6), st.sampled_from(["renormalised", "literal"]))
def test_costs_do_not_depend_on_scale(seed, map_scale, target_scale, form):
    """In float32, down to maps whose squares no float32 holds."""
    rng = torch.Generator().manual_seed(seed)
    aligned = torch.rand(2, 2, 3, 3, generator=rng) + 0.01
    target = torch.rand(2, 2, 3, 3, generator=rng) + 0.01
    plain = alignment_costs(aligned, target, adapted(form=form))
    scaled = alignment_costs(aligned * 10**map_scale, target * 10**target_scale, adapted(form=form))
    for term in TERMS:
        torch.testing.assert_close(scaled[term], plain[term], rtol=1e-4, atol=1e-5)
        assert (plain[term] >= -1e-6).all() and (plain[term] <= 4 + 1e-6).all()


class Tail(nn.Module):
    """What follows h in a residual net, small: BN over all clips, shortcut, ReLU, pool, head; q of length 1."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn, self.head = nn.BatchNorm3d(channels), nn.Linear(channels, 4)

    def forward(self, h, rest):
        return nn.functional.normalize(self.head((self.bn(h) + rest).relu().mean((2, 3, 4))), dim=1)

    def similarity(self, h, rest, k):
        return (self(h, rest) * k).sum()


@pytest.fixture
def tail():
    """(tail, h (3, 5, 2, 2, 3), rest, k, target) in float64."""
    torch.manual_seed(3)
    module = Tail(5).double()
    with torch.no_grad():
        module.bn.weight.uniform_(0.5, 2)
        module.bn.bias.uniform_(-0.5, 0.5)
    h, rest = torch.randn(2, 3, 5, 2, 2, 3, dtype=torch.float64)
    k = nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    return module, h, rest, k, torch.rand(3, 2, 2, 3, dtype=torch.float64)


def test_gradient_maps_equal_finite_differences(tail):
    module, h, rest, k, _ = tail
    h.requires_grad_()
    found = gradient_maps(module.similarity(h * 1, rest, k), h).detach()
    flat, step, expected = h.detach().clone().flatten(), 1e-6, []
    for i in range(flat.numel()):
        values = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[i] += sign * step
            values.append(module.similarity(moved.view_as(h), rest, k).item())
        expected.append((values[0] - values[1]) / (2 * step))
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variant", ["v1", "v2", "v3"])
@pytest.mark.parametrize("per_step", [False, True])
def test_aligned_maps_equal_the_loops(variant, per_step):
    h, g = torch.randn(2, 2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = aligned_map(variant, h, g, per_step)
    for b, t, y, x in itertools.product(range(2), range(3), range(2), range(2)):
        expected = 0.0
        for c in range(4):
            cells = [(t, j, i) for j in range(2) for i in range(2)] if per_step else \
                list(itertools.product(range(3), range(2), range(2)))
            w = sum(float(g[b, c, s, j, i]) for s, j, i in cells) / len(cells)
            expected += {"v1": float(h[b, c, t, y, x]), "v2": w * float(h[b, c, t, y, x]),
                         "v3": w * float(g[b, c, t, y, x])}[variant]
        assert float(found[b, t, y, x]) == pytest.approx(expected if variant == "v1" else max(0, expected), abs=1e-12)


@pytest.mark.parametrize("variant", ["v1", "v2", "v3"])
@pytest.mark.parametrize("form", FORMS)
def test_mal_passes_gradcheck_through_the_tail(variant, form, tail):
    """Finite differences of the whole loss in h, the shortcut and the tail's weights: the double backward is right."""
    module, h, rest, k, target = tail

    def loss(h, rest, gain, weight):
        q = torch.func.functional_call(module, {"bn.weight": gain, "head.weight": weight}, (h, rest))
        return motion_alignment((q * k).sum(), h, target, adapted(variant=variant, form=form))["mal"]

    inputs = [x.clone().requires_grad_() for x in (h, rest, module.bn.weight.detach(), module.head.weight.detach())]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_a_still_target_costs_nothing_and_gives_no_nan(tail):
    module, h, rest, k, target = tail
    for variant, form in itertools.product(("v1", "v2", "v3"), FORMS):
        h = h.detach().requires_grad_()
        out = motion_alignment(module.similarity(h, rest, k), h, target * 0, adapted(variant=variant, form=form))
        assert (out["mal"].item(), int(out["zero_targets"])) == (0, 3)
        assert torch.equal(torch.autograd.grad(out["mal"], h)[0], torch.zeros_like(h))
        some = target.clone()
        some[1] = 0
        h = h.detach().requires_grad_()
        out = motion_alignment(module.similarity(h, rest, k), h, some, adapted(variant=variant, form=form))
        assert int(out["zero_targets"]) == 1 and out["mal"].item() > 0
        assert torch.autograd.grad(out["mal"], h)[0].isfinite().all()


@pytest.mark.parametrize("form, each", [("renormalised", (2, 2, 2)), ("literal", (2, 1 + 1 / 4, 1 + 1 / 9)),
                                        ("released", (1, 1, 1))])
def test_a_dead_map_costs_what_an_orthogonal_one_costs(form, each):
    left, early = torch.zeros(2, 1, 4, 3, 3, dtype=torch.float64)                 # targets; the rest is orthogonal
    left[..., :2], early[:, :3] = 1, 1
    right, late = 1 - left, 1 - early
    right[:, 0] = 0 if form == "renormalised" else right[:, 0]                    # there any orthogonal map costs 2
    for term, expected, target, orthogonal in zip(TERMS, each, (left, left, early), (right, right, late)):
        dead = torch.zeros_like(target, requires_grad=True)
        cost = alignment_costs(dead, target, adapted(form=form))[term]
        assert cost.item() == pytest.approx(expected)
        assert torch.equal(torch.autograd.grad(cost, dead)[0], torch.zeros_like(dead))
        assert (alignment_costs(orthogonal, target, adapted(form=form))[term]).item() == pytest.approx(expected)


def test_dead_maps_are_counted():
    """v2 of features that are negative wherever their channel counts: the ReLU leaves nothing."""
    h = (-torch.rand(3, 5, 2, 2, 3)).requires_grad_()
    similarity = (h * 1).sum()                                                    # g = 1, w = 1, sum_c h_c < 0
    out = motion_alignment(similarity, h, torch.rand(3, 2, 2, 3), adapted(variant="v2"))
    assert int(out["dead_maps"]) == 3 and out["mal"].item() == pytest.approx(6)


def test_nan_is_not_taken_for_a_dead_map():
    out = alignment_costs(torch.full((1, 2, 2, 2), float("nan")), torch.ones(1, 2, 2, 2), DEFAULT)
    assert all(cost.isnan().all() for cost in out.values())


def test_unit_of_values_whose_squares_vanish():
    direction, dead = unit(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
    torch.testing.assert_close(direction, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert dead.tolist() == [False, True]


def test_a_map_without_gradient_is_an_error(tail):
    module, h, rest, k, target = tail
    with pytest.raises(RuntimeError, match="would train nothing"):
        motion_alignment(module.similarity(h, rest, k), h, target, adapted(variant="v1"))


def test_a_target_of_another_shape_is_refused(tail):
    module, h, rest, k, target = tail
    with pytest.raises(RequestError, match=r"shape \(3, 2, 3, 2\); expected \(3, 2, 2, 3\)"):
        motion_alignment(module.similarity(h.requires_grad_(), rest, k), h, target.transpose(2, 3), DEFAULT)


@pytest.mark.slow
def test_a_compiled_tail_is_refused(tail):
    """Alone, with the head behind it, or together with what made h; a compiled body is none of these."""
    module, h, rest, k, target = tail
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)

    def body(h):
        return torch.tanh(h * gain)

    def whole(h):
        return module(body(h), rest), body(h)

    def mal(q, h):
        return motion_alignment((q * k).sum(), h, target, DEFAULT)["mal"]
    with pytest.raises(RequestError, match="compile Backbone.body alone"):
        mal(torch.compile(module, backend="aot_eager")(made := body(h), rest), made)
    with pytest.raises(RequestError, match="compile Backbone.body alone"):
        mal(*torch.compile(whole, backend="aot_eager")(h))
    expected = mal(module(made := body(h), rest), made)
    made = torch.compile(body, backend="aot_eager")(h)
    found = mal(module(made, rest), made)
    gradients = [torch.autograd.grad(loss, gain)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert abs(gradients[0]) > 1e-3


@pytest.fixture(scope="module")
def encode(make_recipe, make_learner):
    """encode(layer) -> similarity, the tensor to align, target: a tiny net in train mode, float64, one BN group."""
    def encode(layer):
        recipe = make_recipe({"model.width": 6, "sampling.size": 48, "contrast.bn": "none"})
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(8, 3, 8, 48, 48, generator=rng, dtype=torch.float64)
        k = nn.functional.normalize(torch.randn(8, 8, generator=rng, dtype=torch.float64), dim=1)
        q, aligned = make_learner(recipe).query(x, ["inter"], layer)
        target = torch.rand(8, *aligned.shape[2:], generator=rng, dtype=torch.float64) ** 3
        return (q["inter"] * k).sum(), aligned, target
    return encode


def test_the_gradient_varies_over_positions_at_h(encode):
    """docs/method.md 1.4: in train mode, before the last BN, over the positions that the ReLU lets through."""
    similarity, h, target = encode("conv")
    g = gradient_maps(similarity, h)
    gradient = torch.autograd.grad(motion_alignment(similarity, h, target, DEFAULT)["mal"], h)[0]
    active = (g.abs() > g.abs().amax((2, 3, 4), keepdim=True) / 2).flatten(2)
    spreads = torch.stack([values[let].std() / values[let].abs().mean() for values, let in
                           zip(gradient.flatten(2).flatten(0, 1), active.flatten(0, 1)) if let.sum() > 20])
    assert len(spreads) > 100 and spreads.median() > 0.05
    aligned = aligned_map("v3", h, g).flatten(1)
    assert (aligned.std(1) > 0.05 * aligned.mean(1)).all()


def test_a_smooth_last_relu_lets_v3_say_where_to_be_active(make_recipe, make_learner):
    """The share of dMAL/dh, in squares, that varies over positions that the ReLU lets through; keys near queries."""
    rng = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(8, *shape, generator=rng, dtype=torch.float64) for shape in ((3, 8, 48, 48), (8,)))

    def share(smooth):
        net = make_learner(make_recipe({"model.width": 6, "sampling.size": 48, "contrast.bn": "none"})).query
        embedded, h = net(x, ["inter"], "conv", smooth)
        q = embedded[SMOOTH if smooth else "inter"]
        k = nn.functional.normalize(q.detach() + 0.1 * noise, dim=1)
        target = torch.rand(8, *h.shape[2:], generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
        gradient, = torch.autograd.grad(motion_alignment((q * k).sum(), h, target, DEFAULT)["mal"], h)
        active = net.backbone.output(*net.backbone.body(x)) > 0
        mean = (gradient * active).sum((2, 3, 4), keepdim=True) / active.sum((2, 3, 4), keepdim=True).clamp(min=1)
        return (((gradient - mean) * active) ** 2).sum() / ((gradient * active) ** 2).sum()

    assert share(0.0) < 0.35 and share(10.0) > 0.7


def test_the_gradient_is_constant_at_the_block_output(encode):
    """There q sees a plain average: g, the aligned map and dMAL/dh are alike at every position, so v3 degenerates."""
    similarity, output, target = encode("output")
    g = gradient_maps(similarity, output)
    gradient = torch.autograd.grad(motion_alignment(similarity, output, target, DEFAULT)["mal"], output)[0]
    assert g.abs().max() > 0 and torch.equal(g, g[..., :1, :1, :1].expand_as(g))
    assert torch.equal(gradient, gradient[..., :1, :1, :1].expand_as(gradient))
    aligned = aligned_map("v3", output, g)
    torch.testing.assert_close(aligned, aligned[:, :1, :1, :1].expand_as(aligned), rtol=1e-12, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_costs_on_the_gpu_are_the_cpus(gpu, form):
    """In float32; among the clips one whose target is still and one whose map is dead."""
    rng = torch.Generator().manual_seed(4)
    aligned, target = torch.rand(2, 6, 3, 4, 2, generator=rng).square()
    aligned[1], target[2] = 0, 0
    found = {}
    for device in ("cpu", gpu):
        maps = aligned.to(device).requires_grad_()
        total_cost(maps, target.to(device), adapted(form=form)).backward()
        found[str(device)] = maps.grad.cpu(), alignment_costs(maps.detach(), target.to(device), adapted(form=form))
    for one, other in zip(found["cpu"][1].values(), found["cuda"][1].values()):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["cuda"][0], found["cpu"][0], rtol=1e-4, atol=1e-6)
