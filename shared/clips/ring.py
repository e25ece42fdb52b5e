"""A ring of shared memory: worker processes write arrays into its slots, the training process reads them in place."""

import math
import mmap
from dataclasses import dataclass

import numpy as np
import torch

from shared.cli import Stopped, size

ALIGN = 64  # bytes


class Ring:
    """Slots of shared memory without a name: it ends with the last process that maps it, however that process ends.

    capacity: bytes a slot; its pages take memory once they are written. Processes share it by fork.
    """

    def __init__(self, slots: int, capacity: int):
        self.slots, self.capacity = slots, -(-capacity // mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory = torch.frombuffer(mmap.mmap(-1, slots * self.capacity), dtype=torch.uint8)
        self.pinned = False

    def slot(self, number: int) -> torch.Tensor:
        """(capacity,) uint8: where part `number` goes, and every `slots`-th part after it."""
        first = number % self.slots * self.capacity
        return self.memory[first:first + self.capacity]

    def pin(self) -> None:
        """Lock all pages, so that copies to a CUDA device run beside the computation. Raises Stopped where they cannot
        be locked."""
        count = self.memory.numel()
        try:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self.memory.data_ptr(), count, 0))
        except RuntimeError as error:
            raise Stopped(f"{size(count)} of the loader's memory could not be locked for the GPU ({error}); "
                          "give fewer run.workers or a smaller batch, or raise the limit of locked memory") from error
        self.pinned = True

    def close(self) -> None:
        """Undo `pin`, once copies are done."""
        if self.pinned:
            torch.cuda.synchronize()
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self.memory.data_ptr()))
            self.pinned = False


@dataclass(frozen=True)
class Place:
    """Where an array lies in a slot: byte offset, shape, numpy dtype."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def view(self, slot: torch.Tensor) -> torch.Tensor:
        """The array, in the memory of `slot` or of a copy of it."""
        kind = torch.from_numpy(np.empty(0, self.dtype)).dtype
        return slot[self.offset:self.end].view(kind).view(self.shape)


class SlotWriter:
    """Hands out a slot's memory from its start; `used` bytes so far."""

    def __init__(self, slot: torch.Tensor):
        self.memory, self.used, self.places = slot.numpy(), 0, []

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array, uninitialised. Raises ValueError where the slot is full."""
        place = Place(self.used, tuple(shape), dtype)
        if place.end > len(self.memory):
            raise ValueError(f"{tuple(shape)} of {dtype} end at byte {place.end} of a slot of {len(self.memory)}")
        self.places.append(place)
        self.used = -(-place.end // ALIGN) * ALIGN
        return self.memory[place.offset:place.end].view(dtype).reshape(shape)

    def take(self) -> list[Place]:
        """The places handed out since the last call."""
        places, self.places = self.places, []
        return places
