"""Queue, EMA, shuffling and split BN, and whole steps of the learner against the oracle."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from shared.cli import RequestError
from shared.clips.views import Views
from shared.nn.distributed import World
from train.moco import KeyShuffle, Queue, momentum_twin, momentum_update


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {}, {"alignment.variant": "v1", "contrast.order": 0.5}, {"alignment.variant": "v2", "alignment.weight": 3.0},
    {"alignment.weights_per_step": True, "alignment.t": False, "alignment.double_epochs": 1},
    {"alignment.layer": "output", "alignment.variant": "v2"}, {"contrast.bn": "none", "alignment.st": False},
    {"alignment.variant": "none", "sampling.keys": 1, "contrast.intra": 0.0, "contrast.order": 0.0,
     "contrast.exclude_same_video": True},
    {"sampling.keys": 1, "contrast.intra": 0.0, "contrast.order": 0.0, "alignment.smooth": 10.0},
    {"model.backbone": "i2d", "sampling.clip": "1x1", "sampling.size": 64, "alignment.st": False, "alignment.t": False},
], ids=lambda settings: ",".join(f"{k.rpartition('.')[2]}={v}" for k, v in settings.items()) or "mcl")
def test_steps_equal_the_oracle(settings, make_recipe, make_learner, make_oracle, descend_beside):
    """Three steps of descent: every logged number, every gradient, the queue with its wrap, both encoders."""
    recipe = make_recipe(settings)
    learner = make_learner(recipe)
    oracle = make_oracle(learner, recipe, ranks=1)
    descend_beside(learner, oracle, recipe)
    torch.testing.assert_close(learner.queue.keys, torch.stack([vector for vector, _ in oracle.queue]))
    assert learner.queue.ids.tolist() == [id for _, id in oracle.queue]
    assert int(learner.queue.pointer) == oracle.pointer
    for p, twin in zip(learner.key.backbone.parameters(), oracle.nets.key.parameters()):
        torch.testing.assert_close(p, twin)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(1, 13), st.lists(st.integers(0, 13), max_size=8))
def test_the_queue_is_a_ring(size, arrivals):
    """Whatever arrives, the queue holds what a list would that is written round and round."""
    queue, ring, place, video = Queue(size, 2, seed=0), [(-1, None)] * size, 0, 0
    start = queue.keys.clone()
    for count in arrivals:
        keys = torch.arange(video, video + count).float()[:, None].repeat(1, 2)
        if count > size:
            with pytest.raises(ValueError, match=f"{count} keys for a queue of {size}"):
                queue.enqueue(keys, keys[:, 0].long())
            continue
        queue.enqueue(keys, keys[:, 0].long())
        for _ in range(count):
            ring[place], place, video = (video, float(video)), (place + 1) % size, video + 1
    assert queue.ids.tolist() == [id for id, _ in ring]
    assert int(queue.pointer) == place
    for row, first, (_, value) in zip(queue.keys, start, ring):
        assert row.tolist() == (first.tolist() if value is None else [value, value])


def test_the_queue_starts_with_random_directions_of_no_video():
    queue = Queue(50, 8, seed=1)
    assert (queue.ids == -1).all() and int(queue.pointer) == 0
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    assert torch.equal(queue.keys, Queue(50, 8, seed=1).keys)
    assert not torch.equal(queue.keys, Queue(50, 8, seed=2).keys)


def test_ema_moves_every_parameter_and_no_statistic():
    query = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    key = momentum_twin(query)
    assert not any(p.requires_grad for p in key.parameters())
    query(torch.randn(8, 3))
    with torch.no_grad():
        for p in query.parameters():
            p.add_(torch.randn_like(p))
    expected = [0.75 * k + 0.25 * q for k, q in zip(key.parameters(), query.parameters())]
    momentum_update(key, query, 0.75)
    for p, value in zip(key.parameters(), expected):
        torch.testing.assert_close(p.detach(), value.detach())
    assert torch.equal(key[1].running_mean, torch.zeros(4)) and not torch.equal(query[1].running_mean, torch.zeros(4))


def test_split_keys_meet_other_companions_than_their_queries():
    """Rows come back in their order, each normalised among the group that the permutation put it in."""
    shuffle = KeyShuffle.choose("auto", 4, 16, seed=7, world=World())
    assert (shuffle.mode, shuffle.group) == ("split", 4)
    x, seen = torch.arange(16.0)[:, None], []

    def encode(rows):
        seen.append(rows.flatten().long())
        groups = rows.view(4, 4, 1)
        return (groups - groups.mean(1, keepdim=True)).flatten(0, 1)
    for step, number in ((0, 0), (0, 1), (1, 0)):
        out = shuffle.encode(encode, x, step, number)
        members = seen[-1].view(4, 4)
        for row in range(16):
            group = members[(members == row).any(1)][0]
            assert out[row].item() == pytest.approx(row - group.float().mean().item())
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert not any(torch.equal(order, torch.arange(16)) for order in seen)
    plain = KeyShuffle.choose("none", 4, 16, seed=7, world=World())
    plain.encode(encode, x, 0, 0)
    assert torch.equal(seen[-1], torch.arange(16)) and plain.group == 16


def test_one_group_is_said_to_hide_nothing():
    assert "set a smaller bn_group" in KeyShuffle.choose("auto", 8, 8, seed=0, world=World()).note
    assert not KeyShuffle.choose("auto", 4, 8, seed=0, world=World()).note


def test_shuffling_is_the_choice_over_ranks():
    shuffle = KeyShuffle.choose("auto", 4, 8, seed=0, world=World(rank=1, size=2))
    assert (shuffle.mode, shuffle.group) == ("shuffle", 8)


@pytest.mark.parametrize("settings, ranks, said", [
    ({"contrast.bn": "split", "contrast.bn_group": 3}, 1, "batch of 8 .* no multiple of contrast.bn_group, which is 3"),
    ({"contrast.bn_group": 1}, 1, "bn_group is 1; .* expected 2 or more"),
    ({"contrast.bn": "shuffle"}, 1, "does nothing with one process; add --set bn=split or --set bn=none"),
    ({"contrast.bn": "slit"}, 1, "did you mean 'split'"),
    ({"contrast.bn": "none", "optimise.batch": 1}, 1, "one clip shares its BN statistics with no other"),
    ({"optimise.batch": 2}, 2, "one clip shares its BN statistics with no other"),
    ({"optimise.batch": 9}, 2, "optimise.batch is 9; expected a multiple of the 2 processes"),
    ({"optimise.batch": 1}, 2, "optimise.batch is 1; expected a multiple of the 2 processes"),
    ({"contrast.queue": 23}, 1, "contrast.queue is 23, but every step brings 3 x 8 keys"),
])
def test_settings_that_cannot_work_are_refused_in_one_line(settings, ranks, said, make_recipe, make_learner):
    with pytest.raises(RequestError, match=said) as refusal:
        make_learner(make_recipe(settings), World(size=ranks))
    assert "\n" not in str(refusal.value)


def test_one_clip_a_group_is_no_fault_without_channel_weights(make_recipe, make_learner):
    for variant in ("v1", "none"):
        make_learner(make_recipe({"contrast.bn": "none", "optimise.batch": 1, "alignment.variant": variant}))


def test_only_what_is_asked_for_is_built_and_logged(make_recipe, make_views, make_learner):
    recipe = make_recipe({"sampling.keys": 1, "contrast.intra": 0.0, "contrast.order": 0.0,
                          "alignment.variant": "none"})
    learner = make_learner(recipe)
    out = learner(make_views(recipe, 0), 0.0, 0)
    assert out.keys() == {"loss", "inter", "in_batch_accuracy", "queue_accuracy", "same_video_negatives"}
    assert list(learner.query.heads) == ["inter"] and learner.classifier is None
    assert out["loss"].requires_grad and not any(v.requires_grad for k, v in out.items() if k != "loss")


def test_the_alignment_counts_double_in_the_first_epochs(make_recipe, make_views, make_learner):
    recipe = make_recipe({"alignment.double_epochs": 2, "alignment.weight": 0.5})
    views, shares = make_views(recipe, 0), []
    for epoch in range(3):
        out = {k: v.item() for k, v in make_learner(recipe)(views, 0.25, epoch).items()}
        shares.append((out["loss"] - out["inter"] - out["intra"] - 0.25 * out["order"]) / out["mal"])
    assert shares == pytest.approx([1.0, 1.0, 0.5])


def test_a_learner_goes_on_from_its_state(make_recipe, make_views, make_learner):
    """Weights, twin, queue, pointer and the shuffles' step are all in the state dict: the next steps are the same."""
    recipe = make_recipe()
    first = make_learner(recipe)

    def descend(learner, steps):
        losses = []
        for step in steps:
            out = learner(make_views(recipe, step), step / 10, 0)
            learner.zero_grad()
            out["loss"].backward()
            losses.append(out["loss"].item())
            with torch.no_grad():
                for p in learner.parameters():
                    if p.requires_grad:
                        p -= 0.1 * p.grad
        return losses
    descend(first, range(2))
    state = {name: value.clone() for name, value in first.state_dict().items()}
    expected = descend(first, range(2, 4))
    second = make_learner(make_recipe({"optimise.seed": 5}))
    second.load_state_dict(state)
    assert descend(second, range(2, 4)) == expected


def test_nothing_but_the_body_is_compiled(make_recipe, make_learner):
    with pytest.raises(RequestError, match="only 'body' may be compiled"):
        make_learner(make_recipe()).compile("tail")


def test_bf16_stops_at_h(make_recipe, make_views, make_learner):
    """The body runs in bf16; h is cast once, and tail and heads are float32 whatever autocast is on outside."""
    learner = make_learner(make_recipe({"model.precision": "bf16"}), dtype=torch.float32)
    views = make_views(learner.settings, 0, torch.float32)
    body, tail = [], []
    backbone = learner.query.backbone
    backbone.stem.register_forward_hook(lambda _, inputs, out: body.append(out.dtype))
    learner.query.heads["inter"][0].register_forward_hook(lambda _, inputs, out: tail.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        q, aligned = learner.query(views.query, ["inter"])
        assert (q["inter"].dtype, aligned.dtype, body, tail) == (torch.float32, torch.float32, [torch.bfloat16],
                                                                 [torch.float32])
        assert learner(views, 0.5, 0)["loss"].dtype == torch.float32


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def gradient(learner, views, only=""):
    """The gradients of a step in one vector, of parameters named `only`...; the learner is left as it was."""
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.zero_grad()
    learner(views, 0.5, 0)["loss"].backward()
    learner.load_state_dict(state)
    return torch.cat([p.grad.flatten() for name, p in learner.named_parameters()
                      if p.grad is not None and name.startswith(only)])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["none", "v2", "v3"])
def test_compiled_bodies_give_the_eager_gradient(variant, make_recipe, make_views, make_learner):
    recipe = make_recipe({"alignment.variant": variant})
    views = make_views(recipe, 0, torch.float32)
    learner = make_learner(recipe, dtype=torch.float32)
    eager = gradient(learner, views)
    learner.compile()
    assert cosine(gradient(learner, views), eager) > 0.999
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def blurred_views(recipe, seed):
    """Float32 views that belong together: shifted cuts of one smooth pattern a video, with noise; random targets."""
    rng = torch.Generator().manual_seed(seed)
    batch, size = recipe.optimise.batch, recipe.sampling.size
    pattern = nn.functional.interpolate(torch.randn(batch, 3, 4, 8, 8, generator=rng),
                                        size=(8, size + 8, size + 8), mode="trilinear")

    def cut():
        y, x = torch.randint(0, 8, (2,), generator=rng)
        return pattern[..., y:y + size, x:x + size] + 0.1 * torch.randn(batch, 3, 8, size, size, generator=rng)
    query, *keys = (cut() for _ in range(4))
    return Views(query=query, keys=tuple(keys), motion=torch.rand(batch, 4, 6, 6, generator=rng) ** 3,
                 ids=torch.randint(0, 100, (batch,), generator=rng), order=torch.randint(0, 2, (batch,), generator=rng))


@pytest.mark.slow
def test_bf16_gives_the_float32_gradient(make_recipe, make_learner):
    """Cosine of the backbone's gradient above 0.99 with BN in eval mode, fresh and after 30 steps: MCL, and InfoNCE and
    MAL alone. In train mode a young net is ill-conditioned (docs/method.md 1.4): there MCL is held beside InfoNCE."""
    size = {"sampling.size": 48, "model.width": 12, "model.hidden": 64, "model.dim": 32, "optimise.batch": 16,
            "contrast.queue": 512, "contrast.bn_group": 8, "contrast.momentum": 0.99}
    losses = {"mcl": {}, "nce": {"alignment.variant": "none"},
              "mal": {"contrast.inter": 0.0, "contrast.intra": 0.0, "contrast.order": 0.0}}
    learner = make_learner(make_recipe(size), dtype=torch.float32)
    views = blurred_views(learner.settings, 1000)

    def cosines(training):
        found = {}
        for name, settings in losses.items():
            pair = []
            for precision in ("float32", "bf16"):
                twin = make_learner(make_recipe(size | settings | {"model.precision": precision}), dtype=torch.float32)
                twin.load_state_dict({k: v for k, v in learner.state_dict().items() if k in twin.state_dict()})
                pair.append(gradient(twin.train(training), views, only="query.backbone"))
            found[name] = cosine(*pair)
        return found
    assert min(cosines(training=False).values()) > 0.99
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.04, momentum=0.9)
    for step in range(30):
        optimizer.zero_grad()
        learner(blurred_views(learner.settings, step), 0.5, 0)["loss"].backward()
        optimizer.step()
    still = cosines(training=False)
    assert still["mcl"] > 0.99 and still["nce"] > 0.99
    moving = cosines(training=True)
    assert moving["mcl"] > moving["nce"] - 0.05 and moving["mcl"] > 0.9


GOLDEN = Path(__file__).parent / "golden/mcl-steps.json"


def test_a_few_steps_give_the_recorded_losses(make_recipe, make_views, make_learner):
    """Three seeded steps of MCL in float64. Who means to change the numbers records them: REWRITE_GOLDEN=1 pytest."""
    recipe = make_recipe({"optimise.lr": 0.02})
    learner, rows = make_learner(recipe), []
    for step in range(3):
        out = learner(make_views(recipe, step), step / 10, step)
        learner.zero_grad()
        out["loss"].backward()
        rows.append({name: value.item() for name, value in out.items()})
        with torch.no_grad():
            for p in learner.parameters():
                if p.requires_grad:
                    p -= recipe.optimise.lr * p.grad
    if os.environ.get("REWRITE_GOLDEN"):
        made_by = {"torch": torch.__version__, "numpy": np.__version__}
        GOLDEN.write_text(json.dumps({"made_by": made_by, "steps": rows}, indent=1) + "\n")
    for found, recorded in zip(rows, json.loads(GOLDEN.read_text())["steps"], strict=True):
        assert found == pytest.approx(recorded, rel=1e-3, abs=1e-6)     # weights are drawn in float32, as the CPU does
