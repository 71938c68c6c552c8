"""Settings of the stages whose batches are not made of one stream of tokens: each with its reason, the rest by the rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tessera import device as devices
from tessera import recipe as recipes
from tessera.device import Machine
from tessera.errors import UserError
from tessera.model.decoder import DecoderConfig
from tessera.recipe import Budget, Recipe
from tessera.scaling import rules
from tessera.scaling.rules import Derived


def intent(name: str, summary: str, uri: str, seed: int, settings: tuple[str, ...], optimizer: str = "adamw") -> Recipe:
    """The recipe before the rules, with the optimizer that suits the stage unless the settings name another."""
    tree: dict[str, Any] = {
        "name": name,
        "summary": summary,
        "data": {"sources": [uri], "packing": "single", "deduplicate": "none", "seed": seed},
        "train": {"seed": seed, "optimizer": optimizer, "z_loss": 0.0},
    }
    return recipes.assemble(tree, list(settings), "of the tuning")


def read_budget(text: str | None, wanted: Recipe) -> Budget | None:
    """What --budget says, money as seconds; None: something else says how long.

    Raises:
        UserError: it is none, or money without a price.
    """
    if text is None:
        return None
    try:
        budget = Budget.parse(text)
    except ValueError as error:
        raise UserError(f"{error}.") from None
    if budget.dollars is None:
        return budget
    if wanted.price_per_hour is None:
        raise UserError("a budget in money needs a price: --set price_per_hour=2.5.")
    return Budget(seconds=budget.dollars / wanted.price_per_hour * 3600)


def plan(
    wanted: Recipe,
    shape: DecoderConfig,
    machine: Machine,
    peak: float,
    values: dict[str, tuple[Any, str]],
    steps: int,
    why_steps: str,
    evaluations: int,
    warmup: int = 5,
) -> rules.Plan:
    """Every setting of a run, those that somebody set as they are.

    Args:
        wanted: the recipe before the rules.
        values: by key of `train`, each with its reason: `context`, `batch_rows`, `matrix_rate` and `adam_rate` at least.
        steps: of the run, and why so many.
        evaluations: on the way.
        warmup: steps until the full rate, at most a quarter of the run.
    """
    said: dict[str, Derived] = {}
    train: dict[str, Any] = {}

    def choose(key: str, value: Any, reason: str) -> Any:
        given = getattr(wanted.train, key)
        if given is None:
            said[f"train.{key}"] = Derived(f"train.{key}", value, reason)
        train[key] = value if given is None else given
        return train[key]

    for key, (value, reason) in values.items():
        choose(key, value, reason)
    choose("short_context", train["context"], "whole rows from the first step on")
    choose("compile", False, "rows have another length each time")
    choose("tokens", steps * train["batch_rows"] * train["context"], f"{why_steps}; rows counted in full")
    choose("warmup_steps", min(warmup, steps // 4), "the moments are settled by then")
    choose("cooldown_steps", steps // 5, "the last fifth")
    choose("evaluate_every", max(1, steps // evaluations), f"{evaluations} times in a run")
    for key in ("evaluate_tokens", "final_tokens"):
        choose(key, 1, "what is held out is no stream of tokens")
    choose("weight_decay", 0.0, "the weights are good where they are")
    page = wanted.model_copy(update={"budget": f"{train['tokens']}tok", "train": wanted.train.model_copy(update=train)})
    facts = rules.Facts(
        None, peak, shape=shape, kind=machine.kind, threads=machine.threads, memory_bytes=devices.memory_bytes(machine)
    )
    planned = rules.resolve(page, facts)
    return replace(planned, derived=tuple(said.get(item.name, item) for item in planned.derived))


def rate_of(rate: float | None, rule: float, shape: DecoderConfig) -> dict[str, tuple[Any, str]]:
    """Both learning rates: what was asked for, or the rule's at width 128, by the inverse of the width (arXiv 2203.03466)."""
    value = rate if rate is not None else rule * 128 / shape.width
    reason = "given by --rate" if rate is not None else f"{rule:g} at width 128, by its inverse"
    return {"matrix_rate": (value, reason), "adam_rate": (value, reason)}


def facts_of_data(uri: str, documents: int, path: Path | None = None) -> list[dict[str, Any]]:
    """What `run.json` says of the data."""
    size = 0 if path is None else path.stat().st_size
    return [{"uri": uri, "documents": documents, "bytes": size, "skipped": 0, "exact_duplicates": 0, "near_duplicates": 0}]
