"""Several stages, one after the other, in one run's folder: what was asked for, and where each stage stands.

The last stage's run is the folder itself, so that it is a model like any other; the earlier ones lie in it. `reason`: examples
of thoughts -> supervised tuning (`cold/`) -> reinforcement. `chat`: examples of dialogue -> supervised tuning (`sft/`) ->
preferences.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tessera.engine.thinking import budgets_of, thinks
from tessera.errors import UserError
from tessera.model import weights
from tessera.posttrain import preference, reinforce, supervised, worked
from tessera.posttrain.curriculum import Pool, open_pool
from tessera.posttrain.examples import read_examples, thoughts
from tessera.posttrain.pairs import read_questions
from tessera.posttrain.verifiers import load as load_verifier
from tessera.recipe import Budget
from tessera.run import RunFolder, write_text
from tessera.tokens.chat import EFFORTS as EVERY_EFFORT
from tessera.tokens.vocabulary import Vocabulary

EXAMPLES, EPOCHS, STEPS = 40_000, 1.0, 100
"""Of the cold start, passes over them, and updates of the reinforcement (docs/LOG.md, 2026-11-29, "Thinking")."""
COLD_SHARE = 0.5
"""Of a budget of time."""
ASKED = "stages.json"
"""Of a folder of stages; from then on it can be gone on with."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        module: `supervised`, `reinforce` or `preference`.
        wish: what is asked of it.
        path: of its run.
    """

    module: Any
    wish: Any
    path: Path


@dataclass(frozen=True)
class Reason:
    """What somebody asks of `reason`; None: a rule decides.

    Args:
        model: a run's folder or a Hugging Face folder.
        data: tasks of the reinforcement, as `curriculum.open_pool` names them.
        examples: file of examples with thoughts and efforts; None: they are generated, for tasks that can be worked out here.
        examples_count: how many are generated.
        verifier, steps, groups, group, max_tokens: as in `reinforce.Wish`.
        epochs: of the cold start.
        rate_multiplier: as in `supervised.Wish`.
        budget: time of both stages together, instead of epochs and steps.
        seed: of both.
        settings: `key=value` of the recipes of both.
    """

    model: str
    data: str = "dial"
    examples: str | None = None
    examples_count: int = EXAMPLES
    verifier: str = "exact"
    epochs: float | None = None
    steps: int | None = None
    groups: int | None = None
    group: int | None = None
    max_tokens: int | None = None
    rate_multiplier: float | None = None
    budget: str | None = None
    seed: int = 0
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name = self.data.partition(":")[0]
        if self.examples is None and name not in worked.STEPS:
            known = ", ".join(worked.STEPS)
            raise UserError(f"there are worked examples of {known} only; for {self.data} give --examples, a file of them.")
        if self.examples_count < 100:
            raise UserError(f"--examples-count {self.examples_count} must be at least 100.")
        if self.budget is not None and (self.epochs is not None or self.steps is not None):
            raise UserError("give --budget, or --epochs and --steps: either says how long to train.")
        _share(self.budget, 1.0)

    def prepare(self, path: Path) -> None:
        """Writes the examples of the cold start. What the second stage would refuse is refused before the first is paid for.

        Raises:
            UserError: no such model, one without tokens for thoughts, no such tasks, file or verifier, settings out of range.
        """
        model = weights.resolve_model(self.model)
        if not thinks(Vocabulary.load(model, weights.read_config(model).vocab_size)):
            raise UserError(f"{model} has no tokens for thoughts and efforts; take a model that Tessera trained.")
        load_verifier(self.verifier)
        self.reinforcement(path / "cold", EVERY_EFFORT)
        if self.examples is None:
            name, pool = self.data.partition(":")[0], self._pool()
            worked.write_examples(path / "examples.jsonl", worked.generate(name, pool, self.examples_count, self.seed))
        elif not any(thoughts(example.document) for example in read_examples(Path(self.examples))):
            raise self._thoughtless()

    def stage(self, number: int, path: Path) -> Stage | None:
        """The stage of that number, from 0, once those before it are done."""
        cold = path / "cold"
        if number == 0:
            usual = None if self.budget or self.examples is not None else EPOCHS
            epochs = usual if self.epochs is None else self.epochs
            wish = supervised.Wish(
                self.model, self.examples or str(path / "examples.jsonl"), validation_share=0.02, epochs=epochs,
                budget=_share(self.budget, COLD_SHARE), batch_size=32 if self.examples is None else None,
                rate_multiplier=self.rate_multiplier, seed=self.seed, settings=self.settings,
            )  # fmt: skip
            return Stage(supervised, wish, cold)
        if number > 1:
            return None
        # Where little thought is allowed most right answers are lucky, and nothing is learned from those.
        efforts = tuple(e for place, e in enumerate(budgets_of(str(cold))) for _ in range(2**place))
        if not efforts:
            raise self._thoughtless()
        return Stage(reinforce, self.reinforcement(cold, efforts), path)

    def reinforcement(self, cold: Path, efforts: tuple[str, ...]) -> reinforce.Wish:
        """What is asked of the second stage, from the model in `cold`."""
        given: dict[str, Any] = {"steps": self.steps, "groups": self.groups, "group": self.group, "max_tokens": self.max_tokens}
        return reinforce.Wish(
            str(cold), self.data, self.verifier, budget=_share(self.budget, 1 - COLD_SHARE), efforts=efforts,
            level=len(self._pool().levels) - 1, seed=self.seed, settings=self.settings,
            **({} if self.budget else {"steps": STEPS}) | {name: value for name, value in given.items() if value is not None},
        )  # fmt: skip

    def _pool(self) -> Pool:
        """The tasks as the reinforcement parts them: what it holds out can be all of a level."""
        return open_pool(self.data, reinforce.Wish.exam_tasks, self.seed)

    def _thoughtless(self) -> UserError:
        return UserError(
            f"{self.examples} has no assistant message with reasoning_content and reasoning_effort, from which a model could "
            "learn to think; give some, for several efforts."
        )


@dataclass(frozen=True)
class Chat:
    """What somebody asks of `chat`; None: a rule decides.

    Args:
        model: a run's folder or a Hugging Face folder.
        data: file of examples, as of `supervised`.
        pairs: file of preferences, as of `preference`.
        epochs: of the supervised stage.
        beta: as in `preference.Wish`.
        budget: time of both stages together.
        seed: of both.
        settings: `key=value` of the recipes of both.
    """

    model: str
    data: str
    pairs: str
    epochs: float | None = None
    beta: float | None = None
    budget: str | None = None
    seed: int = 0
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _share(self.budget, 1.0)

    def prepare(self, path: Path) -> None:
        """Reads both files through, so that a mistake in the second is told before the first is learned from.

        Raises:
            UserError: no such model or file, a line that is none of its kind, or a beta out of range.
        """
        self._preferences(path / "sft")
        model = weights.resolve_model(self.model)
        supervised.check(Path(self.data))
        read_questions(Path(self.pairs), Vocabulary.load(model, weights.read_config(model).vocab_size))

    def stage(self, number: int, path: Path) -> Stage | None:
        """The stage of that number, from 0, once those before it are done."""
        first = path / "sft"
        if number == 0:
            wish = supervised.Wish(
                self.model, self.data, budget=_share(self.budget, 0.5), epochs=self.epochs, seed=self.seed, settings=self.settings
            )
            return Stage(supervised, wish, first)
        if number > 1:
            return None
        return Stage(preference, self._preferences(first), path)

    def _preferences(self, first: Path) -> preference.Wish:
        given: dict[str, Any] = {} if self.beta is None else {"beta": self.beta}
        budget = _share(self.budget, 0.5)
        return preference.Wish(
            model=str(first), data=self.pairs, kind="dpo", budget=budget, seed=self.seed, settings=self.settings, **given
        )


RECIPES: Mapping[str, type[Reason] | type[Chat]] = {"reason": Reason, "chat": Chat}
"""Name -> what is asked of it."""


def begin(name: str, wanted: Mapping[str, Any], path: Path) -> Reason | Chat:
    """Keeps in a new folder what somebody asks for.

    Raises:
        UserError: as `prepare` of the recipe; something is in the folder already.
    """
    RunFolder.refuse_occupied(path)
    if (path / ASKED).is_file():
        raise UserError(f"{path} exists already; give another --out, or --resume to go on with the stages that are in it.")
    wish = RECIPES[name](**wanted)
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(path)
        folder.lock()
        wish.prepare(path)
        write_text(path / ASKED, json.dumps({"recipe": name, **asdict(wish)}))
        folder.unlock()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
    return wish


def asked(name: str, path: Path) -> Reason | Chat:
    """What a folder was asked for.

    Raises:
        UserError: it is none of this recipe.
    """
    try:
        plain = json.loads((path / ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path} is no run of posttrain {name} ({ASKED} is missing); start one without --resume.") from None
    if (found := plain.pop("recipe")) != name:
        raise UserError(f"{path} is a run of posttrain {found}; go on with it by posttrain {found} --resume.")
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    return RECIPES[name](**fields)


def _share(budget: str | None, share: float) -> str | None:
    """That part of a budget of time."""
    if budget is None:
        return None
    try:
        seconds = Budget.parse(budget).seconds
    except ValueError as error:
        raise UserError(f"{error}.") from None
    if seconds is None:
        raise UserError(f"--budget {budget}: two stages share a budget of time, like 10m.")
    return f"{max(1, math.floor(seconds * share))}s"
