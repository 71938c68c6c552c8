"""Blocked attention computes what PyTorch's kernel computes, forward and backward, at any length and head grouping."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tessera.model.attention import causal_attention
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.train.objectives import document_mask

SHAPES = [(2, 300, 4, 2, 16), (1, 128, 2, 1, 8), (3, 50, 3, 3, 8), (1, 1, 2, 2, 8), (2, 257, 4, 1, 8)]


@pytest.mark.parametrize(("B", "T", "H", "K", "S"), SHAPES)
def test_blocked_attention_and_its_gradients_equal_the_reference(B: int, T: int, H: int, K: int, S: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, T, heads, S, generator=generator, requires_grad=True) for heads in (H, K, K))
    d_out = torch.randn(B, T, H, S, generator=generator)
    ours = causal_attention(q, k, v)
    reference = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(ours, (q, k, v), d_out)
    expected = torch.autograd.grad(reference, (q, k, v), d_out)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_keeps_documents_apart(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 150, heads, 16, generator=generator).to(dtype).requires_grad_() for heads in (4, 2, 2))
    d_out = torch.randn(2, 150, 4, 16, generator=generator).to(dtype)
    mask = document_mask(torch.stack([torch.arange(150) // 40, torch.arange(150) // 70]))
    ours = causal_attention(q, k, v, mask)
    gradients = torch.autograd.grad(ours, (q, k, v), d_out)
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    wide = [x.transpose(1, 2) for x in exact]
    reference = F.scaled_dot_product_attention(*wide, mask, enable_gqa=True).transpose(1, 2)
    expected = torch.autograd.grad(reference, exact, d_out.float())
    near = 1e-5 if dtype == torch.float32 else 0.03
    for mine, theirs in zip((ours, *gradients), (reference, *expected), strict=True):
        assert (mine.float() - theirs).norm() <= near * theirs.norm()


@pytest.mark.parametrize("masked", [False, True])
def test_blocked_attention_meets_the_rules_of_a_custom_operator(masked: bool) -> None:
    q, k, v = (torch.randn(2, 130, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    mask = document_mask(torch.arange(130)[None].expand(2, 130) // 50) if masked else None
    torch.library.opcheck(torch.ops.tessera.causal_attention.default, (q, k, v, mask, 64))


def test_training_forward_equals_inference_forward() -> None:
    config = DecoderConfig(vocab_size=64, width=64, layers=2, heads=4, kv_heads=2, head_size=16, mlp_width=96)
    decoder = Decoder(config)
    decoder.initialise(seed=0)
    for parameter in decoder.parameters():  # the zero output projections would hide the blocks
        parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    ids = torch.randint(64, (2, 200), generator=torch.Generator().manual_seed(1))
    trained = decoder.logits(decoder(ids))
    with torch.inference_mode():
        inferred = decoder.logits(decoder(ids))
    torch.testing.assert_close(trained.detach(), inferred, rtol=1e-4, atol=1e-4)


def test_flops_count_weights_head_and_the_causal_half_of_attention() -> None:
    config = DecoderConfig(vocab_size=100, width=64, layers=3, heads=2, kv_heads=1, head_size=32, mlp_width=128)
    matrices = 3 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128) + 100 * 64
    attention = 3 * 2 * 2 * 32 * 256  # layers x (QK and PV) x heads x size x T, half of 2 x T x T x S each
    assert config.matmul_parameters == matrices
    assert config.flops_per_token(256) == 3 * (2 * matrices + attention)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_parameters_are_those_of_the_module(tied: bool, qk_norm: bool) -> None:
    config = DecoderConfig(100, 64, layers=3, heads=4, kv_heads=2, head_size=16, mlp_width=96, tied=tied, qk_norm=qk_norm)
    assert config.parameters == sum(p.numel() for p in Decoder(config).parameters())
