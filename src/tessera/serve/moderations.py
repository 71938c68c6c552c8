"""`POST /v1/moderations`: texts in; for each the categories of harm that it is in, by a moderation model that is served.

Categories that the model does not cover are null, not false: nothing is known of them (docs/safety.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import Field

from tessera.engine.engine import Engine
from tessera.engine.moderation import CATEGORIES, Head, logits_of, probabilities
from tessera.serve.bodies import Body, Part
from tessera.serve.context import Here, in_thread
from tessera.serve.errors import ApiError, invalid
from tessera.serve.generation import errand, unless_left
from tessera.serve.models import Kept, Served
from tessera.serve.store import new_id

router = APIRouter(tags=["moderations"])

ALIASES = frozenset({
    "omni-moderation-latest", "omni-moderation-2024-09-26", "text-moderation-latest", "text-moderation-stable",
})  # fmt: skip
"""Names that clients ask for unless told otherwise; they mean the moderation model that is served."""
_MOST = 1024
"""Texts of one request."""
_TEXTS_AT_ONCE = 16
"""In one turn of the engine, so that streams in between do not stand still for long."""


class TextPart(Part):
    """One text of a mixed input."""

    type: Literal["text"]
    text: str


class ImageUrl(Part):
    """Where a picture is."""

    url: str


class ImagePart(Part):
    """One picture of a mixed input."""

    type: Literal["image_url"]
    image_url: ImageUrl


Texts = Annotated[list[str], Field(max_length=_MOST)]
Parts = Annotated[list[TextPart | ImagePart], Field(max_length=_MOST)]


class ModerationRequest(Body):
    """The body of `POST /v1/moderations`."""

    input: str | Texts | Parts
    model: str = "omni-moderation-latest"


@router.post("/v1/moderations")
async def create(body: ModerationRequest, here: Here) -> dict[str, Any]:
    """Says in which categories of harm texts are."""
    served = await here.model(_name(body.model, list(here.server.models.of(here.owner))))
    if served.moderates is None:
        raise invalid(f"The model '{served.name}' is no moderation model; tessera posttrain moderation makes one.", "model")
    texts = _texts(body)
    tokens = await in_thread(lambda: sum(len(served.vocabulary.encode_text(text)) + 1 for text in texts))

    async def work() -> np.ndarray:
        parts = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            task = partial(_logits, served=served, texts=texts[at : at + _TEXTS_AT_ONCE])
            parts.append(await errand(served, task))
        return np.concatenate(parts)

    logits = await unless_left(here.request, work())
    here.caller.metrics.prompt_tokens.labels(served.name).inc(tokens)
    here.caller.spend(here.owner, tokens)
    here.state["usage"] = {"model": served.name, "prompt_tokens": tokens}
    found = probabilities(served.moderates, logits)
    if not isinstance(body.input, str) and not isinstance(body.input[0], str):
        # The parts of a mixed input are one thing, which is as harmful as the worst of them.
        found = {name: values.max(keepdims=True) for name, values in found.items()}
    rows = [{name: float(values[at]) for name, values in found.items()} for at in range(len(next(iter(found.values()))))]
    return {"id": new_id("modr-"), "model": served.name, "results": [_result(served.moderates, row) for row in rows]}


def _name(asked: str, models: Sequence[Served | Kept]) -> str:
    """The model that a name means: itself, or the newest moderation model where the name is one of OpenAI's."""
    if asked not in ALIASES or any(model.name == asked for model in models):
        return asked
    moderating = [model for model in models if model.moderates is not None]
    if not moderating:
        message = "No moderation model is served here; make one by tessera posttrain moderation, and serve it beside the others."
        raise ApiError(404, message, "model", "model_not_found")
    return max(moderating, key=lambda model: model.created).name


def _texts(body: ModerationRequest) -> list[str]:
    """What is asked about.

    Raises:
        ApiError: there is nothing, or pictures.
    """
    parts = [body.input] if isinstance(body.input, str) else body.input
    if any(isinstance(part, ImagePart) for part in parts):
        raise invalid("Moderation reads texts here, no pictures.", "input")
    texts = [part if isinstance(part, str) else part.text for part in parts if not isinstance(part, ImagePart)]
    if not texts or not all(texts):
        raise invalid("The input must not be empty.", "input")
    return texts


def _logits(engine: Engine, served: Served, texts: Sequence[str]) -> np.ndarray:
    """(n, K); for the engine's own thread."""
    assert served.moderates is not None
    return logits_of(engine.decoder, served.vocabulary, served.moderates, texts)


def _result(head: Head, scores: Mapping[str, float]) -> dict[str, Any]:
    """One entry of `results`."""
    flags = {name: scores[name] >= head[name].threshold for name in head}
    return {
        "flagged": any(flags.values()),
        "categories": {name: flags.get(name) for name in CATEGORIES},
        "category_scores": {name: scores.get(name) for name in CATEGORIES},
        "category_applied_input_types": {name: ["text"] if name in head else [] for name in CATEGORIES},
    }
