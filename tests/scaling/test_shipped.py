"""Ladders that ship with recipes: what they are of, and that they are still what the rules make of their budgets."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from tessera import recipe as recipes
from tessera.scaling import ladder, rules, shipped

SHIPPED = [name for name in recipes.shipped() if (resources.files("tessera.recipes") / shipped.file_of(name)).is_file()]


def test_the_quickstart_has_one() -> None:
    assert "quickstart" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_its_rungs_are_those_that_the_rules_make_today(name: str) -> None:
    intent = recipes.load(name)
    found = shipped.find(intent)
    assert found is not None, f"{name}.yaml is not the recipe of its ladder any more: make that anew (docs/forecasts.md)"
    for row in found.rows:
        rung = intent.model_copy(update={"budget": f"{row['budget']:.6e}"})
        planned = rules.resolve(rung, rules.Facts(None, 1e12, media_ids=17))
        assert planned.recipe.train.tokens
        assert row["N"] == pytest.approx(planned.shape.matmul_parameters, rel=0.02), row["budget"]
        assert row["D"] == pytest.approx(planned.recipe.train.tokens * (1 - row["padding"]), rel=0.02), row["budget"]
    runs = ladder.runs(found.rows)
    assert len(runs) >= 6 and runs.C.max() / runs.C.min() > 10**1.5 * 0.99


def test_only_the_recipe_itself_has_it(tmp_path: Path) -> None:
    intent = recipes.load("quickstart")
    for same in ("budget=1h", "train.seed=4", "train.threads=1", "train.sample_prompts=[]"):
        assert shipped.find(recipes.load("quickstart", [same])) is not None
    for other in ("model.layers=2", "train.batch_rows=4", "tokenizer.vocabulary_size=257", "data.seed=1"):
        assert shipped.find(recipes.load("quickstart", [other])) is None
    assert shipped.find(recipes.load("code")) is None
    assert shipped.find(intent.model_copy(update={"name": "mine"})) is None


def test_what_is_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intent = recipes.load("quickstart")
    origin = shipped.Origin("2026-12-01T00:00:00+00:00", None, "a machine", "3.11.0", "f00d")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    made = shipped.Shipped([{"C": 1e12, "loss": 2.25}, {"C": 2e12, "loss": 2.125}], origin)
    shipped.write(tmp_path / "quickstart.ladder.json", intent, made)
    assert shipped.find(intent) == made
    assert len((tmp_path / "quickstart.ladder.json").read_text().splitlines()) == 6
    assert json.loads((tmp_path / "quickstart.ladder.json").read_text())["rows"][1]["loss"] == 2.125
