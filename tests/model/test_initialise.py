"""Fresh weights: blocks that change nothing, and a first layer whose heads look at the nearest tokens."""

from __future__ import annotations

import pytest
import torch

from tessera.model.decoder import Attention, Decoder, DecoderConfig


def fresh(tied: bool = True, heads: int = 4, kv_heads: int = 2) -> Decoder:
    config = DecoderConfig(
        600, 96, layers=2, heads=heads, kv_heads=kv_heads, head_size=32, mlp_width=96, tied=tied, rope_theta=1e3
    )
    decoder = Decoder(config)
    decoder.initialise(seed=3)
    return decoder


def attention_of_first_layer(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """(B, H, T, T) weights, caught where keys and queries meet."""
    caught = []
    attention = decoder.model.layers[0].self_attn
    assert isinstance(attention, Attention)

    class Catch:
        def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if layer == 0:
                k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
                scores = torch.einsum("bihs,bjhs->bhij", q, k) / q.shape[-1] ** 0.5
                blind = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
                caught.append(scores.masked_fill(blind, -torch.inf).softmax(-1))
            return torch.zeros_like(q)

    with torch.inference_mode():
        decoder(ids, cache=Catch())
    return caught[0]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_of_the_first_layer_look_at_the_nearest_tokens(kv_heads: int) -> None:
    ids = torch.randint(600, (8, 200), generator=torch.Generator().manual_seed(0))
    weights = attention_of_first_layer(fresh(kv_heads=kv_heads), ids).mean(0)[:, 100:]
    near = torch.stack([weights.diagonal(100 - d, dim1=1, dim2=2)[:, :88].mean(1) for d in range(5)], dim=1)
    assert near[:, :4].min() > 2 / 150, "more than an average over all before would give"
    assert near.diff(dim=1).max() < 0, "less and less with the distance"
    lean = near[:, 1] / near[:, 0]
    assert lean[1::2].min() > 1.3 * lean[::2].max(), "every other head leans to the token before"


@pytest.mark.parametrize("tied", [True, False])
def test_fresh_models_know_nothing_and_the_head_does_not_see_the_constant(tied: bool) -> None:
    decoder = fresh(tied)
    ids = torch.randint(600, (4, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = decoder.logits(decoder(ids))
    assert logits.mean().abs() < 0.1
    others = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert others == pytest.approx(torch.tensor(600.0).log().item(), abs=0.3)
