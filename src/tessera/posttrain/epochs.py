"""Batches of rows without end: each row once in an epoch, in an order of its own, from any place on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from tessera.data.loader import Batch
from tessera.errors import UserError

Row = TypeVar("Row")


class Epochs(Generic[Row]):
    """A loader for stages whose rows all lie in memory.

    Args:
        rows: to learn from.
        count: rows of a batch.
        seed: of the order.
        build: from the rows of a batch, each with a number that is another one the next time it comes, to the batch.
    """

    def __init__(self, rows: Sequence[Row], count: int, seed: int, build: Callable[[list[tuple[Row, int]]], Batch]) -> None:
        self.rows = rows
        self.count = count
        self.seed = seed
        self.build = build
        self._given = 0
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def next(self) -> Batch:
        """The next rows."""
        chosen = []
        for place in range(self._given, self._given + self.count):
            epoch, at = divmod(place, len(self.rows))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
            chosen.append((self.rows[int(self._order[at])], epoch + at))
        self._given += self.count
        return self.build(chosen)

    def state(self) -> dict[str, Any]:
        """How many rows were given."""
        return {"given": self._given, "rows": len(self.rows)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on there; UserError where the rows are others."""
        if state["rows"] != len(self.rows):
            raise UserError("the saved state belongs to other data.")
        self._given = state["given"]
