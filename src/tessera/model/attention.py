"""Causal attention for training on CPUs: blocks of queries, each against the keys up to its own end, as plain matrix products.

PyTorch's CPU flash kernel takes 1.5 to 1.7 times as long at contexts from 256 to 1,024 tokens in float32 (docs/LOG.md,
2026-11-23, "attention") and 2.2 to 3.4 times in bfloat16 (2026-12-01, "Attention in bfloat16"). The softmax is kept for
backward, T^2/2 numbers per head, which small micro-batches make affordable. Query heads that share a key head are laid out as
one taller matrix, so keys and values are never repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 64
MOST_TOKENS = 4096
"""Above this the kept softmax outweighs what it saves."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax(q k^T / sqrt(S)) v with each token looking at itself and before.

    Args:
        q: (B, T, H, S) float32 or bfloat16, in which scores are rounded too.
        k, v: (B, T, K, S); query head h uses key head h // (H / K).
        mask: bool (B, 1, T, T), True where a token may look; it must not look ahead.

    Returns:
        (B, T, H, S).
    """
    # The block is an argument, not a constant of the operator: compiled graphs are kept on disk by the operators' arguments.
    mixed, _, _ = _forward(q, k, v, mask, BLOCK)
    return mixed


@torch.library.custom_op("tessera::causal_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Also returns what backward needs: the softmax of all blocks in one buffer, and the scaled queries in rows."""
    B, T, H, S = q.shape
    K = k.shape[2]
    G = H // K
    rows_q, rows_k, rows_v = _rows(q, K, block).mul_(S**-0.5), _rows(k, K, block), _rows(v, K, block)
    mixed = torch.empty_like(rows_q)
    softmax = q.new_empty(B * K * G * _kept(T, block))
    future = torch.full((block, block), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    for start, end, place in _blocks(T, block):
        size, rows = end - start, slice(G * start, G * end)
        p = softmax[B * K * G * place :][: B * K * G * size * end].view(B * K, G * size, end)
        torch.bmm(rows_q[:, rows], rows_k[:, :end].transpose(1, 2), out=p)
        if mask is None:
            p.view(B * K, G, size, end)[..., start:].add_(future[:size, :size])
        else:
            p.view(B, K, G, size, end).masked_fill_(~mask[:, :, None, start:end, :end], float("-inf"))
        torch.softmax(p, dim=-1, out=p)
        torch.bmm(p, rows_v[:, :end], out=mixed[:, rows])
    return _unrow(mixed, B, G, block), softmax, rows_q


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, block: int) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, S = q.shape
    K = k.shape[2]
    return q.new_empty(q.shape), q.new_empty(B * H * _kept(T, block)), q.new_empty(B * K, H // K * T, S)


@torch.library.custom_op("tessera::causal_attention_backward", mutates_args=())
def _backward(
    d_mixed: Tensor, softmax: Tensor, rows_q: Tensor, k: Tensor, v: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, K, S = k.shape
    G = rows_q.shape[1] // T
    d_rows, rows_k, rows_v = _rows(d_mixed, K, block), _rows(k, K, block), _rows(v, K, block)
    d_q, d_k, d_v = torch.empty_like(rows_q), torch.empty_like(rows_k), torch.empty_like(rows_v)
    # From the last block, which sees all keys and so fills every row; the others add to it.
    for start, end, place in reversed(_blocks(T, block)):
        size, rows = end - start, slice(G * start, G * end)
        p = softmax[B * K * G * place :][: B * K * G * size * end].view(B * K, G * size, end)
        _add(d_v, p.transpose(1, 2), d_rows[:, rows])
        d_p = torch.bmm(d_rows[:, rows], rows_v[:, :end].transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype)
        torch.bmm(d_scores, rows_k[:, :end], out=d_q[:, rows])
        _add(d_k, d_scores.transpose(1, 2), rows_q[:, rows])
    return _unrow(d_q.mul_(S**-0.5), B, G, block), _unrow(d_k, B, 1, block), _unrow(d_v, B, 1, block)


@_backward.register_fake
def _(d_mixed: Tensor, softmax: Tensor, rows_q: Tensor, k: Tensor, v: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    return d_mixed.new_empty(d_mixed.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _add(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Writes a b into `total` (N, T, S) where it has as many rows, adds it to the first rows where it has fewer."""
    if a.shape[1] == total.shape[1]:
        torch.bmm(a, b, out=total)
    else:
        total[:, : a.shape[1]].add_(torch.bmm(a, b))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[1], output[2], inputs[1], inputs[2])
    ctx.block = inputs[4]


def _differentiate(ctx: Any, d_mixed: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None, None]:
    return *_backward(d_mixed, *ctx.saved_tensors, ctx.block), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _rows(x: Tensor, kv_heads: int, block: int) -> Tensor:
    """(B, T, K * G, S) -> (B * K, G * T, S): block after block, within a block head after head, so that a block is one slice."""
    B, T, H, S = x.shape
    G = H // kv_heads
    rows = x.new_empty(B, kv_heads, G * T, S)
    for start, end, _ in _blocks(T, block) if G > 1 else [(0, T, 0)]:
        part = x[:, start:end].view(B, end - start, kv_heads, G, S).permute(0, 2, 3, 1, 4)
        rows[:, :, G * start : G * end].view(B, kv_heads, G, end - start, S).copy_(part)
    return rows.view(B * kv_heads, G * T, S)


def _unrow(rows: Tensor, batch: int, group: int, block: int) -> Tensor:
    """The way back from `_rows`, (B, T, K * G, S) contiguous."""
    S, T = rows.shape[2], rows.shape[1] // group
    rows = rows.view(batch, -1, group * T, S)
    K = rows.shape[1]
    x = rows.new_empty(batch, T, K * group, S)
    for start, end, _ in _blocks(T, block) if group > 1 else [(0, T, 0)]:
        part = rows[:, :, group * start : group * end].view(batch, K, group, end - start, S).permute(0, 3, 1, 2, 4)
        x[:, start:end].view(batch, end - start, K, group, S).copy_(part)
    return x


def _blocks(tokens: int, block: int) -> list[tuple[int, int, int]]:
    """(first query, end, place of its softmax in the buffer, per head) of each block."""
    found, place = [], 0
    for start in range(0, tokens, block):
        end = min(tokens, start + block)
        found.append((start, end, place))
        place += (end - start) * end
    return found


def _kept(tokens: int, block: int) -> int:
    """Numbers that the softmax of one head takes."""
    return sum((end - start) * end for start, end, _ in _blocks(tokens, block))
