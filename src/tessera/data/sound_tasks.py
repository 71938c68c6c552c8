"""Captioned recordings -> documents of tasks: caption -> sound, sound -> words.

Of each recording `views` documents are made, each with a task chosen by its content and the seed alone. What is to be made is as
it was recorded; what is only listened to is often moved, louder or softer, slower or faster, none of which changes its words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from tessera import recipe
from tessera.data.picture_tasks import CHARACTERS_PER_TOKEN, content_rng, views_of
from tessera.data.pictures import Parts
from tessera.data.sounds import sound_parts
from tessera.errors import UserError
from tessera.tokens.beside import find_tokenizer
from tessera.tokens.document import Document
from tessera.tokens.media import Cut
from tessera.tokens.quantizer import QuantizerConfig
from tessera.tokens.sounds import QUESTION, QUESTIONS, to_listen, to_speak, tokens_of_sound

MOST_VIEWS = 16
"""Of a recording: those that are listened to are encoded one by one, which counts against a budget."""
_SPEED = 0.12
"""A recording is made so much faster or slower at most, as if its tape ran so."""
_LATER = 0.04
"""Seconds of silence before it at most: more than a step, so that a step sees any part of it."""


def sound_cut(settings: recipe.Sounds) -> Cut:
    """How the tokenizer that a recipe asks for cuts sound; UserError as `find_tokenizer`."""
    return find_tokenizer(settings.trained, "audio").config if settings.trained else sound_config_of(settings.quantizer)


def at_its_rate(intent: recipe.Recipe) -> recipe.Recipe:
    """The recipe with as many samples in a second as the tokenizer of sound takes that it names.

    Raises:
        UserError: it names another number itself; as `find_tokenizer`.
    """
    sounds = intent.data.sounds
    if sounds is None or not sounds.trained:
        return intent
    wanted = round(find_tokenizer(sounds.trained, "audio").per_second)
    if "per_second" in sounds.model_fields_set and sounds.per_second != wanted:
        raise UserError(
            f"data.sounds.per_second is {sounds.per_second}, and {sounds.trained} takes {wanted} samples in a second; "
            "set it to that or leave it out."
        )
    data = intent.data.model_copy(update={"sounds": sounds.model_copy(update={"per_second": wanted})})
    return intent.model_copy(update={"data": data})


def sound_config_of(q: recipe.SoundQuantizer) -> QuantizerConfig:
    """Of a quantizer that is to be trained."""
    return QuantizerConfig("audio", q.levels, q.stride, q.time_stride, q.width, q.encoder_layers, q.decoder_layers, q.books)


def least_sound_context(documents: Iterable[Document], settings: recipe.Sounds) -> int:
    """T that holds any task made of these documents, a multiple of 32; 0 where there is no recording."""
    longest, cut = 0, sound_cut(settings)
    for document in documents:
        if (found := sound_parts(document)) is not None:
            parts = found[0]
            samples = len(parts.signal)
            if settings.varied:
                samples = round(samples / (1 - _SPEED) + _LATER * settings.per_second)
            asked = len(parts.caption) + sum(len(q) + len(a) for q, a in parts.questions)
            words = round(asked / CHARACTERS_PER_TOKEN) + max(map(len, QUESTIONS))
            longest = max(longest, tokens_of_sound(cut.grid((samples,))) + words + 4)
    return -(-longest // 32) * 32


def sound_documents(documents: Iterable[Document], settings: recipe.Sounds, seed: int, tokens: int = 0) -> Iterator[Document]:
    """Training documents: some of each captioned recording, all others as they are.

    Args:
        tokens: of all recordings together; decides where the recipe names no number of views. 0: one view.
    """
    views = settings.views or (min(MOST_VIEWS, views_of(None, tokens)) if tokens else 1)
    for document in documents:
        found = sound_parts(document)
        if found is None:
            yield document
            continue
        parts, per_second = found
        rng = content_rng(parts, seed)
        shares = np.array([settings.tasks.speak, settings.tasks.listen if _asked(parts) else 0.0])
        speak_share = shares[0] / shares.sum() if shares.any() else 1.0
        # Those to be made first: equal samples one after the other are encoded once.
        spoken = int(rng.binomial(views, speak_share))
        for _ in range(spoken):
            caption = "" if rng.random() < settings.caption_dropout else parts.caption
            yield Document(to_speak(caption, parts.signal, per_second), document.source)
        for _ in range(views - spoken):
            samples = varied(parts.signal, per_second, rng) if rng.random() < settings.varied else parts.signal
            question, answer = _asked(parts)[int(rng.integers(len(_asked(parts))))]
            yield Document(to_listen(samples, per_second, [(_worded(question, rng), answer)]), document.source)


def held_out_sounds(documents: Iterable[Document], settings: recipe.Sounds) -> Iterator[Document]:
    """Documents to measure on: each recording by its caption, and its words, as far as these are tasks."""
    for document in documents:
        found = sound_parts(document)
        if found is None:
            yield document
            continue
        parts, per_second = found
        if settings.tasks.speak or not _asked(parts):
            yield Document(to_speak(parts.caption, parts.signal, per_second), document.source)
        if settings.tasks.listen and _asked(parts):
            yield Document(to_listen(parts.signal, per_second, _asked(parts)[:1]), document.source)


def varied(samples: np.ndarray, per_second: float, rng: np.random.Generator) -> np.ndarray:
    """(T,) int16 as the same words may have been recorded: later, louder or softer, slower or faster by up to an eighth."""
    speed = 1 + _SPEED * rng.uniform(-1, 1)
    places = np.arange(0, len(samples) - 1, speed)
    loud = float(np.exp(rng.uniform(-0.7, 0.4)))
    played = np.clip(np.interp(places, np.arange(len(samples)), samples) * loud, -32_768, 32_767)
    later = int(rng.integers(round(_LATER * per_second) + 1))
    return np.concatenate([np.zeros(later, np.int16), played.astype(np.int16)])


def _asked(parts: Parts) -> list[tuple[str, str]]:
    """The questions of a recording, the one for its words among them: its caption where none is given."""
    given = any(q == QUESTION for q, _ in parts.questions)
    return parts.questions if given or not parts.caption else [(QUESTION, parts.caption), *parts.questions]


def _worded(question: str, rng: np.random.Generator) -> str:
    """The question for the words in any of the ways in which it is put."""
    return QUESTIONS[int(rng.integers(len(QUESTIONS)))] if question == QUESTION else question
