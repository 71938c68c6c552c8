"""Keys and values of the running requests, so that no token is computed twice, and of prefixes that may come again.

A running request has a slot: a stretch of each layer's tensor, dense in time. The slots in use are always the first ones, so that
all of them together are one view; a slot that is closed is filled by the last. Every forward pass takes a flat row of tokens,
those of slot 0, then of slot 1, and so on: the products over weights see no padding at all, and only attention goes slot by
slot, or over several slots at once where each has one new token.

Prefixes are kept in blocks of 32 tokens in a second tensor per layer, found by a hash that is chained through the blocks before
it and begins with a salt. A new request copies what it finds into its slot. `Prefixes` only does the book-keeping, so that a
paged layout, in which slots are tables of blocks, can stand beside `SlotCache` with the same one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.model.decoder import DecoderConfig

BLOCK = 32
"""Tokens of a kept block. A prompt of 1,024 tokens that comes again has 992 of them ready, 97 %."""

_WINDOW = 16
"""Of what a compiled step attends to, so many tokens more or less."""

_LEAST_TOKENS = 256
"""A slot is at least this long: growing copies all slots, a slot that is too long costs only memory."""


class Prefixes:
    """Which prefix lies in which block: a map from chained hashes, counts of users, and the order of last use.

    Args:
        blocks: how many there are; 0 keeps nothing.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._users = [0] * blocks
        self._unused: OrderedDict[int, None] = OrderedDict((block, None) for block in range(blocks))

    @staticmethod
    def keys(ids: Sequence[int], salt: str) -> list[bytes]:
        """A hash for each whole block of `ids`, of everything up to its end and of the salt."""
        key = hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        data = np.asarray(ids, np.int32)
        found = []
        for end in range(BLOCK, len(data) + 1, BLOCK):
            key = hashlib.blake2b(key + data[end - BLOCK : end].tobytes(), digest_size=16).digest()
            found.append(key)
        return found

    def __contains__(self, key: object) -> bool:
        return key in self._block_of

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix, each with one more user."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
            self._use(block)
        return found

    def add(self, keys: Sequence[bytes], held: list[int]) -> list[tuple[int, int]]:
        """Makes all of `keys` known, as far as unused blocks last; the least recently used give way.

        Args:
            keys: of a whole prefix.
            held: blocks of the first of them, that the caller uses already; grows by the others.

        Returns:
            (index of the key, block) of those whose content is still to be written.
        """
        new = []
        for index in range(len(held), len(keys)):
            block = self._block_of.get(keys[index])
            if block is not None:
                self._use(block)
            elif not self._unused:
                break
            else:
                block, _ = self._unused.popitem(last=False)
                if block in self._key_of:
                    del self._block_of[self._key_of[block]]
                self._block_of[keys[index]], self._key_of[block] = block, keys[index]
                self._users[block] = 1
                new.append((index, block))
            held.append(block)
        return new

    def release(self, blocks: Sequence[int]) -> None:
        """One user less for each. The end of a prefix is forgotten before its beginning, without which it could not be found."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._unused[block] = None

    def forget(self) -> None:
        """No prefix is known any more; blocks in use stay with their users."""
        self._block_of.clear()
        self._key_of.clear()

    def _use(self, block: int) -> None:
        self._users[block] += 1
        self._unused.pop(block, None)


@dataclass(frozen=True)
class _Span:
    """Tokens `start ... end` of a pass, which attend together: one of each slot in `slots`, or several of a single slot."""

    slots: slice
    start: int
    end: int
    window: int
    mask: Tensor | None


class SlotCache:
    """Implements `model.decoder.Cache` for passes over a flat row of tokens.

    Args:
        config: shape of the decoder.
        dtype: of keys and values; the decoder's compute dtype.
        device: where the decoder lives.
        rows: slots at most.
        tokens: slots times length at most.
        kept_tokens: of prefixes.
    """

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, rows: int, tokens: int, kept_tokens: int
    ) -> None:
        self.lengths: list[int] = []
        """Tokens in each open slot."""
        self.prefixes = Prefixes(kept_tokens // BLOCK)
        self._config = config
        self._most_rows, self._most_tokens = rows, tokens
        self._device = device
        self._rows = self._capacity = 0
        # A window is a whole multiple of _WINDOW, so a slot has to be able to be one.
        self._longest = -(-config.context // _WINDOW) * _WINDOW
        self.slots: list[Tensor]
        # Keys of layer 0, values of layer 0, keys of layer 1 ...: a tensor each, (rows * K * capacity, S). A compiled graph
        # writes in place only into what it was handed whole; a view of something larger it copies, all of it, in every step.
        empty = torch.zeros((0, config.head_size), dtype=dtype, device=device)
        self.slots = [empty] * (2 * config.layers)
        self._kept = [empty.view(0, config.kv_heads, BLOCK, config.head_size)] * (2 * config.layers)
        # Row of the flat tensors at which each slot's heads begin, (rows, K), and 0 ... capacity - 1.
        self._first = self._steps = torch.empty(0, dtype=torch.long, device=device)
        self._spans: list[_Span] = []
        self._places = torch.empty(0, dtype=torch.long)

    @property
    def tokens(self) -> int:
        """In all open slots."""
        return sum(self.lengths)

    def open(self, keys: Sequence[bytes]) -> list[int]:
        """Opens a slot behind the last one, with what is known of the prefix `keys`; returns the blocks that this uses."""
        blocks = self.prefixes.match(keys)
        length = len(blocks) * BLOCK
        self.make_room(len(self.lengths) + 1, max([length, *self.lengths]))
        if blocks:
            at = torch.tensor(blocks, device=self._device)
            for slots, kept in zip(self.slots, self._kept, strict=True):
                copied = kept.index_select(0, at).transpose(0, 1)
                self._view(slots)[len(self.lengths), :, :length] = copied.reshape(-1, length, self._config.head_size)
        self.lengths.append(length)
        return blocks

    def keep(self, slot: int, keys: Sequence[bytes], held: list[int]) -> None:
        """Makes the prefix `keys`, computed in `slot`, known to others; `held` are the blocks that the slot uses already."""
        new = self.prefixes.add(keys, held)
        if not new:
            return
        self._grow_kept(max(block for _, block in new) + 1)
        index, block = (torch.tensor(column, device=self._device) for column in zip(*new, strict=True))
        for slots, kept in zip(self.slots, self._kept, strict=True):
            whole = self._view(slots)[slot, :, : len(keys) * BLOCK].unflatten(1, (-1, BLOCK))
            kept.index_copy_(0, block, whole.index_select(1, index).transpose(0, 1))

    def close(self, slot: int, held: Sequence[int]) -> None:
        """Frees a slot and the blocks it used; the last slot moves into its place."""
        self.prefixes.release(held)
        length = self.lengths.pop()
        if slot < len(self.lengths):
            for slots in map(self._view, self.slots):
                slots[slot, :, :length] = slots[len(self.lengths), :, :length]
            self.lengths[slot] = length

    def begin(self, counts: Sequence[int]) -> Tensor:
        """Prepares a forward pass over `counts[slot]` new tokens of each slot; returns their positions, (N,) int64.

        The tokens count only after `end`, so a pass that fails leaves nothing behind.
        """
        ends = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.make_room(len(ends), max(ends))
        slot_N = np.repeat(np.arange(len(counts)), counts)
        position_N = np.concatenate([np.arange(length, end) for length, end in zip(self.lengths, ends, strict=True)])
        slots, positions = torch.from_numpy(slot_N).to(self._device), torch.from_numpy(position_N).to(self._device)
        self._places = (self._first[slots] + positions[:, None]).view(-1)
        self._spans = self._plan(counts, ends)
        return positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (1, N, H, S), k and v (1, N, K, S) of the tokens that `begin` announced; returns (1, N, H, S)."""
        keys, values = self.slots[2 * layer], self.slots[2 * layer + 1]
        _write(keys, values, self._places, k, v)
        keys, values = self._view(keys), self._view(values)
        mixed = [self._attend_span(span, keys, values, q[:, span.start : span.end]) for span in self._spans]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, 1)

    def begin_decode(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prepares a pass over one new token of each open slot, filled up to `rows` slots.

        Returns:
            positions, (rows,) int64, and places and mask for a `DecodePass`. What fills up goes into slots that are not open.
        """
        filled = [*self.lengths, *[0] * (rows - len(self.lengths))]
        # A whole multiple, so that it is never 1, which would be a graph of its own.
        window = -(-(max(filled) + 1) // _WINDOW) * _WINDOW
        self.make_room(rows, window)
        positions_B = torch.tensor(filled, device=self._device)
        places_BK = self._first[:rows] + positions_B[:, None]
        hidden_BW = self._steps[:window] > positions_B[:, None]
        return positions_B, places_BK.view(-1), self._added(hidden_BW)[:, None, None]

    def reserve(self) -> bool:
        """Grows to all rows of a full context at once, for graphs that know one shape only; False where the budget forbids."""
        if self._most_rows * self._config.context > self._most_tokens:
            return False
        self.make_room(self._most_rows, self._longest)
        return True

    def make_room(self, rows: int, tokens: int) -> None:
        """Grows to `rows` slots of `tokens` each: by doubling where the budget allows, which makes it rare."""
        have_rows, have_tokens = self.shape
        if rows <= have_rows and tokens <= have_tokens:
            return
        more_tokens = min(_power_of_two(max(tokens, have_tokens, _LEAST_TOKENS)), max(self._longest, tokens))
        more_rows = min(_power_of_two(max(rows, have_rows)), self._most_rows)
        if more_rows * more_tokens > self._most_tokens:
            more_tokens = max(tokens, min(more_tokens, self._most_tokens // rows))
            more_rows = max(rows, min(more_rows, self._most_tokens // more_tokens))
        kept_rows, kept_tokens = min(have_rows, more_rows), min(have_tokens, more_tokens)
        olds = [self._view(old)[:kept_rows, :, :kept_tokens] for old in self.slots]
        self._rows, self._capacity = more_rows, more_tokens
        starts = torch.arange(more_rows * self._config.kv_heads, device=self._device) * more_tokens
        self._first = starts.view(more_rows, self._config.kv_heads)
        self._steps = torch.arange(more_tokens, device=self._device)
        grown = []
        for old in olds:
            # Zeros, not garbage: a masked NaN would still spoil the sum over values.
            new = old.new_zeros((more_rows * self._config.kv_heads * more_tokens, self._config.head_size))
            self._view(new)[:kept_rows, :, :kept_tokens] = old
            grown.append(new)
        self.slots = grown

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and tokens of each that there is memory for."""
        return self._rows, self._capacity

    def end(self, counts: Sequence[int]) -> None:
        """The pass went through."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def _plan(self, counts: Sequence[int], ends: Sequence[int]) -> list[_Span]:
        """Neighbouring slots with one new token each attend together, any other slot by itself."""
        spans: list[_Span] = []
        slot = at = 0
        while slot < len(counts):
            after = slot + 1
            if counts[slot] == 1:
                while after < len(counts) and counts[after] == 1:
                    after += 1
            count = sum(counts[slot:after])
            if count:
                window = max(ends[slot:after])
                mask = self._mask(ends[slot:after], window) if counts[slot] == 1 else self._causal(counts[slot], window)
                spans.append(_Span(slice(slot, after), at, at + count, window, mask))
            slot, at = after, at + count
        return spans

    def _mask(self, ends: Sequence[int], window: int) -> Tensor | None:
        """(B, 1, 1, W) to be added to the scores: what lies behind the end of a slot is not seen."""
        if min(ends) == window:
            return None
        hidden = torch.arange(window, device=self._device) >= torch.tensor(ends, device=self._device)[:, None]
        return self._added(hidden)[:, None, None]

    def _causal(self, count: int, window: int) -> Tensor | None:
        """(T, W) for the last T of W tokens; None where these are all."""
        if count == window:
            return None
        at = torch.arange(window, device=self._device)
        return self._added(at > at[window - count :, None])

    def _added(self, hidden: Tensor) -> Tensor:
        zeros = torch.zeros(hidden.shape, dtype=self.slots[0].dtype, device=self._device)
        return zeros.masked_fill_(hidden, float("-inf"))

    def _view(self, slots: Tensor) -> Tensor:
        """(rows, K, capacity, S)."""
        return slots.view(self._rows, self._config.kv_heads, self._capacity, self._config.head_size)

    def _attend_span(self, span: _Span, keys: Tensor, values: Tensor, q: Tensor) -> Tensor:
        """(1, n, H, S): each token of a span over what its slot holds."""
        keys, values = keys[span.slots, :, : span.window], values[span.slots, :, : span.window]
        H = q.shape[2]
        if span.slots.stop - span.slots.start == span.end - span.start:
            return _attend_each(q, keys, values, span.mask)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, span.mask, is_causal=span.mask is None, enable_gqa=keys.shape[1] != H
        )
        return mixed.transpose(1, 2)

    def _grow_kept(self, blocks: int) -> None:
        have = len(self._kept[0])
        if blocks <= have:
            return
        more = min(_power_of_two(max(blocks, 2 * have)), self.prefixes.blocks)
        for index, old in enumerate(self._kept):
            new = old.new_zeros((more, *old.shape[1:]))
            new[:have] = old
            self._kept[index] = new


class DecodePass:
    """Implements `model.decoder.Cache` for one new token of each of the first slots, with nothing but tensors: for compilation.

    Args:
        slots: as `SlotCache` keeps them.
        places: where the new keys and values go.
        mask: (B, 1, 1, W), added to the scores.
        capacity: tokens of a slot.
    """

    def __init__(self, slots: list[Tensor], places: Tensor, mask: Tensor, capacity: int) -> None:
        self.slots, self.places, self.mask, self.capacity = slots, places, mask, capacity

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (1, B, H, S), k and v (1, B, K, S); returns (1, B, H, S)."""
        keys, values = self.slots[2 * layer], self.slots[2 * layer + 1]
        _write(keys, values, self.places, k, v)
        B, W, (K, S) = q.shape[1], self.mask.shape[-1], k.shape[2:]
        keys, values = (kind.view(-1, K, self.capacity, S)[:B, :, :W] for kind in (keys, values))
        return _attend_each(q, keys, values, self.mask)


def _write(keys: Tensor, values: Tensor, places: Tensor, k: Tensor, v: Tensor) -> None:
    keys.index_copy_(0, places, k.reshape(-1, k.shape[-1]))
    values.index_copy_(0, places, v.reshape(-1, v.shape[-1]))


def _attend_each(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """q (1, B, H, S), one token each, over keys and values (B, K, W, S)."""
    _, B, H, S = q.shape
    K = keys.shape[1]
    # The query heads of one key head are taken as its T axis, so that no key is repeated.
    return F.scaled_dot_product_attention(q.reshape(B, K, H // K, S), keys, values, mask).reshape(1, B, H, S)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
