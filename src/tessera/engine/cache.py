"""Keys and values of a batch of requests, so that no token is computed twice.

Each row of the batch has one slot per layer, dense in time, that grows in steps. Rows may differ in length: tokens of a row
stand at positions 0, 1, 2, ... of its own slot, and what a shorter row does not have yet is masked. The engine calls `begin`
before each forward pass; the decoder calls `update` in each layer; `keep` drops the rows that are done.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tessera.model.decoder import DecoderConfig

# A growth copies the whole cache, so it should be rare; a slot that is too long costs only memory.
_STEP = 256


class DenseCache:
    """Implements `model.decoder.Cache`.

    Args:
        config: shape of the decoder.
        rows: B, requests in the batch.
        dtype: of keys and values; the decoder's compute dtype.
        device: where the decoder lives.
    """

    def __init__(self, config: DecoderConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.lengths = [0] * rows
        self._device = device
        shape = (config.layers, 2, rows, config.kv_heads, 0, config.head_size)
        self._slots = torch.empty(shape, dtype=dtype, device=device)
        self._layers = self._split()
        self._start = 0
        self._seen = 0
        self._places: tuple[Tensor, Tensor] | None = None

    def begin(self, counts: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Makes room for a forward pass over (B, T) ids, T = max(counts), of which row b has `counts[b]`, filled up on the right.

        Returns:
            positions, (T,) or (B, T) int64, and mask, bool (B, 1, T, T_seen) or None, for `Decoder.forward`. The filling
            is looked at by no real token, and the next pass writes over it.
        """
        width = max(counts)
        self._seen = max(self.lengths) + width
        self._grow_to(self._seen)
        self._start = self.lengths[0]
        steps = torch.arange(width, device=self._device)
        mask: Tensor | None = None
        if all(length == self._start for length in self.lengths):
            self._places = None
            positions = self._start + steps
            if self._start and width > 1:
                mask = (torch.arange(self._seen, device=self._device) <= positions[:, None])[None, None]
        else:
            positions = torch.tensor(self.lengths, device=self._device)[:, None] + steps
            self._places = torch.arange(len(counts), device=self._device)[:, None], positions
            mask = (torch.arange(self._seen, device=self._device) <= positions[..., None])[:, None]
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        return positions, mask

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps (B, K, T, S) at the places that `begin` gave out; returns views (B, K, T_seen, S)."""
        slot_keys, slot_values = self._layers[layer]
        if self._places is None:
            slot_keys[:, :, self._start : self._seen] = keys
            slot_values[:, :, self._start : self._seen] = values
        else:
            rows, positions = self._places
            slot_keys[rows, :, positions] = keys.transpose(1, 2)
            slot_values[rows, :, positions] = values.transpose(1, 2)
        return slot_keys[:, :, : self._seen], slot_values[:, :, : self._seen]

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows only, in this order."""
        self.lengths = [self.lengths[row] for row in rows]
        self._slots = self._slots.index_select(2, torch.tensor(rows, device=self._device))
        self._layers = self._split()

    def _split(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (B, K, capacity, S) of each layer, as views."""
        return [(layer[0], layer[1]) for layer in self._slots]

    def _grow_to(self, tokens: int) -> None:
        old = self._slots
        if tokens <= old.shape[4]:
            return
        capacity = -(-tokens // _STEP) * _STEP
        # Zeros, not garbage: a masked NaN would still spoil the sum over values.
        self._slots = old.new_zeros((*old.shape[:4], capacity, old.shape[5]))
        self._slots[:, :, :, :, : old.shape[4]] = old
        self._layers = self._split()
