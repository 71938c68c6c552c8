"""Suites for models that learned from a built-in source: the same kind of task with what that source holds out.

`mapping` goes with `builtin:mappings`, `functions` and `wordings` with the sources of those names. The same count and seed give
the same tasks, and none of them stands in a document.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tessera.data import builtin_functions, builtin_mappings, builtin_wordings
from tessera.evals.suites import Suite
from tessera.posttrain.verifiers import Task, extract
from tessera.posttrain.verifiers.answers import exact


def mapping(words: tuple[str, ...] = builtin_mappings.HELD_OUT_WORDS) -> Suite:
    """Each task is a mapping of its own and asks for the word of one of its 8 keys; its examples are the first of the mapping.

    With k examples an answer that is right k / 8 of the time, and by chance otherwise, has looked up all that was shown.

    Args:
        words: that keys and values are.
    """

    def make(count: int, seed: int) -> list[Task]:
        tasks = []
        for number in range(count):
            dice = random.Random(f"mapping task {seed} {number}")
            pairs = builtin_mappings.mapping(words, builtin_mappings.KEYS, dice)
            key = dice.choice(list(pairs))
            tasks.append(Task(key, builtin_mappings.answer(pairs[key]), {"mapping": pairs}, f"mapping/{number}"))
        return tasks

    def shown(task: Task, count: int) -> list[Task]:
        pairs: dict[str, str] = task.data["mapping"]
        return [Task(key, builtin_mappings.answer(value)) for key, value in list(pairs.items())[:count]]

    return Suite(
        "mapping",
        "words for words, told by the examples alone (--shots 0,1,2,4,8)",
        make,
        {"exact": exact},
        lambda text: extract(text) or None,
        own_examples=shown,
        max_tokens=8,
        chance=1 / len(words),
    )


def functions() -> Suite:
    """Bodies for docstrings whose combination of three parts stands in no document, judged by tests in the sandbox."""

    def make(count: int, seed: int) -> list[Task]:
        dice = random.Random(f"functions {seed}")
        combinations = dice.sample(builtin_functions.HELD_OUT, min(count, len(builtin_functions.HELD_OUT)))
        tasks = []
        for combination in combinations:
            made = builtin_functions.function(combination, dice)
            data = {"prefix": made.prompt, "tests": made.tests, "entry": made.name}
            tasks.append(Task(made.prompt, made.body, data, "functions/" + "-".join(combination)))
        return tasks

    stop = ("\ndef ", "\nclass ", "\n#", "\nif ", "\nprint")
    summary = "functions to write by their docstrings, in the sandbox"
    return Suite("functions", summary, make, {}, max_tokens=96, stop=stop, chance=0.0, naive="    pass\n")


def wordings(among: tuple[builtin_wordings.Wording, ...] | None = None) -> Suite:
    """Questions in wordings that stand in no document; every second one in a frame that stands in none.

    Chance is a guess among all that is done with words here, made with the question's own word.

    Args:
        among: other wordings to ask with.
    """
    given = (among,) if among else tuple(builtin_wordings.NEW.values())

    def make(count: int, seed: int) -> list[Task]:
        dice, tasks = random.Random(f"wordings task {seed}"), dict[str, Task]()
        while len(tasks) < count:
            wording = builtin_wordings.one_of(given[len(tasks) % len(given)], dice)
            word = builtin_wordings.word_for(wording[0], dice)
            prompt, right = builtin_wordings.question(wording, word), builtin_wordings.KINDS[wording[0]].does(word)
            tasks.setdefault(prompt, Task(prompt, right, {"kind": wording[0], "word": word}, f"wordings/{len(tasks)}"))
        return list(tasks.values())

    guesses = [(task.answer, builtin_wordings.answers(task.data["word"])) for task in make(400, 0)]
    chance = sum(there.count(right) / len(there) for right, there in guesses) / len(guesses)
    return Suite(
        "wordings",
        "small tasks put into words that were never put so",
        make,
        {"exact": exact},
        lambda text: extract(text) or None,
        max_tokens=16,
        chance=chance,
    )


TAUGHT: dict[str, Callable[[], Suite]] = {"mapping": mapping, "functions": functions, "wordings": wordings}
"""Name -> what makes the suite."""
