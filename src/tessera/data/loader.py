"""Token files -> batches.

`Loader.next` gives the next batch: each row comes from the source that is furthest behind its share, and is the next one planned
there. Everything follows from the seed and from how many rows each source has given, so the state is a few numbers, exact, and
the same for any number of processes: each plans the whole batch and reads only its own rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from tessera import recipe
from tessera.data.packing import Packer, Plan, in_order
from tessera.data.shards import Shards, Tokens
from tessera.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Rows of one update, or this process's part of them.

    Args:
        ids: (B, T+1) int64; ids[:, :-1] are inputs, ids[:, 1:] their targets.
        learn: (B, T) bool; whether the loss counts the target. Never at padding, nor at a token that is a target elsewhere too.
        documents: (B, T) int32, the number within its row of the document that each input belongs to, or None where a token may
            attend to all before it.
        tokens: targets of the whole batch, over all processes, that are not padding.
        extras: what an objective needs beside them, by the names of its arguments; the first axis of each is B.
        units: what the loss of this process's rows is averaged over; None: the targets that are learned.
        facts: told with the step that learns from it.
    """

    ids: np.ndarray
    learn: np.ndarray
    documents: np.ndarray | None
    tokens: int
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    units: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def learned(self) -> float:
        """What the loss of these rows is averaged over, together with that of the other processes."""
        return float(self.learn.sum()) if self.units is None else self.units

    def cut(self, length: int) -> Batch:
        """The same targets in rows of `length`, a divisor of T, which see nothing of each other; shorter rows stay."""
        if length >= self.learn.shape[1]:
            return self
        starts = np.arange(0, self.learn.shape[1], length)[:, None]
        ids = self.ids[:, starts + np.arange(length + 1)].reshape(-1, length + 1)
        documents = None if self.documents is None else self.documents.reshape(-1, length)
        return Batch(ids, self.learn.reshape(-1, length), documents, self.tokens)


class Shares:
    """This process's rows of batches that every process makes as a whole: pairs, prompts, rollouts.

    Args:
        batches: the same in all processes.
        rank, size: of this process among how many.
    """

    def __init__(self, batches: Batches, rank: int, size: int) -> None:
        self.batches = batches
        self.rank = rank
        self.size = size

    def next(self) -> Batch:
        """A process for which no row is left has one of which nothing is learned: it has to meet the others all the same."""
        batch = self.batches.next()
        rows = len(batch.ids)
        own = slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)
        learn, extras = batch.learn[own], {name: array[own] for name, array in batch.extras.items()}
        if own.start == own.stop:
            assert batch.units is None, "batches of pairs or prompts have a row for each process"
            own, learn = slice(0, 1), np.zeros_like(batch.learn[:1])
            extras = {name: np.zeros_like(array[:1]) for name, array in batch.extras.items()}
        documents = None if batch.documents is None else batch.documents[own]
        # Of the units only the sum over all processes counts.
        units = None if batch.units is None else batch.units / self.size
        return replace(batch, ids=batch.ids[own], learn=learn, documents=documents, extras=extras, units=units)

    def state(self) -> dict[str, Any]:
        """Of the batches as a whole."""
        return self.batches.state()

    def restore(self, state: dict[str, Any]) -> None:
        """As of the batches."""
        self.batches.restore(state)


class Batches(Protocol):
    """Where a run's batches come from: files, rollouts or pairs."""

    def next(self) -> Batch:
        """The next batch: this process's rows of it."""
        ...

    def state(self) -> dict[str, Any]:
        """Where it stands, as plain JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `state` was taken; UserError where it was taken of something else."""
        ...


class Loader:
    """Batches without end, or until every source has been read as often as its `epochs` allow.

    Args:
        context: T.
        rows: rows of a batch over all processes.
        seed: of the order of the documents, with `data.seed`.
        process, processes: which part of each batch is given here, rows [process * rows / processes, ...).

    Raises:
        UserError: rows that cannot be shared equally, a source without training tokens.
    """

    def __init__(
        self, shards: Shards, data: recipe.Data, context: int, rows: int, seed: int, process: int = 0, processes: int = 1
    ) -> None:
        if rows % processes:
            raise UserError(
                f"{rows} rows cannot be shared by {processes} processes; make train.batch_rows a multiple of {processes}."
            )
        for source in shards.sources:
            # One token has nothing before it to be predicted from.
            if source.train.tokens < 2:
                raise UserError(f"source {source.uri} has no training tokens.")
        self.shards = shards
        self.context = context
        self.rows = rows
        self._local = range(process * rows // processes, (process + 1) * rows // processes)
        self._mask = data.document_mask
        self._identity = [
            shards.hash,
            context,
            data.seed,
            seed,
            data.packing,
            [[s.uri, s.weight, s.epochs] for s in data.sources],
        ]
        self._feeds = []
        for index, (wish, source) in enumerate(zip(data.sources, shards.sources, strict=True)):
            packer = Packer(source.train, context, (data.seed, seed, index), data.packing, wish.epochs)
            self._feeds.append(_Feed(packer, wish.weight or source.tokens / shards.train_tokens))
        self._targets = 0
        self._given = 0

    @property
    def padding(self) -> float:
        """Share of the targets given so far that were padding."""
        return 1 - self._targets / (self._given * self.context) if self._given else 0.0

    def next(self) -> Batch:
        """The next batch. The last one before the end is filled with padding.

        Raises:
            UserError: every source has been read as often as its `epochs` allow.
        """
        picked: list[tuple[_Feed, Plan, int]] = []
        for _ in range(self.rows):
            while waiting := [feed for feed in self._feeds if not feed.done]:
                # The next row goes where it is due first: each source's share is kept to within a row at any time.
                feed = min(waiting, key=lambda feed: (feed.served + 0.5) / feed.weight)
                if (taken := feed.take()) is not None:
                    picked.append((feed, *taken))
                    break
        if not picked:
            raise UserError("every source has been read as often as its epochs allow; raise data.sources.epochs or spend less.")
        tokens = int(sum(plan.tokens[row] for _, plan, row in picked))
        self._targets += tokens
        self._given += self.rows
        batch = _empty(len(self._local), self.context, self.shards.pad_id, self._mask, tokens)
        for place, (feed, plan, row) in enumerate(picked[self._local.start : self._local.stop]):
            _fill(batch, place, feed.packer.tokens, plan, row)
        return batch

    def state(self) -> dict[str, Any]:
        """Where the loader stands, as plain JSON; a few numbers per source, the same in every process."""
        return {
            "identity": self._identity,
            "sources": [{"block": f.block, "row": f.row, "served": f.served} for f in self._feeds],
            "targets": self._targets,
            "rows": self._given,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `state` was taken.

        Raises:
            UserError: the state belongs to other data, another context, packing, mixture or seed.
        """
        if state["identity"] != self._identity:
            raise UserError(
                "the saved state of the data belongs to other documents, another vocabulary, context, packing, mixture or seed."
            )
        for feed, saved in zip(self._feeds, state["sources"], strict=True):
            feed.seek(saved["block"], saved["row"], saved["served"])
        self._targets, self._given = state["targets"], state["rows"]


def validation_batches(
    shards: Shards, context: int, rows: int, max_tokens: int, document_mask: bool = False, whole: bool = False
) -> list[Batch]:
    """The same rows of the validation split every time: evenly spread over each source, in stored order.

    Args:
        context, rows: shape of the batches; the last one is filled with rows of padding.
        max_tokens: at most about so many targets; every source has at least one row, and its share of the rest.
        whole: no document that fits into a row is cut in two, for the sake of which they are read in another order.
    """
    chosen: list[tuple[Tokens, Plan, int]] = []
    for source in shards.sources:
        tokens = source.validation
        if tokens.tokens < 2:
            continue
        plans = list(_all_whole(tokens, context)) if whole else [in_order(tokens, context)]
        there = [(tokens, plan, row) for plan in plans for row in range(len(plan))]
        count = min(len(there), max(1, int(max_tokens * tokens.tokens / shards.validation_tokens / context)))
        chosen += [there[int(row)] for row in np.linspace(0, len(there) - 1, count).round()]
    batches = []
    for first in range(0, len(chosen), rows):
        part = chosen[first : first + rows]
        batch = _empty(rows, context, shards.pad_id, document_mask, int(sum(plan.tokens[row] for _, plan, row in part)))
        for place, (tokens, plan, row) in enumerate(part):
            _fill(batch, place, tokens, plan, row)
        batches.append(batch)
    return batches


def refuse_missing_rows(shards: Shards, data: recipe.Data, context: int, rows: int, seed: int, steps: int) -> None:
    """Raises UserError where the `epochs` of the sources allow fewer batches than `steps`; arguments as of `Loader`."""
    if any(source.epochs is None for source in data.sources):
        return
    there = count_rows(shards, data, context, seed, steps * rows)
    # The last batch may be filled up with padding.
    if there <= (steps - 1) * rows:
        raise UserError(
            f"{steps:,} updates of {rows} rows need {steps * rows:,} rows and data.sources.epochs allow {there:,}; "
            f"raise the epochs, or spend less: {max(1, there // rows) * rows * context}tok."
        )


def count_rows(shards: Shards, data: recipe.Data, context: int, seed: int, most: int) -> int:
    """Rows that the `epochs` of the sources allow, counted until there are `most`; other arguments as of `Loader`."""
    there = 0
    for feed in Loader(shards, data, context, 1, seed)._feeds:
        while there < most and (plan := feed.packer.plan(feed.block)) is not None:
            there += len(plan)
            feed.block += 1
    return there


def _all_whole(tokens: Tokens, context: int) -> Iterator[Plan]:
    """One pass over a split in rows that cut no document which fits."""
    packer, block = Packer(tokens, context, (0,), "best_fit", 1), 0
    while (plan := packer.plan(block)) is not None:
        yield plan
        block += 1


class _Feed:
    """The rows of one source, one after the other.

    Args:
        packer: plans them.
        weight: its share of the rows, relative to the other sources.
    """

    def __init__(self, packer: Packer, weight: float) -> None:
        self.packer = packer
        self.weight = weight
        self.seek(0, 0, 0)

    def seek(self, block: int, row: int, served: int) -> None:
        """Goes to a row of a block."""
        self.block, self.row, self.served = block, row, served
        self.done = False
        self._plan: Plan | None = None

    def take(self) -> tuple[Plan, int] | None:
        """The next row; None at the end."""
        if self._plan is None:
            self._plan = self.packer.plan(self.block)
        while self._plan is not None and self.row >= len(self._plan):
            self.block, self.row = self.block + 1, 0
            self._plan = self.packer.plan(self.block)
        if self._plan is None:
            self.done = True
            return None
        self.row += 1
        self.served += 1
        return self._plan, self.row - 1


def _empty(rows: int, context: int, pad_id: int, mask: bool, tokens: int) -> Batch:
    return Batch(
        np.full((rows, context + 1), pad_id, np.int64),
        np.zeros((rows, context), np.bool_),
        np.zeros((rows, context), np.int32) if mask else None,
        tokens,
    )


def _fill(batch: Batch, place: int, tokens: Tokens, plan: Plan, row: int) -> None:
    """Writes one planned row into the batch's arrays."""
    ids, learn = batch.ids[place], batch.learn[place]
    at = 0
    for number, stretch in enumerate(range(plan.rows[row], plan.rows[row + 1])):
        start, length = int(plan.starts[stretch]), int(plan.lengths[stretch])
        ids[at : at + length] = tokens.ids[start : start + length]
        # learn[t] speaks of ids[t + 1], and a row's first token is no target.
        skip = 1 if at == 0 or plan.repeats[stretch] or batch.documents is not None else 0
        learn[at + skip - 1 : at + length - 1] = True if tokens.learn is None else tokens.learn[start + skip : start + length]
        if batch.documents is not None:
            # Padding goes on with the last number.
            batch.documents[place, at:] = number
        at += length
