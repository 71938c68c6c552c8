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
from tessera.engine.pictures import Reader, Steps, run
from tessera.engine.request import Completion, Guidance, Request
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.tokens.beside import Coder
from tessera.tokens.document import Document
from tessera.tokens.films import FRAME, QUESTION, VIDEO_END, Geometry, film_head, to_tell
from tessera.tokens.pictures import GUIDED, given

GUIDANCE = 1.3
"""Where none is asked for: a little (docs/LOG.md, 2026-12-01, "Films come true"); a second row of the batch is its price."""
TEMPERATURE = 0.5
"""Where none is asked for: a film goes on as it has begun, so most of its ids leave little choice."""


@dataclass(frozen=True)
class FilmWish:
    """A film to be made.

    Args:
        caption: what happens; empty: anything.
        shape: frames, height and width, the beginning counted in; None: as most of the films that the model learned from.
        beginning: (T, H, W, 3) uint8, the first frames, of a length and size that the quantizer takes; None: nothing is given.
        guidance: scale; 1: none. Without caption there is nothing to guide.
        interval: shares of its tokens between which it is guided.
        distilled: the model guides itself, by what it has learned (`posttrain distil`); `guidance` counts for nothing.
    """

    caption: str = ""
    shape: tuple[int, int, int] | None = None
    beginning: np.ndarray | None = None
    guidance: float = GUIDANCE
    interval: tuple[float, float] = (0.0, 1.0)
    distilled: bool = False


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


def quantizer_of(reader: Reader) -> Coder:
    """What turns films into the model's ids; UserError where it knows none."""
    tokenizer = reader.vocabulary.media_tokenizer("video")
    assert isinstance(tokenizer, Coder)
    return tokenizer


def make_films(engine: Engine, wishes: Sequence[FilmWish], params: SamplingParams) -> list[Film]:
    """One film for each wish; see `making`."""
    return run(engine, making(engine, wishes, params))


def making(reader: Reader, wishes: Sequence[FilmWish], params: SamplingParams) -> Steps[list[Film]]:
    """One film for each wish, in one round.

    Args:
        params: temperature, top_k and the like; the films take `seed`, `seed + 1` and so on. `max_tokens` follows from the size.

    Raises:
        UserError: the model knows no films; a size or length that is none, or too large for its context.
    """
    quantizer = quantizer_of(reader)
    grids = [_known(quantizer, wish) for wish in wishes]
    completions = yield [
        _request(reader, wish, known, params, number) for number, (wish, known) in enumerate(zip(wishes, grids, strict=True))
    ]
    films = []
    start = reader.vocabulary.block("video").offset
    for known, completion in zip(grids, completions, strict=True):
        ids = completion.ids[:-1].reshape(len(known), -1)[:, :-1].astype(np.int64).reshape(known.shape) - start
        films.append(Film(quantizer.decode(ids), ids, quantizer.per_second, completion))
    return films


def long_film(reader: Reader, wish: FilmWish, given: np.ndarray, total: int, params: SamplingParams) -> Steps[Film]:
    """A film of `total` frames that begins with those `given`, as they are; its ids and completion are those of the last round.

    As many frames as the model has learned are made at once; a longer film is gone on with from its last ones, again and again.

    Args:
        wish: its caption and guidance.
        given: (T, H, W, 3) uint8, T may be 0.
        params: as of `making`; each round takes another seed.

    Raises:
        UserError: as `making`.
    """
    quantizer = quantizer_of(reader)
    longest, stride = quantizer.shape[0], quantizer.config.time_stride
    frames, rounds = given, 0
    while len(frames) < total or not rounds:
        kept = (min(len(frames), max(1, longest - half(quantizer))) - 1) // stride * stride + 1 if len(frames) else 0
        wanted = _up(kept + total - len(frames), stride)
        shape = (max(kept + stride if kept else 1, min(longest, wanted)), *frames.shape[1:3])
        seed = None if params.seed is None else params.seed + rounds
        asked = replace(wish, shape=shape, beginning=frames[-kept:] if kept else None)
        (film,) = yield from making(reader, [asked], replace(params, seed=seed))
        frames, rounds = np.concatenate([frames, film.frames[kept:]]), rounds + 1
    return replace(film, frames=frames[:total])


def half(quantizer: Coder) -> int:
    """Frames that are new when a film is gone on with: half of what the model has learned, in whole steps."""
    stride = quantizer.config.time_stride
    return max(stride, (quantizer.shape[0] - 1) // 2 // stride * stride)


def _up(frames: int, stride: int) -> int:
    """The next length that can be cut into whole steps."""
    return -(-(frames - 1) // stride) * stride + 1


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


def _known(quantizer: Coder, wish: FilmWish) -> np.ndarray:
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


def _request(reader: Reader, wish: FilmWish, known: np.ndarray, params: SamplingParams, number: int) -> Request:
    vocabulary, quantizer = reader.vocabulary, quantizer_of(reader)
    block = vocabulary.block("video")
    shape = wish.shape or tuple(quantizer.shape)
    head = film_head(vocabulary, Geometry(shape[0], shape[1], shape[2], quantizer.per_second))
    asked = vocabulary.encode(Document(given(wish.caption))).ids.tolist() + head
    steps = known.reshape(len(known), -1)
    grid = PictureGrid(block.offset, block.size, vocabulary.control(FRAME), vocabulary.control(VIDEO_END), steps, repeats=True)
    _refuse_long(reader, len(asked) + grid.tokens, shape)
    asked, guidance = Guidance.asking(wish, asked, head, grid.tokens, vocabulary.controls.get(GUIDED))
    seed = None if params.seed is None else params.seed + number
    exact = replace(params, max_tokens=grid.tokens, stop=(), stop_ids=(), seed=seed)
    return Request(tuple(asked), exact, grid, guidance=guidance)


def _refuse_long(reader: Reader, tokens: int, shape: tuple[int, ...]) -> None:
    context = reader.context
    if tokens > context:
        raise UserError(
            f"a film of {shape[0]} frames of {shape[1]} x {shape[2]} pixels with its prompt comes to {tokens} tokens, "
            f"and the model reads {context}; give fewer --frames or a smaller --size."
        )
