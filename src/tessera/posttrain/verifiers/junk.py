"""The junk test: answers that no verifier may pay for. Whoever optimises against a verifier finds these first."""

from __future__ import annotations

from collections.abc import Iterable

from tessera.posttrain.verifiers.task import Task, Verifier, extract


def junk_answers(task: Task) -> list[str]:
    """Wrong answers to a task: nonsense, zero, nothing, the question, and the right answer with something behind or before it.

    An answer that happens to be the right one is left out.
    """
    gold = extract(task.answer)
    junk = ["zzz", "0", "", " \n", task.prompt, "zzz " * 50]
    if gold:
        junk += [f"{gold} junk", f"junk {gold}", f"{gold} {gold}", f"{gold} or zzz", f"{gold}\n{gold}0"]
    return [answer for answer in junk if not gold or extract(answer) != gold]


def paid_junk(verifier: Verifier, tasks: Iterable[Task]) -> list[tuple[Task, str]]:
    """The tasks and junk answers for which a verifier pays anything; sound verifiers give an empty list."""
    return [(task, answer) for task in tasks for answer in junk_answers(task) if verifier(task, answer) != 0]
