"""`/v1/fine_tuning/alpha/graders`: a grader tried on one answer before a job, or an eval, pays by it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import StringConstraints

from tessera.errors import RunFailed, UserError
from tessera.posttrain.verifiers.code import default_sandbox
from tessera.posttrain.verifiers.graders import Grade, check, grade, runs_programs
from tessera.serve.bodies import Body
from tessera.serve.context import Here, in_thread
from tessera.serve.errors import ApiError, invalid

router = APIRouter(tags=["fine-tuning"])


class Validate(Body):
    """The body of `POST /v1/fine_tuning/alpha/graders/validate`."""

    grader: dict[str, Any]


class Run(Validate):
    """The body of `POST /v1/fine_tuning/alpha/graders/run`; `reference_answer` is of the API's first form."""

    model_sample: Annotated[str, StringConstraints(max_length=1 << 20)]
    item: dict[str, Any] = {}
    reference_answer: Any = None


@router.post("/v1/fine_tuning/alpha/graders/validate")
async def validate(body: Validate, here: Here) -> dict[str, Any]:
    """Says whether a grader can be followed."""
    checked_grader(body.grader)
    return {"grader": body.grader}


@router.post("/v1/fine_tuning/alpha/graders/run")
async def run(body: Run, here: Here) -> dict[str, Any]:
    """What a grader says of an answer."""
    checked_grader(body.grader)
    item = body.item if body.reference_answer is None else {"reference_answer": body.reference_answer} | body.item
    start = time.perf_counter()
    found = await in_thread(graded, body.grader, body.model_sample, item)
    errors = dict.fromkeys(_ERRORS, False) | {
        "formula_parse_error": bool(found.formula),
        "invalid_variable_error": bool(found.variable),
        "python_grader_runtime_error": bool(found.program),
        "python_grader_runtime_error_details": found.program or None,
        "python_grader_server_error_type": None,
        "model_grader_server_error_details": None,
    }
    return {
        "reward": found.reward,
        "sub_rewards": dict(found.parts),
        "model_grader_token_usage_per_model": {},
        "metadata": {
            "name": body.grader["name"],
            "type": body.grader["type"],
            "errors": errors,
            "execution_time": round(time.perf_counter() - start, 6),
            "scores": dict(found.parts) or {body.grader["name"]: found.reward},
            "token_usage": None,
            "sampled_model_name": None,
        },
    }


def checked_grader(grader: Mapping[str, Any], within: str = "") -> None:
    """Raises ApiError, 400, where a grader cannot be followed; it names the field.

    Args:
        within: where the grader stands in the body.
    """
    try:
        check(grader)
    except UserError as error:
        place = str(error).split(":")[0].split(" ")[0]
        raise invalid(f"{error}"[:1000], f"{within}.{place}" if within else place, "invalid_grader") from None


def graded(grader: Mapping[str, Any], answer: str, item: Mapping[str, Any]) -> Grade:
    """As `grade`.

    Raises:
        ApiError: 400, there is no sandbox for a Python grader here.
    """
    need_sandbox(grader)
    return grade(grader, answer, item)


def need_sandbox(grader: Mapping[str, Any], param: str = "grader") -> None:
    """Raises ApiError, 400, where a grader that was checked holds a program and there is no sandbox here. The first time takes a
    second or two."""
    try:
        if runs_programs(grader):
            default_sandbox()
    except RunFailed as error:
        raise ApiError(400, f"Python graders cannot run here: {error}", param, "sandbox_unavailable") from None


_ERRORS = (
    "formula_parse_error", "invalid_variable_error", "model_grader_parse_error", "model_grader_refusal_error",
    "model_grader_server_error", "other_error", "python_grader_runtime_error", "python_grader_server_error", "sample_parse_error",
    "truncated_observation_error", "unresponsive_reward_error",
)  # fmt: skip
