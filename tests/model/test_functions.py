"""Own derivatives are those of autograd, and a block computed twice changes no bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.model.functions import recompute, rms_norm, rotate, swiglu

B, T, H, S, D, M = 2, 5, 3, 8, 24, 40


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def plain_rotation(x: Tensor, angles: Tensor) -> Tensor:
    """By complex numbers."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles).unsqueeze(-2)
    return torch.cat((turned.real, turned.imag), dim=-1)


def plain_swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def table(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines as the decoder keeps them."""
    return torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "norm": (lambda x, w: rms_norm(x, w, 1e-6), plain_norm, [(B, T, D), (D,)]),
    "norm of heads": (lambda x, w: rms_norm(x, w, 1e-6), plain_norm, [(B, T, H, S), (S,)]),
    "norm with gains of each head": (lambda x, w: rms_norm(x, w, 1e-6), plain_norm, [(B, T, H, S), (H, S)]),
    "rotation": (
        lambda x: rotate(x, *table(torch.arange(T * 4.0).view(T, 4))),
        lambda x: plain_rotation(x, torch.arange(T * 4.0, dtype=x.dtype).view(T, 4)),
        [(B, T, H, S)],
    ),
    "feed-forward": (swiglu, plain_swiglu, [(B, T, D), (M, D), (M, D), (D, M)]),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_autograds(case: str) -> None:
    ours, plain, shapes = CASES[case]
    dice = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=dice) / 2 for shape in shapes]
    mine = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    found, expected = ours(*mine), plain(*exact)
    d_y = torch.randn(found.shape, generator=dice)
    found.backward(d_y)
    expected.backward(d_y.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(a.grad, b.grad.float() if b.grad is not None else None, rtol=1e-5, atol=2e-5)


def test_in_bfloat16_a_norm_and_a_rotation_keep_dtype_and_weights_stay_float32() -> None:
    x, weight = torch.randn(B, T, H, S, dtype=torch.bfloat16, requires_grad=True), torch.ones(S, requires_grad=True)
    y = rotate(rms_norm(x, weight, 1e-6), torch.ones(T, S), torch.zeros(T, S))
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_recomputing_keeps_only_the_input_and_gives_the_same_bits() -> None:
    x, weight = torch.randn(B, T, D, requires_grad=True), torch.randn(D, D, requires_grad=True)

    def run(v: Tensor) -> Tensor:
        return torch.tanh(F.linear(torch.tanh(v), weight))

    y = recompute(run, x)
    assert y.grad_fn is not None
    (kept,) = y.grad_fn.saved_tensors  # type: ignore[attr-defined]
    assert kept is x
    expected = torch.autograd.grad(run(x).square().sum(), (x, weight))
    y.square().sum().backward()
    assert torch.equal(x.grad, expected[0]) and torch.equal(weight.grad, expected[1])  # type: ignore[arg-type]
