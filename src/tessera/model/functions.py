"""Pieces of a block that know their own derivative, and whole blocks that are computed twice.

Written out of autograd's single operations, a norm, a rotation and a gated feed-forward keep and make two to four times the
numbers that backward needs. These keep their inputs and little else, and reuse their buffers: 77 MB less of 350 for the same
step (docs/LOG.md, 2026-11-25, "Memory").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis of (..., D), computed in float32 (arXiv 1910.07467); weight is (D,), or (H, D) where
    each head has its own."""
    return cast(Tensor, _RMSNorm.apply(x, weight, eps))


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns the pairs (i, i + S/2) of x (B, T, H, S) by the angles of each position.

    Args:
        cosines: (T, S) or (B, T, S), the second half as the first.
        sines: the same shape, the first half negative.
    """
    return cast(Tensor, _Rotate.apply(x, cosines.unsqueeze(-2).to(x.dtype), sines.unsqueeze(-2).to(x.dtype)))


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate x) * up x) of x (B, T, D), with weights (M, D), (M, D) and (D, M) in x's dtype (arXiv 2002.05202)."""
    return cast(Tensor, _SwiGLU.apply(x, gate, up, down))


def recompute(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`run(x)`, of which only x is kept: backward runs it again (arXiv 1604.06174).

    Gradients of weights inside `run` are added to their `.grad` when backward comes by. torch's own checkpointing does the same
    by hooks on every kept tensor, whose code alone takes 4 MB.

    Args:
        run: gives the same result each time.
        x: asks for a gradient.
    """
    return cast(Tensor, _Recompute.apply(x, run))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, scale, weight)
        return (x32 * scale).to(x.dtype).mul_(weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale, weight = ctx.saved_tensors
        d_y, normal = d_y.float(), x.float() * scale
        product = d_y * normal
        d_weight = product.flatten(0, -1 - weight.dim()).sum(0)
        along = product.mul_(weight).sum(-1, keepdim=True) / x.shape[-1]
        d_x = (d_y * weight).sub_(normal.mul_(along)).mul_(scale)
        return d_x.to(x.dtype), d_weight, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return torch.addcmul(x * cosines, _swapped(x), sines)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return torch.addcmul(d_y * cosines, _swapped(d_y), sines, value=-1), None, None


def _swapped(x: Tensor) -> Tensor:
    """The two halves of each head in the other order."""
    return x.roll(x.shape[-1] // 2, -1)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gated, lifted = F.linear(x, gate), F.linear(x, up)
        ctx.save_for_backward(x, gated, lifted, gate, up, down)
        return F.linear(F.silu(gated).mul_(lifted), down)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, gated, lifted, gate, up, down = ctx.saved_tensors
        rows_x, rows_d = x.flatten(0, 1), d_y.flatten(0, 1)
        d_inner = d_y @ down
        inner = F.silu(gated)
        d_lifted = inner * d_inner
        d_down = rows_d.t() @ inner.mul_(lifted).flatten(0, 1)
        d_gated = torch.ops.aten.silu_backward(d_inner.mul_(lifted), gated)
        d_x = d_gated @ gate
        d_x.flatten(0, 1).addmm_(d_lifted.flatten(0, 1), up)
        return d_x, d_gated.flatten(0, 1).t() @ rows_x, d_lifted.flatten(0, 1).t() @ rows_x, d_down


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.run = run
        # As in training, since other kernels serve where no gradient is asked for; what it keeps goes at once.
        with torch.enable_grad():
            return run(x.detach().requires_grad_()).detach()

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.run(x)
        torch.autograd.backward(y, d_y)
        return x.grad, None
