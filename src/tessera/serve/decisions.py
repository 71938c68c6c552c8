"""`POST /v1/decisions`: questions about an input, answered by the model's own probabilities; nothing is sampled.

For each question the model reads the input, the question and what may be answered. The probability of an option is that of its
text as the answer, relative to the other options.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from fastapi import APIRouter
from pydantic import Discriminator, Field

from tessera.engine.engine import Engine
from tessera.serve.bodies import Body, Part
from tessera.serve.compaction import expanded
from tessera.serve.context import Here, in_thread
from tessera.serve.dialogue import prompt_ids, refuse_endless, room_for
from tessera.serve.errors import invalid
from tessera.serve.generation import Usage, errand, unless_left
from tessera.serve.items import Items, conversation_of, kept
from tessera.serve.models import Served
from tessera.tokens.chat import Message

router = APIRouter(tags=["decisions"])

_ROWS_AT_ONCE = 8
"""Options in one forward pass, so that streams in between do not stand still for long."""


class InstructionPart(Part):
    """A part of a question."""

    type: Literal["input_text", "input_image", "input_json"]
    text: str = ""
    data: dict[str, Any] | list[dict[str, Any]] = {}


Instructions = str | list[InstructionPart]


class Predicate(Part):
    """How likely is it that a statement is true?"""

    type: Literal["predicate"]
    instructions: Instructions
    name: str | None = None


class ChoiceOption(Part):
    """One of the options."""

    value: str | bool
    description: str = ""


class ChoiceQuestion(Part):
    """Which of the options is it?"""

    type: Literal["choice"]
    instructions: Instructions
    choices: Annotated[list[ChoiceOption], Field(min_length=2, max_length=255)]
    name: str | None = None


class Level(Part):
    """One of the levels, the lowest first."""

    label: str
    description: str = ""


class ScoreQuestion(Part):
    """How high is it?"""

    type: Literal["score"]
    instructions: Instructions
    levels: Annotated[list[Level], Field(min_length=2, max_length=10)]
    name: str | None = None


Question = Annotated[Predicate | ChoiceQuestion | ScoreQuestion, Discriminator("type")]


class DecisionRequest(Body):
    """The body of `POST /v1/decisions`."""

    model: str
    input: str | Items
    questions: Annotated[list[Question], Field(min_length=1, max_length=400)]
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None


@router.post("/v1/decisions")
async def create(body: DecisionRequest, here: Here) -> dict[str, Any]:
    """Answers questions about an input."""
    served = await here.model(body.model)
    items = [] if isinstance(body.input, str) else expanded(here.server.vault, here.owner, kept(body.input))
    before = [Message("user", body.input)] if isinstance(body.input, str) else await in_thread(conversation_of, items, None)
    refuse_endless(served, [message.content for message in before], "input")
    usage = Usage()

    async def work() -> list[dict[str, Any]]:
        return [await _answer(served, before, question, usage, f"questions[{i}]") for i, question in enumerate(body.questions)]

    answers = await unless_left(here.request, work())
    here.caller.metrics.prompt_tokens.labels(served.name).inc(usage.prompt)
    here.caller.spend(here.owner, usage.prompt)
    here.state["usage"] = {"model": served.name, "prompt_tokens": usage.prompt}
    return {"model": served.name, "answers": answers, "usage": usage.of_response()}


def probabilities(engine: Engine, prompt: Sequence[int], options: Sequence[Sequence[int]]) -> list[float]:
    """Log-probabilities of each option's ids after `prompt`; for the engine's own thread."""
    width = len(prompt) + max(map(len, options))
    device = engine.decoder.head_weight.device
    rows = [[*prompt, *option, *[0] * (width - len(prompt) - len(option))] for option in options]
    with torch.inference_mode():
        hidden_BTD = engine.decoder(torch.tensor(rows, device=device))[:, len(prompt) - 1 :]
        logprobs_BTV = torch.log_softmax(engine.decoder.logits(hidden_BTD).float(), dim=-1)
    return [float(sum(logprobs_BTV[b, t, id] for t, id in enumerate(option))) for b, option in enumerate(options)]


async def _answer(served: Served, before: Sequence[Message], question: Question, usage: Usage, where: str) -> dict[str, Any]:
    options = _options(question, where)
    prompt, texts = await in_thread(_prompt, served, before, question, list(options), where)
    room_for(served, prompt, max(map(len, texts)), "input")
    logprobs: list[float] = []
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        rows = texts[start : start + _ROWS_AT_ONCE]
        logprobs += await errand(served, partial(probabilities, prompt=prompt, options=rows))
    usage.prompt += len(prompt) + sum(map(len, texts))
    odds = np.exp(np.array(logprobs) - max(logprobs))
    return _shown(question, (odds / odds.sum()).tolist())


def _options(question: Question, where: str) -> dict[str, str]:
    """What may be answered, with what it means."""
    if isinstance(question, Predicate):
        return {"yes": "", "no": ""}
    if isinstance(question, ScoreQuestion):
        pairs = [(level.label, level.description) for level in question.levels]
    else:
        # A text and a boolean that read the same are two options.
        pairs = [(json.dumps(option.value), option.description) for option in question.choices]
    if len(dict(pairs)) < len(pairs):
        raise invalid("Each option must be there once only.", where)
    return dict(pairs)


def _prompt(
    served: Served, before: Sequence[Message], question: Question, options: Sequence[str], where: str
) -> tuple[list[int], list[list[int]]]:
    """The prompt's ids, and those of each option as the answer."""
    meanings = _options(question, where)
    lines = [f"{option}: {meaning}" if meaning else option for option, meaning in meanings.items()]
    asked = f"{_text(question.instructions, where)}\nAnswer with one of:\n" + "\n".join(lines)
    prompt = prompt_ids(served, [*before, Message("user", asked)], param="input")
    if not served.tuned:
        prompt += served.vocabulary.encode_text("\n\n")
    return prompt, [[*served.vocabulary.encode_text(option), served.end_of_answer] for option in options]


def _text(instructions: Instructions, where: str) -> str:
    if isinstance(instructions, str):
        return instructions
    for part in instructions:
        if part.type == "input_image":
            raise invalid(
                "This model does not read pictures; the recipe `see` brings them.",
                f"{where}.instructions",
                "unsupported_modality",
            )
    return "\n".join(
        part.text if part.type == "input_text" else json.dumps(part.data, ensure_ascii=False) for part in instructions
    )


def _shown(question: Question, shares: list[float]) -> dict[str, Any]:
    head = {"type": question.type, "name": question.name}
    best = int(np.argmax(shares))
    if isinstance(question, Predicate):
        return head | {"probability": shares[0]}
    if isinstance(question, ChoiceQuestion):
        values = [option.value for option in question.choices]
        listed = [{"value": value, "probability": share} for value, share in zip(values, shares, strict=True)]
        return head | {"choice": values[best], "confidence": shares[best], "probabilities": listed}
    labels = [level.label for level in question.levels]
    levels = [
        {"value": i, "label": label, "probability": share} for i, (label, share) in enumerate(zip(labels, shares, strict=True))
    ]
    score = sum(i * share for i, share in enumerate(shares))
    return head | {"score": score, "confidence": shares[best], "probabilities": levels}
