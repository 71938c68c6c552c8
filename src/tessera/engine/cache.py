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
        shape = (2, 0, config.kv_heads, 0, config.head_size)
        # One tensor per layer: an update of a view of a single large tensor would copy all of it inside a compiled graph.
        self._slots = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self._kept = [
            torch.zeros((2, 0, config.kv_heads, BLOCK, config.head_size), dtype=dtype, device=device)
            for _ in range(config.layers)
        ]
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
        self._make_room(len(self.lengths) + 1, max([length, *self.lengths]))
        if blocks:
            at = torch.tensor(blocks, device=self._device)
            for slots, kept in zip(self._slots, self._kept, strict=True):
                copied = kept.index_select(1, at).transpose(1, 2)
                slots[:, len(self.lengths), :, :length] = copied.reshape(2, -1, length, self._config.head_size)
        self.lengths.append(length)
        return blocks

    def keep(self, slot: int, keys: Sequence[bytes], held: list[int]) -> None:
        """Makes the prefix `keys`, computed in `slot`, known to others; `held` are the blocks that the slot uses already."""
        new = self.prefixes.add(keys, held)
        if not new:
            return
        self._grow_kept(max(block for _, block in new) + 1)
        index, block = (torch.tensor(column, device=self._device) for column in zip(*new, strict=True))
        for slots, kept in zip(self._slots, self._kept, strict=True):
            whole = slots[:, slot, :, : len(keys) * BLOCK].unflatten(2, (-1, BLOCK))
            kept.index_copy_(1, block, whole.index_select(2, index).transpose(1, 2))

    def close(self, slot: int, held: Sequence[int]) -> None:
        """Frees a slot and the blocks it used; the last slot moves into its place."""
        self.prefixes.release(held)
        length = self.lengths.pop()
        if slot < len(self.lengths):
            for slots in self._slots:
                slots[:, slot, :, :length] = slots[:, len(self.lengths), :, :length]
            self.lengths[slot] = length

    def begin(self, counts: Sequence[int]) -> Tensor:
        """Prepares a forward pass over `counts[slot]` new tokens of each slot; returns their positions, (N,) int64.

        The tokens count only after `end`, so a pass that fails leaves nothing behind.
        """
        ends = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self._make_room(len(ends), max(ends))
        slot_N = np.repeat(np.arange(len(counts)), counts)
        position_N = np.concatenate([np.arange(length, end) for length, end in zip(self.lengths, ends, strict=True)])
        heads, capacity = self._slots[0].shape[2:4]
        places_NK = (slot_N[:, None] * heads + np.arange(heads)) * capacity + position_N[:, None]
        self._places = torch.from_numpy(places_NK.reshape(-1)).to(self._device)
        self._spans = self._plan(counts, ends)
        return torch.from_numpy(position_N).to(self._device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (1, N, H, S), k and v (1, N, K, S) of the tokens that `begin` announced; returns (1, N, H, S)."""
        slots = self._slots[layer]
        S = q.shape[-1]
        for kind, new in zip(slots, (k, v), strict=True):
            kind.view(-1, S).index_copy_(0, self._places, new.reshape(-1, S))
        mixed = [self._attend_span(span, slots, q[:, span.start : span.end]) for span in self._spans]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, 1)

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
        zeros = torch.zeros(hidden.shape, dtype=self._slots[0].dtype, device=self._device)
        return zeros.masked_fill_(hidden, float("-inf"))

    def _attend_span(self, span: _Span, slots: Tensor, q: Tensor) -> Tensor:
        """(1, n, H, S): each token of a span over what its slot holds."""
        keys, values = slots[:, span.slots, :, : span.window]
        H, S = q.shape[2:]
        if span.slots.stop - span.slots.start == span.end - span.start:
            # The query heads of one key head are taken as its T axis, so that no key is repeated.
            grouped = q.view(-1, keys.shape[1], H // keys.shape[1], S)
            return F.scaled_dot_product_attention(grouped, keys, values, span.mask).view(1, -1, H, S)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, span.mask, is_causal=span.mask is None, enable_gqa=keys.shape[1] != H
        )
        return mixed.transpose(1, 2)

    def _make_room(self, rows: int, tokens: int) -> None:
        """Grows to `rows` slots of `tokens` each: by doubling where the budget allows, which makes it rare."""
        have_rows, have_tokens = self._slots[0].shape[1], self._slots[0].shape[3]
        if rows <= have_rows and tokens <= have_tokens:
            return
        more_tokens = min(_power_of_two(max(tokens, have_tokens, _LEAST_TOKENS)), max(self._config.context, tokens))
        more_rows = min(_power_of_two(max(rows, have_rows)), self._most_rows)
        if more_rows * more_tokens > self._most_tokens:
            more_tokens = max(tokens, min(more_tokens, self._most_tokens // rows))
            more_rows = max(rows, min(more_rows, self._most_tokens // more_tokens))
        kept_rows, kept_tokens = min(have_rows, more_rows), min(have_tokens, more_tokens)
        for layer, old in enumerate(self._slots):
            # Zeros, not garbage: a masked NaN would still spoil the sum over values.
            new = old.new_zeros((2, more_rows, self._config.kv_heads, more_tokens, self._config.head_size))
            new[:, :kept_rows, :, :kept_tokens] = old[:, :kept_rows, :, :kept_tokens]
            self._slots[layer] = new

    def _grow_kept(self, blocks: int) -> None:
        have = self._kept[0].shape[1]
        if blocks <= have:
            return
        more = min(_power_of_two(max(blocks, 2 * have)), self.prefixes.blocks)
        for layer, old in enumerate(self._kept):
            new = old.new_zeros((2, more, *old.shape[2:]))
            new[:, :have] = old
            self._kept[layer] = new


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
