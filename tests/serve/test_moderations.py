"""`/v1/moderations` by the unmodified SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from openai import OpenAI

from tessera.engine.moderation import CATEGORIES
from tessera.serve.models import Kept

from .conftest import CONTEXT, Running, make_model


@pytest.fixture
def guard(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random model that covers two categories: one of which it flags everything, one of which nothing."""
    folder = make_model(tmp_path_factory.mktemp("models") / "guard", seed=3)
    head = {"hate": {"id": 300, "threshold": -0.1}, "sexual/minors": {"id": 301, "threshold": 1.1}}
    (folder / "moderation.json").write_text(json.dumps(head))
    running.models.keep(Kept("guard", folder, "", 1, CONTEXT, True))
    yield folder
    running.models.remove("guard")


def test_a_text_is_judged_in_the_categories_that_are_covered(client: OpenAI, guard: Path) -> None:
    # Without a model the SDK asks for OpenAI's newest.
    made = client.moderations.create(input="some words")
    (result,) = made.results
    assert made.id.startswith("modr-") and made.model == "guard" and result.flagged
    assert result.categories.hate is True and result.categories.sexual_minors is False
    assert 0 < result.category_scores.hate < 1 and result.category_applied_input_types.hate == ["text"]
    # Of the others nothing is known, which is not the same as no.
    assert result.categories.violence is None and result.category_scores.violence is None
    assert result.category_applied_input_types.violence == []
    raw = httpx2.post(str(client.base_url) + "moderations", json={"input": "x"}, timeout=30).json()["results"][0]
    assert list(raw["categories"]) == list(raw["category_scores"]) == list(CATEGORIES)


def test_many_texts_are_judged_each_by_itself_in_their_order(client: OpenAI, guard: Path) -> None:
    texts = [f"{'word ' * (number % 5)}{number}" for number in range(40)] + ["long " * 1500]
    together = client.moderations.create(model="guard", input=texts).results
    for at in (0, 13, 39, 40):
        alone = client.moderations.create(model="text-moderation-latest", input=texts[at]).results[0]
        assert alone.category_scores.hate == pytest.approx(together[at].category_scores.hate, abs=1e-5)
    assert len({round(result.category_scores.hate, 6) for result in together}) > 20


def test_the_parts_of_a_mixed_input_are_one_thing(client: OpenAI, guard: Path) -> None:
    each = client.moderations.create(input=["one", "two"]).results
    (both,) = client.moderations.create(input=[{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]).results
    assert both.category_scores.hate == pytest.approx(max(result.category_scores.hate for result in each), abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="no pictures"):
        client.moderations.create(input=[{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}])


@pytest.mark.parametrize("input", ["", [], ["x", ""], [{"type": "text", "text": ""}], 3, [3], [{"type": "sound"}], ["x"] * 1025])
def test_what_is_no_text_is_refused(client: OpenAI, guard: Path, input: object) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.moderations.create(input=input)  # type: ignore[arg-type]
    assert refused.value.param and refused.value.param.startswith("input")


def test_other_models_do_not_moderate(client: OpenAI, guard: Path) -> None:
    shown = {model.id: model.moderation for model in client.models.list()}  # type: ignore[attr-defined]
    assert shown["guard"] is True and shown["tiny"] is False
    with pytest.raises(openai.BadRequestError, match="no moderation model"):
        client.moderations.create(model="tiny", input="x")
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.moderations.create(model="nobody", input="x")


def test_where_none_is_served_it_is_said_how_to_make_one(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tessera posttrain moderation"):
        client.moderations.create(input="x")
