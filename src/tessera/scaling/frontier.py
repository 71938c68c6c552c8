"""Which runs tell the loss that a budget can buy: the optimum of each budget's sizes, or the recipe's own path.

In go `Runs` with budgets; out comes a `Frontier`, one point per budget. A table is read as *sweeps* where most budgets have three
sizes or more: the optimum is where loss over log N is least. It is read as a *path* where budgets have one size each, chosen by
one rule, so that N grows smoothly with C. Any other table has no frontier, and only a surface over N and D can be fitted to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import Akima1DInterpolator

from tessera.scaling.law import MEASURABLE, Array, Runs

WIDEST_STEP_OFF_PATH = 1.6
"""A path's sizes stay within this factor of a power law of C: then D/N is within 2.6 of the rule's, and loss within about 1 %."""
SAME_SIZE = 1.01
"""Digitised tables hold one model twice with slightly different N."""
DISAGREEMENT = 0.003
"""Relative difference between the two extractors from which an optimum is not trusted."""
SLOPE_GROWTH = 0.2
"""Growth of the slope of log loss over log compute, from one end of the ladder to the other, that counts as accelerating."""
ACCELERATION_NOISE = 2e-3
"""Noise of a loss that curvature is compared with, at least; twice what seeds differ by."""


@dataclass(frozen=True)
class Optimum:
    """The best loss of one budget.

    Args:
        budget: its number.
        N, D, C: at the optimum.
        loss: nats per token.
        sizes: how many sizes were run.
        edge: the best size is the smallest or the largest that was run.
        disagreement: relative difference of the two extractors' losses.
    """

    budget: int
    N: float
    D: float
    C: float
    loss: float
    sizes: int
    edge: bool
    disagreement: float


@dataclass(frozen=True)
class Frontier:
    """One point per budget.

    Args:
        kind: `sweeps`, `path`, or `given` where the table holds optima.
        runs: the points, in order of compute; an optimum at the edge of its sizes is none of them.
        optima: what they were taken from; empty for a path.
        left_out: names of runs that lie beside a path, and budgets with too few sizes for an optimum, in words.
    """

    kind: str
    runs: Runs
    optima: tuple[Optimum, ...]
    left_out: tuple[str, ...]

    def recipe(self, C: float) -> tuple[float, float]:
        """N and D that the path takes at C, by power laws through its points."""
        slope, level = power_law(self.runs.C, self.runs.N)
        N, last = level * C**slope, int(self.runs.C.argmax())
        return N, C / N * float(self.runs.N[last] * self.runs.D[last] / self.runs.C[last])


def power_law(x: Array, y: Array) -> tuple[float, float]:
    """Exponent and factor of y = factor x^exponent by least squares on logs; a constant where all x are equal."""
    log_x, log_y = np.log(x), np.log(y)
    spread = float(((log_x - log_x.mean()) ** 2).sum())
    exponent = float(((log_x - log_x.mean()) * (log_y - log_y.mean())).sum()) / spread if spread > 0 else 0.0
    return exponent, float(np.exp(log_y.mean() - exponent * log_x.mean()))


def accelerates(C: Array, loss: Array) -> bool:
    """Whether log loss falls ever faster in log compute, beyond what noise does: no sum of powers does that."""
    x, y = np.log(C), np.log(loss)
    if len(x) < 4 or np.ptp(x) == 0:
        return False
    x = (x - x.mean()) / x.std()
    columns = np.stack([np.ones_like(x), x, x**2], -1)
    found = np.linalg.lstsq(columns, y, rcond=None)[0]
    residual = y - columns @ found
    noise = max(float(np.sqrt((residual**2).sum() / (len(x) - 3))), ACCELERATION_NOISE)
    error = noise * float(np.sqrt(np.linalg.inv(columns.T @ columns)[2, 2]))
    growth = 2 * found[2] * np.ptp(x) / found[1]
    return bool(found[1] < 0 and found[2] < -2 * error and growth > SLOPE_GROWTH)


def frontier(runs: Runs) -> Frontier | None:
    """The frontier of a table; None where its budgets are neither swept nor on one path."""
    if runs.optimal:
        order = np.argsort(runs.C, kind="stable")
        return Frontier("given", runs.take(order), (), ())
    groups = [np.flatnonzero(runs.budget == b) for b in np.unique(runs.budget)]
    sizes = [_different(runs.N[g]) for g in groups]
    if sum(n >= 3 for n in sizes) > len(groups) / 2:
        found = optima(runs)
        few = [f"the budget of {runs.C[g].mean():.3g} FLOPs" for g, n in zip(groups, sizes, strict=True) if n < 3]
        return Frontier("sweeps", _points(runs, tuple(o for o in found if not o.edge)), found, tuple(few))
    return _path(runs, groups)


def optima(runs: Runs) -> tuple[Optimum, ...]:
    """The optimum of every budget that has at least three sizes, in order of compute.

    Loss over log N is read twice: as a cubic through the best size and two neighbours on either side (a parabola where there are
    fewer than five; too large models lose more than too small ones, which biases a parabola), and by Akima's interpolation of all
    sizes. The mean of the two minima counts; where they differ by more than DISAGREEMENT the caller should say so.
    """
    found = []
    for budget in np.unique(runs.budget):
        rows = np.flatnonzero(runs.budget == budget)
        rows = rows[np.argsort(runs.N[rows], kind="stable")]
        if _different(runs.N[rows]) >= 3:
            found.append(_optimum(runs.take(rows)))
    return tuple(sorted(found, key=lambda o: o.C))


def _different(N: Array) -> int:
    """How many sizes there are."""
    return int(1 + (np.diff(np.log(np.sort(N))) > np.log(SAME_SIZE)).sum())


def _optimum(runs: Runs) -> Optimum:
    """Of one budget's runs, in order of N."""
    x, loss = _sizes(runs)
    best = _best(loss)
    C = float(np.median(runs.C))
    product = float(np.median(runs.N * runs.D))
    if best in (0, len(x) - 1):
        N = float(np.exp(x[best]))
        return Optimum(int(runs.budget[0]), N, product / N, C, float(loss[best]), len(x), True, 0.0)
    fine = np.linspace(x[best - 1], x[best + 1], 401)
    near = slice(max(0, best - 2), best + 3)
    local_x, local_loss = _least(fine, _polynomial(x[near], loss[near], fine))
    akima_x, akima_loss = _least(fine, Akima1DInterpolator(x, loss)(fine))
    N = float(np.exp((local_x + akima_x) / 2))
    loss_star = (local_loss + akima_loss) / 2
    difference = abs(local_loss - akima_loss) / loss_star
    return Optimum(int(runs.budget[0]), N, product / N, C, loss_star, len(x), False, difference)


def _best(loss: Array) -> int:
    """Index of the best size; of one inside where the ends are no better than noise makes them."""
    best = int(loss.argmin())
    if best not in (0, len(loss) - 1):
        return best
    inner = 1 + int(loss[1:-1].argmin())
    gain = loss[inner] / loss[best] - 1
    # Where a size between the two is worse than both, loss does not fall towards that end.
    hump = loss[min(best, inner) : max(best, inner) + 1].max() > loss[inner]
    return inner if gain <= MEASURABLE or (hump and gain <= DISAGREEMENT) else best


def _sizes(runs: Runs) -> tuple[Array, Array]:
    """Log N and mean loss of each size; runs within SAME_SIZE of each other are one, or interpolation would swing."""
    log_N = np.log(runs.N)
    number = np.concatenate([[0], np.cumsum(np.diff(log_N) > np.log(SAME_SIZE))])
    count = np.bincount(number)
    return np.bincount(number, log_N) / count, np.bincount(number, runs.loss) / count


def _polynomial(x: Array, loss: Array, at: Array) -> Array:
    """Least-squares cubic through five sizes, parabola through fewer."""
    middle = float(x.mean())
    return np.asarray(np.polyval(np.polyfit(x - middle, loss, 3 if len(x) >= 5 else 2), at - middle), np.float64)


def _least(x: Array, values: Array) -> tuple[float, float]:
    at = int(values.argmin())
    return float(x[at]), float(values[at])


def _points(runs: Runs, found: tuple[Optimum, ...]) -> Runs:
    N, D, C, loss = (np.array([getattr(o, key) for o in found], np.float64) for key in ("N", "D", "C", "loss"))
    names = tuple(f"the optimum at {o.C:.3g} FLOPs" for o in found)
    numbers = np.array([o.budget for o in found], np.int64)
    return Runs(N, D, C, loss, numbers, np.ones(len(found)), names, seed_noise=runs.seed_noise)


def _path(runs: Runs, groups: Sequence[npt.NDArray[np.int64]]) -> Frontier | None:
    """One run per budget along a power law N(C); of a budget with more sizes the one nearest to it."""
    single = np.array([g[0] for g in groups if _different(runs.N[g]) == 1], np.int64)
    if len(groups) < 3 or len(single) < max(2, len(groups) / 2):
        return None
    exponent, factor = power_law(runs.C[single], runs.N[single])
    off = np.abs(np.log(runs.N / (factor * runs.C**exponent)))
    chosen = np.array([g[off[g].argmin()] for g in groups])
    chosen = chosen[np.argsort(runs.C[chosen], kind="stable")]
    if off[chosen].max() > np.log(WIDEST_STEP_OFF_PATH) or exponent <= 0.05 or exponent >= 0.95:
        return None
    beside = sorted(set(range(len(runs))) - set(chosen.tolist()))
    return Frontier("path", runs.take(chosen), (), tuple(runs.name[i] for i in beside))
