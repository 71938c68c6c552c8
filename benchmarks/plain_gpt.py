"""A GPT-2-style model as one would write it from the paper: the plain loop of the benchmarks (after nanoGPT's `model.py`).

Learned positions, LayerNorm, GELU, four times the width inside, one matrix for embedding and head, no biases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and feed-forward, each after a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width, bias=False)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.norm_2 = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in self.attention_in(self.norm_1(x_BTD)).split(D, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.attention_out(mixed.transpose(1, 2).reshape(B, T, D))
        return x_BTD + self.mlp_out(F.gelu(self.mlp_in(self.norm_2(x_BTD))))


class PlainGPT(nn.Module):
    """Ids (B, T) and targets (B, T) to the mean loss; without targets to logits (B, T, V)."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_stream = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if into_stream else 0.02)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        x_BTD = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits = self.head(self.norm(x_BTD))
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def optimizer(self, rate: float, betas: tuple[float, float], decay: float = 0.1) -> torch.optim.AdamW:
        """AdamW that decays matrices only, as nanoGPT's."""
        matrices = [p for p in self.parameters() if p.ndim == 2]
        gains = [p for p in self.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": gains, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
