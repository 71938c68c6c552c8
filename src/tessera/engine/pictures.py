"""Pictures from an engine: drawn by a caption, completed, varied, and looked at.

A picture is drawn token by token with all logits outside of its ids masked, in exactly as many tokens as its size needs.
Pixels that are known are forced, in raster order, so a hole is filled from what lies before it; what lies behind it is heeded by
drawing several and keeping the one after which the known pixels are likeliest. Guidance takes a paired row of the batch.

What takes several rounds of the engine is written as `Steps`: it gives requests out and is sent their completions, so that one
and the same code runs on an engine that it steps itself (`run`) and in a server, beside everybody else's requests.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from tessera.engine.constraints import PictureGrid
from tessera.engine.engine import Engine
from tessera.engine.request import Completion, Guidance, Request
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.tokens.pictures import (
    GUIDED,
    IMAGE_END,
    QUESTION,
    ROW,
    patches_of,
    prompt,
    to_draw,
    to_see,
    to_vary,
)
from tessera.tokens.vocabulary import Vocabulary

GUIDANCE = 3.0
"""Where none is asked for: the best on digits, where 5 is too much (docs/pictures.md)."""
MOST_WORDS = 64
"""Tokens of what is said of a picture."""
_NOTHING = np.zeros((1, 1, 3), np.uint8)

T = TypeVar("T")
Steps = Generator[list[Request], list[Completion], T]


class Reader(Protocol):
    """What has to be known of a model to ask it; an engine is one."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Its ids."""
        ...

    @property
    def context(self) -> int:
        """Tokens it can look at."""
        ...


@dataclass(frozen=True)
class Wish:
    """A picture to be drawn.

    Args:
        caption: what it shows; empty: anything.
        shape: height and width; None: as most of the pictures that the model learned from, or as `known` or `source`.
        known: (H, W, 3) uint8 pixels, of which those stay that `hidden` (H, W) does not name.
        source: (H, W, 3) uint8, a picture to vary.
        guidance: scale; 1: none. Without caption and source there is nothing to guide.
        interval: shares of its tokens between which it is guided.
        distilled: the model guides itself, by what it has learned (`posttrain distil`); `guidance` counts for nothing.
        best_of: how many are drawn; the likeliest one is kept, by the known pixels behind the first hidden one, or else by the
            caption.
    """

    caption: str = ""
    shape: tuple[int, int] | None = None
    known: np.ndarray | None = None
    hidden: np.ndarray | None = None
    source: np.ndarray | None = None
    guidance: float = GUIDANCE
    interval: tuple[float, float] = (0.0, 1.0)
    distilled: bool = False
    best_of: int = 1


@dataclass(frozen=True)
class Drawing:
    """A finished picture.

    Args:
        pixels: (H, W, 3) uint8, as the model's tokenizer gives them back.
        completion: of the engine: prompt, ids, log-probabilities.
        scores: nats, of each that was drawn for it where several were; the highest was kept.
    """

    pixels: np.ndarray
    completion: Completion
    scores: tuple[float, ...] = ()


def draw(engine: Engine, wishes: Sequence[Wish], params: SamplingParams) -> list[Drawing]:
    """One picture for each wish; see `drawing`."""
    return run(engine, drawing(engine, wishes, params))


def run(engine: Engine, steps: Steps[T]) -> T:
    """What comes of steps on an engine that nobody else steps."""
    try:
        requests = next(steps)
        while True:
            requests = steps.send(engine.complete(requests))
    except StopIteration as done:
        result: T = done.value
        return result


def drawing(reader: Reader, wishes: Sequence[Wish], params: SamplingParams) -> Steps[list[Drawing]]:
    """One picture for each wish. The first requests draw: `best_of` for each wish, one wish after the other.

    Args:
        params: temperature, top_k and the like; the pictures that are drawn, all candidates of all wishes one after the other,
            take `seed`, `seed + 1` and so on. `max_tokens` follows from the size.

    Raises:
        UserError: the model knows no pictures; a size that is none, or too large for its context; a hole without a picture.
    """
    grids = [_grid(reader, wish) for wish in wishes]
    requests: list[Request] = []
    for wish, grid in zip(wishes, grids, strict=True):
        requests += _requests(reader, wish, grid, params, len(requests))
    made = iter((yield requests))
    candidates = [[next(made) for _ in range(wish.best_of)] for wish in wishes]
    scores = yield from _scores(reader, wishes, grids, candidates)
    drawings = []
    for grid, drawn, scored in zip(grids, candidates, scores, strict=True):
        best = drawn[int(np.argmax(scored))] if scored else drawn[0]
        drawings.append(Drawing(_pixels(reader, grid, best), best, tuple(scored)))
    return drawings


def look(engine: Engine, pictures: Sequence[np.ndarray], question: str, params: SamplingParams) -> list[Completion]:
    """What the model answers to a question about each picture, (H, W, 3) uint8; an empty question asks what is in it.

    Raises:
        UserError: the model knows no pictures, or one does not fit into its context.
    """
    return engine.complete([Request(tuple(seeing(engine, picture, question)), params) for picture in pictures])


def named(reader: Reader, wish: Wish) -> Steps[Wish]:
    """A wish for a variation, with a caption: what its source shows is what the variation shows."""
    if wish.source is None or wish.caption:
        return wish
    params = SamplingParams(max_tokens=MOST_WORDS, temperature=0.0)
    (completion,) = yield [Request(tuple(seeing(reader, wish.source, "")), params)]
    return replace(wish, caption=completion.text.strip())


def seeing(reader: Reader, picture: np.ndarray, question: str) -> list[int]:
    """The prompt that asks about a picture.

    Raises:
        UserError: as `look`.
    """
    ids = prompt(reader.vocabulary, to_see(picture, [(question.strip() or QUESTION, "")], learn=False))
    _refuse_long(reader, len(ids) + 1, picture.shape[:2])
    return ids


def pasted(wish: Wish, pixels: np.ndarray) -> np.ndarray:
    """A finished picture in which what was kept of another is kept exactly, not as the palette has it."""
    if wish.known is None or wish.hidden is None:
        return pixels
    return np.where(wish.hidden[..., None], pixels, wish.known)


def unfinished(reader: Reader, grid: PictureGrid, ids: Sequence[int]) -> np.ndarray:
    """(H, W, 3) uint8: a picture of which only the first ids are there, the rest white but for what is known."""
    height, width = grid.known.shape
    tokenizer = reader.vocabulary.media_tokenizer("image")
    place = np.full(height * (width + 1), -1)
    place[: min(len(ids), len(place))] = np.asarray(ids[: len(place)], np.int64) - grid.start
    drawn = place.reshape(height, width + 1)[:, :-1]
    there = np.where(drawn < 0, grid.known, drawn)
    pixels = tokenizer.decode(np.maximum(there, 0))
    return np.where(_pixels_in(there < 0, tokenizer.stride)[..., None], np.uint8(255), pixels)


def _grid(reader: Reader, wish: Wish) -> PictureGrid:
    vocabulary = reader.vocabulary
    tokenizer, block = vocabulary.media_tokenizer("image"), vocabulary.block("image")
    if wish.best_of < 1:
        raise UserError(f"best-of must be at least 1, not {wish.best_of}.")
    if wish.known is not None:
        if wish.hidden is None or wish.hidden.shape != wish.known.shape[:2]:
            raise UserError("the mask has to have the size of the picture.")
        tokenizer.grid(wish.known.shape[:2])
        refuse_large(reader, (wish.known.shape[0], wish.known.shape[1]))
        # What a patch beside the hole looks like depends on what will be in it; its known pixels are pasted over it.
        drawn = wish.hidden if tokenizer.stride == 1 else _grown(patches_of(wish.hidden, tokenizer.stride))
        known = np.where(drawn, -1, tokenizer.encode(wish.known))
    else:
        height, width = _shape_of(reader, wish)
        if height < 1 or width < 1:
            raise UserError(f"a picture of {height} x {width} pixels is none; give a size like 32x32.")
        refuse_large(reader, (height, width))
        known = np.full(tokenizer.grid((height, width)), -1)
    return PictureGrid(block.offset, block.size, vocabulary.control(ROW), vocabulary.control(IMAGE_END), known)


def _size(reader: Reader, grid: PictureGrid) -> tuple[int, int]:
    """Height and width in pixels."""
    stride = reader.vocabulary.media_tokenizer("image").stride
    return grid.known.shape[0] * stride, grid.known.shape[1] * stride


def _grown(patches: np.ndarray) -> np.ndarray:
    """(h, w) bool, and the eight patches around each."""
    around = np.pad(patches, 1)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(around, (3, 3)).any((2, 3)))


def _pixels_in(patches: np.ndarray, stride: int) -> np.ndarray:
    """(h, w) -> (H, W): each patch's value for each of its pixels."""
    return patches.repeat(stride, 0).repeat(stride, 1)


def _shape_of(reader: Reader, wish: Wish) -> tuple[int, int]:
    """Height and width of what will be drawn."""
    if wish.shape is not None:
        return wish.shape
    if wish.source is not None:
        return wish.source.shape[0], wish.source.shape[1]
    height, width = reader.vocabulary.media_tokenizer("image").shape
    return height, width


def _requests(reader: Reader, wish: Wish, grid: PictureGrid, params: SamplingParams, first: int) -> list[Request]:
    shape = _size(reader, grid)
    vocabulary = reader.vocabulary
    layout = to_draw(wish.caption, _NOTHING) if wish.source is None else to_vary(wish.caption, wish.source, _NOTHING)
    asked, bare = (prompt(vocabulary, segments, shape) for segments in (layout, to_draw("", _NOTHING)))
    _refuse_long(reader, len(asked) + grid.tokens, shape)
    # A variation has a prompt of another kind, which was not learned so.
    guided = vocabulary.controls.get(GUIDED) if wish.source is None else None
    asked, guidance = Guidance.asking(wish, asked, bare, grid.tokens, guided)
    # The end of the picture ends the completion; no other id can come.
    exact = replace(params, max_tokens=grid.tokens, stop=(), stop_ids=())
    seeds = [None if params.seed is None else params.seed + first + i for i in range(wish.best_of)]
    return [Request(tuple(asked), replace(exact, seed=seed), grid, guidance=guidance) for seed in seeds]


def _pixels(reader: Reader, grid: PictureGrid, completion: Completion) -> np.ndarray:
    height, width = grid.known.shape
    ids = completion.ids[:-1].reshape(height, width + 1)[:, :-1].astype(np.int64) - grid.start
    return reader.vocabulary.media_tokenizer("image").decode(ids)


def _scores(
    reader: Reader, wishes: Sequence[Wish], grids: Sequence[PictureGrid], candidates: Sequence[Sequence[Completion]]
) -> Steps[list[list[float]]]:
    """Nats of what each candidate should make likely; empty where only one was drawn, or nothing tells them apart."""
    counted: list[np.ndarray] = []
    requests: list[Request] = []
    told = []
    for wish, grid, drawn in zip(wishes, grids, candidates, strict=True):
        behind = _behind_the_hole(grid)
        told.append(len(drawn) > 1 and bool(behind.any() or wish.caption))
        for completion in drawn if told[-1] else ():
            if behind.any():
                ids = completion.record.ids
                counts = np.concatenate([np.zeros(completion.prompt_tokens, bool), behind])
            else:
                start = prompt(reader.vocabulary, to_see(_pixels(reader, grid, completion), [(QUESTION, "")], learn=False))
                caption = reader.vocabulary.encode_text(wish.caption)
                ids, counts = np.array([*start, *caption]), np.repeat([False, True], [len(start), len(caption)])
                _refuse_long(reader, len(ids), _size(reader, grid))
            requests.append(Request(tuple(ids.tolist()), SamplingParams(max_tokens=0), prompt_logprobs=True))
            counted.append(counts)
    found = iter(zip((yield requests), counted, strict=True)) if requests else iter(())
    scores = []
    for there, drawn in zip(told, candidates, strict=True):
        scored = []
        for _ in drawn if there else ():
            completion, counts = next(found)
            assert completion.prompt_logprobs is not None
            scored.append(float(completion.prompt_logprobs[counts[-len(completion.prompt_logprobs) :]].sum()))
        scores.append(scored)
    return scores


def _behind_the_hole(grid: PictureGrid) -> np.ndarray:
    """(tokens,) bool, from the first pixel to the end: pixels that are known and come after one that is not."""
    hidden = grid.known < 0
    later = np.logical_or.accumulate(hidden.ravel()).reshape(hidden.shape) & ~hidden
    return np.concatenate([np.pad(later, ((0, 0), (0, 1))).ravel(), [False]])


def refuse_large(reader: Reader, shape: tuple[int, int]) -> None:
    """Raises UserError for a picture that the model cannot read even without a prompt; before anything of that size is made."""
    stride = reader.vocabulary.media_tokenizer("image").stride
    _refuse_long(reader, shape[0] // stride * (shape[1] // stride + 1) + 1, shape)


def _refuse_long(reader: Reader, tokens: int, shape: tuple[int, ...]) -> None:
    context = reader.context
    if tokens > context:
        raise UserError(
            f"a picture of {shape[0]} x {shape[1]} pixels with its prompt comes to {tokens} tokens, "
            f"and the model reads {context}; give a smaller size."
        )
