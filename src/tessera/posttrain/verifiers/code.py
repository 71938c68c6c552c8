"""Programs that pass tests, judged in the sandbox or not at all."""

from __future__ import annotations

import re
from functools import lru_cache

from tessera.errors import UserError
from tessera.posttrain.verifiers.task import Task
from tessera.sandbox.box import Result, Sandbox, open_sandbox

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)


def code(task: Task, answer: str) -> float:
    """1 where the answer's program passes every assertion of `task.data["tests"]` in the sandbox.

    Raises:
        UserError: the task has no tests, or there is no sandbox here.
    """
    return float(judge(task, answer, default_sandbox()).passed)


def judge(task: Task, answer: str, sandbox: Sandbox) -> Result:
    """What became of an answer's program in a sandbox.

    Raises:
        UserError: the task has no tests.
    """
    return sandbox.run(program(task, answer), tests(task), task.data.get("entry", ""))


def program(task: Task, answer: str) -> str:
    """What is run: `task.data["prefix"]`, where the answer completes one, and the answer; of an answer that holds fenced blocks
    the last one alone."""
    if found := _FENCED.findall(answer):
        answer = found[-1]
    return str(task.data.get("prefix", "")) + answer


def tests(task: Task) -> str:
    """The task's tests.

    Raises:
        UserError: it has none.
    """
    if not isinstance(task.data.get("tests"), str) or "assert" not in task.data["tests"]:
        raise UserError(
            f"task {task.id or task.prompt!r} has no tests; put Python source with assertions into its data as tests."
        )
    return str(task.data["tests"])


@lru_cache(maxsize=1)
def default_sandbox() -> Sandbox:
    """The one that all verifiers share. RunFailed where none holds."""
    return open_sandbox()
