"""Documents reshaped for a task: the same content in an order that teaches the model to do something with it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from tessera.tokens.document import Document, Segment


def fill_in_the_middle(document: Document, rng: np.random.Generator) -> Document:
    """A text cut at two places and put in the order in which its middle comes last (arXiv 2207.14255).

    Half of the time the places are uniform, half of the time they are line ends: whole lines are what is most often asked for,
    and a model that met only what is cut anywhere does not stop where a line does. Half of the time prefix-suffix-middle, half
    of the time suffix first, with prefix and middle in one piece behind it (the paper's SPM variant that shares its frame with
    PSM). Every part is learned, as in the paper; the tokens of the frame are not. A document that is not plain text, or too
    short to cut, comes back as it is.
    """
    text = document.text
    if len(text) < 3 or any(segment.kind != "text" for segment in document.segments):
        return document
    first, second = _cuts(text, rng)
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    if rng.random() < 0.5:
        parts = ("<|fim_prefix|>", prefix, "<|fim_suffix|>", suffix, "<|fim_middle|>", middle)
    else:
        parts = ("<|fim_prefix|>", "", "<|fim_suffix|>", suffix, "<|fim_middle|>", prefix + middle)
    segments = []
    for control, part in zip(parts[::2], parts[1::2], strict=True):
        segments.append(Segment("control", control, learn=False))
        if part:
            segments.append(Segment("text", part))
    return Document(tuple(segments), document.source)


def _cuts(text: str, rng: np.random.Generator) -> tuple[int, int]:
    """Where the middle begins and ends."""
    ends = sorted({0, len(text), *(found.end() for found in re.finditer("\n", text))})
    if len(ends) > 2 and rng.random() < 0.5:
        first, second = sorted(rng.choice(len(ends), size=2, replace=False))
        return ends[first], ends[second]
    first, second = sorted(rng.integers(0, len(text) + 1, size=2))
    return int(first), int(second)


def pieces(document: Document, characters: int | None) -> Iterator[Document]:
    """A plain text cut at line ends into documents of at most so many characters; a longer line is cut anywhere."""
    if characters is None or len(document.text) <= characters or any(segment.kind != "text" for segment in document.segments):
        yield document
        return
    text, begin = document.text, 0
    while begin < len(text):
        end = min(begin + characters, len(text))
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield Document.of_text(text[begin:end], document.source)
        begin = end
