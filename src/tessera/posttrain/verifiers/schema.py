"""Answers that must be one JSON value which a JSON schema allows."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import jsonschema_rs

from tessera.errors import UserError
from tessera.posttrain.verifiers.task import Task


def schema(task: Task, answer: str) -> float:
    """1 where the answer is a JSON value and nothing else, valid by `task.data["schema"]`, and equal to the task's answer as JSON
    where the task has one.

    A key given twice, NaN and infinities are no JSON here.

    Raises:
        UserError: the task has no schema, it is no schema, or the task's answer is not valid by it.
    """
    if "schema" not in task.data:
        raise UserError(f"task {task.id or task.prompt!r} has no JSON schema; put it into the task's data as schema.")
    valid = validator(json.dumps(task.data["schema"], sort_keys=True))
    if not task.answer:
        return float(_is_valid(valid, answer))
    if not _is_valid(valid, task.answer):
        raise UserError(f"task {task.id or task.prompt!r}: its own answer is not valid by its schema.")
    # Compared as JSON writes them, in which true is not 1.
    return float(_is_valid(valid, answer) and _canonical(answer) == _canonical(task.answer))


def _canonical(text: str) -> str:
    """One text for all ways to write a value: 1.0 is 1, and keys are in order."""
    return json.dumps(json.loads(text, parse_float=_plain), sort_keys=True)


def _plain(number: str) -> float | int:
    value = float(number)
    return int(value) if value.is_integer() else value


def _is_valid(validator: Any, text: str) -> bool:
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
        return bool(validator.is_valid(value))
    except (ValueError, RecursionError, OverflowError):
        return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(keys := dict(pairs)) != len(pairs):
        raise ValueError("a key is given twice")
    return keys


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


@lru_cache(maxsize=256)
def validator(text: str) -> Any:
    try:
        return jsonschema_rs.validator_for(json.loads(text), offline=True)
    except (ValueError, TypeError) as error:
        raise UserError(f"not a JSON schema: {error}") from None
