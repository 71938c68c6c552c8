"""Learning from examples in the prompt: does accuracy rise with their number where nothing else can tell the answer?

A model of fresh weights reads `builtin:mappings`, documents of made-up words for made-up words (`Kq Zt`). Then it is asked
for words of mappings whose words stand in no document, behind 0, 1, 2, 4 and 8 examples. Whoever looks up all that is shown is
right in k / 8 of the cases and by chance in the others; whoever only sees which words are used guesses one of the k shown.

    python benchmarks/few_shot.py [--seeds 1] [--budget 1Mtok] [--run runs/few]
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from common import of_models

from tessera.commands.generate import open_engine
from tessera.data.builtin_mappings import KEYS, WORDS
from tessera.evals import answers, taught

BAR = 0.9
SHOTS = (0, 1, 2, 4, 8)
SETTINGS = (
    'data.sources=["builtin:mappings?count=16000"]', "data.deduplicate=exact", "tokenizer.vocabulary_size=276",
    "train.context=88", "data.document_mask=true", "train.threads=1", "train.compile=false",
    "model.width=64", "model.layers=3",
)  # fmt: skip
BUDGET = "1Mtok"


def main() -> None:
    """Trains where no run is given, measures, prints and stores."""
    of_models("few-shot", __doc__, BUDGET, SETTINGS, (500, "of each number of examples"), measure, words, bar=BAR)


def measure(run: Path, tasks: int, seed: int) -> dict[str, Any]:
    """Accuracy with its standard error by examples, with held-out words and with those of the documents."""
    engine = open_engine(str(run), "float32")
    found: dict[str, Any] = {"tasks": tasks}
    for name, suite in (("held out", taught.mapping()), ("known words", taught.mapping(WORDS))):
        found[name] = {}
        for shots in SHOTS:
            (score,) = answers.measure(engine, suite, answers.Settings(tasks=tasks, shots=shots, seed=seed))
            found[name][shots] = {"right": score.value, "standard_error": score.standard_error, "chance": score.chance}
    return found


def words(found: dict[str, Any]) -> str:
    """A line for each number of examples, and the verdict."""
    lines = ["  examples   held-out words   words of documents   all looked up   a shown word   chance"]
    for shots in SHOTS:
        mine, known = (found[name][shots] for name in ("held out", "known words"))
        chance, told = mine["chance"], shots / KEYS
        one_of_them = told / shots if shots else chance
        each = [f"{row['right']:6.1%} +- {row['standard_error']:5.1%}" for row in (mine, known)]
        looked_up = told + (1 - told) * chance
        lines.append(f"  {shots:>8}   {each[0]}   {each[1]}       {looked_up:13.1%}   {one_of_them:12.1%}   {chance:6.1%}")
    rights = [found["held out"][shots]["right"] for shots in SHOTS]
    rises = all(a < b for a, b in itertools.pairwise(rights))
    reached = "reached" if rights[-1] >= BAR else "BELOW"
    lines.append(f"  {'rises' if rises else 'DOES NOT RISE'} with examples; {BAR:.0%} at {SHOTS[-1]}: {reached}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
