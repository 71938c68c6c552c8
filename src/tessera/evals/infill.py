"""Gaps in held-out texts: what a model writes into them from both sides, and what it writes with the left side alone.

A gap is a few words of a line. The answer is right where it is, letter by letter, what the author wrote. Both times the model may
write as many characters as the gap has, and what it writes beyond is cut off, so that neither way is told more than the other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.evals.score import Score
from tessera.posttrain.verifiers.measures import mean_and_error
from tessera.tokens.document import Document
from tessera.tokens.prompts import fill_prompt

GAP = (4, 16)
"""Fewest and most characters of a gap."""
_WORDS_AT_MOST = 4
# As the splitting rule of the tokenizer, roughly: a gap begins and ends where a token may, so that the left side alone is not cut
# inside a word that the model only knows whole.
_WORD = re.compile(r" ?\w+| ?[^\s\w]+")


@dataclass(frozen=True)
class Gap:
    """A text in three parts."""

    prefix: str
    middle: str
    suffix: str


def gaps(documents: Sequence[Document], count: int, seed: int) -> list[Gap]:
    """At most `count` gaps, equally many of each document as far as it has lines, the same for the same documents and seed."""
    found: list[Gap] = []
    each = -(-count // max(1, len(documents)))
    for document in documents:
        dice = random.Random(f"gaps {seed} {document.text}")
        lines = [match for match in re.finditer(r"[^\n]+", document.text) if len(match[0].strip()) > 2 * GAP[0]]
        for line in dice.sample(lines, min(len(lines), each)):
            if (gap := _gap(document.text, line.start(), line.end(), dice)) is not None:
                found.append(gap)
    return found[:count]


def _gap(text: str, begin: int, end: int, dice: random.Random) -> Gap | None:
    """Some words of a line, never its first."""
    words = list(_WORD.finditer(text, begin, end))[1:]
    spans = [
        (words[i].start(), words[j].end())
        for i in range(len(words))
        for j in range(i, min(len(words), i + _WORDS_AT_MOST))
        if GAP[0] <= words[j].end() - words[i].start() <= GAP[1]
    ]
    if not spans:
        return None
    first, last = dice.choice(spans)
    return Gap(text[:first], text[first:last], text[last:])


def infill(engine: Engine, documents: Sequence[Document], count: int, seed: int) -> list[Score]:
    """Share of gaps that are filled exactly, from both sides and, as the baseline, from the left alone; likeliest tokens.

    Raises:
        UserError: no gap in the documents, or a model without tokens for gaps.
    """
    chosen = gaps(documents, count, seed)
    if not chosen:
        raise UserError("the documents have no line to take words from; give --data with longer ones.")
    room = engine.decoder.config.context - GAP[1] - 1
    vocabulary = engine.vocabulary
    both = [fill_prompt(vocabulary, gap.prefix, gap.suffix, room) for gap in chosen]
    left = [(vocabulary.encode_text(gap.prefix) or [vocabulary.end_id])[-room:] for gap in chosen]
    filled, alone = (_right(engine, prompts, chosen) for prompts in (both, left))
    value, error = mean_and_error(filled)
    baseline, _ = mean_and_error(alone)
    gain, gain_error = mean_and_error([a - b for a, b in zip(filled, alone, strict=True)])
    settings = {"seed": seed, "documents": len(documents), "temperature": 0.0, "characters": list(GAP)}
    name = "the same model with the left side alone"
    return [
        Score("infill", "exact match", value, error, len(chosen), None, baseline, name, settings),
        Score("infill", "gain by the right side, pair by pair", gain, gain_error, len(chosen), 0.0, None, "", settings),
    ]


def _right(engine: Engine, prompts: Sequence[list[int]], chosen: Sequence[Gap]) -> list[float]:
    """For each gap whether what comes first after its prompt is what stood there."""
    params = [SamplingParams(len(gap.middle), 0.0, seed=0) for gap in chosen]
    made = engine.generate(prompts, params)
    return [float(c.text[: len(gap.middle)] == gap.middle) for c, gap in zip(made, chosen, strict=True)]
