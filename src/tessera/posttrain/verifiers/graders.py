"""OpenAI's graders: a description in JSON, a model's answer and the row that it answered -> a reward.

`string_check`, `text_similarity`, `python` (in the sandbox, or not at all) and `multi` are here. Texts in them are templates:
`{{ sample.output_text }}`, `{{ sample.output_json.KEY }}`, `{{ item.KEY }}`. `grade` says besides the reward what went wrong;
`graded` is the verifier that pays what the grader in its task says.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import operator
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera.errors import UserError
from tessera.posttrain.verifiers.code import default_sandbox
from tessera.posttrain.verifiers.similarity import MEASURES
from tessera.posttrain.verifiers.task import Task

_NO_JUDGE = "no model here has been shown to judge well; use string_check, text_similarity or python"
_ABSENT = {
    "score_model": _NO_JUDGE,
    "label_model": _NO_JUDGE,
    "cosine": "it compares embeddings of a model that was made for that; use fuzzy_match or a ROUGE",
    "meteor": "it needs lists of synonyms; use rouge_l",
}
_OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "like": operator.contains,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}
_FIELDS = {
    "string_check": {"input", "reference", "operation"},
    "text_similarity": {"input", "reference", "evaluation_metric"},
    "python": {"source"},
    "multi": {"graders", "calculate_output"},
}
_MAY_HAVE = {"type", "name", "image_tag", "pass_threshold"}
_VARIABLE = re.compile(r"\{\{\s*(sample|item)((?:\.[\w-]+)*)\s*\}\}")
_BINARY: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
}  # fmt: skip
_CALLS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil, "exp": math.exp, "sqrt": math.sqrt,
    "log": math.log,
}  # fmt: skip
_MOST_GRADERS = 16


class NoSuchVariable(UserError):
    """A template names what is not there."""


class Wrong(UserError):
    """A formula or a program has no number to give."""


@dataclass(frozen=True)
class Grade:
    """What a grader says of an answer.

    Args:
        reward: of the whole; 0 where something went wrong.
        parts: by name, of the graders of a `multi`.
        variable, formula, program: what went wrong: a template, a formula, a Python grader; empty: nothing.
    """

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    variable: str = ""
    formula: str = ""
    program: str = ""

    @property
    def wrong(self) -> str:
        """What went wrong, if anything."""
        return self.variable or self.formula or self.program


def check(grader: Any, where: str = "grader") -> None:
    """Raises UserError where a description is none that can be followed; the sentence begins with the place."""
    if not isinstance(grader, Mapping):
        raise UserError(f"{where}: a grader is an object with type and name.")
    kind = grader.get("type")
    if kind in _ABSENT:
        raise UserError(f"{where}: there is no {kind} here: {_ABSENT[str(kind)]}.")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise UserError(f"{where}.type: one of {', '.join(_FIELDS)}, not {kind!r}.")
    if not isinstance(grader.get("name"), str):
        raise UserError(f"{where}.name: a text that names the grader.")
    for key in sorted(_FIELDS[kind] - grader.keys()):
        raise UserError(f"{where}.{key} is missing; a {kind} grader has {', '.join(sorted(_FIELDS[kind]))}.")
    for key in sorted(str(key) for key in grader.keys() - _FIELDS[kind] - _MAY_HAVE):
        raise UserError(f"{where}.{key}: a {kind} grader has {', '.join(sorted(_FIELDS[kind]))}.")
    if kind == "multi":
        inner = _inner(grader)
        if not 1 <= len(inner) <= _MOST_GRADERS:
            raise UserError(f"{where}.graders: 1 to {_MOST_GRADERS} graders by name.")
        for name, one in inner.items():
            if isinstance(one, Mapping) and one.get("type") == "multi":
                raise UserError(f"{where}.graders.{name}: a multi grader holds no other one.")
            check(one, f"{where}.graders.{name}")
        _formula(grader["calculate_output"], dict.fromkeys(inner, 1.0), f"{where}.calculate_output", whole=False)
        return
    for key in sorted(_FIELDS[kind]):
        if not isinstance(grader[key], str):
            raise UserError(f"{where}.{key} must be text.")
    if kind == "string_check" and grader["operation"] not in _OPERATIONS:
        raise UserError(f"{where}.operation: one of {', '.join(_OPERATIONS)}.")
    if kind == "text_similarity" and (metric := grader["evaluation_metric"]) not in MEASURES:
        said = f"there is no {metric} here: {_ABSENT[metric]}" if metric in _ABSENT else f"one of {', '.join(MEASURES)}"
        raise UserError(f"{where}.evaluation_metric: {said}.")
    if kind == "python":
        try:
            tree = ast.parse(grader["source"])
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"{where}.source is no Python ({error}).") from None
        if not any(isinstance(node, ast.FunctionDef) and node.name == "grade" for node in tree.body):
            raise UserError(f"{where}.source has to define grade(sample, item).")


def grade(grader: Mapping[str, Any], answer: str, item: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Grade:
    """What a grader that was checked says of an answer.

    Args:
        more: what else a template finds under `sample`.

    Raises:
        RunFailed: a `python` grader where no sandbox holds.
    """
    sample: dict[str, Any] = {**(more or {}), "output_text": answer}
    with contextlib.suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(answer)
    try:
        if grader["type"] != "multi":
            return Grade(_one(grader, sample, item))
        parts = {name: _one(one, sample, item) for name, one in _inner(grader).items()}
    except NoSuchVariable as error:
        return Grade(0.0, variable=str(error))
    except Wrong as error:
        return Grade(0.0, program=str(error))
    try:
        return Grade(_formula(grader["calculate_output"], parts, "calculate_output"), parts)
    except Wrong as error:
        return Grade(0.0, parts, formula=str(error))


def missing(grader: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """What the templates of a grader name and a row does not have; empty: nothing."""
    try:
        for one in _inner(grader).values() if grader["type"] == "multi" else (grader,):
            for key in ("input", "reference"):
                filled(one.get(key, ""), {"output_text": ""}, item)
    except NoSuchVariable as error:
        return str(error)
    return ""


def runs_programs(grader: Mapping[str, Any]) -> bool:
    """Whether a grader that was checked needs a sandbox."""
    every = _inner(grader).values() if grader["type"] == "multi" else (grader,)
    return any(one["type"] == "python" for one in every)


def graded(task: Task, answer: str) -> float:
    """The reward that `task.data["grader"]` gives for the answer to `task.data["item"]`.

    Raises:
        UserError: the task has no grader, or it cannot judge this answer.
        RunFailed: as `grade`.
    """
    grader, item = task.data.get("grader"), task.data.get("item", {})
    check(grader, f"the grader of task {task.id or task.prompt!r}")
    found = grade(grader, answer, item)  # type: ignore[arg-type] # checked
    if found.variable:
        raise UserError(f"the grader of task {task.id or task.prompt!r} cannot judge it: {found.variable}.")
    return found.reward


def _one(grader: Mapping[str, Any], sample: Mapping[str, Any], item: Mapping[str, Any]) -> float:
    if grader["type"] == "python":
        return _run(str(grader["source"]), sample, item)
    text, reference = (filled(grader[key], sample, item) for key in ("input", "reference"))
    if grader["type"] == "string_check":
        return float(_OPERATIONS[grader["operation"]](text, reference))
    return MEASURES[grader["evaluation_metric"]](text, reference)


def _inner(grader: Mapping[str, Any]) -> Mapping[str, Any]:
    """The graders of a `multi` by name; the SDK's types let a single one stand there too."""
    graders = grader["graders"]
    if isinstance(graders, Mapping) and isinstance(graders.get("type"), str):
        return {str(graders.get("name")): graders}
    return graders if isinstance(graders, Mapping) else {}


def filled(template: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """A template with its variables put in.

    Raises:
        NoSuchVariable: one of them is not there.
    """

    def put(found: re.Match[str]) -> str:
        value: Any = sample if found[1] == "sample" else item
        for key in found[2].split(".")[1:]:
            if isinstance(value, Mapping) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                # An answer that is not the JSON that was asked for is wrong, which is no mistake of the grader's.
                if found[1] == "sample" and found[2].startswith(".output_json"):
                    return ""
                raise NoSuchVariable(f"there is no {found[1]}{found[2]}")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _VARIABLE.sub(put, template)


def _run(source: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> float:
    """What `grade(sample, item)` of a program returns, in the sandbox. It cannot know the mark by which its number comes out.

    Raises:
        Wrong: it raises, takes too long, or returns no finite number.
    """
    mark = secrets.token_hex(16)
    asked = ", ".join(repr(json.loads(json.dumps(dict(part)), parse_constant=lambda _: None)) for part in (sample, item))
    tests = f"value = grade({asked})\nassert False, {mark!r} + repr(float(value))"
    found = default_sandbox().run(source, tests, "grade")
    if found.status != "wrong" or not found.error.startswith(mark):
        raise Wrong(f"{found.status}: {found.error}"[:300])
    value = float(found.error[len(mark) :])
    if not math.isfinite(value):
        raise Wrong(f"grade returned {value}")
    return value


def _formula(text: Any, values: Mapping[str, float], where: str, whole: bool = True) -> float:
    """The number that a formula over the graders' names comes to.

    Args:
        whole: it has to come to a finite number; else only its form counts.

    Raises:
        Wrong: it is no formula.
    """

    def number(node: ast.AST) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.Name) and node.id in values:
            return values[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            return -number(node.operand) if isinstance(node.op, ast.USub) else number(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return float(_BINARY[type(node.op)](number(node.left), number(node.right)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS and not node.keywords:
            return float(_CALLS[node.func.id](*map(number, node.args)))
        raise Wrong(
            f"{where}: numbers, {', '.join(values)}, + - * / ^ and {', '.join(_CALLS)} are known, not {ast.unparse(node)!r}"
        )

    if not isinstance(text, str) or len(text) > 1000:
        raise Wrong(f"{where} must be a formula of up to 1,000 characters")
    try:
        # The caret is the power here, and has to bind like it.
        found = number(ast.parse(text.replace("^", "**").strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise Wrong(f"{where} is no formula: {text!r}") from None
    except (ArithmeticError, ValueError, TypeError) as error:
        if not whole:
            return 0.0
        raise Wrong(f"{where} has no value ({error})") from None
    if whole and not math.isfinite(found):
        raise Wrong(f"{where} comes to {found}")
    return found
