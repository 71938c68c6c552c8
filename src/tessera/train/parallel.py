"""Several processes as one: who am I, sums over all of us, work that is shared. Started by `torchrun`, or alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from tessera.device import processes, take_gpu
from tessera.errors import RunFailed, UserError

T = TypeVar("T")
Made = TypeVar("Made")


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

    def spread(self, items: Sequence[T], does: Callable[[Sequence[T]], Sequence[Made]]) -> list[Made]:
        """What `does` makes of the items, one of each and in their order, in all processes; each does every `size`th."""
        if self.size == 1:
            return list(does(items))
        parts: list[Sequence[Made]] = [()] * self.size
        dist.all_gather_object(parts, list(does(items[self.rank :: self.size])))
        return [parts[place % self.size][place // self.size] for place in range(len(items))]

    def lead(self, does: Callable[[], T]) -> T:
        """What process 0 makes while the others wait, in all of them.

        Raises:
            UserError: it was refused. All end alike: a process that waits for one that has gone would speak of lost connections.
        """
        made: T | None = None
        refusal: tuple[type[UserError], str] | None = None
        if self.first:
            try:
                made = does()
            except UserError as error:
                # Its words alone: the error holds its frame, and a folder's lock with it.
                refusal = type(error), str(error)
        made, refusal = self.share((made, refusal))
        if refusal is not None:
            raise refusal[0](refusal[1])
        return cast(T, made)

    def barrier(self) -> None:
        """Waits for all."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leaves the group."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = World()


def join() -> World:
    """Joins the group that `torchrun` describes in the environment (gloo on CPU, nccl on GPU), if it does."""
    if processes() == 1:
        return World()
    if torch.cuda.is_available():
        # Before anything is said: on one and the same GPU nccl lets nobody speak.
        take_gpu()
    # Process 0 prepares the data while the others wait, which may take hours.
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1))
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined() -> Iterator[World]:
    """The group, for the block.

    Raises:
        RunFailed: another process has gone while this one waited for it.
    """
    world = join()
    try:
        yield world
        # Whoever leaves first takes with it what the others still hold of the group, and one of them may abort: 1 in some 40.
        world.barrier()
    except RuntimeError as error:
        # gloo has no type of its own for it.
        if world.size == 1 or not re.search(r"by peer|Broken pipe", str(error)):
            raise
        text = f"another of the {world.size} processes has ended; look at what it said, then go on with --resume."
        raise RunFailed(text) from None
    finally:
        world.close()
