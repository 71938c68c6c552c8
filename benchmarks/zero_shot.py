"""Tasks put into words that were never put so: does a model that only reads answer them, with no example before them?

A model of fresh weights reads `builtin:wordings`: eight small tasks (the opposite of, sorted, twice, backwards, ...) in 234
wordings. It is asked in others: a known phrase in a known frame that never held it, and frames that stand in no document. Beside
it chance, a guess among what the eight tasks would make of the word, and a 5-gram of the same tokens.

    python benchmarks/zero_shot.py [--seeds 1] [--budget 2Mtok] [--run runs/words]
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import of_models

from tessera.commands.generate import open_engine
from tessera.data.builtin_wordings import NEW, TAUGHT
from tessera.data.corpus import gather
from tessera.data.shards import tokenise
from tessera.device import cache_folder
from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.engine.scheduler import Limits
from tessera.evals import ngram, taught
from tessera.posttrain.verifiers.answers import exact
from tessera.posttrain.verifiers.measures import mean_and_error
from tessera.run import RunFolder

ERRORS = 3
"""Standard errors above chance."""
ORDER = 5
TOKENS = 12
"""Of an answer at most."""
BUDGET = "2Mtok"
SETTINGS = (
    'data.sources=["builtin:wordings?count=50000"]', "data.deduplicate=exact", "tokenizer.vocabulary_size=257",
    "train.context=128", "data.document_mask=true", "train.threads=1", "train.compile=false", "model.width=64", "model.layers=3",
)  # fmt: skip


def main() -> None:
    """Trains where no run is given, measures, prints and stores."""
    of_models("zero-shot", __doc__, BUDGET, SETTINGS, (400, "of each kind of wording"), measure, words)


def measure(run: Path, count: int, seed: int) -> dict[str, Any]:
    """For each kind of wording, the taught ones as well: the model, chance and the 5-gram, over all tasks and by task."""
    engine = open_engine(str(run), "float32", Limits(rows=32, step_tokens=1024))
    found: dict[str, Any] = {"tasks": count}
    suites = {name: taught.wordings(among) for name, among in {**NEW, "taught": TAUGHT}.items()}
    asked = {name: suite.make(count, seed) for name, suite in suites.items()}
    prompts = [engine.vocabulary.encode_text(task.prompt) for tasks in asked.values() for task in tasks]
    params = SamplingParams(TOKENS, 0.0, seed=0, stop=("\n",))
    by_model = iter([made.text for made in engine.generate(prompts, params)])
    by_counts = iter(by_counting(run, engine, prompts))
    for name, tasks in asked.items():
        mine, counted = ([exact(task, next(said)) for task in tasks] for said in (by_model, by_counts))
        each: dict[str, list[float]] = defaultdict(list)
        for task, right in zip(tasks, mine, strict=True):
            each[task.data["kind"]].append(right)
        value, error = mean_and_error(mine)
        other, other_error = mean_and_error(counted)
        found[name] = {
            "right": value, "standard_error": error, "chance": suites[name].chance, "ngram": other, "ngram_error": other_error,
            "by_task": {kind: [*mean_and_error(rights), len(rights)] for kind, rights in sorted(each.items())},
        }  # fmt: skip
    return found


def by_counting(run: Path, engine: Engine, prompts: list[list[int]]) -> list[str]:
    """What a 5-gram of the tokens that the run trained on goes on with, up to the end of the line."""
    recipe = RunFolder(run).recipe
    corpus = gather(recipe.data, cache_folder(), lambda line: None)
    shards = tokenise(corpus, engine.vocabulary, recipe.data, cache_folder(), lambda line: None)
    made = ngram.likeliest(np.asarray(shards.sources[0].train.ids), prompts, TOKENS, engine.vocabulary.size, ORDER)
    texts = []
    for ids in made:
        stop = next((at for at, id in enumerate(ids) if int(id) == engine.vocabulary.end_id), len(ids))
        texts.append("".join(str(s.content) for s in engine.vocabulary.decode(ids[:stop]).segments).partition("\n")[0])
    return texts


def words(found: dict[str, Any]) -> str:
    """A line for each kind of wording, and the verdicts."""
    lines = ["  wordings      right            chance   5-gram"]
    for name in (*NEW, "taught"):
        row = found[name]
        high = row["right"] > row["chance"] + ERRORS * row["standard_error"] and row["right"] > row["ngram"]
        verdict = "" if name == "taught" else f"   {'above both' if high else 'NOT ABOVE BOTH'}"
        mine, counted = (
            f"{row[key]:6.1%} +- {row[error]:5.1%}" for key, error in (("right", "standard_error"), ("ngram", "ngram_error"))
        )
        lines.append(f"  {name:<12}  {mine}   {row['chance']:6.1%}   {counted}{verdict}")
        lines.append("    " + ", ".join(f"{kind} {value:.0%}" for kind, (value, _, _) in row["by_task"].items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
