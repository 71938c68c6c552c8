"""What `train` and `plan` say about a run before it is made, and after it: ladder, forecast, seal, verdict.

`room` leaves the ladder its part of the budget, `climb` trains the ladder, or `bring` takes the one that ships with the
recipe; `page` turns its rungs into a forecast, `launched` enters the sealed forecast into the ledger and `conclude` judges the
finished run. A run without a ladder is trained all the same, and it is said why there is no forecast.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tessera.commands.live import in_bits
from tessera.data.shards import Shards
from tessera.device import Machine
from tessera.errors import UserError
from tessera.recipe import Budget, Recipe
from tessera.report import write_report
from tessera.run import RunFolder, write_text
from tessera.scaling import ladder, ledger, rules, seal
from tessera.scaling.forecast import Forecast, forecast
from tessera.scaling.law import Target
from tessera.scaling.shipped import Origin, Shipped
from tessera.tokens.vocabulary import Vocabulary
from tessera.train.loop import total_steps
from tessera.train.objectives import Evaluation

Say = Callable[[str], None]
RUNG_SPEED = 0.6
"""FLOP/s of the ladder's small models, relative to the target's (docs/LOG.md, "Ladder")."""
VERDICT = "verdict.json"


@dataclass(frozen=True)
class Climbed:
    """A finished ladder.

    Args:
        rows: of its rungs, seed by seed.
        origin: of a ladder that ships with the recipe; None: it was trained here.
        warnings: what its rungs have that the run has not.
    """

    rows: list[dict[str, Any]]
    origin: Origin | None = None
    warnings: tuple[str, ...] = ()

    @property
    def padding(self) -> float:
        """Share of the positions that hold no token."""
        return sum(row["padding"] for row in self.rows) / len(self.rows)


def room(intent: Recipe) -> float:
    """The part of the budget that is left for the run itself when the ladder has to be trained first."""
    budget = Budget.parse(intent.budget)
    if budget.tokens is not None or intent.train.tokens is not None:
        return 1.0  # tokens are those of the run; the ladder comes on top
    return room_of_flops() if budget.flops is not None else 1 / (1 + ladder.share() / RUNG_SPEED)


def room_of_flops() -> float:
    """The same for a budget in FLOPs."""
    return 1 / (1 + ladder.share())


def climb(rungs: Sequence[ladder.Rung], vocabulary: Vocabulary, shards: Shards, machine: Machine, say: Say) -> Climbed:
    """Trains a ladder, or what is missing of it."""
    kept = sum(rung.done for rung in rungs)
    budgets = len({rung.budget for rung in rungs})
    say(
        f"ladder: {budgets} budgets from {rungs[-1].budget:.2e} to {rungs[0].budget:.2e} FLOPs, {len(rungs)} runs, "
        f"{kept or 'none'} of them trained before"
    )
    ladder.train(rungs, vocabulary, shards, machine, say)
    return Climbed(ladder.table(rungs))


def bring(shipped: Shipped, data: str | None, say: Say) -> Climbed:
    """The ladder that ships with a recipe, in place of one that is trained here.

    Args:
        data: hash of the run's token files; None: not known yet.
    """
    rows, origin = shipped.rows, shipped.origin
    least, most = (end(row["C"] for row in rows) for end in (min, max))
    say(
        f"ladder: {len(rows)} runs of {least:.2e} to {most:.2e} FLOPs that ship with the recipe, trained {origin.made[:10]} "
        f"elsewhere ({origin.machine}); this budget has no time for one of its own"
    )
    other = data not in (None, origin.data)
    about = f"The ladder read the library of Python {origin.python} and held-out files of it; this run's are other ones."
    return Climbed(rows, origin, (about,) if other else ())


def outlook(
    rungs: Sequence[ladder.Rung], planned: rules.Plan, peak: float, book: ledger.Ledger, out: Say | None
) -> dict[str, Any] | None:
    """What a forecast costs and how wide it will be; the forecast itself where its ladder was trained before.

    Args:
        rungs: of the planned run; none: there is no forecast.
        planned: the run.
        peak: FLOP/s of the machine's matrix product.
        book: earlier forecasts, whose width says what to expect.
        out: takes the lines for a person, or None.
    """
    if not rungs:
        return None
    say = out or (lambda text: None)
    speed = peak * planned.utilisation * RUNG_SPEED
    budgets: dict[float, list[ladder.Rung]] = {}
    for rung in rungs:
        budgets.setdefault(rung.budget, []).append(rung)
    say(f"\nladder, {planned.flops / rungs[0].flops:.1f} times below the run:")
    say("       FLOPs   parameters       tokens  runs  seconds")
    for budget, seeds in budgets.items():
        cost = sum(rung.flops for rung in seeds if not rung.done) / speed
        price = f"{cost:7.0f}" if cost else "  there"
        say(f"  {budget:.2e} {seeds[0].shape.matmul_parameters:>12,} {seeds[0].tokens:>12,} {len(seeds):>5}  {price}")
    missing = sum(rung.flops for rung in rungs if not rung.done)
    found: dict[str, Any] = {
        "rungs": [
            {"budget": r.budget, "N": r.shape.matmul_parameters, "D": r.tokens, "seed": r.recipe.train.seed, "done": r.done}
            for r in rungs
        ],
        "flops": missing,
        "seconds": missing / speed,
    }
    if not missing:
        return found | told(Climbed(ladder.table(rungs)), planned, say)
    share = missing / (missing + planned.flops)
    say(f"it costs {missing:.2e} FLOPs, about {missing / speed:.0f} s here, {share:.0%} of what is spent")
    widths = sorted(
        (e.sealed["intervals"]["0.9"][1] - e.sealed["intervals"]["0.9"][0]) / 2 / e.sealed["loss"] for e in book.entries
    )
    if widths:
        found["half_width"] = widths[len(widths) // 2]
        say(f"its 90 % interval will be about {found['half_width']:.1%} either way, the median of the {len(widths)} sealed here")
    else:
        say("how wide its interval will be is known when the ladder is trained; 2.1 % either way is the median on published runs")
    return found


def told(climbed: Climbed, planned: rules.Plan, say: Say) -> dict[str, Any]:
    """What a ladder that is there says of a planned run, in words and as plain data."""
    foretold = page(climbed, planned, Path(), None)
    describe(foretold, say)
    return {key: foretold.get(key) for key in ("loss", "intervals", "refused", "reasons", "warnings")}


def target_of(planned: rules.Plan, climbed: Climbed) -> Target:
    """Sizes of a planned run, with the tokens that it will really learn from, and how many of them are different."""
    train = planned.recipe.train
    assert train.batch_rows and train.context
    tokens = total_steps(planned.recipe) * train.batch_rows * train.context * (1 - climbed.padding)
    unique = ladder.unique_tokens(climbed.rows)
    return Target(
        N=planned.shape.matmul_parameters,
        D=tokens,
        C=planned.shape.flops_per_token(train.mean_context) * tokens,
        U=None if unique is None else min(unique, tokens),
    )


def foretell(climbed: Climbed, targets: Sequence[Target]) -> Forecast:
    """The law of a ladder, and what it says of runs of the same recipe."""
    # The rungs are what the rules make of smaller budgets; a target that is not, short of data or set by hand, is refused.
    _, lost = ladder.without_diverged(climbed.rows)
    return forecast(ladder.runs(climbed.rows), targets, "frontier", warnings=lost)


def page(climbed: Climbed, planned: rules.Plan, path: Path, commit: str | None) -> dict[str, Any]:
    """What is foretold of a planned run, as it will stand in `forecast.json`; `refused` where the ladder does not carry it."""
    target = target_of(planned, climbed)
    found = foretell(climbed, [target])
    assert target.C
    # A ladder that ships knows nothing of the run's budget; below its rungs the law does not hold, and no interval says so.
    least = min(row["C"] for row in climbed.rows)
    below = [f"The run is smaller than the smallest of its ladder, {least:.2e} FLOPs: give it more."] if least > target.C else []
    facts: dict[str, Any] = {
        "format": 1,
        "run": str(path),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "target": {"N": target.N, "D": target.D, "C": target.C, "U": target.U},
        "refused": found.refused or bool(below),
        "reasons": [*found.reasons, *below],
        "warnings": [*climbed.warnings, *found.warnings],
        "ladder": climbed.rows,
        "shipped": None if climbed.origin is None else asdict(climbed.origin),
        "fit": found.to_json(),
    }
    if below or not found.predictions:
        return facts
    made = found.predictions[0]
    rows, _ = ladder.without_diverged(climbed.rows)
    facts |= {
        "loss": made.loss,
        "sd": made.sd,
        "units": units(rows),
        "degrees": found.degrees,
        "reach": made.factor,
        "intervals": {str(level): list(found.interval(made, level)) for level in seal.LEVELS},
    }
    return {**facts, "band": seal.band(facts, rows, target.C)}


def units(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Bits per byte, pixel or second for a nat per token, by name: as they were at the ladder's largest rung."""
    largest = max(rows, key=lambda row: row["C"])
    return {unit: value / largest["loss"] for unit, value in in_bits(largest).items()}


def beyond(foretold: Mapping[str, Any]) -> str:
    """Where a run lies, seen from its ladder."""
    return (
        f"{foretold['reach']:.1f} times beyond the ladder" if foretold["reach"] > 1 else "no larger than the ladder's largest run"
    )


def describe(foretold: Mapping[str, Any], say: Say) -> None:
    """The forecast, or its refusal, in words."""
    if "loss" in foretold:
        low, high = foretold["intervals"]["0.9"]
        say(
            f"forecast: held-out loss {foretold['loss']:.4f} nats per token, 90 % between {low:.4f} and {high:.4f} "
            f"({(high - low) / 2 / foretold['loss']:.1%} either way), {beyond(foretold)}"
        )
        same = (
            f"{foretold['loss'] * times:.4f} bits per {unit} ({low * times:.4f} to {high * times:.4f})"
            for unit, times in foretold.get("units", {}).items()
        )
        if words := ", ".join(same):
            say(f"  that is about {words}, by what a nat was at the largest rung")
    if foretold["refused"]:
        say("the forecast is refused, and is not sealed:")
        for reason in foretold["reasons"]:
            say(f"  - {reason}")
    for warning in foretold["warnings"]:
        say(f"  note: {warning}")


def write(foretold: Mapping[str, Any], folder: RunFolder, ingredients: Mapping[str, str], say: Say) -> None:
    """Puts the forecast into the run's folder: sealed, or as a refusal that counts for nothing."""
    ladder.write_csv(foretold["ladder"], folder.path / "ladder.csv")
    if foretold["refused"]:
        write_text(folder.path / seal.FILE, json.dumps(foretold, indent=1))
        return
    sealed = seal.seal(folder.path, foretold, ingredients)
    say(f"sealed as {sealed['seal'][:12]} in {folder.path / seal.FILE}")


def ingredients_of(recipe: Recipe, vocabulary: Vocabulary, shards: Shards) -> dict[str, str]:
    """Hashes of what a forecast speaks of."""
    return {"code": ladder.code_hash(), "data": shards.hash, "tokenizer": vocabulary.hash, "recipe": recipe.fingerprint()}


def ledger_of(run: Path) -> Path:
    """The ledger beside a run's folder."""
    return run.resolve().parent / ledger.FILE


def launched(path: Path) -> None:
    """Enters a sealed forecast into the ledger, once; one that took another's place after the run had begun is never entered."""
    sealed = seal.read(path)
    if sealed is None or "seal" not in sealed:
        return
    book = ledger_of(path)
    if any(entry.seal == sealed["seal"] for entry in ledger.read(book).entries):
        return
    if any(RunFolder(path).checkpoints.glob("step-*")) and _entered(path) is not None:
        return
    facts = {key: sealed[key] for key in ("seal", "run", "target", "loss", "sd", "reach", "intervals")}
    facts |= {"form": sealed["fit"]["form"], "recipe": sealed["recipe"], "shipped": bool(sealed.get("shipped"))}
    ledger.append(book, "sealed", facts)


def _entered(path: Path) -> ledger.Entry | None:
    """What the ledger beside a run's folder holds of the last run in it."""
    entries = ledger.read(ledger_of(path)).entries
    return next((e for e in reversed(entries) if Path(e.run).name == path.resolve().name), None)


def conclude(folder: RunFolder, ingredients: Mapping[str, str]) -> seal.Verdict | None:
    """Judges a run by its sealed forecast, writes `verdict.json` and the ledger's line; None where nothing was sealed.

    A verdict that was given stays; one that was void is given anew, and entered where it has become another.
    """
    sealed = seal.read(folder.path)
    if sealed is None or "seal" not in sealed:
        return None
    book = ledger_of(folder.path)
    launched(folder.path)
    entry = next((e for e in ledger.read(book).entries if e.seal == sealed["seal"]), None) or _entered(folder.path)
    loss = seal.outcome(folder, total_steps(folder.recipe))
    if entry is not None and (entry.state == "judged" or (entry.state == "void" and loss is None)):
        return _recorded(folder, entry)
    why = seal.broken(sealed, ingredients)
    if entry is not None and entry.seal != sealed["seal"]:
        why = "forecast.json is not the one that was sealed when the run began"
    if why is None and loss is None:
        why = "the run was stopped before its end"
    if why is None and loss is not None and math.isnan(loss):
        why = "the run diverged: its final loss is no number"
    verdict = seal.judge(sealed, loss) if why is None and loss is not None else seal.void(sealed, str(why))
    if entry is not None and entry.verdict is not None and entry.verdict["void"] == verdict.void:
        return _recorded(folder, entry)
    line = {"run": sealed["run"], "seal": entry.seal if entry else sealed["seal"], **verdict.to_json()}
    _write_verdict(folder, verdict, ledger.append(book, "verdict", line))
    return verdict


def sum_up(folder: RunFolder, ingredients: Mapping[str, str], result: Evaluation | None, say: Say) -> None:
    """Verdict and report of a run, and what is said at its end.

    Args:
        folder: of the run.
        ingredients: as it was trained with.
        result: held-out loss at its end; None: it had ended before.
        say: takes a line.
    """
    verdict, report = conclude(folder, ingredients), write_report(folder.path)
    if result is None:
        say(f"the run is finished: model {folder.model}, report {report}")
        return
    losses = [f"{result.loss:.4f} nats per token", *(f"{v:.4f} bits per {u}" for u, v in in_bits(result.in_bits).items())]
    say(f"held-out loss {', '.join(losses)}, over {result.tokens:,} tokens")
    if (said := words(verdict) if verdict is not None else uncounted(folder.path, result.loss)) is not None:
        say(said)
    say(f"model {folder.model}, report {report}")


def _write_verdict(folder: RunFolder, verdict: seal.Verdict, digest: str) -> None:
    """`verdict.json`, bound to its line of the ledger by the digest of that."""
    write_text(folder.path / VERDICT, json.dumps({**verdict.to_json(), "ledger": digest}, indent=1))


def unbound(path: Path, book: ledger.Ledger) -> list[str]:
    """Where the ledger and the `verdict.json` of a run beside it do not say the same, a sentence each.

    Args:
        path: of the ledger.
        book: what it holds.
    """
    # A folder that was used again has several entries; its verdict is that of the last. What was deleted says nothing.
    last = {Path(entry.run).name: entry for entry in book.entries}
    found = []
    for run in sorted(run for run in path.parent.iterdir() if run.is_dir()):
        entry = last.get(run.name)
        if (run / VERDICT).is_file():
            if not _holds(book, entry, (run / VERDICT).read_bytes()):
                found.append(f"{run} has a verdict that the ledger does not hold.")
        elif entry is not None and entry.verdict is not None:
            found.append(f"the ledger holds a verdict on {run} that {run / VERDICT} does not.")
    return found


def _holds(book: ledger.Ledger, entry: ledger.Entry | None, text: bytes) -> bool:
    """Whether a `verdict.json` is the ledger's verdict on the run; one of before 2026-12 does not name its line."""
    try:
        verdict = json.loads(text)
    except ValueError:
        return False
    if not isinstance(verdict, dict):
        return False
    if entry is None or entry.verdict is None:
        return verdict.get("ledger") in book.digests
    line = {**entry.verdict, "ledger": entry.digest}
    return all(line.get(name) == value for name, value in verdict.items())


def _recorded(folder: RunFolder, entry: ledger.Entry) -> seal.Verdict:
    """The verdict that the ledger holds; `verdict.json` is written where a crash came between the two."""
    assert entry.verdict is not None and entry.digest is not None
    given = seal.Verdict(**{name: entry.verdict[name] for name in seal.Verdict.__dataclass_fields__})
    if not (folder.path / VERDICT).is_file():
        _write_verdict(folder, given, entry.digest)
    return given


def uncounted(path: Path, loss: float) -> str | None:
    """One sentence on a finished run whose forecast was refused; None where one was sealed, or none was made.

    Args:
        path: of the run's folder.
        loss: of the run, nats per token.
    """
    foretold = seal.read(path)
    if foretold is None or "seal" in foretold or "loss" not in foretold:
        return None
    low, high = foretold["intervals"]["0.9"]
    place = "inside" if low <= loss <= high else "outside"
    miss = f"{loss / foretold['loss'] - 1:+.2%}, {place} the 90 % interval"
    return f"not sealed and not counted: {loss:.4f} where the refused forecast said {foretold['loss']:.4f}, {miss}"


def words(verdict: seal.Verdict) -> str:
    """The verdict in one sentence."""
    if verdict.void is not None:
        return f"verdict: void, not counted: {verdict.void}"
    assert verdict.loss is not None and verdict.miss is not None and verdict.z is not None
    held = [level for level in seal.COUNTED if verdict.inside[str(level)]]
    place = f"inside the {min(held):.0%} interval" if held else "outside the 90 % interval"
    miss = f"{verdict.miss:+.2%} (z {verdict.z:+.2f})"
    return f"verdict: {verdict.loss:.4f} where {verdict.foretold:.4f} was foretold, {miss}, {place}"


def given(path: Path) -> str | None:
    """The verdict on a run, in one sentence; None where there is none.

    Args:
        path: of the run's folder.
    """
    if not (path / VERDICT).is_file():
        return None
    found = json.loads((path / VERDICT).read_text(encoding="utf-8"))
    return words(seal.Verdict(**{name: found[name] for name in seal.Verdict.__dataclass_fields__}))


def invert(climbed: Climbed, loss: float) -> tuple[float, float, float]:
    """The compute at which the forecast, and each end of its 90 % interval, meets a loss.

    Returns:
        FLOPs: most likely, least, most; the last is infinite where the interval's upper end never comes down so far.

    Raises:
        UserError: the ladder is refused, or the law never reaches the loss, or did so below the ladder.
    """
    first = foretell(climbed, [Target(C=2 * max(row["C"] for row in climbed.rows))])
    if first.refused:
        raise UserError(f"no budget can be said for a loss of {loss:g}, since the ladder is refused: {' '.join(first.reasons)}")
    least, most = (math.log10(end(row["C"] for row in climbed.rows)) for end in (min, max))
    exponents = [least + step / 50 for step in range(round(50 * (most + 6 - least)) + 1)]
    made = foretell(climbed, [Target(C=10.0**e) for e in exponents]).predictions

    def where(values: list[float]) -> float:
        return next((10.0**e for e, value in zip(exponents, values, strict=True) if value <= loss), math.inf)

    middle = where([p.loss for p in made])
    if math.isinf(middle):
        raise UserError(
            f"a loss of {loss:g} is out of reach of this recipe and data: the law's floor is {first.coefficients['E']:.3f} nats "
            f"per token, and 10^6 times the ladder's compute would give {made[-1].loss:.3f}; more or other data moves it."
        )
    if middle == 10.0 ** exponents[0]:
        raise UserError(
            f"a loss of {loss:g} takes less than the smallest run of the ladder, {middle:.2e} FLOPs; give a smaller --budget."
        )
    return middle, where([p.low for p in made]), where([p.high for p in made])
