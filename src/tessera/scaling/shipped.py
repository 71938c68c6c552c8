"""Ladders that ship with a recipe, for budgets that leave no time to train one.

Below some budget the rungs would be smaller than anything a law holds for, or cost more than the run. For recipes that are
tried in minutes the finished rungs stand beside the recipe's page, `NAME.ladder.json`, with where and of what they were made
(`benchmarks/shipped_ladder.py` makes them anew). What is foretold from them is sealed and judged like any other forecast, and
says that its ladder came with the recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tessera.recipe import Recipe

_BESIDE_THE_LOSS = ("seed", "threads", "workers", "micro_rows", "compile", "checkpoint_seconds", "track", "sample_prompts")
"""Settings of `train` in which a run may differ from the recipe and still be foretold by its ladder."""


@dataclass(frozen=True)
class Origin:
    """Where the rungs of a shipped ladder come from.

    Args:
        made: time, ISO 8601.
        commit: of the code that trained them.
        machine: in words.
        python: version of the interpreter, whose library is part of what was read.
        data: hash of the token files.
    """

    made: str
    commit: str | None
    machine: str
    python: str
    data: str


@dataclass(frozen=True)
class Shipped:
    """A ladder that was trained before, elsewhere.

    Args:
        rows: of its rungs, as `ladder.table` gives them.
    """

    rows: list[dict[str, Any]]
    origin: Origin


def find(intent: Recipe) -> Shipped | None:
    """The ladder that ships with a recipe; None where there is none, or what was set makes it another recipe.

    Args:
        intent: the recipe as the person wrote it.
    """
    page = resources.files("tessera.recipes") / file_of(intent.name)
    if not page.is_file():
        return None
    found = json.loads(page.read_text(encoding="utf-8"))
    return Shipped(found["rows"], Origin(**found["origin"])) if found["recipe"] == essence(intent) else None


def write(path: Path, intent: Recipe, shipped: Shipped) -> None:
    """Stores a ladder, a rung to a line."""
    rows = ",\n  ".join(json.dumps(row) for row in shipped.rows)
    head = f'"recipe": {json.dumps(essence(intent))},\n "origin": {json.dumps(asdict(shipped.origin))}'
    path.write_text(f'{{{head},\n "rows": [\n  {rows}\n ]}}\n', encoding="utf-8")


def file_of(name: str) -> str:
    """Name of the file beside a recipe's page."""
    return f"{name}.ladder.json"


def essence(intent: Recipe) -> Mapping[str, Any]:
    """What of a recipe decides the law of its loss, as plain data."""
    page = intent.model_dump(mode="json", include={"data", "model", "tokenizer", "train"})
    for key in _BESIDE_THE_LOSS:
        del page["train"][key]
    return page
