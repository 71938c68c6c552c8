"""The seal of a forecast, and the verdict on the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tessera.errors import UserError
from tessera.scaling import seal

INGREDIENTS = {"code": "c", "data": "d", "tokenizer": "t", "recipe": "r"}
PAGE: dict[str, Any] = {
    "loss": 2.0,
    "sd": 0.01,
    "degrees": 4.0,
    "intervals": {"0.5": [1.98, 2.02], "0.8": [1.96, 2.04], "0.9": [1.94, 2.06], "0.99": [1.9, 2.1]},
    "target": {"C": 1e13},
    "run": "runs/one",
    "made": "then",
    "reach": 8.0,
    "fit": {"form": "frontier"},
}


def test_a_sealed_forecast_is_whole_until_anything_is_changed(tmp_path: Path) -> None:
    seal.seal(tmp_path, PAGE, INGREDIENTS)
    page = seal.read(tmp_path)
    assert page is not None and seal.broken(page, INGREDIENTS) is None
    page["intervals"]["0.9"][1] = 2.2
    assert seal.broken(page, INGREDIENTS) == "forecast.json was changed after it was sealed"


@pytest.mark.parametrize("name", seal.INGREDIENTS)
def test_another_ingredient_than_the_sealed_one_is_named(tmp_path: Path, name: str) -> None:
    page = seal.seal(tmp_path, PAGE, INGREDIENTS)
    assert seal.broken(page, INGREDIENTS | {name: "other"}) == f"the {name} changed after the forecast was sealed"


def test_a_forecast_that_is_no_json_is_refused_in_words(tmp_path: Path) -> None:
    assert seal.read(tmp_path) is None
    (tmp_path / seal.FILE).write_text('{"loss": 2')
    with pytest.raises(UserError, match="is not JSON"):
        seal.read(tmp_path)
    for text in ("[1]", "7", "null", '"seal"'):
        (tmp_path / seal.FILE).write_text(text)
        with pytest.raises(UserError, match="does not hold a forecast"):
            seal.read(tmp_path)


@pytest.mark.parametrize("name", [*PAGE, *seal.INGREDIENTS])
def test_a_forecast_that_lacks_a_part_is_refused_in_words(tmp_path: Path, name: str) -> None:
    page = seal.seal(tmp_path, PAGE, INGREDIENTS)
    (tmp_path / seal.FILE).write_text(json.dumps({k: v for k, v in page.items() if k != name}))
    with pytest.raises(UserError, match=f"lacks '{name}'; bring the file back"):
        seal.read(tmp_path)
    (tmp_path / seal.FILE).write_text(json.dumps(page | {name: []}))
    with pytest.raises(UserError, match="does not hold a forecast"):
        seal.read(tmp_path)


def test_a_refused_forecast_is_read_with_and_without_a_loss(tmp_path: Path) -> None:
    for page in ({"reasons": ["few"]}, {"reasons": ["few"], "loss": 2.0, "intervals": PAGE["intervals"]}):
        (tmp_path / seal.FILE).write_text(json.dumps(page))
        assert seal.read(tmp_path) == page
    (tmp_path / seal.FILE).write_text(json.dumps({"loss": 2.0}))
    with pytest.raises(UserError, match="lacks 'reasons'"):
        seal.read(tmp_path)


@pytest.mark.parametrize(
    ("loss", "inside"),
    [
        (2.0, [True, True, True, True]),
        (2.03, [False, True, True, True]),
        (1.945, [False, False, True, True]),
        (2.08, [False, False, False, True]),
        (2.5, [False] * 4),
    ],
)
def test_the_verdict_says_which_intervals_held(loss: float, inside: list[bool]) -> None:
    verdict = seal.judge(PAGE, loss)
    assert list(verdict.inside.values()) == inside
    assert verdict.miss == pytest.approx(loss / 2 - 1) and verdict.z == pytest.approx(math.log(loss / 2) / 0.01)
    assert json.loads(json.dumps(verdict.to_json()))["inside"] == verdict.inside


def test_the_level_is_that_of_the_interval_which_just_holds_the_loss() -> None:
    # Student's t with 4 degrees: 90 % within 2.132 standard deviations.
    assert seal.judge(PAGE, 2 * math.exp(-0.02132)).level == pytest.approx(0.9, abs=1e-4)
    assert seal.judge(PAGE, 2.0).level == 0.0


def test_the_interval_score_is_the_width_and_a_fine_for_a_miss() -> None:
    # Gneiting and Raftery 2007, equation 43, in parts of the foretold loss: width .06, a miss of .02 at alpha .1 costs .4.
    assert seal.judge(PAGE, 2.0).interval_score == pytest.approx(0.06)
    assert seal.judge(PAGE, 2.10).interval_score == pytest.approx(0.06 + 20 * 0.02)
    assert seal.judge(PAGE, 1.90).interval_score == pytest.approx(0.06 + 20 * 0.02)


def rows(shape: float) -> list[dict[str, Any]]:
    """Rungs whose curve at a part p of the run stands at loss (1 + (1 - p) (.3 + shape log10 C))."""
    made = []
    for exponent in range(10, 15):
        loss = 1.0 + 10 ** (3 - 0.2 * exponent)
        curve = [[p / 10, loss * math.exp((1 - p / 10) * (0.3 + shape * exponent))] for p in range(1, 10)]
        made.append({"C": 10.0**exponent, "loss": loss, "curve": curve})
    return made


def test_the_course_of_a_run_follows_from_the_curves_of_the_rungs() -> None:
    for part, ratio, sd in seal.course(rows(-0.01), 1e15):
        assert ratio == pytest.approx(math.exp((1 - part) * (0.3 - 0.15)), rel=1e-6) and sd == pytest.approx(0.003)


def test_the_rows_of_the_curve_may_be_harder_than_those_of_the_final_loss() -> None:
    harder = rows(-0.01)
    for number, row in enumerate(harder):
        factor = 1 + 0.01 * number
        row |= {"curve": [[part, loss * factor] for part, loss in row["curve"]], "way_loss": row["loss"] * factor}
    for found, wanted in zip(seal.course(harder, 1e15), seal.course(rows(-0.01), 1e15), strict=True):
        assert found == pytest.approx(wanted)


def test_a_top_rung_that_left_the_course_of_the_others_widens_it() -> None:
    bent = rows(-0.01)
    bent[-1]["curve"] = [[part, bent[-1]["loss"] * math.exp((1 - part) * 0.1)] for part, _ in bent[-1]["curve"]]
    expected = 0.5 * (0.3 - 0.14)  # of the top rung by the others, at half of its way; it stands at half of 0.1
    part, _, sd = seal.course(bent, 1e15)[4]
    assert part == 0.5 and sd > expected - 0.05


def test_the_band_narrows_towards_the_end_and_holds_the_forecast() -> None:
    band = seal.band(PAGE, rows(-0.01), 1e15)
    assert [row["part"] for row in band] == [p / 10 for p in range(1, 10)]
    for row in band:
        low, high = row["intervals"]["0.9"]
        assert low < row["loss"] < high and (high - low) / row["loss"] >= 0.06
        assert row["intervals"]["0.99"][0] < low and high < row["intervals"]["0.99"][1]


def test_too_few_curves_give_no_band() -> None:
    assert seal.band(PAGE, rows(0.0)[:3], 1e15) == []
