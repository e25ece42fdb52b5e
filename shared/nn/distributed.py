"""What processes exchange: where each stands, tensors gathered or exchanged over all of them, logs averaged.

W ranks (`world.size`), B rows a rank. Everything works with one process, where no process group is needed.
"""

import os
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shared.cli import RequestError, plural

GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor   # its name since torch 2.13
COUNTS = "dead_maps", "zero_targets"    # logged numbers of clips: summed over ranks, where all else is averaged


@dataclass(frozen=True)
class World:
    """This process among `size`; device: where its tensors live."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        """The rank that writes and speaks."""
        return self.rank == 0


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """`auto` (CUDA where there is a device for this rank, else the CPU), `cpu` or `cuda`.

    Raises RequestError for another name, and for CUDA without a device for every local rank.
    """
    devices = torch.cuda.device_count()
    if name not in ("auto", "cpu", "cuda"):
        raise RequestError(f"device {name!r} is unknown; expected auto, cpu or cuda")
    if name == "cpu" or name == "auto" and not devices:
        return torch.device("cpu")
    if local_rank >= devices:
        fit = plural(devices, "process", "processes") if devices else "none"
        raise RequestError(f"process {local_rank} of this machine finds {plural(devices, 'CUDA device')}; start {fit} "
                           "(torchrun --nproc-per-node) or use the CPU")
    return torch.device("cuda", local_rank)


def open_world(device: str = "auto", timeout_s: float = 1800) -> World:
    """Join the processes that torchrun started (NCCL on CUDA, gloo on the CPU); alone without torchrun.

    Raises RequestError where torchrun's environment is incomplete or a device is missing.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        chosen = choose_device(device)
        return World(device=chosen)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RequestError(f"WORLD_SIZE is {size} but {', '.join(missing)} is not set; start with torchrun")
    if os.environ["MASTER_ADDR"] in ("localhost", "127.0.0.1", "::1"):     # one machine: nothing leaves it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    return World(dist.get_rank(), dist.get_world_size(), chosen)


def close_world(world: World) -> None:
    """Leave the process group; nothing to do for one process."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def parallel(module: nn.Module, world: World) -> nn.Module:
    """The module with its gradients averaged over the ranks; each rank's BN statistics are its own.

    DDP rebuilds its buckets after the first step, which changes the order in which gloo adds up three ranks or more; a
    resumed run has another first step, so there it is kept from that (by looking for unused parameters).
    """
    if world.size == 1:
        return module
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")    # channels-last, one copy
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True,
                                      find_unused_parameters=world.device.type == "cpu" and world.size > 2)
    wrapped.broadcast_buffers = False       # after the start; the argument's name and meaning changed in torch 2.13
    return wrapped


@torch.no_grad()
def average_buffers(module: nn.Module, world: World) -> None:
    """BN's running statistics become their mean over the ranks. One transfer."""
    if world.size == 1:
        return
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    for buffer, mean in zip(buffers, (flat / world.size).split([buffer.numel() for buffer in buffers])):
        buffer.copy_(mean.view_as(buffer))


@torch.no_grad()
def gather(rows: Tensor, world: World) -> Tensor:
    """(B, ...) of every rank -> (W * B, ...), rank by rank; no gradient. B is the same on every rank."""
    if world.size == 1:
        return rows
    out = rows.new_empty((world.size * len(rows), *rows.shape[1:]))
    GATHER(out, rows.contiguous())
    return out


@torch.no_grad()
def exchange(rows: Tensor, permutation: Tensor, world: World) -> Tensor:
    """(B, ...): this rank's part of `gather(rows)[permutation]`, without gathering what others keep.

    permutation: (W * B,) int64 on the CPU, the same on every rank.
    """
    if world.size == 1:
        return rows[permutation.to(rows.device, non_blocking=True)]
    b = len(rows)
    source = permutation.view(world.size, b)                       # [d, i]: global row that ends as row i of rank d
    mine = source[world.rank]
    owner = mine // b
    sent = [part[part // b == world.rank] - world.rank * b for part in source]
    arrival = torch.argsort(owner, stable=True)                    # rows arrive rank by rank, in the receiver's order
    out = rows.new_empty(rows.shape)
    dist.all_to_all_single(out, rows[torch.cat(sent).to(rows.device)].contiguous(),
                           torch.bincount(owner, minlength=world.size).tolist(), [len(part) for part in sent])
    place = torch.empty_like(arrival)
    place[arrival] = torch.arange(b)
    return out[place.to(rows.device)]


@torch.no_grad()
def reduce_logs(values: dict[str, Tensor], world: World) -> dict[str, float]:
    """Scalars of this rank -> numbers of the global batch: means over the ranks, sums for COUNTS. One transfer."""
    stacked = torch.stack([value.detach().double().reshape(()) for value in values.values()])
    if world.size > 1:
        dist.all_reduce(stacked)
    numbers = stacked.tolist()
    return {name: number if name in COUNTS else number / world.size for name, number in zip(values, numbers)}
