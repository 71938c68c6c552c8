"""How alike two texts are, 0 to 1, by the measures that OpenAI's `text_similarity` grader names and that need no model.

Words are what `\\w+` finds, in lower case, but for BLEU and GLEU, which count case and punctuation.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

_LONGEST = 4


def fuzzy_match(text: str, reference: str) -> float:
    """Twice the longest common subsequence of characters by both lengths: 1 less the normalised Indel distance."""
    return 2 * _common(text, reference) / (len(text) + len(reference)) if text or reference else 1.0


def rouge(text: str, reference: str, n: int) -> float:
    """ROUGE-N as F1 (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"); n = 0: ROUGE-L."""
    given, wanted = _words(text), _words(reference)
    if not n:
        return _f1(_common(given, wanted), len(given), len(wanted))
    mine, theirs = _grams(given, n), _grams(wanted, n)
    return _f1((mine & theirs).total(), mine.total(), theirs.total())


def bleu(text: str, reference: str) -> float:
    """BLEU-4 of one sentence (Papineni et al. 2002), one added to the counts of n-grams longer than a word (Lin & Och 2004)."""
    given, wanted = _tokens(text), _tokens(reference)
    if not given or not wanted:
        return 0.0
    logs = []
    for n in range(1, _LONGEST + 1):
        mine = _grams(given, n)
        same, count, more = (mine & _grams(wanted, n)).total(), mine.total(), int(n > 1)
        if not same + more:
            return 0.0
        logs.append(math.log((same + more) / (count + more)))
    return math.exp(min(0.0, 1 - len(wanted) / len(given)) + sum(logs) / len(logs))


def gleu(text: str, reference: str) -> float:
    """The smaller of precision and recall over all n-grams of up to four words (Wu et al. 2016, arXiv 1609.08144, 8)."""
    given, wanted = _tokens(text), _tokens(reference)
    mine, theirs = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for n in range(1, _LONGEST + 1):
        mine += _grams(given, n)
        theirs += _grams(wanted, n)
    most = max(mine.total(), theirs.total())
    return (mine & theirs).total() / most if most else 0.0


MEASURES: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    **{f"rouge_{n}": partial(rouge, n=n) for n in range(1, 6)},
    "rouge_l": partial(rouge, n=0),
}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _f1(same: int, mine: int, theirs: int) -> float:
    return 2 * same / (mine + theirs) if same else 0.0


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table in the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << i
    all_ones = (1 << len(first)) - 1
    row = all_ones
    for item in second:
        match = row & places.get(item, 0)
        row = (row + match | row - match) & all_ones
    return len(first) - row.bit_count()
