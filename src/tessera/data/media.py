"""A corpus -> the tokenizer of its pictures, its films, and the texts that a text tokenizer should know."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from tessera import recipe
from tessera.data.corpus import Corpus, Split
from tessera.data.film_tasks import film_documents
from tessera.data.picture_tasks import task_documents
from tessera.data.sound_tasks import sound_documents
from tessera.tokens.document import Document
from tessera.tokens.films import films_of
from tessera.tokens.palette import Palette, psnr
from tessera.tokens.pictures import pictures_of
from tessera.tokens.sounds import sounds_of
from tessera.tokens.vocabulary import Vocabulary

_MEASURED_PICTURES = 200
_MOST_REPEATS = 64
_TEXT_VIEWS = 4
"""Of each picture: enough to meet every way in which its words are put."""


def with_palette(vocabulary: Vocabulary, corpus: Corpus, data: recipe.Data, say: Callable[[str], None]) -> Vocabulary:
    """The vocabulary with a block for the pictures of a corpus, where it has some: their palette, found on the training split.

    What is said: how many colours, and how near the pictures of the held-out split come back.
    """
    if data.pictures is None or not corpus.pictures:
        return vocabulary
    palette = Palette.fit(itertools.islice(pictures(corpus, "train"), 1 << 20), data.pictures.colours, data.seed)
    fidelity = [
        psnr(palette.decode(palette.encode(picture)), picture)
        for picture in itertools.islice(pictures(corpus, "validation"), _MEASURED_PICTURES)
    ]
    finite = [value for value in fidelity if np.isfinite(value)]
    exact = "held-out pictures come back exactly" if fidelity else "no pictures are held out"
    how = f"{np.mean(finite):.1f} dB on held-out pictures" if finite else exact
    say(f"palette: {palette.size} colours, {how}; most pictures are {palette.shape[0]} x {palette.shape[1]}")
    return vocabulary.add_media(palette)


def texts(corpus: Corpus, data: recipe.Data, split: Split) -> Iterator[str]:
    """The text of every document of a split, as a model will meet it: with other media that of some of their tasks, and of a text
    source that has more weight than its size again and again, so that its words become tokens too."""
    for index, (source, times) in enumerate(zip(corpus.sources, _repeats(corpus, data), strict=True)):
        documents: Iterator[Document] = itertools.chain.from_iterable(corpus.documents(split, index) for _ in range(times))
        if source.pictures and data.pictures is not None:
            documents = task_documents(documents, data.pictures, data.seed, _TEXT_VIEWS, None)
        if source.films and data.films is not None:
            documents = film_documents(documents, data.films, data.seed)
        if source.sounds and data.sounds is not None:
            documents = sound_documents(documents, data.sounds.model_copy(update={"views": _TEXT_VIEWS}), data.seed)
        for document in documents:
            yield from (str(segment.content) for segment in document.segments if segment.kind == "text")


def _repeats(corpus: Corpus, data: recipe.Data) -> list[int]:
    """How often the text of each source is read, so that their shares come to their weights, where all have one."""
    weights = [source.weight for source in data.sources]
    plain = [not (source.pictures or source.films or source.sounds) for source in corpus.sources]
    wanted = [weight / max(1, source.bytes) for weight, source in zip(weights, corpus.sources, strict=True) if weight is not None]
    least = min((w for w, text in zip(wanted, plain, strict=False) if text), default=0.0)
    if len(wanted) < len(weights) or not least:
        return [1] * len(weights)
    return [min(_MOST_REPEATS, round(w / least)) if text else 1 for w, text in zip(wanted, plain, strict=True)]


def films(corpus: Corpus, split: Split) -> Iterator[np.ndarray]:
    """The frames of each film of a split."""
    for index in range(len(corpus.sources)):
        for document in corpus.documents(split, index):
            yield from films_of(document)


def sounds(corpus: Corpus, split: Split) -> Iterator[np.ndarray]:
    """The samples of each recording of a split."""
    for index in range(len(corpus.sources)):
        for document in corpus.documents(split, index):
            yield from sounds_of(document)


def pictures(corpus: Corpus, split: Split) -> Iterator[np.ndarray]:
    """Each picture of a split, (H, W, 3)."""
    for index in range(len(corpus.sources)):
        for document in corpus.documents(split, index):
            yield from (picture[..., :3] for picture in pictures_of(document))
