"""Two processes over gloo against the oracle, which sees the global batch in one.

This file is also what the processes run: `python test_ddp.py CASES OUT`, placed by torchrun's variables.
"""

import os
import subprocess
import sys

import pytest
import torch

CASES = {
    "mcl": {},
    "mcl-float32": {},
    "mcl-split": {"contrast.bn": "split", "contrast.bn_group": 2, "alignment.variant": "v2", "optimise.seed": 3},
    "moco": {"alignment.variant": "none", "sampling.keys": 1, "contrast.intra": 0.0, "contrast.order": 0.0,
             "contrast.exclude_same_video": True, "contrast.queue": 20},
    "maclr": {"maclr.mm": True, "contrast.exclude_same_video": True},
    "maclr-split": {"contrast.bn": "split", "contrast.bn_group": 2, "maclr.pairs": "shifted", "maclr.vm": False},
}
RANKS, STEPS = 2, 3
pytestmark = pytest.mark.slow      # two processes that import everything


def work(cases: str, out: str) -> None:
    """One rank: a few steps of every case under DistributedDataParallel, and what came of them."""
    from shared.clips.views import Views
    from shared.nn.backbones import build_backbone
    from shared.nn.distributed import close_world, exchange, gather, open_world, parallel, reduce_logs
    from shared.recipes.pretraining import build_recipe
    from train.maclr import MaCLR
    from train.moco import Learner

    world, results = open_world("cpu"), {}
    for name, (tree, batches) in torch.load(cases, weights_only=True).items():
        recipe = build_recipe(tree)
        torch.manual_seed(recipe.optimise.seed)
        method = MaCLR if recipe.maclr else Learner
        learner = method(lambda: build_backbone(recipe.model.backbone, recipe.model.width), recipe, world)
        dtype = torch.float32 if name.endswith("float32") else torch.float64
        learner.to(dtype)
        wrapped = parallel(learner, world)
        rows = slice(world.rank * recipe.optimise.batch // RANKS, (world.rank + 1) * recipe.optimise.batch // RANKS)
        steps = []
        for step, batch in enumerate(batches):
            batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
            many = {name: tuple(batch.pop(key)[rows] for key in sorted(batch) if key.startswith(name))
                    for name in ("keys", "motion_clips")}
            views = Views(**many, **{key: value[rows] for key, value in batch.items()})
            output = wrapped(views, step / 10, step)
            learner.zero_grad()
            output["loss"].backward()
            gradients = {key: p.grad.clone() for key, p in learner.named_parameters() if p.requires_grad}
            steps.append((reduce_logs(output, world), gradients))
            for p in learner.parameters():
                if p.requires_grad:
                    p.data -= recipe.optimise.lr * p.grad
        results[name] = {"steps": steps, "state": learner.state_dict()}
    mine = torch.arange(6).view(3, 2) + 100 * world.rank
    order = torch.tensor([4, 1, 5, 0, 2, 3])
    results["moved"] = gather(mine, world), exchange(mine, order, world)
    torch.save(results, f"{out}.{world.rank}")
    close_world(world)


def tensors(views) -> dict[str, torch.Tensor]:
    """The views by name, those that are several as keys0, keys1, ..."""
    named = dict(vars(views))
    many = {name: named.pop(name) or () for name in ("keys", "motion_clips")}
    return {f"{name}{number}": x for name, clips in many.items() for number, x in enumerate(clips)} | named


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, make_recipe, make_views):
    """What either process found."""
    folder = tmp_path_factory.mktemp("ddp")
    cases = {}
    for name, settings in CASES.items():
        recipe = make_recipe(settings)
        cases[name] = recipe.to_dict(), [tensors(make_views(recipe, step)) for step in range(STEPS)]
    torch.save(cases, folder / "cases")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
             "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, __file__, folder / "cases", folder / "out"],
                                  env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                 for rank in range(RANKS)]
    try:
        for process in processes:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"out.{rank}", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("float32")])
def test_two_ranks_equal_the_oracle_of_the_whole(name, ranks, make_recipe, make_views, make_learner, make_oracle):
    """Losses, gradients, queue and key encoder, step by step; both ranks alike but for their BN statistics."""
    from shared.nn.distributed import World

    recipe = make_recipe(CASES[name])
    learner = make_learner(recipe, World(rank=0, size=RANKS))
    assert learner.shuffle.mode == ("split" if name.endswith("split") else "shuffle")
    oracle = make_oracle(learner, recipe, RANKS)
    for step in range(STEPS):
        logs, gradients = oracle.step(make_views(recipe, step), step / 10, step)
        for rank in ranks:
            found, theirs = rank[name]["steps"][step]
            assert found.keys() == logs.keys()
            for key, value in logs.items():
                assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key
            assert theirs.keys() == gradients.keys()
            for key, gradient in gradients.items():
                torch.testing.assert_close(theirs[key], gradient, rtol=1e-7, atol=1e-10, msg=lambda m: f"{key}: {m}")
    for rank in ranks:
        state = rank[name]["state"]
        assert int(state["step"]) == STEPS
        for queue, (rows, pointer) in oracle.held().items():
            torch.testing.assert_close(state[f"{queue}.keys"], torch.stack([vector for vector, _ in rows]))
            assert state[f"{queue}.ids"].tolist() == [id for _, id in rows]
            assert int(state[f"{queue}.pointer"]) == pointer
        for key, p in oracle.twins().items():
            torch.testing.assert_close(state[key], p.detach())
    a, b = (rank[name]["state"] for rank in ranks)
    apart = {key for key in a if not torch.equal(a[key], b[key])}
    idle = "motion_key." if name == "maclr-split" else "none"                    # without L_vm it encodes no key
    assert apart == {key for key in a if "running" in key and not key.startswith(idle)}


def test_float32_under_ddp_gives_the_gradient(ranks, make_recipe, make_views, make_learner, make_oracle):
    from shared.nn.distributed import World

    recipe = make_recipe()
    oracle = make_oracle(make_learner(recipe, World(rank=0, size=RANKS)), recipe, RANKS)
    _, gradients = oracle.step(make_views(recipe, 0), 0.0, 0)
    expected = torch.cat([gradient.flatten() for gradient in gradients.values()])
    for rank in ranks:
        _, theirs = rank["mcl-float32"]["steps"][0]
        found = torch.cat([theirs[name].flatten() for name in gradients]).double()
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.999


def test_rows_move_as_in_one_process(ranks):
    everything = torch.cat([torch.arange(6).view(3, 2), torch.arange(6).view(3, 2) + 100])
    order = torch.tensor([4, 1, 5, 0, 2, 3])
    for rank, result in enumerate(ranks):
        gathered, exchanged = result["moved"]
        assert torch.equal(gathered, everything)
        assert torch.equal(exchanged, everything[order][3 * rank:3 * rank + 3])


if __name__ == "__main__":
    work(*sys.argv[1:])
