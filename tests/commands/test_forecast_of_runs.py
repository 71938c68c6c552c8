"""A run with its forecast: the ladder, the seal, the band on the way, the verdict, the ledger; and where there is none."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tessera import recipe as recipes
from tessera.commands import foretell
from tessera.commands import train as training
from tessera.commands.verdict import show_ledger
from tessera.run import RunFolder
from tessera.scaling import ladder, ledger, rules, seal, shipped
from tessera.scaling.rung import RESULT
from tessera.train.loop import total_steps

# Rungs of hundreds of tokens: what they lose is written by the test, so that no time is spent on them.
SMALL = (
    "train.compile=false",
    "train.context=16",
    "model.width=16",
    "train.batch_rows=16",
    "train.micro_rows=16",
    "train.evaluate_every=20",
)


def law(flops: float, bend: float = 0.0) -> float:
    """A loss that follows the frontier's form, or bends away from it."""
    return 1.5 + 60 * flops**-0.15 - bend * math.log10(flops) ** 2


@pytest.fixture
def known_ladder(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Every rung that is asked for is there already, with the loss of `law`."""
    options = {"bend": 0.0}
    design = ladder.design

    def with_results(*args: Any, **kwargs: Any) -> list[ladder.Rung]:
        rungs = design(*args, **kwargs)
        for rung in rungs:
            rung.path.mkdir(parents=True, exist_ok=True)
            loss = law(rung.flops, options["bend"])
            curve = [[p / 10, loss * math.exp(0.3 * (1 - p / 10))] for p in range(1, 10)]
            found = {"N": rung.shape.matmul_parameters, "D": rung.tokens, "C": rung.flops, "loss": loss, "curve": curve}
            found["bits_per_byte"] = 0.5 * loss
            (rung.path / RESULT).write_text(json.dumps({**found, "padding": 0.0}))
        return rungs

    monkeypatch.setattr(ladder, "design", with_results)
    return options


def train(corner: Any, out: Path, *more: str, budget: str = "120ktok") -> str:
    code, said = corner.call(*corner.words(out, *SMALL, *more, "--forecast", budget=budget))
    assert code == 0, said
    return str(said)


INGREDIENTS = dict.fromkeys(seal.INGREDIENTS, "same")


def ended(path: Path, loss: float | None) -> RunFolder:
    """A folder as after a run that was foretold at 2.0 nats and ended with that loss; None: that has not ended."""
    planned = rules.resolve(recipes.load("text", []).model_copy(update={"budget": "1e11"}), rules.Facts(None, 1e11)).recipe
    folder = RunFolder.create(path, planned)
    page: dict[str, Any] = {"run": path.name, "made": "then", "target": {"C": 1e11}, "fit": {"form": "frontier"}}
    page |= {"loss": 2.0, "sd": 0.01, "reach": 8.0, "degrees": 4.0}
    page["intervals"] = {str(level): [1.9, 2.1] for level in seal.LEVELS}
    seal.seal(path, page, INGREDIENTS)
    foretell.launched(path)
    if loss is not None:
        folder.record({"event": "evaluation", "final": True, "step": total_steps(planned), "loss": loss})
    folder.unlock()
    return folder


def test_a_sealed_forecast_is_judged_and_entered(corner: Any, tmp_path: Path, known_ladder: dict[str, float]) -> None:
    run = tmp_path / "runs" / "one"
    said = train(corner, run)
    assert "forecast: held-out loss" in said and "sealed as" in said and "verdict: " in said
    assert "that is about" in said and "bits per byte" in said
    page = json.loads((run / seal.FILE).read_text())
    assert page["loss"] == pytest.approx(law(page["target"]["C"]), rel=0.01)
    assert page["units"] == {"byte": pytest.approx(0.5)}
    assert page["intervals"]["0.5"][0] > page["intervals"]["0.9"][0] and 7.5 < page["reach"] < 10.5
    verdict = json.loads((run / foretell.VERDICT).read_text())
    measured = corner.events(run, "evaluation")[-1]
    assert measured["final"] and verdict["loss"] == measured["loss"] and verdict["void"] is None
    assert verdict["miss"] == pytest.approx(measured["loss"] / page["loss"] - 1)
    book = ledger.read(tmp_path / "runs" / ledger.FILE)
    assert [(e.seal, e.state) for e in book.entries] == [(page["seal"], "judged")]
    # A second look changes nothing.
    code, said = corner.call("verdict", str(run))
    assert code == 0 and len((tmp_path / "runs" / ledger.FILE).read_text().splitlines()) == 2
    html = (run / "report.html").read_text()
    assert "Forecast and verdict" in html and "forecast of the held-out loss, 90 %" in html


def test_a_verdict_that_the_ledger_does_not_hold_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, book = tmp_path / "x", tmp_path / ledger.FILE
    ended(folder, loss=2.05)
    assert foretell.conclude(RunFolder.open(folder), INGREDIENTS)
    lines = book.read_text().splitlines()

    def told() -> str:
        show_ledger(str(tmp_path), as_json=False)
        return capsys.readouterr().out

    assert "warning" not in told() and f"head: {hashlib.sha256(lines[1].encode()).hexdigest()[:12]}\n" in told()
    book.write_text("\n".join([lines[0], lines[1].replace('"miss": 0.02', '"miss": 0.01')]) + "\n")
    assert "x has a verdict that the ledger does not hold" in told()
    book.write_text(lines[0] + "\n")
    assert "x has a verdict that the ledger does not hold" in told()
    book.write_text("\n".join(lines) + "\n")
    (folder / foretell.VERDICT).unlink()
    assert "the ledger holds a verdict on" in told()
    # What a crash between the line and the file left out is written again.
    foretell.conclude(RunFolder.open(folder), INGREDIENTS)
    assert "warning" not in told() and book.read_text().splitlines() == lines
    # A verdict of before 2026-12 does not name its line.
    page = json.loads((folder / foretell.VERDICT).read_text())
    del page["ledger"]
    (folder / foretell.VERDICT).write_text(json.dumps(page))
    assert "warning" not in told()


def test_the_code_that_counts_is_the_one_that_ran(
    corner: Any, tmp_path: Path, known_ladder: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, through = {"hash": "sealed"}, training.run
    monkeypatch.setattr(ladder, "code_hash", lambda: code["hash"])

    def edited_meanwhile(*args: Any) -> Any:
        code["hash"] = "edited"
        return through(*args)

    monkeypatch.setattr(training, "run", edited_meanwhile)
    train(corner, tmp_path / "run")
    (entry,) = ledger.read(tmp_path / ledger.FILE).entries
    assert entry.state == "judged"


def test_a_run_that_leaves_its_band_says_so_once(corner: Any, tmp_path: Path, known_ladder: dict[str, float]) -> None:
    # The law of this test has nothing to do with the text, so the run is far outside.
    said = train(corner, tmp_path / "run")
    assert said.count("the run left the 99 % band") == 1 and "OUTSIDE its 99 % band" in said
    assert "the run left the 99 % band" in (tmp_path / "run" / "report.html").read_text()


def test_a_ladder_that_accelerates_is_refused_and_the_run_goes_on(
    corner: Any, tmp_path: Path, known_ladder: dict[str, float]
) -> None:
    known_ladder["bend"] = 0.02
    said = train(corner, tmp_path / "run")
    assert "the forecast is refused, and is not sealed" in said and "verdict" not in said
    page = json.loads((tmp_path / "run" / seal.FILE).read_text())
    assert page["refused"] and page["reasons"] and "seal" not in page
    assert not (tmp_path / ledger.FILE).exists() and "Not sealed." in (tmp_path / "run" / "report.html").read_text()
    code, said = corner.call("verdict", str(tmp_path / "run"))
    assert code == 2 and "was refused and never sealed" in said


def test_a_forecast_that_is_touched_makes_the_verdict_void(corner: Any, tmp_path: Path, known_ladder: dict[str, float]) -> None:
    run = tmp_path / "run"
    train(corner, run)
    page = json.loads((run / seal.FILE).read_text())
    page["intervals"]["0.9"][1] *= 2
    (run / seal.FILE).write_text(json.dumps(page))
    (tmp_path / ledger.FILE).unlink()
    code, _said = corner.call("verdict", str(run))
    assert code == 0
    entry = ledger.read(tmp_path / ledger.FILE).entries[0]
    assert entry.state == "void" and entry.verdict and "was changed after it was sealed" in entry.verdict["void"]


def test_a_forecast_that_was_sealed_anew_after_the_run_began_is_void(tmp_path: Path) -> None:
    folder = ended(tmp_path / "run", loss=3.0)
    page = seal.read(folder.path)
    assert page is not None
    first = page["seal"]
    (folder.checkpoints / "step-1").mkdir(parents=True)
    seal.seal(folder.path, page | {"loss": 3.0, "intervals": {str(level): [2.9, 3.1] for level in seal.LEVELS}}, INGREDIENTS)
    foretell.launched(folder.path)  # as --resume does
    verdict = foretell.conclude(folder, INGREDIENTS)
    assert verdict and verdict.void == "forecast.json is not the one that was sealed when the run began"
    (entry,) = ledger.read(tmp_path / ledger.FILE).entries
    assert entry.seal == first and entry.state == "void"


def planned_and_climbed(size: float = 1.0, **more: Any) -> tuple[rules.Plan, foretell.Climbed]:
    """A planned run and the ladder below it, on a path that comes to `size` times its parameters; `more` for every row."""
    planned = rules.resolve(recipes.load("text", []).model_copy(update={"budget": "1e14"}), rules.Facts(None, 1e11))
    target = foretell.target_of(planned, foretell.Climbed([{"padding": 0.0}]))
    assert target.C and target.N
    rows = []
    for number in range(6):
        C = target.C / 8 / 2**number
        N = size * target.N * (C / target.C) ** 0.5
        rows.append({"budget": C, "seed": 0, "N": N, "D": C / 6 / N, "C": C, "loss": law(C), "curve": [], "padding": 0.0, **more})
    return planned, foretell.Climbed(rows)


def test_a_ladder_that_ships_with_the_recipe_foretells_where_none_is_trained(
    corner: Any,
    tmp_path: Path,
    known_ladder: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(corner, tmp_path / "other" / "one")
    foretold = json.loads((tmp_path / "other" / "one" / seal.FILE).read_text())
    origin = shipped.Origin("2026-12-01T01:02:03+00:00", "abc", "nine cores", "2.7.18", "other data")
    monkeypatch.setattr(shipped, "find", lambda intent: shipped.Shipped(foretold["ladder"], origin))
    words = corner.words(tmp_path / "runs" / "one", *SMALL, budget="120ktok")
    code, said = corner.call(*words)
    assert code == 0 and "that ship with the recipe, trained 2026-12-01 elsewhere (nine cores)" in said, said
    assert "no forecast" not in said and "sealed as" in said and "verdict: " in said
    assert "note: The ladder read the library of Python 2.7.18" in said
    page = json.loads((tmp_path / "runs" / "one" / seal.FILE).read_text())
    assert page["loss"] == pytest.approx(foretold["loss"]) and page["shipped"]["commit"] == "abc" and foretold["shipped"] is None
    (entry,) = ledger.read(tmp_path / "runs" / ledger.FILE).entries
    assert entry.sealed["shipped"] and not ledger.read(tmp_path / "other" / ledger.FILE).entries[0].sealed["shipped"]
    for folder, marked in (("runs", True), ("other", False)):
        show_ledger(str(tmp_path / folder), as_json=False)
        assert ("by a ladder that ships" in capsys.readouterr().out) is marked
    report = (tmp_path / "runs" / "one" / "report.html").read_text()
    assert "small runs that ship with the recipe, trained 2026-12-01 elsewhere (nine cores), the law foretold" in report
    code, said = corner.call(*corner.words(tmp_path / "runs" / "two", *SMALL, "--no-forecast", budget="120ktok"))
    assert code == 0 and "forecast" not in said and not (tmp_path / "runs" / "two" / seal.FILE).exists()
    training.plan("text", "120ktok", [w for w in words if "=" in w], as_json=True)
    assert json.loads(capsys.readouterr().out)["forecast"]["loss"] == pytest.approx(page["loss"], rel=1e-3)


def test_a_target_off_the_ladders_path_is_refused_in_one_sentence() -> None:
    for size, reasons in ((1.0, 0), (2.0, 1)):
        planned, climbed = planned_and_climbed(size)
        page = foretell.page(climbed, planned, Path("run"), None)
        assert page["refused"] is bool(reasons) and len(page["reasons"]) == reasons
        N = planned.shape.matmul_parameters
        assert all(f"has {N:,} parameters where the ladder's path comes to {2 * N:,}" in said for said in page["reasons"])


def test_a_run_below_its_ladder_is_refused_and_nothing_is_foretold() -> None:
    planned, climbed = planned_and_climbed()
    rows = [{**row, "C": 1e3 * row["C"]} for row in climbed.rows]
    page = foretell.page(foretell.Climbed(rows), planned, Path("run"), None)
    assert page["refused"] and "loss" not in page and any("smaller than the smallest" in said for said in page["reasons"])


def test_a_run_that_repeats_its_data_more_than_its_ladder_does_is_warned_about() -> None:
    def page(**more: float) -> dict[str, Any]:
        planned, climbed = planned_and_climbed(**more)
        return foretell.page(climbed, planned, Path("run"), None)

    D = page()["target"]["D"]
    for U, known, warned in ((None, None, False), (2 * D, D, False), (D / 3, D / 3, False), (D / 8, D / 8, True)):
        found = page(**{} if U is None else {"U": U})
        assert found["target"]["U"] == known
        assert any("The target sees its data 8.0 times and the ladder" in said for said in found["warnings"]) is warned


def test_a_void_verdict_is_entered_once(tmp_path: Path) -> None:
    folder = ended(tmp_path / "run", loss=2.0)
    for _ in range(3):
        verdict = foretell.conclude(folder, INGREDIENTS | {"code": "other"})
        assert verdict and verdict.void == "the code changed after the forecast was sealed"
    assert len((tmp_path / ledger.FILE).read_text().splitlines()) == 2
    assert foretell.conclude(folder, INGREDIENTS | {"data": "other"}) and foretell.conclude(folder, INGREDIENTS)
    lines = [json.loads(line) for line in (tmp_path / ledger.FILE).read_text().splitlines()]
    assert [line["void"] for line in lines[2:]] == ["the data changed after the forecast was sealed", None]


def test_a_run_that_diverged_is_void_and_says_so(tmp_path: Path) -> None:
    verdict = foretell.conclude(ended(tmp_path / "run", loss=math.nan), INGREDIENTS)
    assert verdict and verdict.void == "the run diverged: its final loss is no number"


def test_no_verdict_is_given_while_the_run_trains(corner: Any, tmp_path: Path) -> None:
    training_one = ended(tmp_path / "run", loss=None)
    training_one.lock()
    code, said = corner.call("verdict", str(tmp_path / "run"))
    assert code == 2 and "is still running" in said
    assert len((tmp_path / ledger.FILE).read_text().splitlines()) == 1 and not (tmp_path / "run" / foretell.VERDICT).exists()
    training_one.unlock()


def test_a_run_stopped_early_is_void_until_it_is_finished(corner: Any, tmp_path: Path, known_ladder: dict[str, float]) -> None:
    run = tmp_path / "run"
    train(corner, run)
    kept = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"final": true' not in line]
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    (tmp_path / ledger.FILE).unlink()
    corner.call("verdict", str(run))
    assert ledger.read(tmp_path / ledger.FILE).entries[0].state == "void"
    (run / "metrics.jsonl").write_text(whole)
    corner.call("verdict", str(run))
    assert ledger.read(tmp_path / ledger.FILE).entries[0].state == "judged"


def test_a_run_without_a_ladder_is_trained_and_says_why(corner: Any, tmp_path: Path) -> None:
    code, said = corner.call(*corner.words(tmp_path / "run"))
    assert code == 0 and "no forecast: its ladder would begin at" in said and "--forecast trains the ladder all the same" in said
    assert not (tmp_path / "run" / seal.FILE).exists()
    code, said = corner.call("verdict", str(tmp_path / "run"))
    assert code == 2 and "has no forecast" in said
    code, said = corner.call("ledger", str(tmp_path))
    assert code == 2 and "no forecast was sealed" in said


def test_no_forecast_is_made_for_a_run_that_goes_on_from_a_model(corner: Any, tmp_path: Path) -> None:
    words = ["train", "text", "--out", str(tmp_path / "run"), "--budget", "5ktok", "--init", str(corner.unbroken)]
    for setting in (f'data.sources=["files:{corner.text}"]', "train.context=64", "train.batch_rows=4", "train.sample_prompts=[]"):
        words += ["--set", setting]
    code, said = corner.call(*words)
    assert code == 0 and "this one goes on from a model" in said, said


def test_a_target_loss_finds_its_budget_and_asks(
    corner: Any, tmp_path: Path, known_ladder: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = law(9e9)
    words = corner.words(tmp_path / "run", *SMALL, budget="1e10")
    code, said = corner.call(*words, "--target-loss", f"{wanted:.4f}")
    assert code == 2 and "give --yes" in said and "should take" in said and not (tmp_path / "run").exists()
    code, said = corner.call(*words, "--target-loss", f"{wanted:.4f}", "--yes")
    assert code == 0, said
    page = json.loads((tmp_path / "run" / seal.FILE).read_text())
    assert page["target"]["C"] == pytest.approx(9e9, rel=0.1) and page["loss"] == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(
    ("loss", "sentence"), [("1.2", "is out of reach of this recipe"), ("-1", "is a positive loss"), ("0", "is a positive loss")]
)
def test_a_loss_that_cannot_be_had_is_refused(
    corner: Any, tmp_path: Path, known_ladder: dict[str, float], loss: str, sentence: str
) -> None:
    code, said = corner.call(*corner.words(tmp_path / "run", *SMALL, budget="1e10"), "--target-loss", loss, "--yes")
    assert code == 2 and sentence in said and not (tmp_path / "run").exists()


def test_the_ladders_part_of_the_budget_is_left_to_it() -> None:
    assert foretell.room_of_flops() == pytest.approx(1 / (1 + ladder.share()))
    assert 0.15 < ladder.share() < 0.5
    assert rules.Facts(None, 1e11).own_share == 1.0
