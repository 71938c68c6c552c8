"""What a run minimises, and the same measure on held-out rows.

Hidden states and targets go in, a sum of losses comes out: sums, because the caller divides by the number of learned tokens
of the whole global batch, so that the result does not depend on accumulation or on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.model.decoder import Decoder

CHUNK_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Logits in flight. 4 MiB stays in a core's cache (docs/LOG.md, 2026-11-23, "head in chunks"); a GPU wants more at once."""
PAD_TO = 64
"""The matrix product is fastest with a multiple of this many rows of the head; none of the padding is saved or learned."""


class _NextToken(torch.autograd.Function):
    """Head and cross-entropy in one, a few hundred tokens at a time, so that the (B*T, V) logits never exist.

    The gradient is computed together with the loss, as in Liger's fused linear cross-entropy (arXiv 2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, z_loss: float, learning: bool
    ) -> tuple[Tensor, Tensor]:
        V = head.shape[0]
        padding = -V % PAD_TO
        chunk = max(64, CHUNK_BYTES[hidden.device.type] // (4 * (V + padding)))
        head_low = head.to(hidden.dtype)
        if padding:
            head_low = F.pad(head_low, (0, 0, 0, padding))
        d_hidden = torch.empty_like(hidden) if learning else None
        d_head = head.new_zeros(head_low.shape) if learning else None
        nats, right, penalty = torch.zeros(3, dtype=torch.float64, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk):
            x = hidden[start : start + chunk]
            weight = weights[start : start + chunk]
            target = targets[start : start + chunk, None]
            logits = torch.mm(x, head_low.t()).float()
            logits[:, V:] = float("-inf")
            top, aimed = logits.amax(-1), logits.gather(-1, target).squeeze(-1)
            probabilities = torch.softmax(logits, dim=-1, out=logits)
            # The most likely token's probability is at least 1/V, so its logarithm is always finite.
            normaliser = top - probabilities.amax(-1).log()
            nats += ((normaliser - aimed) * weight).sum(dtype=torch.float64)
            right += ((aimed == top) * weight).sum(dtype=torch.float64)
            penalty += (normaliser.square() * weight).sum(dtype=torch.float64)
            if d_hidden is None or d_head is None:
                continue
            probabilities.mul_((weight * (1 + 2 * z_loss * normaliser))[:, None])
            probabilities.scatter_add_(-1, target, -weight[:, None])
            slope = probabilities.to(hidden.dtype)
            torch.mm(slope, head_low, out=d_hidden[start : start + chunk])
            if d_head.dtype == slope.dtype:
                d_head.addmm_(slope.t(), x)
            else:
                d_head += torch.mm(slope.t(), x)
        ctx.save_for_backward(d_hidden, None if d_head is None else d_head[:V])
        sums = torch.stack((nats, right))
        ctx.mark_non_differentiable(sums)
        return (nats + z_loss * penalty).float(), sums

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden.mul_(d_loss.to(d_hidden.dtype)), d_head.mul_(d_loss), None, None, None, None


def next_token(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weighted sum of cross-entropies, and of squared log-normalisers times `z_loss` (arXiv 2204.02311).

    Args:
        hidden: (B, T, D), after the last norm.
        head: (V, D) float32 weights of the output head.
        targets: (B, T) int64.
        weights: (B, T) float32; 0 where the prediction is not learned.
        z_loss: factor of the penalty.

    Returns:
        The sum to differentiate (a float32 scalar), and (2,) float64 without gradient: the sum of cross-entropies alone in nats,
        and the weights of the targets that were the likeliest token.
    """
    # Weights ask for a gradient even where none is taken, and it costs twice what the loss does.
    learning = torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad)
    loss, sums = _NextToken.apply(hidden.flatten(0, 1), head, targets.flatten(), weights.flatten(), z_loss, learning)
    return loss, sums


class NextToken(nn.Module):
    """Decoder and objective in one module, which is what is compiled, distributed and differentiated."""

    def __init__(self, decoder: Decoder, z_loss: float, compiled: bool, recomputed: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.z_loss = z_loss
        self.recomputed = recomputed
        if compiled:
            # One block is compiled and serves all: they differ in nothing but their weights.
            for block in decoder.model.layers:
                block.compile()

    def forward(
        self, ids: Tensor, weights: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sums over the rows' learned tokens.

        Args:
            ids: (B, T + 1) int64; the first T are read, the last T predicted.
            weights: (B, T) float32; 0 where a prediction is not learned.
            mask: as in `Decoder.forward`.
            positions: as in `Decoder.forward`.

        Returns:
            As `next_token`.
        """
        hidden = self.decoder(ids[:, :-1], mask, positions, recomputed=self.recomputed)
        return next_token(hidden, self.decoder.head_weight, ids[:, 1:], weights, self.z_loss)


@dataclass(frozen=True)
class Objective:
    """What is minimised in place of the cross-entropy of the next token.

    Args:
        build: a module around a decoder, and around what is learned beside it where there is such; called with ids (B, T + 1),
            weights (B, T), a mask or None as `NextToken`, and `Batch.extras` by name, it returns the sum to differentiate and the
            sums of `measures` (float64, without gradient).
        measures: names of these sums, told with each step as means over what the loss is averaged over; the first is the loss.
    """

    build: Callable[..., nn.Module]
    measures: tuple[str, ...]


NEXT_TOKEN = ("loss", "accuracy")
"""Measures of `NextToken`."""


def document_mask(documents: Tensor) -> Tensor:
    """(B, 1, T, T) bool: a token looks at itself and at earlier tokens of its own document; `documents` is (B, T)."""
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril()[:, None]


@dataclass(frozen=True)
class Evaluation:
    """Held-out loss. `loss` is in nats per learned token; `bits_per_byte` only counts tokens with bytes, `bits_per_pixel` pixels,
    `bits_per_second` films and sound (NaN: there are none); `accuracy` is the share of learned tokens that were the likeliest."""

    loss: float
    bits_per_byte: float
    tokens: int
    accuracy: float
    bits_per_pixel: float = math.nan
    bits_per_second: float = math.nan

    @property
    def in_bits(self) -> dict[str, float]:
        """What was measured of each unit that there is, by name: `bits_per_pixel` and the like."""
        values = {name: getattr(self, name) for name in ("bits_per_pixel", "bits_per_second", "bits_per_byte")}
        return {name: value for name, value in values.items() if math.isfinite(value)}


@torch.no_grad()
def evaluate(
    decoder: Decoder,
    batches: Iterable[Any],
    token_bytes: np.ndarray,
    device: torch.device,
    pixels: range = range(0),
    pixels_each: int = 1,
    token_seconds: np.ndarray | None = None,
) -> Evaluation:
    """Mean loss over fixed rows.

    Args:
        decoder: the model.
        batches: of `data.loader.validation_batches`.
        token_bytes: (V,) int32, how many bytes each id stands for; 0 for control tokens and media.
        device: where the decoder is.
        pixels: the ids that are pixels of a picture, or patches.
        pixels_each: how many pixels each of these is.
        token_seconds: (V,) float64, how much of a film or a sound each id stands for; None: there are none such.
    """
    lengths = torch.as_tensor(token_bytes, dtype=torch.int64)
    durations = torch.zeros(len(lengths), dtype=torch.float64) if token_seconds is None else torch.as_tensor(token_seconds)
    nats = byte_nats = pixel_nats = second_nats = seconds = right = 0.0
    tokens = byte_count = pixel_count = 0
    for batch in batches:
        ids, learn = torch.as_tensor(batch.ids), torch.as_tensor(batch.learn)
        mask = None if batch.documents is None else document_mask(torch.as_tensor(batch.documents)).to(device)
        hidden = decoder(ids[:, :-1].to(device), mask)
        target_bytes = lengths[ids[:, 1:]] * learn
        targets = ids[:, 1:].to(device)
        everywhere, hits = next_token(hidden, decoder.head_weight, targets, learn.float().to(device))[1].tolist()
        # The few learned tokens without bytes are computed once more, rather than all that have some.
        is_pixel = learn & (ids[:, 1:] >= pixels.start) & (ids[:, 1:] < pixels.stop)

        def nats_of(chosen: Tensor, hidden: Tensor = hidden, targets: Tensor = targets) -> float:
            chosen = chosen.to(device)
            ones = torch.ones(1, int(chosen.sum()), device=device)
            return float(next_token(hidden[chosen][None], decoder.head_weight, targets[chosen][None], ones)[1][0])

        on_pixels = nats_of(is_pixel) if is_pixel.any() else 0.0
        on_bare = nats_of(learn & (target_bytes == 0) & ~is_pixel) + on_pixels
        nats, byte_nats, right = nats + everywhere, byte_nats + everywhere - on_bare, right + hits
        pixel_nats, pixel_count = pixel_nats + on_pixels, pixel_count + pixels_each * int(is_pixel.sum())
        if token_seconds is not None and (lasting := learn & (durations[ids[:, 1:]] > 0)).any():
            second_nats, seconds = second_nats + nats_of(lasting), seconds + float(durations[ids[:, 1:]][lasting].sum())
        tokens, byte_count = tokens + int(learn.sum()), byte_count + int(target_bytes.sum())
    bits_per_byte = byte_nats / math.log(2) / byte_count if byte_count else math.nan
    bits_per_pixel = pixel_nats / math.log(2) / pixel_count if pixel_count else math.nan
    bits_per_second = second_nats / math.log(2) / seconds if seconds else math.nan
    return Evaluation(nats / max(tokens, 1), bits_per_byte, tokens, right / max(tokens, 1), bits_per_pixel, bits_per_second)
