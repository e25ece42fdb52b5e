"""What a training step asks of its device, on a stand-in: tensors without values, where reading one is an error.

`meta` stands where `cuda` would. Whatever would wait for the device (item, tolist, a branch on a value) raises there,
and a copy from the host that waits is counted.
"""

import contextlib
import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shared.clips.data import ClipData
from shared.clips.loader import Loader, Sampler
from shared.clips.views import make_views
from shared.nn.backbones import build_backbone
from shared.nn.distributed import World
from train.maclr import MaCLR
from train.moco import Learner

META = torch.device("meta")


class Waits(TorchDispatchMode):
    """Operations that join host and device and wait: every one but a copy to the device that says non_blocking."""

    def __init__(self):
        super().__init__()
        self.found, self.copies = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)} > {"cpu"}:
            waits = function.overloadpacket not in (torch.ops.aten._to_copy, torch.ops.aten.copy_) or not (
                (kwargs or {}).get("non_blocking") or args[2:3] == (True,))
            self.found += [str(function)] * waits
            self.copies += 1
        return out


@pytest.fixture(scope="module")
def store(small_videos, tmp_path_factory):
    from preprocess import run

    store = tmp_path_factory.mktemp("device") / "store"
    assert run.main(["--dataset", "folder", "--recipe", "maclr-tiny", "--videos", str(small_videos), "--store",
                     str(store), "--engine", "serial", "--set", "preset=fast", "--set", "geometries=[8x2, 4x4]"]) == 0
    return store


@pytest.fixture
def stand_in(monkeypatch):
    """Autocast knows no `meta`: what it would cast is the same for the CPU. The ring is locked for CUDA alone."""
    real = torch.autocast
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda slot: True)
    monkeypatch.setattr(torch, "autocast", lambda kind, *args, **kw: (
        real("cpu", *args, **kw) if kind == "meta" else contextlib.nullcontext()))


def test_the_stand_in_notices():
    row = torch.arange(4)
    with Waits() as waits:
        there = row.to(META, non_blocking=True)
        assert not waits.found and waits.copies == 1
        row.to(META)
        torch.zeros(4, device=META).copy_(row)
    assert len(waits.found) == 2
    for read in (lambda: there.sum().item(), lambda: there.tolist(), lambda: bool(there.any()), lambda: there.cpu()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


OBJECTIVES = pytest.mark.parametrize("settings", [
    {}, {"alignment.variant": "v1"}, {"alignment.variant": "v2"},
    {"contrast.bn": "none", "contrast.exclude_same_video": True}, {"maclr.mm": True}], ids=str)


@pytest.mark.slow
@OBJECTIVES
def test_a_step_waits_for_nothing(stand_in, make_recipe, store, settings):
    recipe = make_recipe(settings)
    data = ClipData([store], recipe.sampling, recipe.augment, motion=not recipe.maclr, maclr=recipe.maclr)
    learner = (MaCLR if recipe.maclr else Learner)(
        lambda: build_backbone(recipe.model.backbone, recipe.model.width, recipe.model.bn_eps), recipe,
        World(device=META)).to(META)
    shape = learner.query.backbone.h_shape(recipe.sampling.geometry.length, recipe.sampling.size)[1:]
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1, momentum=0.9)
    with Loader(data, Sampler(len(data), recipe.optimise.batch)) as loader:
        batch = next(iter(loader))
        for _ in range(2):
            with Waits() as waits:
                views = make_views(batch, recipe.augment, recipe.sampling.size,
                                   None if recipe.maclr else shape, META, recipe.maclr)
                out = learner(views, 0.5, 1)
                out["loss"].backward()
                torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
                optimizer.step()
            assert waits.found == [] and waits.copies


def placed(views, device):
    """The views on another device."""
    def there(value):
        return tuple(map(there, value)) if isinstance(value, tuple) else value.to(device)
    return dataclasses.replace(views, **{field.name: there(getattr(views, field.name))
                                         for field in dataclasses.fields(views)
                                         if getattr(views, field.name) is not None})


def updates(learner, views, count=2):
    """Losses of `count` updates, and the gradients of the first by name; on the CPU."""
    trained = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    optimizer, losses, gradients = torch.optim.SGD(trained.values(), 0.1, momentum=0.9), [], {}
    for _ in range(count):
        optimizer.zero_grad()
        out = learner(views, 0.5, 1)
        out["loss"].backward()
        gradients = gradients or {name: one.grad.cpu().clone() for name, one in trained.items() if one.grad is not None}
        optimizer.step()
        losses.append(float(out["loss"].detach()))
    return losses, gradients


@pytest.mark.gpu
@OBJECTIVES
def test_updates_on_the_gpu_are_the_cpus(gpu, make_recipe, make_views, make_learner, settings):
    """In float64, where only the order of additions differs; the second loss has gone through the first update."""
    recipe = make_recipe(settings)
    views = make_views(recipe, 3)
    here, gradients = updates(make_learner(recipe), views)
    there, found = updates(make_learner(recipe, World(device=gpu)).to(gpu), placed(views, gpu))
    assert there == pytest.approx(here, rel=1e-9)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9 * float(gradient.abs().max() + 1))


@pytest.mark.gpu
def test_bf16_on_the_gpu_turns_the_gradient_little(gpu, make_recipe, make_views, make_learner):
    rows = {}
    for precision in ("float32", "bf16"):
        recipe = make_recipe({"model.precision": precision})
        learner = make_learner(recipe, World(device=gpu), torch.float32).to(gpu)
        _, gradients = updates(learner, placed(make_views(recipe, 3, torch.float32), gpu), 1)
        rows[precision] = torch.cat([row.double().flatten() for row in gradients.values()])
    assert torch.nn.functional.cosine_similarity(*rows.values(), dim=0) > 0.8


@pytest.mark.gpu
@OBJECTIVES
def test_updates_on_the_gpu_wait_for_nothing(gpu, make_recipe, make_views, make_learner, settings):
    recipe = make_recipe(settings)
    learner = make_learner(recipe, World(device=gpu), torch.float32).to(gpu)
    views = placed(make_views(recipe, 3, torch.float32), gpu)
    learner(views, 0.5, 1)["loss"].backward()       # allocates, and chooses its kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner(views, 0.5, 1)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
