"""Muon for the matrices of the blocks, AdamW for embeddings, head and norms; or AdamW for all; or adapters (`lora`).

Both are torch optimizers over the same float32 parameters. `schedule` gives the factor of the learning rate at a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor, nn

from tessera.recipe import Train
from tessera.train import lora

# Coefficients of the five Newton-Schulz steps: Polar Express (arXiv 2505.16932, table 1), each the minimax odd quintic
# for the interval in which the step before has left the singular values.
_STEPS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


SMALL = 2**14
"""Entries up to which matrices of one shape are updated together: below, a product takes less time than its call."""


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest (semi-)orthogonal matrices, nearly: singular values end between 0.7 and 1.2.

    Args:
        matrices: (n, rows, columns), any scale.
        dtype: in which the products are computed.
    """
    x = matrices.to(dtype)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    # A little under 1, since rounding must not push the largest singular value out of the polynomial's range.
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) * 1.02 + 1e-7)
    # The long way round costs 4 r^2 c + 2 r^3 products a step, the short one 8 r^3; it needs float32's digits.
    x = _by_gram_matrix(x) if dtype == torch.float32 and x.shape[2] >= 2 * x.shape[1] else _newton_schulz(x)
    return (x if wide else x.mT).to(matrices.dtype)


def _newton_schulz(x: Tensor) -> Tensor:
    for a, b, c in _STEPS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram_matrix(x: Tensor) -> Tensor:
    """The same polynomials, composed on the small side: each step is P(G) x with G = x x^T, and the next G is P G P."""
    gram = x @ x.mT
    product: Tensor | None = None
    for step, (a, b, c) in enumerate(_STEPS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial if product is None else polynomial @ product
        if step < len(_STEPS) - 1:
            gram = polynomial @ gram @ polynomial
    assert product is not None
    return product @ x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), with Nesterov's look ahead.

    The update's entries have root mean square 0.2 times the rate whatever the shape (arXiv 2502.16982, section 2.2), so
    that one rate suits all matrices and compares with AdamW's. Weight decay is decoupled.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        self.pool: Executor | None = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient; large ones each by itself, so that workers can share them."""
        work: list[tuple[dict[str, Any], list[nn.Parameter]]] = []
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.numel() <= SMALL:
                    alike.setdefault(parameter.shape, []).append(parameter)
                else:
                    work.append((group, [parameter]))
            work += [(group, parameters) for parameters in alike.values()]
        # The costly ones first, so that no worker is left with one at the end.
        work.sort(key=lambda item: -sum(p.numel() for p in item[1]))
        in_turn = map if self.pool is None else self.pool.map
        list(in_turn(self._update, work))

    @torch.no_grad()
    def _update(self, item: tuple[dict[str, Any], list[nn.Parameter]]) -> None:
        group, parameters = item
        looks = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            # A convolution is a matrix with a column for each input and place.
            looks.append(parameter.grad.lerp(momentum, group["momentum"]).flatten(1))
        updates = orthogonalise(torch.stack(looks) if len(looks) > 1 else looks[0][None], self.dtype)
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)


def share_work(optimizers: list[torch.optim.Optimizer], pool: Executor | None) -> None:
    """Lets Muon update its matrices side by side in the pool's threads."""
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.pool = pool


def build(model: nn.Module, train: Train, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """The optimizers of a resolved recipe. Each group remembers its full rate as `peak_lr` and decay as `peak_decay`."""
    assert train.matrix_rate is not None and train.adam_rate is not None and train.weight_decay is not None
    if train.lora is not None:
        matrices = list(lora.adapted(model).values())
        adapters = lora.LowRank(matrices, train.lora, lora.alpha_of(train), train.adam_rate, train.adam_betas, train.seed)
        adapters.param_groups[0]["peak_lr"], adapters.param_groups[0]["peak_decay"] = train.adam_rate, 0.0
        return [adapters]
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and ".layers." in n]
    lookups = [p for n, p in model.named_parameters() if p.ndim > 1 and ".layers." not in n]
    gains = [p for p in model.parameters() if p.ndim == 1]
    fused = all(p.device.type in {"cpu", "cuda"} for p in model.parameters())
    adam_groups = [{"params": lookups + gains, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if train.optimizer == "muon":
        optimizers.append(Muon(matrices, train.matrix_rate, train.momentum, train.weight_decay, dtype))
    else:
        adam_groups.append({"params": matrices, "weight_decay": train.weight_decay})
    optimizers.append(torch.optim.AdamW(adam_groups, lr=train.adam_rate, betas=train.adam_betas, eps=1e-10, fused=fused))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"], group["peak_decay"] = group["lr"], group["weight_decay"]
    return optimizers


def schedule(step: int, steps: int, warmup: int, cooldown: int) -> float:
    """Warm-up, constant, linear cool-down to zero (WSD, arXiv 2404.06395): the factor of update number `step`, from 0."""
    rising = (step + 1) / (warmup + 1)
    falling = (steps - step) / (cooldown + 1)
    return min(1.0, rising, falling)


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scales rates and weight decay to `factor` of their peaks."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = group["peak_lr"] * factor, group["peak_decay"] * factor
