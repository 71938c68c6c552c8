"""The step of running streams as one function of tensors, and its compiled forms.

A step in which every request has one new token needs nothing of Python but this function. It is compiled for a few numbers of
streams, in a thread of its own, while eager steps go on; weights are its inputs, so new ones are used at once and nothing is
compiled again. The window of tokens that are attended to is a dynamic axis.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tessera.engine.cache import DecodePass
from tessera.model.decoder import Decoder, Rotary

BUCKETS = (1, 4, 16)
"""Numbers of streams that are compiled for: each takes half a minute to a minute of one core."""

_log = logging.getLogger(__name__)

Decode = Callable[[Decoder, Tensor, Rotary, list[Tensor], Tensor, Tensor, int], Tensor]


def decode(
    decoder: Decoder, ids_1B: Tensor, rotary: Rotary, slots: list[Tensor], places: Tensor, mask: Tensor, capacity: int
) -> Tensor:
    """Logits (B, V) after one new token of each of the first B slots.

    Args:
        decoder: with its weights.
        ids_1B: the new tokens.
        rotary: of their positions, (B, S) each.
        slots, places, mask, capacity: as in `DecodePass`.
    """
    cache = DecodePass(slots, places, mask, capacity)
    return decoder.logits(decoder(ids_1B, positions=ids_1B, cache=cache, rotary=rotary)[0])


class CompiledDecode:
    """The compiled steps that are ready. Until `start` there are none.

    Args:
        decoder: of the engine.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.ready: dict[int, Decode] = {}
        """By number of streams."""
        self.shape: tuple[int, int] | None = None
        """Of the cache that they are for."""
        self._decoder = decoder

    def bucket(self, rows: int, shape: tuple[int, int]) -> int | None:
        """The step to take for so many streams, if one is ready that is not more than twice as wide."""
        fitting = [size for size in self.ready if rows <= size <= 2 * rows and shape == self.shape]
        return min(fitting, default=None)

    def start(self, slots: Sequence[Tensor], shape: tuple[int, int], buckets: Sequence[int]) -> threading.Thread:
        """Compiles in a thread, the smallest number of streams first; what fails is logged and stays eager.

        Args:
            slots: like those of the cache, which is not touched.
            shape: of the cache.
            buckets: numbers of streams.
        """
        self.shape = shape
        scratch = [torch.empty_like(slot) for slot in slots]
        thread = threading.Thread(target=self._compile, args=(scratch, buckets), name="compile", daemon=True)
        thread.start()
        return thread

    @torch.inference_mode()
    def _compile(self, scratch: list[Tensor], buckets: Sequence[int]) -> None:
        assert self.shape is not None
        config, device = self._decoder.config, scratch[0].device
        compiled = torch.compile(decode, dynamic=False)
        for size in sorted(buckets):
            ids_1B = torch.zeros((1, size), dtype=torch.long, device=device)
            angles = torch.zeros((size, config.head_size), device=device)
            places = torch.zeros(size * config.kv_heads, dtype=torch.long, device=device)
            mask = torch.zeros((size, 1, 1, 64), dtype=scratch[0].dtype, device=device)
            torch._dynamo.mark_dynamic(mask, 3)
            try:
                compiled(self._decoder, ids_1B, (angles, angles.clone()), scratch, places, mask, self.shape[1])
            except Exception:
                _log.warning("the step for %d streams could not be compiled and stays eager", size, exc_info=True)
                return
            self.ready[size] = compiled
