"""The law: how loss falls with parameters N, tokens D and compute C, fitted on finished runs.

In go `Runs`, columns of numbers, one row per run; out comes a `Law`, three to six coefficients that give the loss of any N and D
or, for the frontier, of any C. All residuals are log predicted - log measured, that is, relative errors. A fit is deterministic:
for given exponents a law is linear in what is left, so a grid over exponents with a non-negative linear solve finds every valley,
and a damped least-squares descent with Huber's loss goes to the bottom of the best of them (variable projection; arXiv 2404.10102
shows what a single start from a guess does). Everything is float64; N, D and C are divided by their geometric means inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FORMS = ("additive", "coupled", "tied", "frontier")
"""E + A N^-a + B D^-b · E + (A N^-a + B D^-b)^g · the first with a = b · E + A C^-a."""
FORMULAS = {
    "additive": "L = E + A N^-a + B D^-b",
    "coupled": "L = E + (A N^-a + B D^-b)^g",
    "tied": "L = E + A N^-a + B D^-a",
    "frontier": "L = E + A C^-a",
}
FEWEST_RUNS = {"additive": 6, "coupled": 8, "tied": 5, "frontier": 3}
"""Below this a form is not fitted; only the frontier is let go through as many points as it has coefficients."""
HUBER_DELTA = 1e-3
"""In log loss, as in Hoffmann et al. (arXiv 2203.15556, D.2) and most refits since."""
REPEATS = 15.39
"""R* of arXiv 2305.16264, section 6: after how many repeats 1 - 1/e of what repeating can give has been had."""
MEASURABLE = 5e-4
"""Relative noise of a loss between seeds: .03 to .1 % in published repeats; no residual is believed below it."""
USUAL_EXPONENT, EXPONENT_SPREAD = 0.18, 0.5
"""What is thought of a frontier's exponent before its runs have spoken, median and spread of its logarithm; runs that differ
little between seeds outweigh it (docs/LOG.md, "A usual exponent")."""
MISFITS = (0.0, 0.0007, 0.0015, 0.003, 0.005, 0.01, 0.02, 0.04)
"""How far runs may lie off the law that holds at the top of their frontier, relative, per tenfold compute below it; what is
likely of these is weighed by the runs themselves (docs/LOG.md, "Small runs count less")."""
_HUBER_WIDTH = 1.345
"""Of Huber's delta over the noise: 95 % as precise as least squares where the noise is normal."""

# Names and order of what each form is described by inside; logA, logB are at the geometric means of N and D (or C).
_PARAMETERS = {
    "additive": ("E", "logA", "a", "logB", "b"),
    "coupled": ("E", "logA", "a", "logB", "b", "g"),
    "tied": ("E", "logA", "logB", "a"),
    "frontier": ("E", "logA", "a"),
}
_EXPONENTS = np.geomspace(0.02, 1.6, 30)
_LOWEST = {"E": 0.0, "logA": -60.0, "logB": -60.0, "a": 0.005, "b": 0.005, "g": 0.1}
_HIGHEST = {"E": np.inf, "logA": 60.0, "logB": 60.0, "a": 3.0, "b": 3.0, "g": 3.0}
_BEST_VALLEYS = 6
_CHI_SQUARE_90 = 2.7


@dataclass(frozen=True)
class Runs:
    """Finished runs, one row each; all columns of one length n.

    Args:
        N: parameters that take part in a matmul.
        D: tokens trained on.
        C: FLOPs.
        loss: final held-out loss, nats per token.
        budget: number of the run's budget, 0, 1, ... in order of compute; runs of one budget share it.
        weight: of the row in the fit.
        name: what a person calls the run.
        U: unique tokens behind D; None where no run repeats its data.
        seed_noise: relative standard deviation between seeds where the table measured it.
        optimal: each row is the optimum of its budget already.
    """

    N: Array
    D: Array
    C: Array
    loss: Array
    budget: npt.NDArray[np.int64]
    weight: Array
    name: tuple[str, ...]
    U: Array | None = None
    seed_noise: float | None = None
    optimal: bool = False

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, rows: Any) -> Runs:
        """The rows of a mask or of a list of indices; budgets keep their numbers."""
        index = np.arange(len(self))[rows]
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        for key, value in kept.items():
            if isinstance(value, np.ndarray):
                kept[key] = value[index]
        return Runs(**kept | {"name": tuple(self.name[i] for i in index)})


@dataclass(frozen=True)
class Target:
    """A run to be forecast.

    Args:
        N: parameters; with D, or None where the recipe decides.
        D: tokens.
        C: FLOPs; None where N and D say it.
        U: unique tokens behind D; None: all of them.
    """

    N: float | None = None
    D: float | None = None
    C: float | None = None
    U: float | None = None


@dataclass(frozen=True)
class Law:
    """A fitted form.

    Args:
        form: one of FORMS.
        coefficients: E (nats per token), A, a, and as the form has them B, b, g.
        objective: sum over runs of Huber's loss of the log residuals.
        delta: of Huber's loss.
        residual_sd: of the log residuals, corrected for the degrees of freedom.
        misfit: of a frontier, how far off it a run was thought to lie, relative, per tenfold compute below the largest.
    """

    form: str
    coefficients: Mapping[str, float]
    objective: float
    delta: float
    residual_sd: float
    misfit: float = 0.0

    def loss(self, N: npt.ArrayLike, D: npt.ArrayLike, C: npt.ArrayLike) -> Array:
        """Predicted loss, nats per token; the frontier reads C only, the surfaces N and D only."""
        k = self.coefficients
        if self.form == "frontier":
            return k["E"] + k["A"] * np.asarray(C, np.float64) ** -k["a"]
        reducible = k["A"] * np.asarray(N, np.float64) ** -k["a"] + k["B"] * np.asarray(D, np.float64) ** -k.get("b", k["a"])
        return np.asarray(k["E"] + reducible ** k.get("g", 1.0), np.float64)

    def optimum(self, C: float, flops_per_pair: float = 6.0) -> tuple[float, float]:
        """N and D of least loss for C = 6 N D of a surface (Hoffmann et al., equation 4; g does not move it).

        Args:
            C: FLOPs.
            flops_per_pair: C / (N D).
        """
        k = self.coefficients
        a, b, product = k["a"], k.get("b", k["a"]), C / flops_per_pair
        if k["A"] <= 0 or k["B"] <= 0:
            return product**0.5, product**0.5
        N = (a * k["A"] / (b * k["B"])) ** (1 / (a + b)) * product ** (b / (a + b))
        return N, product / N


def fit(runs: Runs, form: str, delta: float = HUBER_DELTA, noise: float | None = None) -> Law:
    """The law of least Huber loss; takes milliseconds and gives the same bits each time.

    Args:
        runs: at least FEWEST_RUNS of the form; for the frontier one row per budget.
        form: one of FORMS.
        delta: of Huber's loss.
        noise: relative standard deviation of a loss. It says how far the runs outweigh what is usual for a frontier's exponent,
            which three to six noisy budgets hardly pin down, and how likely it is that small ones lie off the law. None: the
            runs alone speak, by their weights.
    """
    if noise is not None:
        delta = max(delta, _HUBER_WIDTH * noise)
    if form != "frontier" or noise is None:
        return _fit(_Problem.of(runs, form), delta)
    unlikely = np.array([_unlikeliness(_Problem.of(_discounted(runs, misfit, noise), form, noise), delta) for misfit in MISFITS])
    odds = np.exp(unlikely.min() - unlikely)
    misfit = float(odds @ np.array(MISFITS) / odds.sum())
    return replace(_fit(_Problem.of(_discounted(runs, misfit, noise), form, noise), delta), misfit=misfit)


def _fit(problem: _Problem, delta: float) -> Law:
    theta = _descend(problem, _starts(problem), np.inf, steps=40)
    theta = _descend(problem, theta[:_BEST_VALLEYS], delta)
    return problem.law(theta[0], delta)


def _discounted(runs: Runs, misfit: float, noise: float) -> Runs:
    """Runs that weigh the less the further below the largest they lie: by noise and misfit together, in the unit of the noise."""
    off = misfit * np.log10(runs.C.max() / runs.C) / noise
    return replace(runs, weight=1 / (1 / runs.weight + off**2))


def _unlikeliness(problem: _Problem, delta: float) -> float:
    """Minus the log likelihood of the weights, their law integrated out about the best one (restricted maximum likelihood)."""
    assert problem.noise is not None
    theta = problem.theta(_fit(problem, delta))
    residual, jacobian = (one[0] / problem.noise for one in problem.residuals(theta[None]))
    # An exponent is as likely to be twice what is usual as half of it.
    jacobian[:, problem.names.index("a")] *= theta[problem.names.index("a")]
    spread = jacobian.T @ (problem.weight[:, None] * jacobian)
    fitted = problem.weight @ residual**2 - np.log(problem.weight).sum()
    return float(fitted + np.linalg.slogdet(spread)[1]) / 2


def profile(runs: Runs, law: Law) -> dict[str, tuple[float, float]]:
    """90 % intervals of E and the exponents: all values that, held fixed, raise -2 log likelihood by less than 2.7 after a refit.

    The noise is taken as the fit's residual, at least MEASURABLE, and Huber's delta so wide that most runs count squared. What is
    usual for an exponent is left out: the interval says what the runs alone say, each weighed as in the fit. An end that was not
    found is the end of the search range.
    """
    noise = max(law.residual_sd, MEASURABLE) if np.isfinite(law.residual_sd) else MEASURABLE
    problem = _Problem.of(_discounted(runs, law.misfit, noise), law.form)
    delta = max(law.delta, _HUBER_WIDTH * noise)
    best = _descend(problem, problem.theta(law)[None], delta)[0]
    lowest = problem.cost(best[None], delta)[0]
    curvature = problem.curvature(best, delta)
    wanted = [(i, side) for i, name in enumerate(problem.names) if not name.startswith("log") for side in (-1.0, 1.0)]
    rays = [_ray(problem, best, curvature, i, side, noise) for i, side in wanted]
    held = np.concatenate([np.full(len(distances), i) for (i, _), (distances, _) in zip(wanted, rays, strict=True)])
    refitted = _descend(problem, np.concatenate([starts for _, starts in rays]), delta, held, steps=60)
    rise = 2 * (problem.cost(refitted, delta) - lowest) / noise**2
    found: dict[str, tuple[float, float]] = {}
    at = 0
    for (i, side), (distances, _) in zip(wanted, rays, strict=True):
        end = float(best[i] + side * _crossing(distances, rise[at : at + len(distances)]))
        at += len(distances)
        value = law.coefficients[problem.names[i]]
        low, high = found.get(problem.names[i], (value, value))
        found[problem.names[i]] = (min(low, end), max(high, end))
    return found


def sampling_sd(runs: Runs, law: Law, C: float, noise: float) -> float:
    """Relative standard deviation of a frontier's loss at C FLOPs that is due to the noise of its runs.

    Args:
        runs, noise: that it was fitted to, and with.
    """
    problem = _Problem.of(_discounted(runs, law.misfit, noise), law.form, noise)
    theta = problem.theta(law)
    jacobian = problem.residuals(theta[None])[1][0] / noise
    there = replace(problem, x=np.log([C]) - problem.x_mean, noise=None)
    loss, slope = there.predict(theta[None])
    # What stands at the end of its range does not move.
    free = (theta > problem.lower) & (theta < problem.upper)
    certain = (jacobian.T @ (problem.weight[:, None] * jacobian))[free][:, free]
    slope = (slope[0, 0] / loss[0, 0])[free]
    return float(np.sqrt(slope @ np.linalg.solve(certain, slope)))


def weaknesses(law: Law, intervals: Mapping[str, tuple[float, float]], runs: Runs) -> list[str]:
    """What the fitted runs do not say about the coefficients, one sentence each; empty where all are identified."""
    said = []
    lowest_loss = float(runs.loss.min())
    low, high = intervals["E"]
    if low <= 1e-3 * lowest_loss:
        said.append(f"E is not identified: anything from 0 to {high:.3g} fits these runs.")
    elif high - low > 0.5 * lowest_loss:
        said.append(f"E is hardly identified: anything from {low:.3g} to {high:.3g} fits these runs.")
    for name in ("a", "b", "g"):
        if name in intervals:
            low, high = intervals[name]
            if low <= _LOWEST[name] * 1.001 or high >= _HIGHEST[name] * 0.999 or high > 8 * low:
                said.append(f"the exponent {name} is not identified: anything from {low:.2g} to {high:.2g} fits these runs.")
    k = law.coefficients
    for name, exponent, size in (("A", k["a"], runs.C if law.form == "frontier" else runs.N), ("B", k.get("b", k["a"]), runs.D)):
        # By what the term adds to the smallest run: the coefficient itself is the term at a size of one, in whatever unit.
        if name in k and (k[name] * float(size.min()) ** -exponent) ** k.get("g", 1.0) <= MEASURABLE * lowest_loss:
            said.append(f"the term of {name} vanishes: these runs do not show it.")
    return said


def effective_tokens(D: npt.ArrayLike, U: npt.ArrayLike) -> Array:
    """What D tokens with U unique ones are worth: U + U R* (1 - exp(-R/R*)), R = D/U - 1 (arXiv 2305.16264, equation 5)."""
    tokens, unique = np.asarray(D, np.float64), np.minimum(np.asarray(U, np.float64), np.asarray(D, np.float64))
    repeats = tokens / unique - 1
    return np.asarray(unique * (1 + REPEATS * -np.expm1(-repeats / REPEATS)), np.float64)


def without_repeats(runs: Runs) -> Runs:
    """Runs with D replaced by what it is worth where data was repeated; N and C stay.

    The like correction of N (equation 6) is left out: it overcorrects the published runs (docs/LOG.md, "The law").
    """
    if runs.U is None or not (runs.U < runs.D).any():
        return runs
    return replace(runs, D=effective_tokens(runs.D, runs.U))


@dataclass(frozen=True)
class _Problem:
    """Scaled columns of one fit. `x` (n) is log N or log C, `y` (n) log D, both about their means.

    With `noise` there is one more residual behind those of the runs: how far log a lies from what is usual, in their unit.
    """

    form: str
    names: tuple[str, ...]
    x: Array
    y: Array
    x_mean: float
    y_mean: float
    loss: Array
    weight: Array
    noise: float | None = None

    @staticmethod
    def of(runs: Runs, form: str, noise: float | None = None) -> _Problem:
        x, y = np.log(runs.C if form == "frontier" else runs.N), np.log(runs.D)
        x_mean, y_mean = float(x.mean()), float(y.mean())
        weight = runs.weight if noise is None else np.append(runs.weight, 1.0)
        return _Problem(form, _PARAMETERS[form], x - x_mean, y - y_mean, x_mean, y_mean, runs.loss, weight, noise)

    @property
    def lower(self) -> Array:
        return np.array([_LOWEST[n] for n in self.names])

    @property
    def upper(self) -> Array:
        return np.array([self.loss.min() * 0.9999 if n == "E" else _HIGHEST[n] for n in self.names])

    def predict(self, theta: Array) -> tuple[Array, Array]:
        """Loss (S, n) and its derivatives (S, n, P) for S parameter vectors (S, P)."""
        p = {name: theta[:, i, None] for i, name in enumerate(self.names)}
        ones = np.ones_like(self.x)[None] * np.ones((len(theta), 1))
        first = np.exp(p["logA"] - p["a"] * self.x)
        if self.form == "frontier":
            return p["E"] + first, np.stack([ones, first, -first * self.x], -1)
        second = np.exp(p["logB"] - p.get("b", p["a"]) * self.y)
        if self.form == "tied":
            columns = [ones, first, second, -first * self.x - second * self.y]
            return p["E"] + first + second, np.stack(columns, -1)
        if self.form == "additive":
            return p["E"] + first + second, np.stack([ones, first, -first * self.x, second, -second * self.y], -1)
        log_sum = np.logaddexp(p["logA"] - p["a"] * self.x, p["logB"] - p["b"] * self.y)
        power = np.exp(p["g"] * log_sum)
        outer = p["g"] * np.exp((p["g"] - 1) * log_sum)
        columns = [ones, outer * first, -outer * first * self.x, outer * second, -outer * second * self.y, power * log_sum]
        return p["E"] + power, np.stack(columns, -1)

    def residuals(self, theta: Array) -> tuple[Array, Array]:
        """Residuals (S, n) and their derivatives (S, n, P)."""
        loss, slope = self.predict(theta)
        residual, jacobian = np.log(loss) - np.log(self.loss), slope / loss[..., None]
        if self.noise is None:
            return residual, jacobian
        at = self.names.index("a")
        stiff = self.noise / EXPONENT_SPREAD
        more = np.zeros((len(theta), 1, theta.shape[1]))
        more[:, 0, at] = stiff / theta[:, at]
        usual = stiff * np.log(theta[:, at, None] / USUAL_EXPONENT)
        return np.concatenate([residual, usual], 1), np.concatenate([jacobian, more], 1)

    def cost(self, theta: Array, delta: float) -> Array:
        return np.asarray((self.weight * _huber(self.residuals(theta)[0], delta)).sum(-1), np.float64)

    def curvature(self, theta: Array, delta: float) -> Array:
        """Gauss-Newton curvature (P, P) of the cost."""
        residual, jacobian = (one[0] for one in self.residuals(theta[None]))
        pull = self.weight * _pull(residual, delta)
        return np.asarray(jacobian.T @ (pull[:, None] * jacobian), np.float64)

    def law(self, theta: Array, delta: float) -> Law:
        p = dict(zip(self.names, map(float, theta), strict=True))
        named = {"E": p["E"], "A": float(np.exp(p["logA"] + p["a"] * self.x_mean)), "a": p["a"]}
        if self.form != "frontier":
            named["B"] = float(np.exp(p["logB"] + p.get("b", p["a"]) * self.y_mean))
        named |= {key: p[key] for key in ("b", "g") if key in p}
        residuals = self.residuals(theta[None])[0][0, : len(self.loss)]
        free = len(residuals) - len(theta)
        weight = self.weight[: len(self.loss)]
        # Of runs as heavy as the one nearest to what will be foretold.
        heavy = weight[self.x.argmax()]
        sd = float(np.sqrt((weight * residuals**2).sum() / heavy / free)) if free > 0 else float("nan")
        objective = float((weight * _huber(residuals, delta)).sum())
        return Law(self.form, named, objective, delta, sd)

    def theta(self, law: Law) -> Array:
        k = law.coefficients
        p = {"E": k["E"], "a": k["a"], "b": k.get("b", k["a"]), "g": k.get("g", 1.0)}
        p["logA"] = np.log(k["A"]) - k["a"] * self.x_mean
        p["logB"] = np.log(k["B"]) - p["b"] * self.y_mean if "B" in k else 0.0
        return np.array([p[n] for n in self.names])


def _huber(residual: Array, delta: float) -> Array:
    size = np.abs(residual)
    if not np.isfinite(delta):
        return 0.5 * residual**2
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def _pull(residual: Array, delta: float) -> Array:
    """Weight of each residual in a reweighted least-squares step."""
    return np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))


def _starts(problem: _Problem) -> Array:
    """Parameter vectors (S, P) in the valleys of the projected problem, best first."""
    if problem.form == "coupled":
        return _coupled_starts(problem)
    first = np.exp(-_EXPONENTS[:, None] * problem.x)  # (K, n)
    second = np.exp(-_EXPONENTS[:, None] * problem.y)
    ones = np.ones_like(first)
    if problem.form == "frontier":
        columns = np.stack([ones, first], -1)
    elif problem.form == "tied":
        columns = np.stack([ones, first, second], -1)
    else:
        k = len(_EXPONENTS)
        rows = np.repeat(np.arange(k), k), np.tile(np.arange(k), k)
        columns = np.stack([ones[rows[0]], first[rows[0]], second[rows[1]]], -1)
    scale = np.sqrt(problem.weight[: len(problem.loss)]) / problem.loss
    solved, cost = _non_negative(columns * scale[:, None], problem.loss * scale)
    if problem.form == "additive":
        valleys = _valleys(cost.reshape(k, k))
        exponents = {"a": _EXPONENTS[rows[0][valleys]], "b": _EXPONENTS[rows[1][valleys]]}
    else:
        valleys = _valleys(cost[:, None])
        exponents = {"a": _EXPONENTS[valleys]}
    solved = solved[valleys]
    linear = {"E": solved[:, 0], "logA": _log(solved[:, 1]), "logB": _log(solved[:, -1])}
    return np.stack([(linear | exponents)[n] for n in problem.names], -1)


def _coupled_starts(problem: _Problem) -> Array:
    """For given E and g, (L - E)^(1/g) is linear in A and B: the best exponents of each (E, g) of a coarse grid."""
    exponents = _EXPONENTS[2::3]
    k = len(exponents)
    i, j = np.repeat(np.arange(k), k), np.tile(np.arange(k), k)
    starts, costs = [], []
    for g in (0.2, 0.35, 0.6, 1.0, 1.6):
        # The inner exponents grow as g shrinks, so that the outer ones stay where losses are.
        a, b = exponents[i] / g, exponents[j] / g
        columns = np.stack([np.exp(-a[:, None] * problem.x), np.exp(-b[:, None] * problem.y)], -1)
        for share in (0.0, 0.4, 0.7, 0.9):
            E = share * problem.loss.min()
            inner = (problem.loss - E) ** (1 / g)
            # First order: d log L = g inner^(g-1) / L d inner.
            scale = np.sqrt(problem.weight) * g * inner ** (g - 1) / problem.loss
            solved, cost = _non_negative(columns * scale[:, None], inner * scale)
            best = int(cost.argmin())
            p = {"E": E, "logA": _log(solved[best, 0]), "logB": _log(solved[best, 1]), "a": a[best], "b": b[best], "g": g}
            starts.append([p[n] for n in problem.names])
            costs.append(cost[best])
    order = np.argsort(costs, kind="stable")[:12]
    return np.clip(np.array(starts)[order], problem.lower, problem.upper)


def _log(value: Any) -> Any:
    """Of a linear coefficient; one that the non-negative solve set to zero is begun with small."""
    return np.log(np.maximum(value, 1e-6))


def _non_negative(columns: Array, target: Array) -> tuple[Array, Array]:
    """Non-negative least squares of many small systems at once, by trying every support.

    Args:
        columns: (K, n, q), q of 2 or 3.
        target: (n).

    Returns:
        Solutions (K, q) and sums of squares (K).
    """
    q = columns.shape[-1]
    norm = np.linalg.norm(columns, axis=1)
    unit = columns / norm[:, None, :]
    gram = np.einsum("knp,knq->kpq", unit, unit)
    right = np.einsum("knq,n->kq", unit, target)
    best = np.zeros((len(columns), q))
    cost = np.full(len(columns), float(target @ target))
    for size in range(1, q + 1):
        for support in combinations(range(q), size):
            block = gram[:, support][:, :, support] + 1e-13 * np.eye(size)
            found = np.linalg.solve(block, right[:, support][..., None])[..., 0]
            value = target @ target - (found * right[:, support]).sum(-1)
            better = (found >= 0).all(-1) & (value < cost)
            cost = np.where(better, value, cost)
            full = np.zeros_like(best)
            full[:, support] = found
            best = np.where(better[:, None], full, best)
    return best / norm, cost


def _valleys(cost: Array) -> npt.NDArray[np.int64]:
    """Flat indices of the local minima of a grid, best first, at most twice as many as are gone down into in the end."""
    padded = np.pad(cost, 1, constant_values=np.inf)
    lower = np.ones_like(cost, bool)
    rows, columns = cost.shape
    for up in (0, 1, 2):
        for left in (0, 1, 2):
            lower &= cost <= padded[up : up + rows, left : left + columns]
    flat = np.flatnonzero(lower)
    return flat[np.argsort(cost.ravel()[flat], kind="stable")][: 2 * _BEST_VALLEYS]


def _descend(problem: _Problem, theta: Array, delta: float, held: npt.NDArray[np.int64] | None = None, steps: int = 150) -> Array:
    """Levenberg-Marquardt with Huber's loss from S starts (S, P) at once, within bounds; returns them best first.

    Args:
        held: (S) index of the parameter that stays as it is; the order is then kept.
    """
    lower, upper = problem.lower, problem.upper
    theta = theta.copy()
    damping = np.full(len(theta), 1e-3)
    residual, jacobian = problem.residuals(theta)
    cost = (problem.weight * _huber(residual, delta)).sum(-1)
    idle = np.zeros(len(theta), int)
    diagonal = np.arange(theta.shape[1])
    for _ in range(steps):
        pull = problem.weight * _pull(residual, delta)
        gradient = np.einsum("snp,sn->sp", jacobian, pull * residual)
        hessian = np.swapaxes(jacobian * pull[..., None], 1, 2) @ jacobian
        stuck = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
        if held is not None:
            stuck[np.arange(len(theta)), held] = True
        gradient = np.where(stuck, 0.0, gradient)
        hessian = np.where(stuck[:, :, None] | stuck[:, None, :], 0.0, hessian)
        hessian[:, diagonal, diagonal] = hessian[:, diagonal, diagonal] * (1 + damping[:, None]) + np.where(stuck, 1.0, 1e-16)
        step = np.linalg.solve(hessian, -gradient[..., None])[..., 0]
        tried = np.clip(theta + np.clip(step, -2.0, 2.0), lower, upper)
        new_residual, new_jacobian = problem.residuals(tried)
        new_cost = (problem.weight * _huber(new_residual, delta)).sum(-1)
        better = new_cost < cost
        idle = np.where(better & (cost - new_cost > 1e-9 * cost), 0, idle + 1)
        theta = np.where(better[:, None], tried, theta)
        jacobian = np.where(better[:, None, None], new_jacobian, jacobian)
        residual, cost = np.where(better[:, None], new_residual, residual), np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 4, damping * 5), 1e-12, 1e12)
        if (idle >= 8).all():
            break
    return theta if held is not None else theta[np.argsort(cost, kind="stable")]


def _ray(problem: _Problem, best: Array, curvature: Array, held: int, side: float, noise: float) -> tuple[Array, Array]:
    """Distances (S) from the optimum along one parameter, to the end of its range, and where to begin the refits there (S, P)."""
    end = float((problem.lower if side < 0 else problem.upper)[held])
    others = [i for i in range(len(best)) if i != held]
    inner = curvature[np.ix_(others, others)]
    # How the others follow when this one moves, to first order.
    follow = -np.linalg.solve(inner + 1e-12 * np.trace(inner) * np.eye(len(others)), curvature[others, held])
    stiffness = max(float(curvature[held, held] + curvature[held, others] @ follow), 1e-12)
    reach = abs(end - best[held])
    # Densest about where a parabola would cross.
    steps = noise / stiffness**0.5 * np.array([0.4, 0.8, 1.2, 1.6, 2, 2.5, 3.2, 4.5, 7, 12, 25, 60, np.inf])
    distances = np.unique(np.minimum(steps, reach))
    theta = np.repeat(best[None], len(distances), 0)
    theta[:, held] += side * distances
    theta[:, others] += np.clip(side * distances[:, None] * follow, -3, 3)
    return distances, np.clip(theta, problem.lower, problem.upper)


def _crossing(distances: Array, rise: Array) -> float:
    """The distance at which the profile has risen by 2.7; the last where it never does."""
    before_distance, before_rise = 0.0, 0.0
    for distance, value in zip(distances, rise, strict=True):
        if value >= _CHI_SQUARE_90:
            share = (_CHI_SQUARE_90 - before_rise) / max(float(value) - before_rise, 1e-12)
            return before_distance + share * (float(distance) - before_distance)
        before_distance, before_rise = float(distance), max(float(value), 0.0)
    return before_distance
