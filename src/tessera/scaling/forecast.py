"""A forecast: the loss of a run that was not made yet, an interval that has earned its width, or a refusal in words.

`forecast` chooses a form, fits it, forecasts the ladder's own upper rungs from its lower ones (walk-forward), takes the width of
the interval from how far those missed, and looks for signs that the ladder cannot carry a forecast. What comes back is plain data
and goes through JSON and back without losing a bit.

The relative half-width at a target x times beyond the largest run is t * sqrt((c log10 x)^2 + s^2 + p^2 + seed^2): c from the
back-tests, s the residual of the fit, seed the noise between seeds, p what that noise in the rungs makes of a frontier at the
target, t Student's quantile. Residuals alone, or a bootstrap, say nothing of a law that bends outside the ladder: nominal 90 %
bootstrap intervals cover 33 to 78 % of published runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from tessera.errors import UserError
from tessera.scaling.frontier import DISAGREEMENT, WIDEST_STEP_OFF_PATH, Frontier, accelerates, frontier
from tessera.scaling.law import (
    FEWEST_RUNS,
    FORMS,
    MEASURABLE,
    Law,
    Runs,
    Target,
    fit,
    profile,
    sampling_sd,
    weaknesses,
    without_repeats,
)

FEWEST_BUDGETS, FEWEST_DECADES = 4, 1.5
"""Of a ladder that may be forecast from: two or three budgets never identify E and an exponent (docs/LOG.md, "The law")."""
USUAL_DRIFT, USUAL_WEIGHT = 0.01, 4.0
"""What is thought of a ladder before its back-tests: a miss of 1 % per tenfold compute, worth four back-tests (docs/LOG.md)."""
REFUSED_DRIFT = 0.06
"""Miss per tenfold compute, at least, of a forecast that is refused and shown all the same: what ladders of minutes missed by
(docs/LOG.md, "A forecast in minutes")."""
RISEN = 1.01
"""A budget that ends above a smaller one by more than this factor did not converge: seeds differ by .1 %."""
ALARMING_DRIFT = 0.02
"""Two back-tests or more that miss by more per tenfold compute: tuned published ladders stay below 1.8 %, most others above."""
FAR, VERY_FAR = 40.0, 100.0
"""Times beyond the largest run: no published calibration beyond the first; forecasts of 100 to 300x missed by .2 to 6 %."""
FREE_REPEATS, MOST_REPEATS = 4.0, 40.0
"""Passes over the data that are nearly as good as new data; passes beyond which more are worth nothing (arXiv 2305.16264)."""
OFF_RECIPE = 1.3
"""Factor in N from the ladder's own path within which a target still follows it (it costs about .3 % of loss)."""
ALIKE = 1.5
"""Passes over the data that differ by less than this are the same to a frontier."""
TOLD_MISFIT = 0.002
"""Per tenfold compute, from which it is said: seeds differ by .1 %, and ladders span 1.5 decades and more."""
LEVEL = 0.9
_SHORTEST_STEP = math.log10(2.0)
_MOST_PREFIXES = 8
_FEWEST_UPPER = 6


@dataclass(frozen=True)
class BackTest:
    """A rung forecast from the rungs below it.

    Args:
        upto: largest compute the fit had seen, FLOPs.
        target: compute of the rung, FLOPs.
        factor: times beyond what the fit had seen (in C; for a surface the largest of C, N and D).
        predicted, actual: loss, nats per token.
        error: log(predicted / actual).
    """

    upto: float
    target: float
    factor: float
    predicted: float
    actual: float
    error: float


@dataclass(frozen=True)
class Prediction:
    """The loss of one target.

    Args:
        N, D, C: of the target; what it left open is filled in by the recipe's path or the law's optimum.
        loss: nats per token.
        low, high: interval at `level`.
        level: probability that the run lands inside.
        factor: times beyond the ladder.
        sd: relative standard deviation that the interval is made of.
    """

    N: float
    D: float
    C: float
    loss: float
    low: float
    high: float
    level: float
    factor: float
    sd: float


@dataclass(frozen=True)
class Forecast:
    """Everything that is known about a target before its run; plain data.

    Args:
        form: that predicts; one of `law.FORMS`.
        coefficients: full precision.
        intervals: 90 % profile intervals of E and the exponents.
        objective, residual_sd: of the fit; None where nothing could be fitted.
        identified: all coefficients are pinned down by the runs.
        refused: the ladder cannot support a forecast; `reasons` say what to add or change.
        warnings: what a reader of the numbers must know.
        notes: what was done.
        backtest: walk-forward inside the ladder.
        predictions: one per target; a refused forecast has them too, for looking at.
        forms: every form that could be fitted: coefficients, residual_sd and the losses it predicts.
        level: of the predictions' intervals.
        drift: c, relative miss per tenfold compute.
        seed_noise: relative.
        degrees: of freedom of Student's t.
        budgets: of the ladder.
        decades: of compute that it spans.
        misfit: how far off a frontier its runs were thought to lie, relative, per tenfold compute below the largest; those count
            less.
    """

    form: str
    coefficients: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    objective: float | None
    residual_sd: float | None
    identified: bool
    refused: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    backtest: tuple[BackTest, ...]
    predictions: tuple[Prediction, ...]
    forms: Mapping[str, Mapping[str, Any]]
    level: float
    drift: float
    seed_noise: float
    degrees: float
    budgets: int
    decades: float
    misfit: float = 0.0

    def interval(self, prediction: Prediction, level: float) -> tuple[float, float]:
        """Loss interval at another level, between 0 and 1."""
        return _interval(prediction.loss, prediction.sd, self.degrees, level)

    def z(self, prediction: Prediction, loss: float) -> float:
        """By how many standard deviations a measured loss lies above the prediction."""
        return math.log(loss / prediction.loss) / prediction.sd

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        plain: dict[str, Any] = asdict(self)
        return plain | {
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            **{key: list(plain[key]) for key in ("reasons", "warnings", "notes", "backtest", "predictions")},
        }

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Forecast:
        """The forecast that `to_json` wrote."""
        return Forecast(
            **{
                **plain,
                "intervals": {name: (ends[0], ends[1]) for name, ends in plain["intervals"].items()},
                "backtest": tuple(BackTest(**one) for one in plain["backtest"]),
                "predictions": tuple(Prediction(**one) for one in plain["predictions"]),
                **{key: tuple(plain[key]) for key in ("reasons", "warnings", "notes")},
            }
        )


def forecast(
    runs: Runs,
    targets: Sequence[Target] = (),
    form: str = "auto",
    level: float = LEVEL,
    seed_noise: float | None = None,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Forecast:
    """Fits the law and forecasts the targets.

    Args:
        runs: the ladder.
        targets: runs to be forecast; without any, the checks are made for ten times the largest run.
        form: one of `law.FORMS`, or `auto`: the frontier where the targets follow the ladder's recipe, else a surface.
        level: of the intervals.
        seed_noise: relative standard deviation between seeds; None: what the runs show, at least `law.MEASURABLE`.
        warnings, notes: of whoever read the runs; they come first.

    Raises:
        UserError: `frontier` for runs that have none, an unknown form or a level outside 0 to 1.
    """
    if form not in ("auto", *FORMS):
        raise UserError(f"there is no form {form!r}; the forms are auto, {', '.join(FORMS)}.")
    if not 0 < level < 1:
        raise UserError(f"a level of {level:g} is no probability; write 0.9 for 90 %.")
    front = frontier(runs)
    if form == "frontier" and front is None:
        raise UserError(
            "these runs have no frontier: their budgets have neither three sizes each nor one size each along one path; "
            "use --form coupled, additive or tied."
        )
    asked = list(targets) or [Target(C=10 * float(runs.C.max()))]
    ladder = _Ladder(runs, front)
    chosen = _choose(ladder, asked) if form == "auto" else form
    noise = max(MEASURABLE, runs.seed_noise or 0.0, seed_noise or 0.0)
    laws = {name: fit(ladder.points(name), name, noise=noise) for name in FORMS if ladder.enough(name)}
    reasons, said = _structure(ladder), list(warnings)
    points = ladder.points(chosen)
    facts: dict[str, Any] = {
        "form": chosen, "notes": (*notes, *_reading(front)), "level": level, "seed_noise": noise,
        "budgets": ladder.budgets, "decades": ladder.decades,
    }  # fmt: skip
    if chosen not in laws:
        reasons.append(_too_few(ladder, chosen))
        return Forecast(
            **facts, coefficients={}, intervals={}, objective=None, residual_sd=None, identified=False, refused=True,
            reasons=tuple(reasons), warnings=tuple(said), backtest=(), predictions=(), forms=_forms(ladder, laws, []),
            drift=USUAL_DRIFT, degrees=USUAL_WEIGHT,
        )  # fmt: skip
    law = laws[chosen]
    if law.misfit > TOLD_MISFIT:
        facts["notes"] += (
            f"Small runs count less: they lie {law.misfit:.1%} off the law, by their own showing, per tenfold compute.",
        )
    intervals = profile(points, law)
    weak = weaknesses(law, intervals, points)
    backtest = walk_forward(points, chosen, noise)
    drift, degrees, seen = _drift(backtest)
    # Not of a surface, whose back-tests go to far corners of N and D as well (nothing is sealed by one).
    if chosen == "frontier" and drift > REFUSED_DRIFT:
        reasons.append(
            f"The ladder misses its own upper rungs by {seen:.1%} per tenfold compute, and its interval would be wider than that "
            "of a refused one: add larger runs, and tune the smallest or leave them out."
        )
    elif seen > ALARMING_DRIFT and degrees >= USUAL_WEIGHT + 2:
        said.append(
            f"The ladder forecasts its own upper rungs badly: it misses by {seen:.1%} per tenfold compute (a tuned one by 1 %); "
            "rungs that are not equally well tuned do this."
        )
    filled = [_fill(target, ladder, law) for target in asked]
    predictions = tuple(_predict(law, target, ladder, drift, degrees, noise, level) for target in filled)
    off = _off_path(ladder, chosen, asked, said)
    leaning = _lowest_rung(ladder, law, filled, predictions, degrees, noise, said)
    # Of a ladder that carries none, all intervals are wide; of others, those of the targets that lean on its lowest rung.
    wide = [bool(reasons or off) or lean is not None for lean in leaning]
    reasons += [*[lean for lean in leaning if lean is not None][:1], *off]
    if all(wide):
        drift = max(drift, REFUSED_DRIFT)
    predictions = tuple(
        _predict(law, target, ladder, max(drift, REFUSED_DRIFT) if one else drift, degrees, noise, level)
        for target, one in zip(filled, wide, strict=True)
    )
    said += _repeat_warnings(runs, chosen, filled)
    said += [f"Of the {chosen} form, {sentence}" for sentence in weak]
    said += _optimum_warnings(front) if chosen == "frontier" else []
    said += _distance_warnings(ladder, asked, predictions) if targets else []
    return Forecast(
        **facts, coefficients=law.coefficients, intervals=intervals, objective=law.objective,
        residual_sd=None if math.isnan(law.residual_sd) else law.residual_sd, identified=not weak, refused=bool(reasons),
        reasons=tuple(reasons), warnings=tuple(said), backtest=backtest, predictions=predictions if targets else (),
        forms=_forms(ladder, laws, filled if targets else []), drift=drift, degrees=degrees, misfit=law.misfit,
    )  # fmt: skip


def walk_forward(points: Runs, form: str, noise: float | None = None) -> tuple[BackTest, ...]:
    """Every upper rung forecast from all the rungs below some budget, for up to eight such budgets; `noise` as in `law.fit`.

    A surface is only tried where three sizes and two runs more than it needs lie below: from fewer nobody would forecast.
    """
    budgets = np.unique(points.budget)
    prefixes = []
    for last in range(2, len(budgets) - 1):
        below = points.take(points.budget <= budgets[last])
        if form == "frontier" or (len(below) >= FEWEST_RUNS[form] + 2 and len(np.unique(below.N)) >= 3):
            prefixes.append((below, points.take(points.budget > budgets[last])))
    if len(prefixes) > _MOST_PREFIXES:
        prefixes = [prefixes[i] for i in np.unique(np.linspace(0, len(prefixes) - 1, _MOST_PREFIXES).round().astype(int))]
    found = []
    for below, above in prefixes:
        law = fit(below, form, noise=noise)
        predicted = law.loss(above.N, above.D, above.C)
        for i in range(len(above)):
            factor = _factor(below, form, float(above.N[i]), float(above.D[i]), float(above.C[i]))
            actual = float(above.loss[i])
            error = math.log(predicted[i] / actual)
            found.append(BackTest(float(below.C.max()), float(above.C[i]), factor, float(predicted[i]), actual, error))
    return tuple(found)


class _Ladder:
    """The runs as each form sees them."""

    def __init__(self, runs: Runs, front: Frontier | None) -> None:
        self.runs, self.front = runs, front
        rungs = front.runs if front is not None else runs
        self.budgets = len(np.unique(rungs.budget))
        self.decades = float(np.log10(rungs.C.max() / rungs.C.min())) if len(rungs) else 0.0
        keep = np.ones(len(runs), bool)
        if front is not None and front.kind == "sweeps":
            # Sizes that lose a tenth to the best of their budget are mistuned more than they are small or large.
            best = np.array([runs.loss[runs.budget == b].min() for b in runs.budget])
            keep = runs.loss <= 1.1 * best
        self.surface = without_repeats(runs.take(keep))
        last = int(runs.C.argmax())
        self.flops_per_pair = float(runs.C[last] / (runs.N[last] * runs.D[last]))

    def points(self, form: str) -> Runs:
        if form == "frontier" and self.front is not None:
            return self.front.runs
        return self.surface

    def enough(self, form: str) -> bool:
        if form == "frontier":
            return self.front is not None and len(self.front.runs) >= FEWEST_RUNS[form]
        # Along one path N and D move together, and no surface can be told from another.
        flat = self.front is not None and self.front.kind != "sweeps"
        return not flat and len(self.surface) >= FEWEST_RUNS[form]

    def follows(self, target: Target) -> bool:
        """Whether a target's size is the one that the ladder's own path has at its compute."""
        if target.N is None or target.D is None:
            return True
        if self.front is None or not len(self.front.runs):
            return False
        N, _ = self.front.recipe(target.C or self.flops_per_pair * target.N * target.D)
        return abs(math.log(target.N / N)) <= math.log(OFF_RECIPE)


def _choose(ladder: _Ladder, targets: Sequence[Target]) -> str:
    """The frontier has the smallest errors where it applies; of the surfaces the richest that the runs can identify."""
    bracketed = ladder.front is not None and len(ladder.front.runs) >= FEWEST_BUDGETS
    surface = any(ladder.enough(name) for name in ("coupled", "additive", "tied"))
    if ladder.front is not None and (not surface or (bracketed and all(ladder.follows(t) for t in targets))):
        return "frontier"
    if ladder.enough("coupled") and len(ladder.surface) >= 12 and ladder.budgets >= FEWEST_BUDGETS:
        law = fit(ladder.surface, "coupled")
        if not any("exponent" in said for said in weaknesses(law, profile(ladder.surface, law), ladder.surface)):
            return "coupled"
    return "additive" if len(ladder.surface) >= 8 else "tied"


def _structure(ladder: _Ladder) -> list[str]:
    """Why the ladder itself cannot support a forecast."""
    said = []
    if ladder.budgets < FEWEST_BUDGETS:
        usable = " whose best size lies inside its sizes" if ladder.front is not None and ladder.front.kind == "sweeps" else ""
        said.append(
            f"There are {ladder.budgets} budgets{usable}; two or three never pin down where the loss levels off: add runs until "
            f"there are at least {FEWEST_BUDGETS}."
        )
    if ladder.decades < FEWEST_DECADES - 1e-6:
        said.append(
            f"The budgets span {ladder.decades:.2f} decades of compute: add smaller or larger ones until the largest has "
            f"{10**FEWEST_DECADES:.0f} times the compute of the smallest ({FEWEST_DECADES} decades)."
        )
    front = ladder.front
    if front is None:
        return said
    edges = [o for o in front.optima if o.edge]
    for one in edges:
        middle = float(np.median(ladder.runs.N[ladder.runs.budget == one.budget]))
        side, end = ("smaller", "smallest") if middle > one.N else ("larger", "largest")
        said.append(
            f"The best size at {one.C:.3g} FLOPs is the {end} that was run "
            f"(N = {one.N:.3g}), so the optimum may lie beyond: add {side} sizes there, or leave that budget out."
        )
    points = front.runs
    for i in range(1, len(points)):
        above = float(points.loss[i] / points.loss[:i].min())
        if above > RISEN:
            said.append(
                f"The loss at {points.C[i]:.3g} FLOPs lies {above - 1:.1%} above that of a smaller budget, so that run diverged: "
                "train it anew with lower rates (train.matrix_rate, train.adam_rate) or another seed, or leave that budget out."
            )
    if len(points) and accelerates(points.C, points.loss):
        said.append(
            "The loss falls ever faster as compute grows, which no power law does: these runs are below the law's regime. Make "
            "the smallest runs better (smaller batch, smaller vocabulary, tuned rates) or leave them out, and add larger ones."
        )
    return said


def _too_few(ladder: _Ladder, form: str) -> str:
    """Why a form cannot be fitted at all."""
    if form != "frontier" and ladder.front is not None and ladder.front.kind != "sweeps":
        return (
            f"All runs follow one path, along which no {form} surface can be told: add runs of other sizes at the same budgets."
        )
    count, what = len(ladder.points(form)), "budgets" if form == "frontier" else "runs"
    said = (
        f"{count} usable {what} cannot carry the form {form}: add some until there are {max(FEWEST_RUNS[form], FEWEST_BUDGETS)}"
    )
    if ladder.front is None:
        said += f", or choose all sizes by one rule, within a factor of {WIDEST_STEP_OFF_PATH:g} of a power law of C"
    return said + "."


def _reading(front: Frontier | None) -> tuple[str, ...]:
    if front is None:
        return ("Read as runs of many sizes and lengths: only surfaces over N and D can be fitted.",)
    if front.kind == "sweeps":
        few = f" Too few sizes for an optimum: {', '.join(front.left_out)}." if front.left_out else ""
        return (f"Read as {len(front.optima)} budgets with several sizes each; the best size of each makes the frontier.{few}",)
    if front.kind == "given":
        return (f"Read as {len(front.runs)} optima, one per budget.",)
    beside = f" Runs beside the path: {', '.join(front.left_out)}." if front.left_out else ""
    return (f"Read as {len(front.runs)} budgets along one recipe's path.{beside}",)


def _factor(seen: Runs, form: str, N: float, D: float, C: float) -> float:
    """How many times a run lies beyond what was seen."""
    beyond = C / float(seen.C.max())
    return max(1.0, beyond) if form == "frontier" else max(1.0, beyond, N / float(seen.N.max()), D / float(seen.D.max()))


def _drift(backtest: Sequence[BackTest]) -> tuple[float, float, float]:
    """Miss per decade with what is usual mixed in, its degrees of freedom, and what the back-tests alone say."""
    by_prefix: dict[float, list[BackTest]] = {}
    for one in backtest:
        by_prefix.setdefault(one.upto, []).append(one)
    # Forecasts from one prefix err together, so each prefix counts once.
    squares = [
        float(np.mean([(one.error / max(math.log10(one.factor), _SHORTEST_STEP)) ** 2 for one in group]))
        for group in by_prefix.values()
    ]
    degrees = USUAL_WEIGHT + len(squares)
    mixed = math.sqrt((USUAL_WEIGHT * USUAL_DRIFT**2 + sum(squares)) / degrees)
    return mixed, degrees, math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def _fill(target: Target, ladder: _Ladder, law: Law) -> Target:
    """N, D and C of a target, each of them a number."""
    if target.N is not None and target.D is not None:
        return replace(target, C=target.C or ladder.flops_per_pair * target.N * target.D)
    assert target.C is not None
    if law.form == "frontier" and ladder.front is not None:
        N, D = ladder.front.recipe(target.C)
    else:
        N, D = law.optimum(target.C, ladder.flops_per_pair)
    return replace(target, N=N, D=D)


def _loss(law: Law, target: Target) -> float:
    assert target.N is not None and target.D is not None and target.C is not None
    N, D, C, ones = (np.array([value]) for value in (target.N, target.D, target.C, 1.0))
    U = None if target.U is None else np.array([min(target.U, target.D)])
    one = without_repeats(Runs(N, D, C, ones, np.zeros(1, np.int64), ones, ("target",), U))
    return float(law.loss(one.N, one.D, one.C)[0])


def _predict(law: Law, target: Target, ladder: _Ladder, drift: float, degrees: float, noise: float, level: float) -> Prediction:
    assert target.N is not None and target.D is not None and target.C is not None
    loss = _loss(law, target)
    points = ladder.points(law.form)
    factor = _factor(points, law.form, target.N, target.D, target.C)
    passed_on = sampling_sd(points, law, target.C, noise) if law.form == "frontier" else 0.0
    sd = math.sqrt((drift * math.log10(factor)) ** 2 + _residual(points, law) ** 2 + passed_on**2 + noise**2)
    low, high = _interval(loss, sd, degrees, level)
    return Prediction(target.N, target.D, target.C, loss, low, high, level, factor, sd)


def _residual(points: Runs, law: Law) -> float:
    """How far runs near the target scatter about the law: of many runs, the upper half in compute, as mistuned runs are small."""
    if math.isnan(law.residual_sd):
        # A fit through as many points as it has coefficients has no residual: half a per cent, as digitised tables have.
        return 5e-3
    n, free = len(points), len(points) - len(law.coefficients)
    if n < 2 * _FEWEST_UPPER:
        return law.residual_sd
    upper = points.take(np.argsort(points.C, kind="stable")[n // 2 :])
    residual = np.log(law.loss(upper.N, upper.D, upper.C) / upper.loss)
    return float(np.sqrt((residual**2).mean() * n / free))


def _interval(loss: float, sd: float, degrees: float, level: float) -> tuple[float, float]:
    half = float(stdtrit(degrees, 0.5 + level / 2)) * sd
    return loss * math.exp(-half), loss * math.exp(half)


def _lowest_rung(
    ladder: _Ladder, law: Law, targets: Sequence[Target], predictions: Sequence[Prediction], degrees: float, noise: float,
    said: list[str],
) -> list[str | None]:  # fmt: skip
    """Per target a reason where its forecast leans on the lowest rung, else None."""
    points = ladder.points(law.form)
    rest = points.take(points.budget > points.budget.min())
    if len(rest) < FEWEST_RUNS[law.form]:
        said.append("There are too few runs to see whether the forecast leans on the lowest rung.")
        return [None] * len(targets)
    found: list[str | None] = []
    without = fit(rest, law.form, noise=noise)
    for target, prediction in zip(targets, predictions, strict=True):
        shift = _loss(without, target) / prediction.loss - 1
        low, high = _interval(prediction.loss, prediction.sd, degrees, LEVEL)
        held = low <= prediction.loss * (1 + shift) <= high
        found.append(
            None
            if held
            else f"Without the lowest rung the forecast at {prediction.C:.3g} FLOPs moves by {shift:+.1%}, beyond its interval: "
            "the lowest rungs do not follow the same law. Tune them, or leave them out and add larger ones."
        )
    return found


def _off_path(ladder: _Ladder, form: str, targets: Sequence[Target], said: list[str]) -> list[str]:
    """Targets at another D/N than the frontier's: refused where nothing in the ladder can speak for them."""
    if form != "frontier" or ladder.front is None or all(ladder.follows(t) for t in targets):
        return []
    if any(ladder.enough(name) for name in ("coupled", "additive", "tied")):
        said.append(
            "A target's size is not what the ladder's path has at its compute: a surface (--form coupled) fits it better."
        )
        return []
    N, C = next((t.N, t.C or ladder.flops_per_pair * t.N * t.D) for t in targets if t.N and t.D and not ladder.follows(t))
    return [
        f"The run has {N:,.0f} parameters where the ladder's path comes to {ladder.front.recipe(C)[0]:,.0f} at its compute, "
        "because its data is short or a size was set by hand: give more data, leave the size to the rules, or add runs of other "
        "sizes at the same budgets."
    ]


def _optimum_warnings(front: Frontier | None) -> list[str]:
    apart = [o for o in (front.optima if front else ()) if o.disagreement > DISAGREEMENT]
    if not apart:
        return []
    where = ", ".join(f"{o.C:.3g} FLOPs ({o.disagreement:.1%})" for o in apart)
    return [f"Two ways to read the optimum differ by more than {DISAGREEMENT:.1%} at {where}: run sizes between, or repeat one."]


def _repeat_warnings(runs: Runs, form: str, targets: Sequence[Target]) -> list[str]:
    if runs.U is None:
        return []
    passes, said = runs.D / runs.U, []
    most = max((t.D / t.U for t in targets if t.D and t.U), default=0.0)
    # Of runs that see their data as often as the target does, the law has counted that.
    other = form == "frontier" and not passes.max() / ALIKE < most < passes.min() * ALIKE
    if other and passes.max() > FREE_REPEATS:
        said.append(
            f"Some runs see their data {passes.max():.1f} times, but the frontier counts compute only: a target with other "
            "passes lies off it."
        )
    if other and most > max(FREE_REPEATS, passes.max()):
        said.append(
            f"The target sees its data {most:.1f} times and the ladder {max(1.0, passes.max()):.1f} times at most, of which the "
            "law knows nothing: it may well end higher; give more data, or a smaller budget."
        )
    often = int((passes > MOST_REPEATS).sum())
    if often:
        said.append(
            f"{often} runs see their data more than {MOST_REPEATS:.0f} times, where models overfit and no correction holds: "
            f"leave them out by --where 'D/U<={MOST_REPEATS:.0f}'."
        )
    return said


def _distance_warnings(ladder: _Ladder, targets: Sequence[Target], predictions: Sequence[Prediction]) -> list[str]:
    said = []
    ratio = ladder.runs.D / ladder.runs.N
    for target, one in zip(targets, predictions, strict=True):
        if one.factor > FAR:
            why = "intervals are calibrated up to 40x"
            if one.factor > VERY_FAR:
                why = "published forecasts at 100 to 300x missed by 0.2 to 6 %, and worse where the schedule or the data changed"
            said.append(f"The target of {one.C:.3g} FLOPs lies {one.factor:.0f}x beyond the ladder; {why}: add larger runs.")
        own = one.D / one.N
        if target.N is not None and (own > 1.5 * ratio.max() or own < ratio.min() / 1.5):
            beyond = "above" if own > ratio.max() else "below"
            said.append(
                f"The target's {own:.3g} tokens per parameter lie {beyond} the ladder's {ratio.min():.3g} to {ratio.max():.3g}: "
                "add runs trained as long or as short."
            )
    return said


def _forms(ladder: _Ladder, laws: Mapping[str, Law], targets: Sequence[Target]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "coefficients": dict(law.coefficients),
            "residual_sd": None if math.isnan(law.residual_sd) else law.residual_sd,
            "losses": [_loss(law, _fill(replace(t) if t.N else t, ladder, law)) for t in targets],
        }
        for name, law in laws.items()
    }
