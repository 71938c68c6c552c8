"""`POST /v1/embeddings`: texts in, vectors out: the last hidden states of a text's tokens, averaged, of length one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from fastapi import APIRouter
from pydantic import Field

from tessera.engine.engine import Engine
from tessera.serve.bodies import Body
from tessera.serve.completions import TokenId, prompts_of
from tessera.serve.context import Here, in_thread
from tessera.serve.errors import ApiError, invalid
from tessera.serve.generation import errand, unless_left

router = APIRouter(tags=["embeddings"])

_TOKENS_AT_ONCE = 2048
"""In one forward pass, so that streams in between do not stand still for long."""


class EmbeddingRequest(Body):
    """The body of `POST /v1/embeddings`."""

    model: str
    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


@router.post("/v1/embeddings")
async def create(body: EmbeddingRequest, here: Here) -> dict[str, Any]:
    """Embeds one or many texts."""
    served = await here.model(body.model)
    if body.input in ("", []) or (isinstance(body.input, list) and any(one in ("", []) for one in body.input)):
        raise invalid("The input must not be empty.", "input")
    prompts = await in_thread(prompts_of, served, body.input, "input")
    for prompt in prompts:
        if len(prompt) > served.context:
            message = f"This model's maximum context length is {served.context} tokens; an input has {len(prompt)}."
            raise ApiError(400, message, "input", "context_length_exceeded")

    async def work() -> list[np.ndarray]:
        vectors: list[np.ndarray] = []
        for batch in _batches(prompts):
            vectors += await errand(served, partial(embed, prompts=batch))
        return vectors

    vectors = await unless_left(here.request, work())
    width = len(vectors[0])
    if body.dimensions is not None and body.dimensions > width:
        raise invalid(f"This model's embeddings have {width} dimensions.", "dimensions")
    tokens = sum(map(len, prompts))
    here.caller.metrics.prompt_tokens.labels(served.name).inc(tokens)
    here.caller.spend(here.owner, tokens)
    here.state["usage"] = {"model": served.name, "prompt_tokens": tokens}
    data = [
        {"object": "embedding", "index": i, "embedding": _written(_shortened(vector, body.dimensions), body.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": served.name, "usage": usage}


def embed(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The vectors (D,) float32 of prompts, computed together; for the engine's own thread."""
    width = max(map(len, prompts))
    device = engine.decoder.head_weight.device
    # Causal: what fills a row up on its right changes nothing to its left.
    ids_BT = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=device)
    with torch.inference_mode():
        hidden_BTD = engine.decoder(ids_BT).float()
        vectors = [hidden_BTD[b, : len(prompt)].mean(0) for b, prompt in enumerate(prompts)]
        return [torch.nn.functional.normalize(vector, dim=0).cpu().numpy() for vector in vectors]


def _batches(prompts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """In order, so many at a time that a batch stays small."""
    batches: list[list[Sequence[int]]] = [[]]
    for prompt in prompts:
        widest = max(len(p) for p in (*batches[-1], prompt))
        if batches[-1] and widest * (len(batches[-1]) + 1) > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(prompt)
    return batches


def _shortened(vector: np.ndarray, dimensions: int | None) -> np.ndarray:
    short = vector[:dimensions]
    return short / max(float(np.linalg.norm(short)), 1e-12)


def _written(vector: np.ndarray, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
