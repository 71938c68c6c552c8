"""Adapters: what is learned, what stays, what merging and taking them off gives, and what PEFT reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tessera.recipe import Train
from tessera.train import optimizers
from tessera.train.checkpoint import Writer
from tessera.train.lora import LowRank, adapted, save_adapter


class Product(nn.Module):
    """W0 + alpha / r B A as autograd sees it."""

    def __init__(self, base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    @property
    def weight(self) -> torch.Tensor:
        return self.base + self.scale * self.b @ self.a


def test_a_step_is_adamws_on_both_factors() -> None:
    torch.manual_seed(0)
    base, x, y = torch.randn(6, 4), torch.randn(5, 4), torch.randn(5, 6)
    whole = nn.Parameter(base.clone())
    mine = LowRank([whole], 2, 3.0, lr=0.01, betas=(0.9, 0.95), seed=1)
    state = mine.state[whole]
    assert torch.equal(whole, base) and not state["lora_B"].any() and state["lora_A"].abs().max() <= 0.5
    other = Product(base, state["lora_A"], state["lora_B"], 1.5)
    theirs = torch.optim.AdamW([other.a, other.b], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for _ in range(7):
        whole.grad = None
        (x @ whole.T - y).square().sum().backward()
        mine.step()
        theirs.zero_grad()
        (x @ other.weight.T - y).square().sum().backward()
        theirs.step()
        assert torch.allclose(state["lora_A"], other.a, atol=1e-6) and torch.allclose(state["lora_B"], other.b, atol=1e-6)
        assert torch.allclose(whole, other.weight, atol=1e-6)
    assert torch.linalg.matrix_rank(whole.detach() - base) == 2


class Small(nn.Module):
    """With the names of a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([nn.Module()])
        self.model.layers[0].self_attn = nn.Module()
        self.model.layers[0].self_attn.q_proj = nn.Linear(4, 6, bias=False)
        self.model.layers[0].norm = nn.LayerNorm(4, bias=False)
        self.model.embed_tokens = nn.Embedding(5, 4)


def settings(rank: int) -> Train:
    return Train(matrix_rate=0.1, adam_rate=0.1, weight_decay=0.1, lora=rank)


def learn(model: Small, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x = torch.linspace(-1, 1, 20).view(5, 4)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = None
        q = model.model.layers[0].self_attn.q_proj
        q(model.model.layers[0].norm(x + model.model.embed_tokens.weight)).square().sum().backward()
        optimizer.step()


def test_all_else_stays_and_taking_an_adapter_off_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (optimizer,) = optimizers.build(model, settings(2), torch.float32)
    assert list(adapted(model)) == ["model.layers.0.self_attn.q_proj.weight"]
    assert optimizer.param_groups[0]["peak_lr"] == 0.1
    learn(model, optimizer, 3)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(adapted(model))
    Writer(tmp_path).write(model, [optimizer], {"step": 3, "best_step": None}, wait=True)
    save_adapter(tmp_path / "step-3", tmp_path / "adapter", settings(2), "base")
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    assert {key: tuple(t.shape) for key, t in tensors.items()} == {
        f"{name}.lora_A.weight": (2, 4), f"{name}.lora_B.weight": (6, 2),
    }  # fmt: skip
    about = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert about["r"] == 2 and about["lora_alpha"] == 4 and about["target_modules"] == ["q_proj"]
    merged = (
        before["model.layers.0.self_attn.q_proj.weight"] + 2 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    )
    assert torch.allclose(model.model.layers[0].self_attn.q_proj.weight, merged, atol=1e-6)


def test_a_restored_adapter_goes_on_to_the_bit(tmp_path: Path) -> None:
    from tessera.train.checkpoint import latest

    def fresh() -> tuple[Small, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Small()
        return model, optimizers.build(model, settings(2), torch.float32)[0]

    model, optimizer = fresh()
    learn(model, optimizer, 3)
    Writer(tmp_path).write(model, [optimizer], {"step": 3, "best_step": None}, wait=True)
    learn(model, optimizer, 2)
    other, again = fresh()
    found = latest(tmp_path, pytest.fail)
    assert found is not None
    found.restore(other, [again])
    learn(other, again, 2)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
