"""Tasks of reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760) and their verifier. Needs the extra `[reasoning]`.

Its own scores are shares of a mark: many pay something for `0`, and some the full mark for the right answer inside other words.
Here only a full mark on the extracted answer is paid, and nothing for the right answer with more around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from tessera.errors import UserError
from tessera.posttrain.verifiers.task import Task, extract


def tasks(dataset: str, count: int, seed: int = 0, settings: Mapping[str, Any] | None = None) -> list[Task]:
    """Generated tasks: the same for the same arguments and version of the package.

    Args:
        dataset: its name there, like number_sorting.
        settings: of the dataset, like {"max_numbers": 5}.

    Raises:
        UserError: the package is missing, there is no such dataset, or it does not take these settings.
    """
    try:
        made = _package().create_dataset(dataset, size=count, seed=seed, **(settings or {}))
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"reasoning-gym makes no dataset {dataset!r} with these settings ({error}).") from None
    return [
        Task(entry["question"], str(entry["answer"]), {"dataset": dataset, "entry": entry}, f"{dataset}/{seed}/{index}")
        for index, entry in enumerate(made)
    ]


def gym(task: Task, answer: str) -> float:
    """1 where the final answer gets the dataset's full mark.

    Raises:
        UserError: the package is missing, or the task is none of `tasks`.
    """
    if not {"dataset", "entry"} <= task.data.keys():
        raise UserError(f"task {task.id or task.prompt!r} is none of reasoning-gym; its data lacks dataset and entry.")
    given = extract(answer)
    gold = extract(str(task.data["entry"]["answer"]))
    if not given or (gold in given and given != gold):
        return 0.0
    score = _package().get_score_answer_fn(task.data["dataset"])
    try:
        return float(score(answer=given, entry=task.data["entry"]) == 1)
    except (ValueError, TypeError, KeyError, IndexError, SyntaxError, ArithmeticError, AttributeError, RecursionError):
        # Some of its scorers do not survive what does not parse; an answer that breaks one is no answer.
        return 0.0


def _package() -> ModuleType:
    try:
        import reasoning_gym
    except ImportError:
        raise UserError("reasoning-gym is not installed; install Tessera with its extra [reasoning].") from None
    package: ModuleType = reasoning_gym
    return package
