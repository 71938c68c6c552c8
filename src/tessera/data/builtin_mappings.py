"""Text of mappings that only the text itself tells: `Kq Zt`, line after line, and the same again later.

Each document is one mapping between made-up words of a capital and a small letter. A model that learned from it is asked about
words that stand in no document, so that all it can have learned is to look up what was shown: learning from examples in the
prompt (GPT-3, arXiv 2005.14165), without anything to know by heart.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

from tessera.tokens.document import Document

MAPPINGS = 16_000
"""Documents that `builtin:mappings` yields where no count is named."""
KEYS = 8
"""Of a mapping at most; so many examples tell all of it."""
LINES = 12
"""Of a document with few keys; each stands in it twice at least."""
_LETTERS = 20


def _parted() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words held out, each letter in a fifth of its words, and the others."""
    dice, capitals, small = (
        random.Random("words of mappings"),
        string.ascii_uppercase[:_LETTERS],
        string.ascii_lowercase[:_LETTERS],
    )
    orders = dice.sample(capitals, _LETTERS), dice.sample(small, _LETTERS)
    held_out = {orders[0][at] + orders[1][(at + turn) % _LETTERS] for at in range(_LETTERS) for turn in range(_LETTERS // 5)}
    return tuple(sorted(held_out)), tuple(sorted({a + b for a in capitals for b in small} - held_out))


HELD_OUT_WORDS, WORDS = _parted()
"""Words that stand in no document, and those that documents are made of. Which words there are decides how soon looking up is
learned, if at all (docs/LOG.md, 2026-11-29, "Few shots")."""


def mappings(count: int) -> Iterator[Document]:
    """That many mappings of 1 to 8 words, each of which stands in its document twice or oftener, in any order."""
    for number in range(count):
        dice = random.Random(f"mapping {number}")
        pairs = mapping(WORDS, dice.randint(1, KEYS), dice)
        lines = [f"{key}{answer(value)}\n" for key, value in pairs.items()] * max(2, LINES // len(pairs))
        dice.shuffle(lines)
        yield Document.of_text("".join(lines), f"mappings[{number}]")


def mapping(words: tuple[str, ...], keys: int, dice: random.Random) -> dict[str, str]:
    """A word for each of so many words; no letter stands in two of them."""
    chosen: list[str] = []
    while len(chosen) < 2 * keys:
        # Whoever comes first takes its letters; where too few are left at the end, from the beginning in another order.
        chosen, taken = [], set[str]()
        for word in dice.sample(words, len(words)):
            if taken.isdisjoint(word) and len(chosen) < 2 * keys:
                chosen.append(word)
                taken.update(word)
    return dict(zip(chosen[:keys], chosen[keys:], strict=True))


def answer(value: str) -> str:
    """What follows a key."""
    return f" {value}"
