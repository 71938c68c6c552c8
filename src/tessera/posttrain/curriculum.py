"""Tasks in levels of difficulty, and when to go up or down.

Reinforcement learns from groups in which some answers are right and some wrong. The curriculum keeps it there: it rises when more
than 70 % of the answers at its level are right and falls when fewer than 10 % are (as reasoning-gym's curricula do). Its state is
a few numbers and goes into the checkpoint.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tessera.errors import UserError
from tessera.posttrain.verifiers import Task

RISES, FALLS = 0.7, 0.1
WINDOW = 16
"""Groups at the present level that are looked at together."""
LEAST_WEIGHT = 0.1
"""Of a level whose answers are all right, where one whose answers are all wrong has 1."""
MEMORY = 16
"""Groups over which a level's success is averaged."""
MOST_LEVELS = 64


@dataclass
class Curriculum:
    """Which level tasks are drawn from.

    Args:
        levels: how many there are; the level counts from 0.
        level: now.
        recent: success of the last groups at this level.
        success: running mean of each level that tasks were drawn from, from the lowest.
    """

    levels: int
    level: int = 0
    recent: tuple[float, ...] = ()
    success: tuple[float, ...] = ()

    def pick(self, dice: random.Random) -> int:
        """A level to draw a task from: one up to the present, the oftener the more of its answers are wrong.

        With a fixed share for those already passed, words of four letters fell from 57 to 37 % while those of five were learned.
        """
        known = self.success[: self.level + 1]
        weights = [max(LEAST_WEIGHT, 1 - success) for success in known]
        return dice.choices(range(self.level + 1), weights + [1.0] * (self.level + 1 - len(known)))[0]

    def note(self, level: int, success: float) -> None:
        """Takes in the success of one group, the share of its answers that were right."""
        known = list(self.success) + [0.5] * (level + 1 - len(self.success))
        known[level] += (success - known[level]) / MEMORY
        self.success = tuple(known)
        if level != self.level:
            return
        self.recent = (*self.recent, success)[-WINDOW:]
        if len(self.recent) < WINDOW:
            return
        mean = sum(self.recent) / WINDOW
        step = (mean > RISES) - (mean < FALLS)
        if 0 <= self.level + step < self.levels and step:
            self.level += step
            self.recent = ()

    def state(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"levels": self.levels, "level": self.level, "recent": list(self.recent), "success": list(self.success)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Curriculum:
        """The inverse of `state`."""
        return cls(state["levels"], state["level"], tuple(state["recent"]), tuple(state["success"]))


@dataclass(frozen=True)
class Pool:
    """Tasks to train on and tasks to be examined on, which never meet.

    Args:
        levels: what each level is called: the length of a word, digits, or `data.level` of a file's tasks.
        held_out: for the exam, spread over all levels.
        tasks: of a file, by level; empty where they are generated.
        make: generates a task of a level's name; None: they are drawn from `tasks`.
    """

    levels: tuple[int, ...]
    held_out: tuple[Task, ...]
    tasks: tuple[tuple[Task, ...], ...] = ()
    make: Callable[[int, random.Random], Task] | None = None

    def draw(self, level: int, count: int, dice: random.Random) -> list[Task]:
        """That many tasks of a level, different ones while there are enough, none of which is held out."""
        if self.make is None:
            there = self.tasks[level]
            return dice.sample(there, count) if count <= len(there) else dice.choices(there, k=count)
        hidden, found = {task.prompt for task in self.held_out}, list[Task]()
        while len(found) < count:
            task = self.make(self.levels[level], dice)
            if task.prompt not in hidden:
                found.append(task)
        return found


def reversal(letters: int, dice: random.Random) -> Task:
    """A word of that many random letters, to be written backwards."""
    word = "".join(dice.choice("abcdefghijklmnop") for _ in range(letters))
    return Task(f"reverse {word}: ", word[::-1], {"level": letters}, f"reversal-{word}")


def arithmetic(digits: int, dice: random.Random) -> Task:
    """A sum or a difference of two numbers, the larger of which has that many digits."""
    a, b = dice.randrange(10 ** (digits - 1), 10**digits), dice.randrange(10**digits)
    sign = dice.choice("+-")
    right = a + b if sign == "+" else a - b
    return Task(f"{a}{sign}{b}=", str(right), {"level": digits}, f"arithmetic-{a}{sign}{b}")


DIAL_MOVES = ("+1", "+2", "+3", "+4", "+5", "*3", "*7", "*9")
"""None forgets the digit, as times 5 would."""


def dial(moves: int, dice: random.Random) -> Task:
    """A digit and so many operations on it from left to right, of which only the last digit is kept.

    Each move depends on the one before: unlike those of a sum, they cannot be added up side by side, which a transformer learns
    to do at once (docs/LOG.md, 2026-11-29, "Thinking").
    """
    text = str(dice.randrange(10))
    for _ in range(moves):
        text += dice.choice(DIAL_MOVES)
    return Task(f"dial {text}=", dial_digits(text)[-1], {"level": moves}, f"dial-{text}")


def dial_digits(text: str) -> str:
    """The digit after each move of `3*7+4`: `15`."""
    digit, found = int(text[0]), ""
    for sign, number in zip(text[1::2], text[2::2], strict=True):
        other = int(number)
        digit = (digit * other if sign == "*" else digit + other) % 10
        found += str(digit)
    return found


BUILT_IN: dict[str, tuple[Callable[[int, random.Random], Task], tuple[int, int]]] = {
    "arithmetic": (arithmetic, (1, 3)),
    "reversal": (reversal, (2, 6)),
    "dial": (dial, (3, 8)),
}
"""Name -> what makes its tasks, and the levels it goes through unless `NAME:LOW-HIGH` says others."""


def open_pool(data: str, exam_tasks: int, seed: int) -> Pool:
    """The tasks that `--data` names.

    Args:
        data: `arithmetic`, `reversal`, `dial`, one of these with `:LOW-HIGH`, or the path of a file of tasks: JSON objects with
            `prompt` and, as far as the verifier needs them, `answer`, `data` and `id`; `data.level`, a number, sorts them into
            levels.
        exam_tasks: how many are held out; of a file at most a fifth.
        seed: of what is held out.

    Raises:
        UserError: no such file or name, a line that is no task, too few tasks, levels out of range.
    """
    name, _, between = data.partition(":")
    if name in BUILT_IN and not Path(data).exists():
        make, span = BUILT_IN[name]
        low, high = span if not between else _span(data, between)
        levels = tuple(range(low, high + 1))
        dice, each = random.Random(f"held out {seed}"), -(-exam_tasks // len(levels))
        held_out: list[Task] = []
        for level in levels:
            # Short words are few, and training needs most of them.
            there = {task.prompt: task for task in (make(level, dice) for _ in range(40 * each))}
            held_out += list(there.values())[: min(each, len(there) // 10)]
        return Pool(levels, tuple(held_out), make=make)
    return _of_file(read_tasks(Path(data)), exam_tasks, seed, data)


def read_tasks(path: Path) -> list[Task]:
    """The tasks of a file of JSON lines.

    Raises:
        UserError: it cannot be read, holds none, or a line is no task.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        names = ", ".join(BUILT_IN)
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file of tasks, or one of: {names}.") from None
    tasks = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}).") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
            raise UserError(
                f'{where}: a task is {{"prompt": text, "answer": text, "data": {{...}}}}, of which only prompt must be.'
            )
        if unknown := sorted(row.keys() - {"prompt", "answer", "data", "id"}):
            raise UserError(f"{where}: a task has prompt, answer, data and id, not {unknown[0]}.")
        extra, answer = row.get("data") or {}, row.get("answer", "")
        if not isinstance(extra, dict) or not isinstance(answer, str):
            raise UserError(f"{where}: answer must be text, and data an object.")
        if type(extra.get("level", 0)) is not int:
            raise UserError(f"{where}: data.level must be a whole number.")
        tasks.append(Task(row["prompt"], answer, extra, str(row.get("id") or f"{path.name}:{number}")))
    if not tasks:
        raise UserError(f"{path} holds no task; write one JSON object a line.")
    return tasks


def write_tasks(path: Path, tasks: Sequence[Task]) -> None:
    """Writes tasks as `read_tasks` reads them."""
    path.write_text("".join(json.dumps(asdict(task)) + "\n" for task in tasks), encoding="utf-8")


def with_held_out(pool: Pool, held_out: Sequence[Task]) -> Pool:
    """The same pool with other tasks held out."""
    return replace(pool, held_out=tuple(held_out))


def by_level(tasks: Sequence[Task]) -> tuple[tuple[int, ...], tuple[tuple[Task, ...], ...]]:
    """The levels of tasks, in order, and the tasks of each."""
    names = sorted({int(task.data.get("level", 0)) for task in tasks})
    return tuple(names), tuple(tuple(t for t in tasks if int(t.data.get("level", 0)) == name) for name in names)


def _of_file(tasks: list[Task], exam_tasks: int, seed: int, data: str) -> Pool:
    order = list({task.prompt: task for task in tasks}.values())
    random.Random(f"held out {seed}").shuffle(order)
    count = min(exam_tasks, len(order) // 5)
    if not count:
        raise UserError(f"{data} holds {len(order)} different tasks, too few to hold some out; give at least 5.")
    levels, sorted_tasks = by_level(order[count:])
    return Pool(levels, tuple(order[:count]), sorted_tasks)


def _span(data: str, between: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,3})-(\d{1,3})", between)
    low, high = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= low <= high < low + MOST_LEVELS:
        raise UserError(f"--data {data}: write the levels as LOW-HIGH, from 1, like reversal:2-6.")
    return low, high
