"""What all stages share: what was asked for and how it is kept, settings with their reasons, and what is held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from tessera import device as devices
from tessera import recipe as recipes
from tessera.device import Machine
from tessera.errors import UserError
from tessera.model.decoder import DecoderConfig
from tessera.recipe import Budget, Recipe
from tessera.run import RunFolder
from tessera.scaling import rules
from tessera.scaling.rules import Derived
from tessera.train import speed
from tessera.train.lora import RATE_TIMES


class Asked:
    """Base of what somebody asks of a stage: a frozen dataclass with `settings`, kept in `run.json`."""

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """From what `asdict` gave and JSON kept."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()})


def asked(folder: RunFolder, key: str, otherwise: str) -> dict[str, Any]:
    """What `run.json` keeps under `key` of what a run was asked for.

    Raises:
        UserError: the run was not prepared to the end, or is one of another stage, in the words of `otherwise`.
    """
    if not (folder.path / "recipe.yaml").is_file() or not folder.prepared:
        raise UserError(f"{folder.path} was not prepared to the end; start it again without --resume.")
    if key not in folder.info:
        raise UserError(f"{folder.path} is no {otherwise}.")
    return dict(folder.info[key])


def record(planned: rules.Plan, folder: RunFolder, say: Callable[[str], None], parts: tuple[str, ...] = ("train.",)) -> None:
    """Keeps every setting with its reason in the run's folder, and says those of some parts of the recipe."""
    for item in planned.derived:
        if item.name.startswith(parts):
            say(item.line)
        folder.record({"event": "derived", **asdict(item)})


def place_of(digest: int, seed: int) -> int:
    """By which examples are put in order, so that those in front are held out: another order for each seed, the same for the same
    example wherever it stands."""
    return digest ^ (seed * 0x9E3779B97F4A7C15) % 2**64


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
    """What --budget says, money as seconds, which are those of all processes together; None: something else says how long.

    Raises:
        UserError: it is none, or money without a price.
    """
    if text is None:
        return None
    try:
        budget = Budget.parse(text)
    except ValueError as error:
        raise UserError(f"{error}.") from None
    seconds = budget.seconds
    if budget.dollars is not None:
        if wanted.price_per_hour is None:
            raise UserError("a budget in money needs a price: --set price_per_hour=2.5.")
        seconds = budget.dollars / wanted.price_per_hour * 3600
    return budget if seconds is None else Budget(seconds=seconds * devices.processes())


class Choices:
    """Settings of `train` that a stage chooses before the rules fill the rest; what somebody set stays as it is.

    Args:
        wanted: the recipe before the rules.
    """

    def __init__(self, wanted: Recipe) -> None:
        self.wanted = wanted
        self.train: dict[str, Any] = {}
        self.said: dict[str, Derived] = {}

    def __call__(self, key: str, value: Any, reason: str) -> Any:
        """The recipe's own value of `key` if it has one, else this."""
        given = getattr(self.wanted.train, key)
        if given is None:
            self.said[f"train.{key}"] = Derived(f"train.{key}", value, reason)
        self.train[key] = value if given is None else given
        return self.train[key]

    def resolve(self, shape: DecoderConfig, machine: Machine, peak: float, **changes: Any) -> rules.Plan:
        """Every setting, `tokens` chosen before; `changes`: further parts of the recipe."""
        train = self.wanted.train.model_copy(update=self.train)
        page = self.wanted.model_copy(update={"budget": f"{self.train['tokens']}tok", "train": train, **changes})
        facts = rules.Facts(
            None, peak, shape=shape, kind=machine.kind, threads=machine.threads, memory_bytes=devices.memory_bytes(machine),
            dtype=machine.dtype,
        )  # fmt: skip
        return self.explain(rules.resolve(page, facts))

    def explain(self, planned: rules.Plan) -> rules.Plan:
        """The plan with the stage's own reasons in place of the rules'."""
        return replace(planned, derived=tuple(self.said.get(item.name, item) for item in planned.derived))


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
    choose = Choices(wanted)
    for key in ("context", "short_context"):
        if (given := getattr(wanted.train, key)) is not None and given < values["context"][0]:
            raise UserError(
                f"train.{key}={given} is less than {values['context'][0]}, {values['context'][1]}; rows are not cut here, so "
                "leave it out, or the longest examples."
            )
    for key, (value, reason) in values.items():
        choose(key, value, reason)
    rows, context = choose.train["batch_rows"], choose.train["context"]
    choose("short_context", context, "whole rows from the first step on")
    choose("compile", False, "rows have another length each time")
    choose("tokens", steps * rows * context, f"{why_steps}; rows counted in full")
    choose("warmup_steps", min(warmup, steps // 4), "the moments are settled by then")
    choose("cooldown_steps", steps // 5, "the last fifth")
    choose("evaluate_every", max(1, steps // evaluations), f"{evaluations} times in a run")
    for key in ("evaluate_tokens", "final_tokens"):
        choose(key, 1, "what is held out is no stream of tokens")
    choose("weight_decay", 0.0, "the weights are good where they are")
    return choose.resolve(shape, machine, peak)


def within(
    budget: Budget,
    said: str,
    planned: rules.Plan,
    wanted: Recipe,
    shape: DecoderConfig,
    machine: Machine,
    peak: float,
    values: dict[str, tuple[Any, str]],
    evaluations: int,
) -> rules.Plan:
    """The plan with as many steps as a budget gives.

    Args:
        budget: time, FLOPs or tokens; how it was `said`.
        planned: the plan for some other number of steps.
        wanted, shape, machine, peak, values, evaluations: as in `plan`.
    """
    settings = planned.recipe.train
    rows, context = settings.batch_rows or 1, settings.context or 1
    wide = replace(shape, context=context)
    if budget.seconds is not None:
        measured = speed.tokens_per_second(wide, settings, machine)
        steps, why = int(0.8 * budget.seconds * measured / (rows * context)), f"{said} at a measured {measured:,.0f} tokens/s"
    else:
        tokens = budget.tokens or (budget.flops or 0) / wide.flops_per_token(context)
        steps, why = int(tokens / (rows * context)), f"the budget, {said}"
    return plan(wanted, shape, machine, peak, values, max(1, steps), why, evaluations)


def lora_times(wanted: Recipe) -> float:
    """By how much the rates of adapters are higher than those of all weights."""
    return RATE_TIMES if wanted.train.lora is not None else 1.0


def refuse_lora(wanted: Recipe, what: str) -> None:
    """Raises UserError where adapters are asked of a model whose head has to learn."""
    if wanted.train.lora is not None:
        raise UserError(f"{what} learns rows of its head, which adapters leave as they are; leave --lora and train.lora out.")


def rate_of(rate: float | None, rule: float, shape: DecoderConfig, wanted: Recipe) -> dict[str, tuple[Any, str]]:
    """Both learning rates: what was asked for, or the rule's at width 128, by the inverse of the width (arXiv 2203.03466)."""
    value = rate if rate is not None else rule * lora_times(wanted) * 128 / shape.width
    more = f", {lora_times(wanted):g} times that for adapters" if wanted.train.lora is not None else ""
    reason = "given by --rate" if rate is not None else f"{rule:g} at width 128, by its inverse{more}"
    return {"matrix_rate": (value, reason), "adam_rate": (value, reason)}


def facts_of_data(uri: str, documents: int, path: Path | None = None, skipped: int = 0) -> list[dict[str, Any]]:
    """What `run.json` says of the data; `skipped`: documents that were left out."""
    size = 0 if path is None else path.stat().st_size
    return [{"uri": uri, "documents": documents, "bytes": size, "skipped": skipped, "exact_duplicates": 0, "near_duplicates": 0}]
