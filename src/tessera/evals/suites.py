"""The suites that are answered in words: where their tasks come from, how an answer is judged, and what a few examples look like.

Generated suites need nothing. The public ones are read from `$TESSERA_DATA`, by default `../shared/data` beside the checkout, in
the files named in docs/evaluation.md. The same name, count and seed give the same tasks.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tessera.errors import UserError
from tessera.posttrain.curriculum import dial
from tessera.posttrain.verifiers import Task, Verifier, extract
from tessera.posttrain.verifiers.answers import exact, number, numeric
from tessera.posttrain.verifiers.instructions import instructions, instructions_loosely, is_covered

_CHECKOUT = Path(__file__).resolve().parents[3]
DATA_VARIABLE = "TESSERA_DATA"


@dataclass(frozen=True)
class Suite:
    """Tasks that a model answers in words.

    Args:
        name: for `--suite`.
        summary: one line.
        make: (how many at most, seed) -> tasks.
        judges: measure -> verifier; the first one decides pass@k and the vote. Empty: programs, for the sandbox.
        vote: from an answer's text to what counts as the same answer; None: it has none, and a majority is not asked for.
        examples: (how many, seed) -> solved tasks to show before a question, none of which is measured; None: none to show.
        own_examples: (task, how many) -> those of a task that needs its own, instead of `examples`.
        max_tokens: of an answer.
        stop: texts that end one.
        chance: of a blind guess, where that is defined.
        naive: an answer that anyone could always give, measured as the baseline; None: the most frequent right answer.
        written: from what is extracted from a right answer to how a bare answer is written.
    """

    name: str
    summary: str
    make: Callable[[int, int], list[Task]]
    judges: Mapping[str, Verifier]
    vote: Callable[[str], str | None] | None = None
    examples: Callable[[int, int], list[Task]] | None = None
    own_examples: Callable[[Task, int], list[Task]] | None = None
    max_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    chance: float | None = None
    naive: str | None = None
    written: Callable[[str], str] = str
    settings: Mapping[str, Any] = field(default_factory=dict)


def data_file(path: str) -> Path:
    """A file of the public data.

    Raises:
        UserError: it is not there.
    """
    folder = Path(os.environ.get(DATA_VARIABLE) or _CHECKOUT.parent / "shared" / "data")
    if not (folder / path).is_file():
        raise UserError(f"{folder / path} is not there; set {DATA_VARIABLE} to a folder that holds {path} (docs/evaluation.md).")
    return folder / path


def rows(path: str) -> list[dict[str, Any]]:
    """The JSON lines of a file of the public data, gzipped or not."""
    file = data_file(path)
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


# Generated tasks

Maker = Callable[[int, random.Random], Task]


def arithmetic(digits: int, dice: random.Random) -> Task:
    """A sum or a difference of two numbers, the larger of which has that many digits."""
    a, b = dice.randrange(10 ** (digits - 1), 10**digits), dice.randrange(10**digits)
    if dice.random() < 0.5:
        return Task(f"{a}+{b}=", str(a + b))
    return Task(f"{a}-{b}=", str(a - b))


def reversing(letters: int, dice: random.Random) -> Task:
    """A word of that many letters, backwards."""
    word = "".join(dice.choices("abcdefghijklmnop", k=letters))
    return Task(f"reverse {word}: ", word[::-1])


def sorting(length: int, dice: random.Random) -> Task:
    """That many numbers below 100, in order."""
    numbers = [dice.randrange(100) for _ in range(length)]
    return Task(f"sort {' '.join(map(str, numbers))}: ", " ".join(map(str, sorted(numbers))))


def counting(length: int, dice: random.Random) -> Task:
    """How often a letter stands in a word of that many letters over a small alphabet."""
    letters = string.ascii_lowercase[:4]
    word, letter = "".join(dice.choices(letters, k=length)), dice.choice(letters)
    return Task(f"count {letter} in {word}: ", str(word.count(letter)))


GENERATED: dict[str, tuple[Maker, tuple[int, int], tuple[int, int]]] = {
    "arithmetic": (arithmetic, (1, 3), (4, 5)),
    "reversing": (reversing, (2, 6), (7, 10)),
    "sorting": (sorting, (2, 5), (6, 9)),
    "counting": (counting, (2, 8), (9, 14)),
    "dial": (dial, (3, 8), (9, 12)),
}
"""Name -> what makes a task of a length, the lengths taken for trained, and those beyond them."""
_CHANCE = {"dial": 0.1}


def generated(name: str, lengths: tuple[int, int] | None = None, beyond: bool = False) -> Suite:
    """A generated suite.

    Args:
        lengths: first and last length (digits, letters, numbers, moves); None: the suite's own.
        beyond: the suite's lengths beyond those taken for trained.
    """
    make_one, inside, outside = GENERATED[name]
    low, high = lengths or (outside if beyond else inside)

    def make(count: int, seed: int) -> list[Task]:
        return _distinct(make_one, low, high, count, random.Random(f"{name} {low} {high} {seed}"))

    def examples(count: int, seed: int) -> list[Task]:
        # From the short ones in any case, so that the same examples stand before trained and longer tasks.
        return _distinct(make_one, *(lengths or inside), count, random.Random(f"{name} examples {seed}"))

    return Suite(
        name + ("-beyond" if beyond else ""),
        f"{name}, lengths {low} to {high}",
        make,
        {"exact": exact},
        lambda text: extract(text) or None,
        examples,
        max_tokens=16 + 4 * high,
        chance=_CHANCE.get(name),
        settings={"lengths": [low, high]},
    )


def _distinct(make_one: Maker, low: int, high: int, count: int, dice: random.Random) -> list[Task]:
    """At most `count` different tasks, the lengths in turn."""
    found: dict[str, Task] = {}
    for attempt in range(20 * count):
        if len(found) == count:
            break
        task = make_one(low + attempt % (high - low + 1), dice)
        found.setdefault(task.prompt, Task(task.prompt, task.answer, task.data, f"{len(found)}"))
    return list(found.values())


# Public sets


def _gsm8k() -> Suite:
    """Cobbe et al. 2021; strict as there (`#### 18`), flexible as lm-evaluation-harness has it: the last number in the text."""

    def strict(task: Task, answer: str) -> float:
        return numeric(task, answer) if "####" in answer else 0.0

    def flexible(task: Task, answer: str) -> float:
        return numeric(task, _last_number(answer) or "")

    def read(path: str, count: int, seed: int) -> list[Task]:
        tasks = [
            # The calculator's marks of the worked solutions are no part of what is read or written.
            Task(f"Question: {row['question']}\nAnswer: ", re.sub(r"<<.*?>>", "", row["answer"]), id=f"gsm8k/{index}")
            for index, row in enumerate(rows(path))
        ]
        return _some(tasks, count, seed)

    return Suite(
        "gsm8k",
        "GSM8K, test problems; strict (#### n) and flexible (the last number)",
        lambda count, seed: read("text/math/gsm8k/test.jsonl", count, seed),
        {"strict": strict, "flexible": flexible},
        lambda text: str(number(extract(text))) if "####" in text and number(extract(text)) is not None else None,
        lambda count, seed: read("text/math/gsm8k/train.jsonl.gz", count, seed),
        max_tokens=256,
        stop=("\nQuestion:",),
        written="#### {}".format,
    )


def _last_number(text: str) -> str | None:
    found = re.findall(r"-?\$?\d[\d,]*(?:\.\d+)?", text)
    return found[-1].rstrip(",") if found else None


def _ifeval() -> Suite:
    """Zhou et al. 2023; prompts with an instruction that cannot be judged here are left out and not counted."""

    def make(count: int, seed: int) -> list[Task]:
        tasks = [
            Task(row["prompt"], "", {k: row[k] for k in ("instruction_id_list", "kwargs")}, f"ifeval/{row['key']}")
            for row in rows("text/instruct/ifeval/input_data.jsonl")
        ]
        return _some([task for task in tasks if is_covered(task)], count, seed)

    return Suite(
        "ifeval",
        "IFEval, every instruction of a prompt; strict and loose; without the prompts about languages",
        make,
        {"strict": instructions, "loose": instructions_loosely},
        max_tokens=512,
        stop=(),
        naive="Yes.",
    )


def _humaneval() -> Suite:
    """Chen et al. 2021, with their stop words."""

    def make(count: int, seed: int) -> list[Task]:
        tasks = []
        for row in rows("text/code/humaneval/HumanEval.jsonl"):
            data = {
                "prefix": row["prompt"],
                "tests": f"{row['test']}\ncheck({row['entry_point']})\n",
                "entry": row["entry_point"],
            }
            tasks.append(Task(row["prompt"], row["canonical_solution"], data, row["task_id"]))
        return _some(tasks, count, seed)

    stop = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint")
    return Suite("humaneval", "HumanEval, in the sandbox", make, {}, max_tokens=256, stop=stop, chance=0.0, naive="    pass\n")


def _mbpp() -> Suite:
    """Austin et al. 2021: task ids 11 to 510 are the test set, 1 to 10 the examples; the prompt as in the paper."""

    def read(low: int, high: int) -> list[Task]:
        tasks = []
        for row in rows("text/code/mbpp/mbpp.jsonl"):
            if low <= row["task_id"] <= high:
                shown = "\n".join(row["test_list"])
                prompt = f"You are an expert Python programmer, and here is your task: {row['text']} "
                prompt += f"Your code should pass these tests:\n\n{shown}\n[BEGIN]\n"
                code = row["code"].replace("\r\n", "\n")
                defined = re.findall(r"^def (\w+)\(", code, re.MULTILINE)
                entry = next((name for name in defined if f"{name}(" in row["test_list"][0]), "")
                data = {"tests": f"{row['test_setup_code']}\n{shown}\n", "entry": entry}
                tasks.append(Task(prompt, code, data, f"mbpp/{row['task_id']}"))
        return tasks

    return Suite(
        "mbpp",
        "MBPP, tasks 11 to 510, in the sandbox",
        lambda count, seed: _some(read(11, 510), count, seed),
        {},
        examples=lambda count, seed: [
            Task(task.prompt, f"{task.answer}\n[DONE]", task.data, task.id) for task in _some(read(1, 10), count, seed)
        ],
        max_tokens=256,
        stop=("[DONE]", "\n[BEGIN]"),
        chance=0.0,
        naive="pass\n",
    )


def _some(tasks: list[Task], count: int, seed: int) -> list[Task]:
    """All, or a random sample of that many in their order."""
    if count >= len(tasks):
        return tasks
    return [tasks[i] for i in sorted(random.Random(f"sample {seed}").sample(range(len(tasks)), count))]


PUBLIC: dict[str, Callable[[], Suite]] = {"gsm8k": _gsm8k, "ifeval": _ifeval, "humaneval": _humaneval, "mbpp": _mbpp}
"""Name -> what makes the suite."""
