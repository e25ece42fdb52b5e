"""MaCLR's steps against the oracle, term by term; heads, queues and what is trained; only the visual pathway leaves."""

import re

import pytest
import torch

from shared.cli import RequestError
from shared.nn.distributed import World
from train.objectives.maclr import term_heads, term_weights

CASES = [
    {}, {"alignment.variant": "v3", "alignment.double_epochs": 1, "alignment.smooth": 4.0},
    {"maclr.pairs": "shifted", "maclr.cross_weight": 2.0}, {"maclr.mm": True, "contrast.bn": "none"},
    {"maclr.shared_heads": True, "maclr.mm": True, "contrast.exclude_same_video": True},
    {"contrast.inter": 0.0}, {"maclr.vm": False, "maclr.mv": False}, {"maclr.mv": False},
    {"maclr.vm": False, "contrast.exclude_same_video": True}, {"contrast.inter": 0.0, "maclr.mv": False},
    {"contrast.inter": 0.0, "alignment.variant": "v2"}, {"alignment.variant": "v1", "alignment.layer": "output"},
]


def name_of(settings):
    return ",".join(f"{k.rpartition('.')[2]}={v}" for k, v in settings.items()) or "maclr"


@pytest.mark.parametrize("settings", [*CASES[:5], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[5:])],
                         ids=name_of)
def test_steps_equal_the_oracle(settings, make_recipe, make_learner, make_oracle, descend_beside):
    """Three steps of descent: every logged number, every gradient, both queues with their wrap, all encoders."""
    recipe = make_recipe(settings, maclr=True)
    learner = make_learner(recipe)
    oracle = make_oracle(learner, recipe, ranks=1)
    descend_beside(learner, oracle, recipe)
    state = learner.state_dict()
    for queue, (rows, pointer) in oracle.held().items():
        torch.testing.assert_close(state[f"{queue}.keys"], torch.stack([row for row, _ in rows]))
        assert state[f"{queue}.ids"].tolist() == [id for _, id in rows] and int(state[f"{queue}.pointer"]) == pointer
    for name, twin in oracle.twins().items():
        torch.testing.assert_close(state[name], twin.detach())


def test_the_loss_is_the_weighted_sum_of_what_is_logged(make_recipe, make_views, make_learner):
    recipe = make_recipe({"maclr.mm": True, "maclr.cross_weight": 0.25, "contrast.inter": 2.0})
    out = {name: value.item() for name, value in make_learner(recipe)(make_views(recipe, 0), 0.0, 0).items()}
    assert out["loss"] == pytest.approx(2 * out["vv"] + 0.25 * (out["vm"] + out["mv"]) + out["mm"])
    assert {f"{kind}_{term}" for kind in ("in_batch_accuracy", "queue_accuracy") for term in ("vv", "vm", "mv", "mm")
            } < out.keys()
    assert out["in_batch_accuracy"] == out["in_batch_accuracy_vv"]


def test_heads_by_pathway_and_role(make_recipe, make_learner):
    def heads(**settings):
        learner = make_learner(make_recipe({f"maclr.{name}": value for name, value in settings.items()}, maclr=True))
        return list(learner.query.heads), learner.motion_query and list(learner.motion_query.heads)
    assert heads() == (["inter", "cross"], ["inter"])
    assert heads(mm=True) == (["inter", "cross"], ["cross", "inter"])
    assert heads(mm=True, shared_heads=True) == (["inter"], ["inter"])
    assert heads(vm=False, mv=False) == (["inter"], None)
    settings = make_recipe(maclr=True)
    assert term_weights(settings) == {"vv": 1.0, "vm": 0.5, "mv": 0.5}
    assert term_heads({"vm": 1.0}, "visual", shared=False) == {"vm": "inter"}
    assert term_heads({"vv": 1.0, "mv": 1.0}, "visual", shared=False) == {"vv": "inter", "mv": "cross"}


def test_two_queues_and_no_motion_pathway_where_none_is_asked_for(make_recipe, make_views, make_learner):
    recipe = make_recipe({"maclr.mm": True})
    learner = make_learner(recipe)
    assert learner.queue.keys.shape == learner.motion_queue.keys.shape == (20, 2 * 8)
    for part in (*learner.queue.keys.chunk(2, 1), *learner.motion_queue.keys.chunk(2, 1)):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(20, dtype=part.dtype))
    assert not torch.equal(learner.queue.keys, learner.motion_queue.keys)
    alone = make_recipe({"maclr.vm": False, "maclr.mv": False})
    learner = make_learner(alone)
    assert not any("motion" in name for name in learner.state_dict())
    out = learner(make_views(alone, 0), 0.0, 0)
    assert out.keys() == {"loss", "vv", "in_batch_accuracy", "queue_accuracy", "in_batch_accuracy_vv",
                          "queue_accuracy_vv", "same_video_negatives"}


def test_what_no_query_runs_through_keeps_its_weights(make_recipe, make_views, make_learner):
    """With L_vm alone the motion pathway is a fixed random one, and the run says so; the visual one learns."""
    recipe = make_recipe({"contrast.inter": 0.0, "maclr.mv": False})
    learner = make_learner(recipe)
    assert learner.notes == ["L_vm alone does not train the motion pathway, which stays as initialised: add mv=true"]
    learner(make_views(recipe, 0), 0.0, 0)["loss"].backward()
    assert all(p.grad is not None for p in learner.query.parameters())
    assert not any(p.requires_grad for p in learner.motion_query.parameters())
    assert make_learner(make_recipe(maclr=True)).notes == []
    learner = make_learner(make_recipe({"maclr.vm": False}))                    # L_mv: keys by a fixed visual head
    assert {name for name, p in learner.query.named_parameters() if not p.requires_grad} == {
        name for name, _ in learner.query.named_parameters() if name.startswith("heads.cross")}


@pytest.mark.slow
def test_all_that_is_trained_has_a_gradient_and_no_key_encoder_has(make_recipe, make_views, make_learner):
    for settings in CASES:
        recipe = make_recipe(settings, maclr=True)
        learner = make_learner(recipe)
        learner(make_views(recipe, 0), 0.0, 0)["loss"].backward()
        for name, p in learner.named_parameters():
            assert (p.grad is not None) == p.requires_grad, (settings, name)
            assert not (p.requires_grad and ("key" in name)), name


def test_positives_are_of_one_clip_or_of_two(make_recipe, make_views, make_learner):
    """`same`: the cross-modal terms do not change with the other clip's motion; `shifted`: they do."""
    for pairs, moved in (("same", {"mv"}), ("shifted", {"vm"})):
        recipe = make_recipe({"maclr.pairs": pairs, "contrast.bn": "none"})
        views, found = make_views(recipe, 0), []
        for second in (views.motion_clips[1], views.motion_clips[1].flip(0)):
            views.motion_clips = views.motion_clips[0], second
            out = make_learner(recipe)(views, 0.0, 0)
            found.append({term: out[term].item() for term in ("vv", "vm", "mv")})
        # vm's query is clip 1 and mv's key clip 2: of the second motion clip `same` makes queries, `shifted` keys.
        assert {term for term in found[0] if found[0][term] != found[1][term]} == moved


def test_split_batch_norm_and_compilation_reach_both_pathways(make_recipe, make_learner):
    from shared.nn.norm import SplitBatchNorm3d

    learner = make_learner(make_recipe(maclr=True))
    for encoder in (learner.query, learner.key, learner.motion_query, learner.motion_key):
        assert any(isinstance(part, SplitBatchNorm3d) and part.group == 4 for part in encoder.modules())
    learner.compile()
    assert all(encoder._compiled is not None for encoder in
               (learner.query, learner.key, learner.motion_query, learner.motion_key))


def test_a_learner_goes_on_from_its_state(make_recipe, make_views, make_learner):
    """Both pathways, queues, pointers and the shuffles' step are in the state dict: the next steps are the same."""
    recipe = make_recipe({"maclr.mm": True})

    def descend(learner, steps):
        losses = []
        for step in steps:
            out = learner(make_views(recipe, step), 0.0, 0)
            learner.zero_grad()
            out["loss"].backward()
            losses.append([out[name].item() for name in sorted(out)])
            with torch.no_grad():
                for p in learner.parameters():
                    if p.requires_grad:
                        p -= 0.1 * p.grad
        return losses
    first = make_learner(recipe)
    descend(first, range(2))
    state = {name: value.clone() for name, value in first.state_dict().items()}
    expected = descend(first, range(2, 4))
    second = make_learner(recipe)
    second.load_state_dict(state)
    assert descend(second, range(2, 4)) == expected


@pytest.mark.parametrize("settings, ranks, said", [
    ({"optimise.batch": 9}, 2, "optimise.batch is 9; expected a multiple of the 2 processes"),
    ({"contrast.queue": 7}, 1, "contrast.queue is 7, but every step brings 1 x 8 keys"),
    ({"contrast.bn_group": 3}, 1, "no multiple of contrast.bn_group, which is 3"),
    ({"maclr.motion_backbone": "slow_tin"}, 1, "did you mean 'slow_tiny'"),
])
def test_settings_that_cannot_work_are_refused_in_one_line(settings, ranks, said, make_recipe, make_learner):
    with pytest.raises(RequestError, match=re.escape(said)) as refusal:
        make_learner(make_recipe(settings, maclr=True), World(size=ranks))
    assert "\n" not in str(refusal.value)
