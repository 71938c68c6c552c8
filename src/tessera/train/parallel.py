"""Several processes as one: who am I, and sums over all of us. Started by `torchrun`, or alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among `size`; `rank` 0 writes and speaks."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def share(self, value: T) -> T:
        """What process 0 has, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Waits for all."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leaves the group."""
        if self.size > 1:
            dist.destroy_process_group()


def join() -> World:
    """Joins the group that `torchrun` describes in the environment (gloo on CPU, nccl on GPU), if it does."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    # Process 0 prepares the data while the others wait, which may take hours.
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1))
    return World(dist.get_rank(), dist.get_world_size())
