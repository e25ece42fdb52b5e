"""One process needs no process group; what two do stands in tests/train/test_ddp.py."""

import pytest
import torch

from shared.cli import RequestError
from shared.nn.distributed import World, choose_device, close_world, exchange, gather, open_world, reduce_logs


def test_alone_without_torchrun(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    world = open_world("cpu")
    assert (world, world.main) == (World(0, 1, torch.device("cpu")), True)
    assert not torch.distributed.is_initialized()
    rows = torch.arange(8).view(4, 2)
    assert torch.equal(gather(rows, world), rows)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(exchange(rows, order, world), rows[order])
    assert reduce_logs({"loss": torch.tensor(1.5, requires_grad=True), "dead_maps": torch.tensor(3)}, world) == {
        "loss": 1.5, "dead_maps": 3.0}
    close_world(world)


def test_an_incomplete_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(RequestError, match="RANK, MASTER_ADDR is not set; start with torchrun"):
        open_world("cpu")


def test_devices_by_name():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(RequestError, match="'gpu' is unknown; expected auto, cpu or cuda"):
        choose_device("gpu")
    with pytest.raises(RequestError, match="finds .* CUDA device"):
        choose_device("cuda", local_rank=torch.cuda.device_count())


def test_a_second_process_gets_no_device_of_the_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto", 0) == torch.device("cuda", 0)
    with pytest.raises(RequestError, match="process 1 of this machine finds 1 CUDA device"):
        choose_device("auto", 1)
