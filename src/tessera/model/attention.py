"""Causal attention for training on CPUs: blocks of queries, each against the keys up to its own end, as plain matrix products.

PyTorch's CPU flash kernel takes 1.2 to 1.4 times as long at contexts from 256 to 1,024 tokens (docs/LOG.md, 2026-11-23,
"attention"). The softmax is kept for backward, T^2/2 numbers per head, which small micro-batches make affordable. Query
heads that share a key head are laid out as one taller matrix, so keys and values are never repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 128
MOST_TOKENS = 4096
"""Above this the kept softmax outweighs what it saves."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q k^T / sqrt(S)) v with each token looking at itself and before.

    Args:
        q: (B, T, H, S) float32.
        k, v: (B, T, K, S); query head h uses key head h // (H / K).

    Returns:
        (B, T, H, S).
    """
    mixed, _, _ = _forward(q, k, v)
    return mixed


@torch.library.custom_op("tessera::causal_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Also returns what backward needs: scaled queries (B*K, G*T', S) by block, and the softmax of all blocks in one buffer."""
    B, T, H, S = q.shape
    K = k.shape[2]
    rows_q, rows_k, rows_v = _by_head(q, K) * S**-0.5, _by_head(k, K), _by_head(v, K)
    G = H // K
    mixed = q.new_empty(B * K, G, T, S)
    softmax = q.new_empty(B * K * G * _kept(T))
    for start, end, place in _blocks(T):
        p = softmax[B * K * G * place : B * K * G * (place + (end - start) * end)].view(B * K, G * (end - start), end)
        torch.bmm(rows_q[:, :, start:end].reshape(B * K, -1, S), rows_k[:, 0, :end].transpose(1, 2), out=p)
        future = torch.full((end - start, end - start), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        p.view(B * K, G, end - start, end)[..., start:end].add_(future)
        torch.softmax(p, dim=-1, out=p)
        mixed[:, :, start:end] = torch.bmm(p, rows_v[:, 0, :end]).view(B * K, G, end - start, S)
    return _by_token(mixed, B), softmax, rows_q


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, S = q.shape
    K = k.shape[2]
    return q.new_empty(q.shape), q.new_empty(B * H * _kept(T)), q.new_empty(B * K, H // K, T, S)


@torch.library.custom_op("tessera::causal_attention_backward", mutates_args=())
def _backward(d_mixed: Tensor, softmax: Tensor, rows_q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, T, K, S = k.shape
    G = rows_q.shape[1]
    d_rows, rows_k, rows_v = _by_head(d_mixed, K), _by_head(k, K)[:, 0], _by_head(v, K)[:, 0]
    d_q, d_k, d_v = torch.empty_like(rows_q), torch.zeros_like(rows_k), torch.zeros_like(rows_v)
    for start, end, place in _blocks(T):
        p = softmax[B * K * G * place : B * K * G * (place + (end - start) * end)].view(B * K, G * (end - start), end)
        d_out = d_rows[:, :, start:end].reshape(B * K, -1, S)
        d_v[:, :end].baddbmm_(p.transpose(1, 2), d_out)
        d_p = torch.bmm(d_out, rows_v[:, :end].transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype)
        d_q[:, :, start:end] = torch.bmm(d_scores, rows_k[:, :end]).view(B * K, G, end - start, S)
        d_k[:, :end].baddbmm_(d_scores.transpose(1, 2), rows_q[:, :, start:end].reshape(B * K, -1, S))
    return _by_token(d_q.mul_(S**-0.5), B), _by_token(d_k[:, None], B), _by_token(d_v[:, None], B)


@_backward.register_fake
def _(d_mixed: Tensor, softmax: Tensor, rows_q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return d_mixed.new_empty(d_mixed.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[1], output[2], inputs[1], inputs[2])


def _differentiate(ctx: Any, d_mixed: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(d_mixed, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_keep)


def _by_head(x: Tensor, kv_heads: int) -> Tensor:
    """(B, T, K * G, S) -> (B * K, G, T, S), contiguous."""
    B, T, H, S = x.shape
    return x.transpose(1, 2).contiguous().view(B * kv_heads, H // kv_heads, T, S)


def _by_token(x: Tensor, batch: int) -> Tensor:
    """(B * K, G, T, S) -> (B, T, K * G, S)."""
    T, S = x.shape[2:]
    return x.view(batch, -1, T, S).transpose(1, 2).contiguous()


def _blocks(tokens: int) -> list[tuple[int, int, int]]:
    """(first query, end, place of its softmax in the buffer, per head) of each block."""
    found, place = [], 0
    for start in range(0, tokens, BLOCK):
        end = min(tokens, start + BLOCK)
        found.append((start, end, place))
        place += (end - start) * end
    return found


def _kept(tokens: int) -> int:
    """Numbers that the softmax of one head takes."""
    return sum((end - start) * end for start, end, _ in _blocks(tokens))
