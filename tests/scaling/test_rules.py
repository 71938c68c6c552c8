"""From a budget to a recipe without gaps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera import recipe as recipes
from tessera.errors import UserError
from tessera.model.decoder import DecoderConfig
from tessera.recipe import Recipe
from tessera.scaling import rules
from tessera.scaling.rules import Facts
from tessera.train.job import shape_of

NONE_MEANS_NONE = {"train.threads", "train.lora", "train.lora_alpha", "price_per_hour"}
MACHINE = Facts(seconds=None, peak_flops=1e11)


def page(*overrides: str) -> Recipe:
    return recipes.load("text", list(overrides))


def gaps(recipe: Recipe) -> set[str]:
    """Fields that are still open."""
    parts: dict[str, Any] = {"tokenizer": recipe.tokenizer, "model": recipe.model, "train": recipe.train}
    return {f"{p}.{k}" for p, part in parts.items() for k, v in part.model_dump().items() if v is None} - NONE_MEANS_NONE


budgets = st.one_of(
    st.floats(5e4, 1e11).map(lambda n: (f"{n:.0f}tok", None)),
    st.floats(1e11, 1e21).map(lambda n: (f"{n:.3e}", None)),
    st.floats(10, 1e6).map(lambda n: (f"{n:.0f}s", n)),
)


@settings(deadline=None, max_examples=40)
@given(
    budgets,
    st.sampled_from([64, 256, 1024]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["cpu", "cuda"]),
    st.sampled_from(["muon", "adamw"]),
)
def test_every_gap_is_filled_with_a_reason_and_the_result_is_its_own_plan(
    budget: tuple[str, float | None], context: int, processes: int, kind: str, optimizer: str
) -> None:
    wish = page(f"budget='{budget[0]}'", f"train.context={context}", f"train.optimizer={optimizer}")
    facts = Facts(budget[1], 1e11, processes=processes, kind=kind)
    plan = rules.resolve(wish, facts)
    assert gaps(plan.recipe) == set() and all(d.reason for d in plan.derived)
    assert {d.name for d in plan.derived} >= gaps(wish)
    train = plan.recipe.train
    assert train.batch_rows % processes == 0 and 1 <= train.micro_rows <= train.batch_rows // processes
    # What is compiled for one number of rows must not meet another.
    assert not train.compile or (train.batch_rows // processes) % train.micro_rows == 0
    steps = math.ceil(train.tokens / (train.batch_rows * context))
    assert 0 <= train.warmup_steps < max(2, steps) and 0 < train.cooldown_steps <= max(1, steps)
    again = rules.resolve(plan.recipe, facts)
    assert again.recipe == plan.recipe and all(d.reason == "set in the recipe" for d in again.derived)
    assert shape_of(plan.recipe, plan.shape.vocab_size) == plan.shape


SET = {
    "train.tokens": 123_456,
    "train.context": 96,
    "train.short_context": 16,
    "model.rope_theta": 5e4,
    "train.batch_rows": 12,
    "train.micro_rows": 3,
    "train.matrix_rate": 0.007,
    "train.adam_rate": 0.003,
    "train.weight_decay": 0.0,
    "train.warmup_steps": 0,
    "train.cooldown_steps": 0,
    "train.evaluate_every": 7,
    "train.evaluate_tokens": 999,
    "train.final_tokens": 1999,
    "tokenizer.vocabulary_size": 777,
    "model.width": 192,
    "model.layers": 5,
    "model.heads": 6,
    "model.kv_heads": 1,
    "model.head_size": 32,
    "model.mlp_width": 100,
    "model.tied": False,
}


@pytest.mark.parametrize("name", SET)
@pytest.mark.parametrize("budget", ["1e15", "5m", "20Mtok"])
def test_a_value_that_is_set_is_never_overruled(name: str, budget: str) -> None:
    wish = page(f"budget='{budget}'", f"{name}={str(SET[name]).lower()}")
    plan = rules.resolve(wish, Facts(250.0 if budget == "5m" else None, 1e11))
    part, key = name.split(".")
    assert getattr(getattr(plan.recipe, part), key) == SET[name]
    assert next(d.reason for d in plan.derived if d.name == name) == "set in the recipe"
    assert gaps(plan.recipe) == set()


def test_each_form_of_budget_is_kept() -> None:
    assert rules.resolve(page("budget=50Mtok"), MACHINE).recipe.train.tokens == 50_000_000
    plan = rules.resolve(page("budget=1e16"), MACHINE)
    assert plan.flops == pytest.approx(1e16, rel=0.01)
    seconds = rules.resolve(page("budget=10m"), Facts(590.0, 1e11, utilisation=0.4, measured=True))
    assert seconds.flops == pytest.approx(590 * 1e11 * 0.4, rel=0.01)
    # Money is time by its price, which the command computes.
    assert rules.resolve(page("budget=$20", "price_per_hour=2"), Facts(36_000.0, 1e11)).flops == pytest.approx(
        36_000 * 1e11 * rules.UTILISATION, rel=0.01
    )


@pytest.mark.parametrize("unit", ["tokens", "flops", "seconds"])
def test_more_budget_never_gives_a_smaller_model(unit: str) -> None:
    found = []
    for exponent in range(60):
        amount = 1.3**exponent
        if unit == "tokens":
            plan = rules.resolve(page(f"budget={amount * 1e5:.0f}tok"), MACHINE)
        elif unit == "flops":
            plan = rules.resolve(page(f"budget={amount * 1e12:.4e}"), MACHINE)
        else:
            plan = rules.resolve(page(f"budget={amount * 10:.0f}s"), Facts(amount * 10, 1e11))
        found.append((plan.shape.matmul_parameters, plan.recipe.train.tokens or 0, plan.recipe.train.batch_rows or 0))
    sizes, tokens, rows = zip(*found, strict=True)
    assert list(sizes) == sorted(sizes) and sizes[-1] > 100 * sizes[0]
    # A larger shape takes tokens from the same FLOPs, so only over several shapes there are more.
    assert all(b > a for a, b in zip(tokens[::15], tokens[15::15], strict=False)) and rows[-1] > rows[0]


def test_context_grows_with_the_tokens() -> None:
    found = [rules.resolve(page(f"budget={amount}Mtok"), MACHINE).recipe for amount in (1, 20, 80, 5000)]
    assert [(r.train.context, r.train.short_context) for r in found] == [(256, 256), (256, 256), (512, 512), (2048, 2048)]
    pieces = rules.resolve(page("budget=1Mtok", "train.short_context=64"), MACHINE).recipe.train
    assert (pieces.short_context, pieces.mean_context) == (64, 160)
    with pytest.raises(UserError, match="does not divide"):
        rules.resolve(page("budget=1Mtok", "train.short_context=48"), MACHINE)


def test_a_model_to_go_on_from_reads_whole_rows_of_its_own_length() -> None:
    small = rules.resolve(page("budget=1Mtok"), MACHINE).shape
    train = rules.resolve(page("budget=1Mtok"), Facts(None, 1e11, shape=replace(small, context=4096))).recipe.train
    assert (train.context, train.short_context) == (256, 256)


@pytest.mark.parametrize(("width", "kv_heads", "heads"), [(64, 2, 2), (192, 2, 4), (320, 4, 4), (384, 3, 6), (128, 8, 8)])
def test_heads_are_chosen_to_fit_the_key_heads_that_are_set(width: int, kv_heads: int, heads: int) -> None:
    plan = rules.resolve(page(f"model.kv_heads={kv_heads}", f"model.width={width}", "budget=1Mtok"), MACHINE)
    assert (plan.recipe.model.heads, plan.shape.heads, plan.shape.kv_heads) == (heads, heads, kv_heads)


def test_key_heads_that_are_set_leave_the_width_to_the_budget() -> None:
    small, large = (rules.resolve(page("model.kv_heads=3", f"budget={b}"), MACHINE).shape for b in ("2Mtok", "500Mtok"))
    assert (small.heads, large.heads % 3) == (3, 0) and large.width > small.width


def test_a_model_to_go_on_from_keeps_its_shape() -> None:
    shape = DecoderConfig(
        vocab_size=500,
        width=96,
        layers=3,
        heads=3,
        kv_heads=1,
        head_size=32,
        mlp_width=200,
        context=128,
        tied=False,
        qk_norm=False,
        rope_theta=5e5,
    )
    plan = rules.resolve(page("budget=1Mtok", "train.context=64"), Facts(None, 1e11, shape=shape))
    model = plan.recipe.model
    assert (model.width, model.layers, model.heads, model.kv_heads, model.head_size, model.mlp_width, model.tied) == (
        96,
        3,
        3,
        1,
        32,
        200,
        False,
    )
    assert plan.shape.qk_norm is False and plan.shape.vocab_size == 500 and model.rope_theta == 5e5


@pytest.mark.parametrize(
    ("overrides", "facts", "sentence"),
    [
        (["budget=1s"], Facts(-1.5, 1e11), "is spent before training begins"),
        (["budget=100tok"], MACHINE, "too few to train anything"),
        (["budget=1e6"], MACHINE, "too few to train anything"),
        (["model.heads=4", "model.kv_heads=3", "budget=1Mtok"], MACHINE, "not a multiple of model.kv_heads=3"),
        (["train.batch_rows=3", "budget=1Mtok"], Facts(None, 1e11, processes=2), "cannot be shared by 2 processes"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(overrides: list[str], facts: Facts, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        rules.resolve(page(*overrides), facts)


def test_short_data_gives_more_parameters_rather_than_more_passes() -> None:
    plenty, short = (rules.resolve(page("budget=1.3e13"), Facts(None, 1e11, train_bytes=n)) for n in (50_000_000, 1_000_000))
    passes = short.recipe.train.tokens * 2.0 / 1_000_000
    assert 3 < passes < 5 and short.shape.matmul_parameters > 1.5 * plenty.shape.matmul_parameters
    assert short.flops == pytest.approx(plenty.flops, rel=0.02)
    assert "not over 4 passes" in next(d.reason for d in short.derived if d.name == "model.width")
    # Tokens that a person asked for are theirs.
    asked = rules.resolve(page("budget=4Mtok"), Facts(None, 1e11, train_bytes=1_000_000))
    assert asked.recipe.train.tokens == 4_000_000
    assert asked.shape == rules.resolve(page("budget=4Mtok"), MACHINE).shape


def test_recomputing_takes_one_row_at_a_time_on_a_cpu_and_more_at_once_on_a_gpu() -> None:
    lean = rules.resolve(page("budget=20Mtok", "train.recompute=true"), MACHINE).recipe.train
    assert lean.micro_rows == 1 and rules.resolve(page("budget=20Mtok"), MACHINE).recipe.train.micro_rows == 4
    gpu = Facts(None, 1e14, kind="cuda", memory_bytes=40 << 30)
    rows = [
        rules.resolve(page("budget=5Gtok", f"train.recompute={r}"), gpu).recipe.train.micro_rows or 0 for r in ("true", "false")
    ]
    assert rows[0] > rows[1]


@pytest.mark.parametrize(("short", "long"), [("20000tok", "500Mtok"), ("1e12", "1e15"), ("10s", "1h")])
def test_only_a_run_that_wins_back_the_time_is_compiled_and_its_reason_says_for_how_long_it_runs(short: str, long: str) -> None:
    for budget, compiled in ((short, False), (long, True)):
        plan = rules.resolve(page(f"budget='{budget}'"), Facts({"10s": 10.0, "1h": 3600.0}.get(budget), 1e11))
        reason = next(d.reason for d in plan.derived if d.name == "train.compile")
        seconds = f"{plan.flops / (1e11 * rules.UTILISATION):,.0f}"
        assert plan.recipe.train.compile is compiled and reason.endswith(f"pays from 800 s on, the run takes about {seconds} s")


def test_adapters_have_the_rate_of_matrices_under_adamw_and_not_that_of_embeddings() -> None:
    shape = DecoderConfig(300, 128, 2, 4, 2, 32, 384, context=256)
    facts = Facts(None, 1e11, shape=shape)
    adapters = rules.resolve(page("train.lora=8", "budget=1Mtok"), facts).recipe.train
    weights = rules.resolve(page("train.optimizer=adamw", "budget=1Mtok"), facts).recipe.train
    assert adapters.adam_rate == weights.matrix_rate == pytest.approx(rules.ADAMW_RATE)
    assert rules.resolve(page("budget=1Mtok"), facts).recipe.train.adam_rate == pytest.approx(rules.EMBEDDING_RATE)
