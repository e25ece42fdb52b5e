"""MCL's and SeCo's released code as oracles: numbers that it gave, each with its repository and commit.

golden/public-mcl.json was made by that code, in float64, on what `drawn` draws here; its own units of the motion target
are 153 times ours, and it knows no BN groups.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shared.clips.views import Views
from shared.motion import motion_map
from shared.nn.inflate import inflate
from shared.nn.layers import Conv
from shared.nn.resnet import ResNet, bottlenecks, stem_of
from shared.recipes.pretraining import Alignment, Optimise
from shared.recipes.settings import load_document
from shared.saliency import aligned_map
from shared.schedule import Schedule
from train.moco import Learner, Queue
from train.objectives.alignment import alignment_costs
from train.objectives.seco import inter_loss, intra_loss

GOLDEN = json.loads((Path(__file__).parent / "golden/public-mcl.json").read_text())
RELEASED = Alignment("v3", st=True, s=True, t=True, form="released", weight=1.0, weights_per_step=True,
                     double_epochs=5, layer="conv", softmax_scale=153.0)


def drawn(shape, seed):
    """float64, uniform in [-0.5, 0.5)."""
    return torch.from_numpy(np.random.default_rng(seed).random(tuple(shape)) - 0.5)


@torch.no_grad()
def filled(net, seed):
    """Every tensor of the net by its place: kernels of the variance 2 / fan-in, scales and variances about 1."""
    for place, (name, value) in enumerate(net.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            values = drawn(value.shape, seed + place)
            if value.dim() > 1:
                values *= (24 / value[0].numel()) ** 0.5
            elif not name.endswith(("bias", "running_mean")):
                values += 1
            value.copy_(values)
    return net


def test_the_released_alignment():
    golden = GOLDEN["alignment"]
    gradient, target = drawn((3, 6, 4, 7, 7), 1).requires_grad_(), (drawn((3, 4, 7, 7), 2) + 0.5) ** 4
    aligned = aligned_map("v3", None, gradient, True)
    costs = alignment_costs(aligned, target, RELEASED)
    for term in ("st", "s", "t"):
        torch.testing.assert_close(costs[term], torch.tensor(golden[term], dtype=torch.float64))
    loss = torch.stack([cost.mean() for cost in costs.values()]).sum()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-12)
    slope, = torch.autograd.grad(loss, gradient)
    torch.testing.assert_close(slope.flatten()[:8], torch.tensor(golden["gradient"], dtype=torch.float64))
    assert slope.square().sum().item() == pytest.approx(golden["gradient_square"], rel=1e-10)
    # Without the scale, as runs from before it was there do, no step outweighs the others so.
    before = alignment_costs(aligned, target, replace(RELEASED, softmax_scale=1.0))["st"]
    assert (before - costs["st"]).abs().max() > 0.01
    assert min(golden["largest_share"]) > 0.9999 > max(golden["largest_share_in_our_units"])


def test_the_scale_is_the_release_s_units():
    """A flow whose gradient is the same everywhere: their target over our map, per position."""
    golden = GOLDEN["units"]
    flow = np.zeros((1, 2, 32, 32), np.float32)
    flow[0, 0] = golden["gradient_px"] * np.arange(32)
    ours = motion_map(flow)[0, 1:-1, 1:-1]
    assert golden["inner_cells"] / ours == pytest.approx(153, rel=1e-5)
    document = load_document()
    assert {tree["alignment"]["softmax_scale"] for tree in document["pipelines"].values()} == {153.0}


def test_the_stem_s_tap_and_the_head_of_the_file():
    golden, tap = GOLDEN["inflation"], load_document()["pipelines"]["mcl"]["model"]["stem_tap"]
    assert np.flatnonzero(golden["taps"]).tolist() == [tap] == [inflate.__defaults__[0]]
    assert "nce_inter_head.head.0.weight" in golden["names"]["kinetics"]
    assert not any("head" in name for name in golden["names"]["ucf101"])


def test_the_learning_rate():
    golden = GOLDEN["rate"]
    optimise = Optimise(epochs=golden["epochs"], steps=0, batch=1, lr=golden["base"], momentum=0.9, weight_decay=0.0,
                        warmup_epochs=golden["warmup_epochs"], warmup_from=0.01, seed=0)
    schedule = Schedule.of(optimise, golden["steps_per_epoch"])
    rates = [schedule.rate(step) for step in range(schedule.steps)]
    np.testing.assert_allclose(rates, golden["rates"], rtol=0, atol=1.01 * golden["least"])      # where theirs ends


def test_seco_s_losses_and_its_queue():
    golden = GOLDEN["seco"]
    q, *keys = (F.normalize(drawn((4, 8), 10 + i), dim=1) for i in range(4))
    queue = Queue(20, 8, 0).double()
    queue.keys.copy_(F.normalize(drawn((20, 8), 20), dim=1))
    for step, (loss, sums) in enumerate(zip(golden["inter"], golden["queue_sums"])):
        found, _ = inter_loss(q, keys, queue.keys, 0.1)
        assert found.item() == pytest.approx(loss, rel=1e-12)
        queue.enqueue(torch.cat([key + step for key in keys]), torch.zeros(12, dtype=torch.int64))
        torch.testing.assert_close(queue.keys.sum(1), torch.tensor(sums, dtype=torch.float64))
    assert queue.pointer == golden["index"]
    assert intra_loss(q, keys[0], keys[1:], 0.1).item() == pytest.approx(golden["intra"], rel=1e-12)


def shallow():
    """R(2+1)D-50 of one block a stage, as the golden steps have it."""
    stem = stem_of(Conv(3, 64, (4, 7, 7), (4, 2, 2), (0, 3, 3)), 64, pool=True)
    return filled(ResNet("shallow", 64, stem, bottlenecks(64, (1, 1, 1, 1), temporal=True), 2048).double(), 0)


@pytest.mark.slow
def test_whole_steps(make_recipe):
    """Two steps of MCL as released: both heads, order on a joined embedding of length 1, alignment twice through the
    net, EMA, queue that wraps, SGD."""
    recipe = make_recipe({
        "sampling.clip": "16x2", "sampling.size": 64, "model.hidden": 2048, "model.dim": 128, "contrast.queue": 15,
        "contrast.momentum": 0.999, "contrast.bn": "none", "contrast.order_input": "unit", "optimise.batch": 2})
    recipe = replace(recipe, alignment=RELEASED)
    learner = Learner(shallow, recipe).double()
    for number, name in enumerate(("inter", "intra", "order"), 1):
        filled(learner.query.heads[name], 1000 * number)
    filled(learner.classifier, 4000)
    learner.key.load_state_dict(learner.query.state_dict())
    learner.queue.keys.copy_(F.normalize(drawn((15, 128), 7), dim=1))
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], 0.01, 0.9, weight_decay=1e-4)
    names = {"backbone.conv1.weight": "query.backbone.stem.conv1.weight",
             "backbone.layer2.0.conv2_t.weight": "query.backbone.stages.layer2.0.temporal2.weight",
             "backbone.layer4.0.conv3.weight": "query.backbone.stages.layer4.0.conv3.weight",
             "backbone.layer4.0.bn3.weight": "query.backbone.stages.layer4.0.bn3.weight",
             "nce_inter_head.head.0.weight": "query.heads.inter.0.weight",
             "nce_intra_head.head.2.weight": "query.heads.intra.2.weight",
             "order_head.head.0.bias": "query.heads.order.0.bias", "order_classfier.fc.weight": "classifier.weight"}
    for number, golden in enumerate(GOLDEN["steps"]["steps"]):
        clips, order = 4 * drawn((4, 2, 3, 16, 64, 64), 100 + number), torch.tensor([number, 1 - number])
        views = Views(query=clips[0], keys=tuple(clips[1:]), motion=(drawn((2, 4, 2, 2), 200 + number) + 0.5) ** 4,
                      ids=torch.zeros(2, dtype=torch.int64), order=order)
        out = learner(views, golden["progress"], golden["epoch"])
        for term in ("loss", "inter", "intra", "order", "mal"):
            assert out[term].item() == pytest.approx(golden[term], rel=1e-9), (number, term)
        optimizer.zero_grad()
        out["loss"].backward()
        gradients = {name: p.grad.norm().item() for name, p in learner.named_parameters() if p.grad is not None}
        found = {theirs: gradients[ours] for theirs, ours in names.items()}
        assert found == pytest.approx(golden["gradients"], rel=1e-7)
        optimizer.step()
        assert learner.queue.keys.sum().item() == pytest.approx(golden["queue_sum"], rel=1e-9)
        assert learner.queue.pointer == golden["queue_index"]
