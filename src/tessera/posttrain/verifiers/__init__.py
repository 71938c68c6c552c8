"""Verifiers: pure functions from a task and an answer to 1 (right) or 0. `load("numeric")` gives one by its name, and
`load("my_rewards:score")` an own Python function."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tessera.errors import UserError
from tessera.posttrain.verifiers.task import Task, Verifier, extract

__all__ = ["BUILT_IN", "Task", "Verifier", "extract", "load"]

BUILT_IN = {
    "exact": "tessera.posttrain.verifiers.answers:exact",
    "numeric": "tessera.posttrain.verifiers.answers:numeric",
    "gym": "tessera.posttrain.verifiers.gym:gym",
    "schema": "tessera.posttrain.verifiers.schema:schema",
    "code": "tessera.posttrain.verifiers.code:code",
    "grader": "tessera.posttrain.verifiers.graders:graded",
    "instructions": "tessera.posttrain.verifiers.instructions:instructions",
}
"""Name of each verifier that is here -> MODULE:FUNCTION, imported when it is asked for."""


def load(spec: str) -> Verifier:
    """A verifier by its name or as MODULE:FUNCTION; MODULE is found from the working directory too.

    An own function takes a `Task` and the answer's text and returns 0, 1 or a bool; anything else raises `UserError` when it is
    called, as does an exception in it, or in a built-in one that a task's data does not fit.

    Raises:
        UserError: no such name, module or function.
    """
    if spec in BUILT_IN:
        built_in = _function(BUILT_IN[spec])

        def told(task: Task, answer: str) -> float:
            try:
                return built_in(task, answer)
            except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
                raise UserError(
                    f"the data of task {task.id or task.prompt!r} is none for the verifier {spec} ({error!r})."
                ) from None

        return told
    if ":" not in spec:
        raise UserError(f"there is no verifier {spec!r}; write one of {', '.join(BUILT_IN)}, or MODULE:FUNCTION.")
    function = _function(spec)

    def own(task: Task, answer: str) -> float:
        try:
            value = function(task, answer)
        except (Exception, SystemExit) as error:
            raise UserError(f"the verifier {spec} failed on task {task.id or task.prompt!r} ({error!r}); mend it.") from error
        if isinstance(value, bool | int | float) and value in (0, 1):
            return float(value)
        raise UserError(f"the verifier {spec} returned {value!r} on task {task.id or task.prompt!r}; return 0 or 1.")

    return own


def _function(spec: str) -> Verifier:
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        # Last, so that a file of the user's never takes the place of a module that is installed.
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(f"the verifier's module {module_name!r} cannot be imported ({error!r}).") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"the module {module_name} has no function {name!r}; write MODULE:FUNCTION of a function in it.")
    verifier: Verifier = function
    return verifier
