"""What a training step asks of its device, on a stand-in: tensors without values, where reading one is an error.

`meta` stands where `cuda` would. Whatever would wait for the device (item, tolist, a branch on a value) raises there,
and a copy from the host that waits is counted.
"""

import contextlib

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


@pytest.mark.parametrize("settings", [
    {}, {"alignment.variant": "v1"}, {"alignment.variant": "v2"},
    {"contrast.bn": "none", "contrast.exclude_same_video": True}, {"maclr.mm": True}], ids=str)
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
