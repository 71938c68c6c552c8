"""Low-rank adapters (LoRA, arXiv 2106.09685): of each matrix of the blocks only a product of two thin ones is learned.

W = W0 + alpha / r B A. The decoder's own parameters always hold W, so that whatever reads them, from the engine of rollouts to
the checkpoints, sees the adapted model; what is special is the optimizer, which turns the gradient of W into those of A and B and
writes W anew. W0 is what the decoder held when the optimizer was made, and is never changed: to merge is to keep W, to take the
adapter off is to load W0, and both are exact. `save_adapter` writes A and B as PEFT reads them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tessera.model import weights
from tessera.recipe import Train
from tessera.run import writing

ALPHA_TIMES = 2.0
"""`lora_alpha`, where none is given, in ranks."""
RATE_TIMES = 10.0
"""Adapters learn best at about ten times the rate of the weights (Schulman and Thinking Machines 2025, "LoRA Without Regret")."""
_BETAS, _EPS = (0.9, 0.95), 1e-8


class LowRank(torch.optim.Optimizer):
    """AdamW on A and B of each matrix.

    Args:
        matrices: (out, in) each, holding W0.
        rank, alpha: r and alpha.
        lr: learning rate of both.
        betas: of AdamW.
        seed: of A, which begins uniform within 1 / sqrt(in), as in PEFT; B begins at zero.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        rank: int,
        alpha: float,
        lr: float,
        betas: tuple[float, float] = _BETAS,
        seed: int = 0,
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "betas": betas, "weight_decay": 0.0})
        self.scale = alpha / rank
        self._bases = {parameter: parameter.detach().clone() for parameter in matrices}
        generator = torch.Generator().manual_seed(seed)
        for parameter in matrices:
            outputs, inputs = parameter.shape
            first = (2 * torch.rand(rank, inputs, generator=generator) - 1) / inputs**0.5
            made = {"lora_A": first.to(parameter), "lora_B": parameter.new_zeros(outputs, rank)}
            for name, factor in list(made.items()):
                made[f"{name}_mean"], made[f"{name}_square"] = torch.zeros_like(factor), torch.zeros_like(factor)
            # Made now, not at the first step: a checkpoint of any step has them, and one that is restored replaces them.
            self.state[parameter] = {**made, "step": torch.zeros(())}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, gradient = self.state[parameter], parameter.grad
                state["step"] += 1
                taken = float(state["step"])
                a, b = state["lora_A"], state["lora_B"]
                slopes = {"lora_A": self.scale * (b.T @ gradient), "lora_B": self.scale * (gradient @ a.T)}
                for name, slope in slopes.items():
                    mean, square = state[f"{name}_mean"], state[f"{name}_square"]
                    mean.lerp_(slope, 1 - first)
                    square.mul_(second).addcmul_(slope, slope, value=1 - second)
                    deviation = (square / (1 - second**taken)).sqrt_().add_(_EPS)
                    state[name].addcdiv_(mean, deviation, value=-group["lr"] / (1 - first**taken))
                torch.addmm(self._bases[parameter], b, a, alpha=self.scale, out=parameter.data)


def adapted(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices that adapters stand beside, by name: all of the blocks."""
    return {name: p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}


def alpha_of(train: Train) -> float:
    """What a recipe's adapters are scaled by, in ranks."""
    assert train.lora is not None
    return train.lora_alpha or ALPHA_TIMES * train.lora


def save_adapter(checkpoint: Path, folder: Path, train: Train, base: str) -> None:
    """Writes the adapter of a checkpoint into `folder`, in PEFT's format.

    Args:
        checkpoint: `step-N`, of a run that learned adapters.
        train: how it did.
        base: folder or name of the model that they stand beside.
    """
    tensors: dict[str, Tensor] = {}
    with safe_open(checkpoint / "optimizer.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (safetensors' handle is no mapping)
            name, _, entry = key.rpartition("/")
            if entry in ("lora_A", "lora_B"):
                tensors[f"base_model.model.{name.removesuffix('.weight')}.{entry}.weight"] = file.get_tensor(key)
    about = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": train.lora,
        "lora_alpha": alpha_of(train),
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
    }  # fmt: skip
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        weights.write_tensors(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
