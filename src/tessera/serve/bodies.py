"""What all request bodies share: strict types, JSON null as absent, and the fields that several routes have."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tessera.engine.sampling import SamplingParams
from tessera.tokens.text import scalar_json


class Part(BaseModel):
    """An object inside of a body. Fields that it does not know are let through: clients send back what they were sent."""

    model_config = ConfigDict(strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, Mapping) else given


class Body(Part):
    """The body of a request. A field that it does not know is an error, as a typing mistake would else go unnoticed."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_json(cls, given: Any) -> Any:
        """Halves of surrogate pairs, as a client that cuts an emoji in two sends them, become U+FFFD, and NaN null."""
        try:
            return scalar_json(given)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None


Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]
"""Up to 16 pairs of short texts that clients attach to objects."""

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
TokenCount = Annotated[int, Field(ge=1, le=2**31)]
LogitBias = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=1024),
]
Stop = str | Annotated[list[Annotated[str, StringConstraints(min_length=1)]], Field(max_length=4)]


class Sampled(Body):
    """How answers are sampled. What OpenAI does not have goes by the names that vLLM gave it, sent by `extra_body`."""

    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    seed: Seed | None = None
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0

    def sampling(self, answers: int, **own: Any) -> list[SamplingParams]:
        """For so many answers to one prompt, each with a seed of its own; `own`: what else the route has."""
        seed = secrets.randbits(62) if self.seed is None else self.seed
        return [
            SamplingParams(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                seed=seed + number,
                **own,
            )
            for number in range(answers)
        ]


def stop_strings(stop: Stop | None) -> tuple[str, ...]:
    """None, one or several as a tuple; an empty string stops nothing."""
    return (stop,) if isinstance(stop, str) and stop else tuple(stop or ())
