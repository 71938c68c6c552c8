"""Recipes: pages, budgets, overrides, and the sentence where one is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tessera import recipe
from tessera.errors import UserError
from tessera.recipe import Budget


@pytest.mark.parametrize("name", recipe.shipped())
def test_shipped_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    page = recipe.load(name)
    assert page.name == name and page.summary.endswith(".")
    (tmp_path / "page.yaml").write_text(page.to_yaml(), encoding="utf-8")
    again = recipe.load(str(tmp_path / "page.yaml"))
    assert again == page and again.fingerprint() == page.fingerprint()


numbers = st.floats(0.001, 1e6, allow_nan=False).map(lambda x: f"{x:.6g}")


@given(numbers, st.sampled_from([("s", 1), ("m", 60), ("h", 3600), ("H", 3600)]))
def test_budgets_in_time(number: str, unit: tuple[str, int]) -> None:
    assert Budget.parse(number + unit[0]) == Budget(seconds=float(number) * unit[1])


@given(st.integers(1, 10**6), st.sampled_from([("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9), ("b", 10**9)]))
def test_budgets_in_tokens(number: int, unit: tuple[str, int]) -> None:
    assert Budget.parse(f"{number}{unit[0]}tok") == Budget(tokens=number * unit[1])


@given(st.floats(1, 1e26))
def test_budgets_in_flops_and_money(number: float) -> None:
    assert Budget.parse(f"{number!r}") == Budget(flops=number)
    assert Budget.parse(f"${number!r}") == Budget(dollars=number)


@given(st.text(max_size=12))
def test_any_other_text_is_refused_by_a_value_error(text: str) -> None:
    try:
        found = Budget.parse(text)
    except ValueError:
        return
    assert sum(value is not None for value in found.model_dump().values()) == 1


@pytest.mark.parametrize(
    "text", ["0s", "0", "0tok", "$0", "-5m", "5 minutes", "1e", "nan", "inf", "1e999", "1e999s", "1e999tok", "0.4tok", ""]
)
def test_budgets_that_are_nothing_or_nonsense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["1e17", "100000", "1.5e+17"])
def test_a_bare_number_is_a_budget_in_flops(text: str, tmp_path: Path) -> None:
    assert Budget.parse(recipe.load("text", [f"budget={text}"]).budget).flops == float(text)
    (tmp_path / "page.yaml").write_text(recipe.load("text").to_yaml().replace("budget: 20m", f"budget: {text}"), encoding="utf-8")
    assert Budget.parse(recipe.load(str(tmp_path / "page.yaml")).budget).flops == float(text)


def test_overrides_are_yaml_values_at_any_depth() -> None:
    page = recipe.load(
        "text",
        [
            "train.adam_rate=3e-4",
            "train.tokens=5000",
            "data.document_mask=true",
            "train.sample_prompts=['a: b', c]",
            "budget='2h'",
            "data.sources=[{uri: 'files:x', weight: 2}, 'files:y']",
            "model.width=null",
        ],
    )
    assert page.train.adam_rate == 3e-4 and page.train.tokens == 5000 and page.data.document_mask is True
    assert page.train.sample_prompts == ("a: b", "c") and page.budget == "2h" and page.model.width is None
    assert [(s.uri, s.weight) for s in page.data.sources] == [("files:x", 2.0), ("files:y", None)]


@given(st.text(max_size=20))
def test_no_override_ends_in_anything_but_a_recipe_or_one_sentence(text: str) -> None:
    for override in (text, f"train.seed={text}", f"{text}=1", f"name.{text}=1"):
        try:
            recipe.load("text", [override])
        except UserError as error:
            assert str(error).endswith(".")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.colour=red", "train.colour: is not a known key; known here: tokens"),
        ("colour=red", "colour: is not a known key; known here: name"),
        ("data.sources=[{uri: x, size: 3}]", "size: is not a known key; known here: uri, weight, epochs"),
        ("train.context=4", "train.context: input should be greater than or equal to 8 (got 4)"),
        ("train=3", "train: is a part with keys, not a value; known here: tokens"),
        ("data.films=yes", "data.films: is a part with keys, not a value; known here: quantizer"),
        ("data.sources=5", "data.sources: write a list of at least one source, like ['files:mydocs/'] (got 5)."),
        ("data.sources=[]", "data.sources: write a list of at least one source, like ['files:mydocs/']."),
        ("data.sources=[5]", "data.sources.0: is a part with keys, not a value; known here: uri, weight"),
        ("train.sample_prompts=5", "train.sample_prompts: write a list in brackets, like [1, 2] (got 5)."),
        ("data.films.quantizer.levels=[]", "levels: the list has 0 entries; give at least"),
        ("train.recompute=7", "train.recompute: write true or false (got 7)."),
        ("budget='{x}'", "budget '{x}' is not a time"),
        ("name=[a]", "name: write a text, in quotes"),
        ("budget.seconds=3", "budget is a value, not a part with keys"),
        ("train.seed=[", "is not a YAML value"),
        ("budget=$5", "a budget in money needs price_per_hour"),
    ],
)
def test_what_is_wrong_is_named(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.load("text", [override])
    assert sentence in str(caught.value)


def test_the_page_is_written_out_in_full() -> None:
    page = yaml.safe_load(recipe.load("code").to_yaml())
    assert set(page["train"]) == set(recipe.Train.model_fields) and set(page["data"]) == set(recipe.Data.model_fields)


def test_a_budget_of_time_leaves_a_fifth_to_each_quantizer_that_is_trained() -> None:
    film = recipe.load("film", ["budget=10m"]).timed()
    assert film.data.films and film.data.films.quantizer.seconds == 120
    assert film.timed() == film
    # A loss that is aimed at changes the budget, not the quantizer.
    assert film.model_copy(update={"budget": "1e15"}).timed() == film.model_copy(update={"budget": "1e15"})
    named = ("data.films.quantizer.steps=7", "data.films.quantizer.seconds=9", 'data.films.trained="ids"', "budget=1e15")
    for one in named:
        kept = recipe.load("film", ["budget=10m", one])
        assert kept.timed() == kept
    draw = recipe.load("draw", ["budget=10m"])
    assert draw.timed() == draw
    patches = recipe.load("draw", ["budget=10m", "data.pictures.quantizer={}"]).timed().data.pictures
    assert patches and patches.quantizer and patches.quantizer.seconds == 120
