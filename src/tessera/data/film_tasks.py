"""Captioned films -> documents of tasks: caption -> film, film -> caption or the answer to a question about it.

A film from its first frame and one that is gone on with are the first of these, with its beginning given (`tokens.films`).
Of each film `views` documents are made, each with a task chosen by its content and the seed alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from tessera import recipe
from tessera.data.films import film_parts
from tessera.data.picture_tasks import CHARACTERS_PER_TOKEN, config_of, content_rng, views_of
from tessera.data.pictures import Parts
from tessera.tokens.beside import find_tokenizer
from tessera.tokens.document import Document
from tessera.tokens.films import QUESTION, Geometry, to_film, to_tell, tokens_of_film
from tessera.tokens.media import Cut


def film_cut(settings: recipe.Films) -> Cut:
    """How the tokenizer that a recipe asks for cuts a film; UserError as `find_tokenizer`."""
    return find_tokenizer(settings.trained, "video").config if settings.trained else config_of("video", settings.quantizer)


def least_film_context(documents: Iterable[Document], settings: recipe.Films) -> int:
    """T that holds any task made of these documents, a multiple of 32; 0 where there is no film."""
    longest, cut = 0, film_cut(settings)
    for document in documents:
        if (found := film_parts(document)) is not None:
            longest = max(longest, _tokens(*found, cut, bool(settings.tasks.tell)))
    return -(-longest // 32) * 32


def film_documents(documents: Iterable[Document], settings: recipe.Films, seed: int, tokens: int = 0) -> Iterator[Document]:
    """Training documents: some of each captioned film, all others as they are.

    Args:
        tokens: of all films together; decides where the recipe names no number of views. 0: one view.
    """
    views = settings.views or (views_of(None, tokens) if tokens else 1)
    for document in documents:
        found = film_parts(document)
        if found is None:
            yield document
            continue
        parts, per_second = found
        rng = content_rng(parts, seed)
        asked = _asked(parts)
        shares = np.array([settings.tasks.film, settings.tasks.tell if asked else 0.0])
        film_share = shares[0] / shares.sum() if shares.any() else 1.0
        for _ in range(views):
            if rng.random() < film_share:
                caption = "" if rng.random() < settings.caption_dropout else parts.caption
                yield Document(to_film(caption, parts.signal, per_second), document.source)
            else:
                chosen = asked[int(rng.integers(len(asked)))] if len(asked) > 1 else asked[0]
                yield Document(to_tell(parts.signal, per_second, [chosen]), document.source)


def held_out_films(documents: Iterable[Document], settings: recipe.Films) -> Iterator[Document]:
    """Documents to measure on: each film by its caption, and told, as far as these are tasks."""
    for document in documents:
        found = film_parts(document)
        if found is None:
            yield document
            continue
        parts, per_second = found
        asked = _asked(parts)
        if settings.tasks.film or not asked:
            yield Document(to_film(parts.caption, parts.signal, per_second), document.source)
        if settings.tasks.tell and asked:
            yield Document(to_tell(parts.signal, per_second, asked[:1]), document.source)


def _asked(parts: Parts) -> list[tuple[str, str]]:
    """The questions of a film, first the one for its caption where it has one."""
    return [(QUESTION, parts.caption), *parts.questions] if parts.caption else parts.questions


def _tokens(parts: Parts, per_second: float, cut: Cut, told: bool) -> int:
    """Of the longest task, roughly and on the high side."""
    frames, height, width = parts.signal.shape[:3]
    grid = cut.grid((frames, height, width))
    asked = len(parts.caption) + (len(QUESTION) if told else 0)
    if told:
        asked = max(asked, *(len(q) + len(a) for q, a in parts.questions), 0)
    return tokens_of_film(grid, Geometry(frames, height, width, per_second)) + round(asked / CHARACTERS_PER_TOKEN) + 4
