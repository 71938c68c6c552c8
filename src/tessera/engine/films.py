"""Films from an engine: made by a caption or from a first frame, gone on with, and told.

All is one document whose ids are drawn one by one, with all logits outside of the quantizer's ids masked, in exactly as many
tokens as the film needs. What is known of a film is its beginning; its ids are forced, so that they come out as they went in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tessera.engine.constraints import PictureGrid
from tessera.engine.engine import Engine
from tessera.engine.request import Completion, Guidance, Request
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.tokens.document import Document
from tessera.tokens.films import FRAME, QUESTION, VIDEO_END, Geometry, film_head, to_tell
from tessera.tokens.pictures import given
from tessera.tokens.quantizer import Quantizer

GUIDANCE = 2.0
"""Where none is asked for (docs/LOG.md, 2026-11-29, "Films")."""


@dataclass(frozen=True)
class FilmWish:
    """A film to be made.

    Args:
        caption: what happens; empty: anything.
        shape: frames, height and width, the beginning counted in; None: as most of the films that the model learned from.
        beginning: (T, H, W, 3) uint8, the first frames, of a length and size that the quantizer takes; None: nothing is given.
        guidance: scale; 1: none. Without caption there is nothing to guide.
    """

    caption: str = ""
    shape: tuple[int, int, int] | None = None
    beginning: np.ndarray | None = None
    guidance: float = GUIDANCE


@dataclass(frozen=True)
class Film:
    """A finished film.

    Args:
        frames: (T, H, W, 3) uint8, as the quantizer gives them back, the beginning too.
        ids: (T', h, w) of the quantizer.
        completion: of the engine: prompt, ids, log-probabilities.
    """

    frames: np.ndarray
    ids: np.ndarray
    per_second: float
    completion: Completion


def quantizer_of(engine: Engine) -> Quantizer:
    """What turns films into the model's ids; UserError where it knows none."""
    tokenizer = engine.vocabulary.media_tokenizer("video")
    assert isinstance(tokenizer, Quantizer)
    return tokenizer


def make_films(engine: Engine, wishes: Sequence[FilmWish], params: SamplingParams) -> list[Film]:
    """One film for each wish.

    Args:
        params: temperature, top_k and the like; the films take `seed`, `seed + 1` and so on. `max_tokens` follows from the size.

    Raises:
        UserError: the model knows no films; a size or length that is none, or too large for its context.
    """
    quantizer = quantizer_of(engine)
    grids = [_known(quantizer, wish) for wish in wishes]
    requests = [
        _request(engine, wish, known, params, number) for number, (wish, known) in enumerate(zip(wishes, grids, strict=True))
    ]
    films = []
    start = engine.vocabulary.block("video").offset
    for known, completion in zip(grids, engine.complete(requests), strict=True):
        ids = completion.ids[:-1].reshape(len(known), -1)[:, :-1].astype(np.int64).reshape(known.shape) - start
        films.append(Film(quantizer.decode(ids), ids, quantizer.per_second, completion))
    return films


def tell(engine: Engine, films: Sequence[np.ndarray], question: str, params: SamplingParams) -> list[Completion]:
    """What the model answers to a question about each film, (T, H, W, 3) uint8; an empty question asks what happens in it.

    Raises:
        UserError: the model knows no films, or one does not fit into its context.
    """
    per_second = quantizer_of(engine).per_second
    prompts = []
    for film in films:
        asked = to_tell(film, per_second, [(question.strip() or QUESTION, "")])
        prompts.append(engine.vocabulary.encode(Document(asked[:-1])).ids.tolist())
        _refuse_long(engine, len(prompts[-1]) + 1, film.shape)
    return engine.generate(prompts, params)


def _known(quantizer: Quantizer, wish: FilmWish) -> np.ndarray:
    """(T', h, w): the ids of the beginning, -1 behind it."""
    shape = wish.shape or tuple(quantizer.shape)
    if wish.beginning is not None and (wish.beginning.shape[1:3] != shape[1:] or len(wish.beginning) > shape[0]):
        begun = wish.beginning
        raise UserError(
            f"a film of {shape[0]} frames of {shape[1]} x {shape[2]} cannot begin with {len(begun)} of {begun.shape[1]} x "
            f"{begun.shape[2]}."
        )
    known = np.full(quantizer.grid(shape), -1)
    if wish.beginning is not None:
        ids = quantizer.encode(wish.beginning)
        known[: len(ids)] = ids
    return known


def _request(engine: Engine, wish: FilmWish, known: np.ndarray, params: SamplingParams, number: int) -> Request:
    vocabulary, quantizer = engine.vocabulary, quantizer_of(engine)
    block = vocabulary.block("video")
    shape = wish.shape or tuple(quantizer.shape)
    head = film_head(vocabulary, Geometry(shape[0], shape[1], shape[2], quantizer.per_second))
    asked = vocabulary.encode(Document(given(wish.caption))).ids.tolist() + head
    steps = known.reshape(len(known), -1)
    grid = PictureGrid(block.offset, block.size, vocabulary.control(FRAME), vocabulary.control(VIDEO_END), steps)
    _refuse_long(engine, len(asked) + grid.tokens, shape)
    guidance = Guidance(wish.guidance, tuple(head)) if wish.guidance != 1 and asked != head else None
    seed = None if params.seed is None else params.seed + number
    exact = replace(params, max_tokens=grid.tokens, stop=(), stop_ids=(), seed=seed)
    return Request(tuple(asked), exact, grid, guidance=guidance)


def _refuse_long(engine: Engine, tokens: int, shape: tuple[int, ...]) -> None:
    context = engine.decoder.config.context
    if tokens > context:
        raise UserError(
            f"a film of {shape[0]} frames of {shape[1]} x {shape[2]} pixels with its prompt comes to {tokens} tokens, "
            f"and the model reads {context}; give fewer --frames or a smaller --size."
        )
