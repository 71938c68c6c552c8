"""Documents -> rows, as plans: which stretches of a token file stand in which row.

A row holds T+1 ids, so that T of them are inputs and the T that follow are their targets. Where a document is cut, both rows
hold the token at the cut: it is the last target of the one and the first input of the other, and no prediction is lost.
Planning reads only the documents' offsets, so every process plans all rows and reads the ids of its own.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tessera.data.shards import Tokens

Packing = Literal["best_fit", "single", "stream"]

# Documents are shuffled over the whole epoch and packed in windows: memory and the wait for the next window stay bounded. Windows
# are large, since what a short run sees of a few long documents among many short ones makes seeds differ by 4 % of the loss
# (docs/LOG.md, 2026-11-25, "Windows").
_WINDOW_ROWS = 2**16
_MOST_WINDOW_DOCUMENTS = 2**18
# However many of very short documents are needed, so that the last, unfilled row does not count.
_LEAST_WINDOW_ROWS = 512


@dataclass(frozen=True)
class Plan:
    """Rows of stretches of one token file.

    Args:
        starts, lengths: (P,) int64, each stretch in the file; stretches of a row follow each other.
        repeats: (P,) bool; the first token was a target of another row already.
        rows: (R + 1,) int64; row r holds the stretches rows[r]:rows[r + 1].
        tokens: (R,) int64; targets in each row that are not padding.
    """

    starts: np.ndarray
    lengths: np.ndarray
    repeats: np.ndarray
    rows: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Packer:
    """All rows of one split of a source, in blocks that are planned one at a time; a block is a function of its number.

    Args:
        tokens: the token file.
        context: T.
        seed: what the shuffle depends on, besides the epoch.
        packing: `best_fit`: long documents are cut into full rows and a remainder; remainders and short documents share rows,
            each put where the least room is left (arXiv 2404.10830). `single`: the same, but each in a row of its own. `stream`:
            shuffled documents end to end, cut at every T.
        epochs: passes over the source, or None for no end.
    """

    tokens: Tokens
    context: int
    seed: tuple[int, ...]
    packing: Packing
    epochs: float | None

    def plan(self, block: int) -> Plan | None:
        """The block's rows, or None past the end."""
        return self._stream(block) if self.packing == "stream" else self._whole(block)

    def _order(self, epoch: int) -> np.ndarray:
        return self._rng(0, epoch).permutation(len(self.tokens.offsets) - 1)

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([*self.seed, *purpose]))

    def _whole(self, block: int) -> Plan | None:
        offsets, room = self.tokens.offsets, self.context + 1
        count = len(offsets) - 1
        per_row = room * count / max(1, len(self.tokens.ids))
        window = math.ceil(max(min(_WINDOW_ROWS * per_row, _MOST_WINDOW_DOCUMENTS), _LEAST_WINDOW_ROWS * per_row))
        epoch, part = divmod(block, -(-count // window))
        last = count
        if self.epochs is not None and epoch + 1 > self.epochs:
            # Of a part of an epoch, that part of the documents.
            last = round((self.epochs - epoch) * count) if epoch else max(1, round(self.epochs * count))
        chosen = self._order(epoch)[: max(0, last)][part * window : (part + 1) * window]
        if not len(chosen):
            return None
        starts, lengths, repeats = _cut(offsets[chosen], np.diff(offsets)[chosen], self.context)
        row_of = np.empty(len(starts), np.int64)
        full = lengths == room
        row_of[full] = np.arange(full.sum())
        rest = lengths[~full]
        row_of[~full] = full.sum() + (_fit(rest, room) if self.packing == "best_fit" else np.arange(len(rest)))
        rng = self._rng(1, epoch, part)
        # Rows in any order, so that one document's rows do not come one after the other; within a row too, or the long
        # stretch would always be first.
        row_of = rng.permutation(row_of.max() + 1)[row_of]
        order = np.lexsort((rng.random(len(starts)), row_of))
        return _grouped(starts[order], lengths[order], repeats[order], row_of[order])

    def _stream(self, block: int) -> Plan | None:
        length, context = len(self.tokens.ids), self.context
        end = None if self.epochs is None else round(self.epochs * length)
        # The first token of the stream is no target, and each row brings T.
        window = min(_WINDOW_ROWS, max(_LEAST_WINDOW_ROWS, length // context))
        rows = window if end is None else min(window, -(-(end - 1) // context) - block * window)
        if rows <= 0:
            return None
        begins_of_rows = (block * window + self._rng(1, block).permutation(rows)) * context
        ends_of_rows = begins_of_rows + context + 1
        if end is not None:
            ends_of_rows = np.minimum(ends_of_rows, end)
        files, begins, ends = self._stretch(int(begins_of_rows.min()), int(ends_of_rows.max()))
        return _sliced(files, begins, ends, begins_of_rows, ends_of_rows)

    def _stretch(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Documents of the endless stream between two places: where each starts in the file, begins and ends in the stream."""
        parts = []
        length = len(self.tokens.ids)
        for epoch in range(first // length, -(-last // length)):
            order = self._order(epoch)
            sizes = np.diff(self.tokens.offsets)[order]
            ends = epoch * length + np.cumsum(sizes)
            here = (ends > first) & (ends - sizes < last)
            parts.append((self.tokens.offsets[order][here], (ends - sizes)[here], ends[here]))
        files, begins, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
        return files, begins, ends


def in_order(tokens: Tokens, context: int) -> Plan:
    """The documents end to end in stored order, cut at every T."""
    begins_of_rows = np.arange(0, len(tokens.ids) - 1, context)
    begins, ends = tokens.offsets[:-1], tokens.offsets[1:]
    return _sliced(begins, begins, ends, begins_of_rows, np.minimum(begins_of_rows + context + 1, len(tokens.ids)))


def _sliced(
    files: np.ndarray, begins: np.ndarray, ends: np.ndarray, begins_of_rows: np.ndarray, ends_of_rows: np.ndarray
) -> Plan:
    """Rows as slices of a stream in which document d starts at files[d] in the file and stands at begins[d]:ends[d]."""
    low, high = np.searchsorted(ends, begins_of_rows, side="right"), np.searchsorted(begins, ends_of_rows, side="left")
    row_of = np.repeat(np.arange(len(low)), high - low)
    document = np.arange(len(row_of)) + np.repeat(low - np.cumsum(high - low) + high - low, high - low)
    begin = np.maximum(begins[document], begins_of_rows[row_of])
    lengths = np.minimum(ends[document], ends_of_rows[row_of]) - begin
    return _grouped(files[document] + begin - begins[document], lengths, np.zeros(len(lengths), np.bool_), row_of)


def _cut(starts: np.ndarray, lengths: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents -> stretches of at most T+1 tokens, one token shared between neighbours: starts, lengths, repeats."""
    # A document of L tokens has L-1 targets, T to a stretch; one of a single token still needs its stretch.
    counts = np.maximum(1, -(-(lengths - 1) // context))
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = number * context
    return np.repeat(starts, counts) + begin, np.minimum(context + 1, np.repeat(lengths, counts) - begin), number > 0


def _fit(lengths: np.ndarray, room: int) -> np.ndarray:
    """Best fit decreasing: the row of each stretch, (P,) int64."""
    rows = np.empty(len(lengths), np.int64)
    # Rows by the room that they have left, and which amounts of room there are, ascending.
    rows_with: list[list[int]] = [[] for _ in range(room + 1)]
    amounts: list[int] = []
    opened = 0
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        at = bisect.bisect_left(amounts, length)
        if at == len(amounts):
            row, left = opened, room
            opened += 1
        else:
            left = amounts[at]
            row = rows_with[left].pop()
            if not rows_with[left]:
                del amounts[at]
        rows[i] = row
        left -= length
        if left:
            if not rows_with[left]:
                bisect.insort(amounts, left)
            rows_with[left].append(row)
    return rows


def _grouped(starts: np.ndarray, lengths: np.ndarray, repeats: np.ndarray, row_of: np.ndarray) -> Plan:
    """A plan of stretches that are sorted by row."""
    ids_in_row = np.bincount(row_of, weights=lengths).astype(np.int64)
    rows = np.concatenate(([0], np.cumsum(np.bincount(row_of))))
    # A row's first token is no target; a repeated one later in the row is one already elsewhere.
    first = np.zeros(len(starts), np.bool_)
    first[rows[:-1]] = True
    repeated = np.bincount(row_of, weights=repeats & ~first).astype(np.int64)
    return Plan(starts, lengths, repeats, rows, ids_in_row - 1 - repeated)
