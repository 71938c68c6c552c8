"""A thought before the answer: opened by force, ended by the model or, when its tokens are spent, by force.

How much is thought is said twice: to the model, by the token of the effort in its prompt, with which it was trained, and to the
engine, as the most tokens that it lets pass. What the model chose and what was forced is told apart in the completion's record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tessera.engine.constraints import Constraint, Progress
from tessera.errors import UserError
from tessera.model import weights
from tessera.tokens.chat import EFFORTS
from tessera.tokens.vocabulary import END_TURN, Vocabulary

THINK, THOUGHT = "<|think|>", "<|/think|>"


@dataclass(frozen=True)
class Thought:
    """A constraint: the id `opening`, at most `limit` ids that are free, the id `closing`; then `after`, or anything."""

    opening: int
    closing: int
    limit: int
    after: Constraint | None = None

    @property
    def tokens(self) -> int:
        """At most, both marks included."""
        return self.limit + 2

    def begin(self, size: int) -> Progress:
        return ThoughtProgress(self, None if self.after is None else self.after.begin(size))


@dataclass
class ThoughtProgress:
    """Where a completion stands in its thought, or behind it.

    Args:
        thought: the constraint.
        after: the progress of what follows.
        taken: ids of the thought so far, -1 before it is opened.
        thinking: the thought is not closed.
    """

    thought: Thought
    after: Progress | None
    taken: int = -1
    thinking: bool = True

    def allowed(self) -> Tensor | None:
        return None if self.thinking or self.after is None else self.after.allowed()

    def forced(self) -> list[int]:
        if not self.thinking:
            return [] if self.after is None else self.after.forced()
        if self.taken < 0:
            # A limit of 0 is an empty thought.
            return [self.thought.opening, *([] if self.thought.limit else [self.thought.closing])]
        return [self.thought.closing] if self.taken >= self.thought.limit else []

    def accept(self, token: int) -> bool:
        if not self.thinking:
            return self.after is not None and self.after.accept(token)
        self.taken += 1
        self.thinking = token != self.thought.closing or self.taken == 0
        return False


def thinks(vocabulary: Vocabulary) -> bool:
    """Whether a vocabulary has the tokens for thoughts and for every effort."""
    return {THINK, THOUGHT, *(f"<|effort_{effort}|>" for effort in EFFORTS)} <= vocabulary.controls.keys()


def budgets_of(model: str) -> dict[str, int]:
    """Effort -> tokens of thought that a model was trained with; empty where it does not think.

    Args:
        model: a run's folder or a Hugging Face folder.
    """
    return dict(weights.read_special(weights.resolve_model(model)).thinking)


def thought(vocabulary: Vocabulary, budgets: Mapping[str, int], effort: str, after: Constraint | None = None) -> Thought:
    """The constraint of an effort; `after` is that of the answer.

    Raises:
        UserError: the model does not know this effort.
    """
    if effort not in budgets:
        raise UserError(refusal(budgets, effort))
    return Thought(vocabulary.control(THINK), vocabulary.control(THOUGHT), budgets[effort], after)


def refusal(budgets: Sequence[str] | Mapping[str, int], effort: str, otherwise: str = "none") -> str:
    """Why an effort cannot be had from a model; `otherwise`: how it is told to answer at once."""
    if not budgets:
        return f"this model was not trained to think, so it has no effort {effort!r}; make one by tessera posttrain reason."
    return f"this model has no effort {effort!r}; write one of {', '.join(budgets)}, or {otherwise}."


def speaks_dialogue(model: str, vocabulary: Vocabulary) -> bool:
    """Whether a model ends its turns: tuning adds `<|end_turn|>` to the end ids of its `generation_config.json`."""
    controls = vocabulary.controls
    return "<|user|>" in controls and controls.get(END_TURN) in weights.read_special(weights.resolve_model(model)).end
