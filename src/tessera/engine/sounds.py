"""Sound from an engine: made by a caption, gone on with, and listened to.

A sound is drawn id by id, with all logits outside of the book whose turn it is masked. How long it lasts is the model's to say:
at the end of each step it may end the sound, up to a length beyond which it has to. What is known is its beginning, whose ids are
forced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tessera.engine.constraints import SoundSteps
from tessera.engine.engine import Engine
from tessera.engine.pictures import MOST_WORDS, Reader, Steps, run
from tessera.engine.request import Completion, Guidance, Request
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.tokens.beside import Coder
from tessera.tokens.document import Document
from tessera.tokens.pictures import GUIDED, given
from tessera.tokens.sounds import AUDIO_END, QUESTION, sound_head, to_listen, tokens_of_sound

GUIDANCE = 1.5
"""Where none is asked for."""
TEMPERATURE = 0.5
"""Where none is asked for (docs/LOG.md, 2026-11-30, "Calmer media")."""
LONGEST = 4
"""Usual lengths that a sound lasts at most where nobody says how long: four slow notes are more than twice three quick ones."""


@dataclass(frozen=True)
class SoundWish:
    """A sound to be made.

    Args:
        caption: what is heard; empty: anything.
        beginning: (T,) int16 at the model's rate, of which whole steps are kept; None: nothing is given.
        most_seconds: beyond which it has to end; None: as much as the model's context holds, or LONGEST usual lengths.
        guidance: scale; 1: none. Without caption there is nothing to guide.
        interval: shares of a usual sound's tokens between which it is guided.
        distilled: the model guides itself, by what it has learned (`posttrain distil`); `guidance` counts for nothing.
    """

    caption: str = ""
    beginning: np.ndarray | None = None
    most_seconds: float | None = None
    guidance: float = GUIDANCE
    interval: tuple[float, float] = (0.0, 1.0)
    distilled: bool = False


@dataclass(frozen=True)
class Sound:
    """A finished sound.

    Args:
        samples: (T,) int16, as the quantizer gives them back, the beginning too.
        ids: (T', books) of the quantizer.
        completion: of the engine: prompt, ids, log-probabilities.
    """

    samples: np.ndarray
    ids: np.ndarray
    per_second: int
    completion: Completion


def sound_quantizer_of(reader: Reader) -> Coder:
    """What turns sound into the model's ids; UserError where it knows none."""
    tokenizer = reader.vocabulary.media_tokenizer("audio")
    assert isinstance(tokenizer, Coder)
    return tokenizer


def make_sounds(engine: Engine, wishes: Sequence[SoundWish], params: SamplingParams) -> list[Sound]:
    """One sound for each wish; see `sounding`."""
    return run(engine, sounding(engine, wishes, params))


def sounding(reader: Reader, wishes: Sequence[SoundWish], params: SamplingParams) -> Steps[list[Sound]]:
    """One sound for each wish, in one round.

    Args:
        params: temperature, top_k and the like; the sounds take `seed`, `seed + 1` and so on. `max_tokens` comes of the length.

    Raises:
        UserError: the model knows no sound; a length that is none, or too large for its context.
    """
    quantizer = sound_quantizer_of(reader)
    completions = yield [_request(reader, wish, params, number) for number, wish in enumerate(wishes)]
    start = reader.vocabulary.block("audio").offset
    sounds = []
    for completion in completions:
        ids = completion.ids[:-1].astype(np.int64).reshape(-1, quantizer.config.books) - start
        sounds.append(Sound(quantizer.decode(ids), ids, round(quantizer.per_second), completion))
    return sounds


def listen(engine: Engine, sounds: Sequence[np.ndarray], question: str, params: SamplingParams) -> list[Completion]:
    """What the model answers to a question about each sound, (T,) int16 at its rate; an empty question asks for the words.

    Raises:
        UserError: the model knows no sound, or one does not fit into its context.
    """
    return engine.complete([_asking(engine, sound, question, params) for sound in sounds])


def hearing(reader: Reader, sound: np.ndarray, question: str, params: SamplingParams) -> Steps[Completion]:
    """The same of one sound, in one round."""
    (completion,) = yield [_asking(reader, sound, question, params)]
    return completion


def _asking(reader: Reader, sound: np.ndarray, question: str, params: SamplingParams) -> Request:
    """Asks about a sound."""
    per_second = sound_quantizer_of(reader).per_second
    asked = to_listen(sound, per_second, [(question.strip() or QUESTION, "")])
    ids = reader.vocabulary.encode(Document(asked[:-1])).ids.tolist()
    if len(ids) + 1 > reader.context:
        raise UserError(
            f"a recording of {len(sound) / per_second:.2f} s with its question comes to {len(ids)} tokens, and the model reads "
            f"{reader.context}; give a shorter one."
        )
    return Request(tuple(ids), replace(params, max_tokens=MOST_WORDS))


def _request(reader: Reader, wish: SoundWish, params: SamplingParams, number: int) -> Request:
    vocabulary, quantizer = reader.vocabulary, sound_quantizer_of(reader)
    block, config = vocabulary.block("audio"), quantizer.config
    head = sound_head(vocabulary)
    asked = vocabulary.encode(Document(given(wish.caption))).ids.tolist() + head
    known = np.empty((0, config.books), np.int64)
    if wish.beginning is not None and len(whole := wish.beginning[: len(wish.beginning) // config.step * config.step]):
        known = quantizer.encode(whole)
    room = (reader.context - len(asked) - 1) // config.books
    if wish.most_seconds is None:
        most = max(min(room, len(known) + LONGEST * quantizer.grid(quantizer.shape)[0]), len(known) + 1)
    else:
        most = round(wish.most_seconds * quantizer.per_second / config.step)
        if most <= len(known):
            least = (len(known) + 1) * config.step / quantizer.per_second
            raise UserError(f"a sound of {wish.most_seconds:g} s is too short; it has {least:.2f} s at least.")
    if most > room:
        tokens = tokens_of_sound((most, config.books)) + len(asked)
        raise UserError(
            f"a sound of {most * config.step / quantizer.per_second:.2f} s with its prompt comes to {tokens} tokens, "
            f"and the model reads {reader.context}; make it shorter."
        )
    steps = SoundSteps(block.offset, block.size, config.books, vocabulary.control(AUDIO_END), most, tuple(known.ravel().tolist()))
    usual = quantizer.grid(quantizer.shape)[0] * config.books
    asked, guidance = Guidance.asking(wish, asked, head, usual, vocabulary.controls.get(GUIDED))
    seed = None if params.seed is None else params.seed + number
    exact = replace(params, max_tokens=most * config.books + 1, stop=(), stop_ids=(), seed=seed)
    return Request(tuple(asked), exact, steps, guidance=guidance)
