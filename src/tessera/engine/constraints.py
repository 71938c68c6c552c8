"""What a completion may say: the ids that a constraint leaves at each place, and those it forces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Progress(Protocol):
    """A constraint on its way through one completion."""

    def allowed(self) -> Tensor:
        """(V,) bool, the ids that may come next."""
        ...

    def forced(self) -> list[int]:
        """The ids that have to come next; none where there is a choice."""
        ...

    def accept(self, token: int) -> None:
        """The completion goes on with this id."""
        ...


class Constraint(Protocol):
    """Made once, for any number of completions."""

    def begin(self, size: int) -> Progress:
        """At the start of a completion by a model with `size` ids."""
        ...


@dataclass(frozen=True)
class IdRange:
    """`count` ids of `start ... start + size - 1`, the block of a medium, and then the id `end`."""

    start: int
    size: int
    count: int
    end: int

    def begin(self, size: int) -> Progress:
        allowed_V = torch.zeros(size, dtype=torch.bool)
        allowed_V[self.start : self.start + self.size] = True
        return _IdRangeProgress(allowed_V, self.count, self.end)


@dataclass
class _IdRangeProgress:
    allowed_V: Tensor = field(repr=False)
    left: int
    end: int

    def allowed(self) -> Tensor:
        return self.allowed_V

    def forced(self) -> list[int]:
        return [] if self.left else [self.end]

    def accept(self, token: int) -> None:
        self.left -= 1
