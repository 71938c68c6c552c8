"""The decoder: Qwen3's shape with Hugging Face's parameter names, so that its weights are standard from birth.

Token ids (B, T) go in; hidden states (B, T, D) after the last norm come out; `logits` turns those into (B, T, V). The same
forward serves training and cached generation: a cache that is handed in keeps each layer's keys and values and attends over what
it holds, whatever its layout. Llama is the same shape without the norm on queries and keys. Read top to bottom: configuration,
rotation, attention, feed-forward, decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.model.attention import MOST_TOKENS, causal_attention
from tessera.model.functions import recompute, rms_norm, rotate, swiglu


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder.

    Args:
        vocab_size: V, ids of the vocabulary.
        width: D, the residual stream.
        layers: blocks.
        heads: H, query heads.
        kv_heads: K, key and value heads; H is a multiple of it (arXiv 2305.13245).
        head_size: S, width of a head.
        mlp_width: M, inner width of the gated feed-forward.
        tied: embedding and head are one matrix.
        context: tokens it was trained to see.
        qk_norm: RMSNorm on each query and key head (Qwen3); False: Llama.
        rope_theta: base of the rotary wavelengths.
        rope_scaling: Llama 3's frequency scaling as in its `config.json`, or None.
        norm_eps: of RMSNorm.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    tied: bool = True
    context: int = 256
    qk_norm: bool = True
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, float] | None = None
    norm_eps: float = 1e-6

    @property
    def matmul_parameters(self) -> int:
        """N of the scaling law: weights that multiply every token, blocks and head, not the embedding's look-up."""
        attention = self.width * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.mlp_width) + self.vocab_size * self.width

    @property
    def parameters(self) -> int:
        """All weights, look-up and norms included."""
        norms = self.layers * (2 * self.width + 2 * self.head_size * self.qk_norm) + self.width
        return self.matmul_parameters + norms + (0 if self.tied else self.vocab_size * self.width)

    def flops_per_token(self, context: float) -> float:
        """Training FLOPs of one token: 3 x forward (weights, head, causal half of attention), no optimizer. A mean for `context`
        gives the mean."""
        attention = self.layers * 2 * self.heads * self.head_size * context  # QK^T and PV: 2 x 2 S H T, half of it causal
        return 3.0 * (2 * self.matmul_parameters + attention)


class Cache(Protocol):
    """Keys and values of the tokens seen so far, and who of this call stands where among them."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keeps k and v (B, T, K, S) of this call and lets q (B, T, H, S) look at all it may; returns (B, T, H, S)."""
        ...


EMBEDDING_SCALE = 0.1
CONSTANT_SHARE = 2.0
"""Of a fresh embedding: standard deviation, and how far the constant coordinate outweighs all others together."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`Cache.attend` of one layer."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


Rotary = tuple[Tensor, Tensor]
"""Cosines, and sines with the first half negative, (..., T, S) float32."""


def rotary_table(config: DecoderConfig, positions: Tensor) -> Rotary:
    """By which the heads at `positions` (..., T) are turned (arXiv 2104.09864)."""
    angles = positions.float()[..., None] * rotary_frequencies(config, positions.device)
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat((cosines, cosines), -1), torch.cat((-sines, sines), -1)


def rotary_frequencies(config: DecoderConfig, device: torch.device | None = None, scaled: bool = True) -> Tensor:
    """(S / 2,) float32: radians a position by which each pair of a head is turned; `scaled`: as `rope_scaling` asks."""
    half = config.head_size // 2
    frequencies = config.rope_theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    return _llama3_frequencies(frequencies, config.rope_scaling) if scaled and config.rope_scaling else frequencies


def _llama3_frequencies(frequencies: Tensor, scaling: dict[str, float]) -> Tensor:
    """Long wavelengths slowed down by `factor`, short ones kept, a ramp between (arXiv 2407.21783, section 3.4)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


class Attention(nn.Module):
    """Grouped-query attention with rotated, normalised queries and keys."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        D, S = config.width, config.head_size
        self.heads, self.kv_heads, self.head_size = config.heads, config.kv_heads, S
        self.q_proj = nn.Linear(D, config.heads * S, bias=False)
        self.k_proj = nn.Linear(D, config.kv_heads * S, bias=False)
        self.v_proj = nn.Linear(D, config.kv_heads * S, bias=False)
        self.o_proj = nn.Linear(config.heads * S, D, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(S, config.norm_eps)
            self.k_norm = RMSNorm(S, config.norm_eps)
        self.qk_norm = config.qk_norm
        self.joined: Tensor | None = None

    def forward(self, x_BTD: Tensor, rotary: Rotary, mask: Tensor | None, attend: Attend | None) -> Tensor:
        B, T, _ = x_BTD.shape
        H, K, S = self.heads, self.kv_heads, self.head_size
        # One product instead of three: narrow ones leave a processor half idle.
        weight = self.joined
        if weight is None or torch.is_grad_enabled():
            weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        qk, v = F.linear(x_BTD, weight.to(x_BTD.dtype)).view(B, T, -1, S).split((H + K, K), dim=2)
        if self.qk_norm:
            gains = torch.cat((self.q_norm.weight.expand(H, S), self.k_norm.weight.expand(K, S)))
            qk = rms_norm(qk, gains, self.q_norm.eps)
        q, k = rotate(qk, *rotary).split((H, K), dim=2)
        if attend is not None:
            mixed_BTHS = attend(q, k, v)
        elif _trains_on_cpu(q):
            mixed_BTHS = causal_attention(q, k, v, mask)
        else:
            mixed_BTHS = _attend(q, k, v, mask)
        return F.linear(mixed_BTHS.reshape(B, T, -1), self.o_proj.weight.to(x_BTD.dtype))


def _trains_on_cpu(q: Tensor) -> bool:
    return q.requires_grad and q.device.type == "cpu" and q.shape[1] <= MOST_TOKENS


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, H, S) by PyTorch's kernels."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    shared = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=shared).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)
        self.joined: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.joined is not None and not torch.is_grad_enabled():
            gate, up = F.linear(x_BTD, self.joined.to(x_BTD.dtype)).chunk(2, dim=-1)
            return F.linear(F.silu(gate) * up, self.down_proj.weight.to(x_BTD.dtype))
        weights = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
        return swiglu(x_BTD, *(weight.to(x_BTD.dtype) for weight in weights))


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BTD: Tensor, rotary: Rotary, mask: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, mask, attend)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Stack(nn.Module):
    """What Hugging Face calls `model`: embedding, blocks, last norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)


class Decoder(nn.Module):
    """The whole model. Parameters are float32; the compute dtype is that of `dtype`, set in one place by `device`.

    Its `state_dict` has exactly the names of Hugging Face's `Qwen3ForCausalLM` (no `lm_head.weight` when tied).
    """

    def __init__(self, config: DecoderConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.model = Stack(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, D) matrix of the output head."""
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fresh weights: N(0, 1/fan_in) matrices, zero output projections, so that each block starts as the identity, and a first
        layer that looks at the nearest tokens from the first step on.

        Equal entries alone would let every token average over all before it until a head has learned that near ones matter, and
        copying from the text so far, which stands on that, comes late (docs/LOG.md, 2026-11-29, "Looking back").
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")) or name == "lm_head.weight":
                parameter.zero_()
            elif name == "model.embed_tokens.weight":
                parameter.normal_(0.0, EMBEDDING_SCALE, generator=generator)
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        # One coordinate is the same for all tokens; the last norm hides it from the head, to which it says nothing.
        self.model.embed_tokens.weight[:, 0] = CONSTANT_SHARE * EMBEDDING_SCALE * self.config.width**0.5
        self.model.norm.weight[0] = 0.0
        first = self.model.layers[0]
        assert isinstance(first, Block)
        self._look_back(first.self_attn)

    def _look_back(self, attention: Attention) -> None:
        """Queries begin as their keys, turned by 0, 1, 0, 1, ... positions: each head looks for the same token, and by the
        constant coordinate at whatever stands that far back, falling off like a power of the distance."""
        S, H, K = attention.head_size, attention.heads, attention.kv_heads
        keys = attention.k_proj.weight.view(K, S, -1)
        queries = attention.q_proj.weight.view(H, S, -1)
        for head in range(H):
            cosines, sines = rotary_table(self.config, torch.tensor(-(head % 2)))
            key = keys[head // (H // K)]
            queries[head] = key * cosines[:, None] + key.roll(S // 2, 0) * sines[:, None]

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        rotary: Rotary | None = None,
        recomputed: bool = False,
    ) -> Tensor:
        """Hidden states after the last norm.

        Args:
            ids: (B, T) int64.
            mask: bool (B, 1, T, T), True where a token may look; None: causal. With a cache the cache knows who sees whom.
            positions: (T,) or (B, T) int64; None: 0..T-1.
            cache: keeps keys and values across calls.
            rotary: the table of `positions`, where it is at hand.
            recomputed: keep only the input of each block for backward, and compute the block again there.

        Returns:
            (B, T, D) in the compute dtype.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        if rotary is None:
            rotary = rotary_table(self.config, positions)
        x_BTD = F.embedding(ids, self.model.embed_tokens.weight).to(self.dtype)
        for layer, block in enumerate(self.model.layers):
            attend = None if cache is None else partial(cache.attend, layer)
            # Past what may be compiled for training: a cache has other shapes at each step, and would be compiled for each anew.
            run = partial(block if cache is None else block.forward, rotary=rotary, mask=mask, attend=attend)
            x_BTD = recompute(run, x_BTD) if recomputed and x_BTD.requires_grad else run(x_BTD)
        return self.model.norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) float32 scores of hidden states (..., D)."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype)).float()


def join_weights(decoder: Decoder) -> None:
    """Lays the matrices out in memory as generation reads them.

    Those that read the same input stand side by side, so that no pass copies them, and each is kept with its input axis first:
    products with few rows then take 0.6 to 0.75 of the time on CPUs (docs/LOG.md, 2026-11-25, "layout"). The parameters become
    views, so whoever writes into them in place changes both. To be called when the decoder has its device and dtype.
    """
    for block in decoder.model.layers:
        assert isinstance(block, Block)
        attention, mlp = block.self_attn, block.mlp
        attention.joined = _side_by_side(attention.q_proj, attention.k_proj, attention.v_proj)
        mlp.joined = _side_by_side(mlp.gate_proj, mlp.up_proj)
        _side_by_side(attention.o_proj)
        _side_by_side(mlp.down_proj)
    _side_by_side(decoder.model.embed_tokens if decoder.config.tied else decoder.lm_head)


def _side_by_side(*layers: nn.Linear | nn.Embedding) -> Tensor:
    joined = torch.cat([layer.weight.detach() for layer in layers]).t().contiguous().t()
    for layer, part in zip(layers, joined.split([len(layer.weight) for layer in layers]), strict=True):
        layer.weight.data = part
    return joined
