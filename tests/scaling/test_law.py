"""Fits give back the law that made the runs, the same each time, and say what the runs do not say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tessera.scaling.frontier import frontier, optima
from tessera.scaling.law import FORMS, Law, Runs, effective_tokens, fit, profile, sampling_sd, weaknesses, without_repeats
from tessera.scaling.table import read


def runs_of(N: np.ndarray, D: np.ndarray, loss: np.ndarray, budget: np.ndarray | None = None) -> Runs:
    n = len(N)
    numbers = np.arange(n) if budget is None else budget
    return Runs(N, D, 6 * N * D, loss, numbers, np.ones(n), tuple(f"run {i}" for i in range(n)))


def cloud(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    N = 10 ** dice.uniform(7, 9.5, n)
    return N, N * 10 ** dice.uniform(0.7, 2, n)


LAWS = {
    "additive": {"E": 1.69, "A": 406.4, "a": 0.34, "B": 410.7, "b": 0.28},
    "coupled": {"E": 1.5, "A": 3e3, "a": 0.5, "B": 6e4, "b": 0.55, "g": 0.5},
    "tied": {"E": 1.8, "A": 150.0, "a": 0.27, "B": 260.0},
    "frontier": {"E": 1.7, "A": 86.0, "a": 0.092},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_law_is_found_again_from_its_own_runs(form: str) -> None:
    N, D = cloud()
    made = Law(form, LAWS[form], 0.0, 0.0, 0.0)
    found = fit(runs_of(N, D, made.loss(N, D, 6 * N * D)), form)
    for name, value in LAWS[form].items():
        assert found.coefficients[name] == pytest.approx(value, rel=2e-3)
    assert found.residual_sd < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_a_fit_gives_the_same_bits_again(form: str) -> None:
    N, D = cloud(20)
    loss = Law(form, LAWS[form], 0, 0, 0).loss(N, D, 6 * N * D) * np.exp(2e-3 * np.random.default_rng(1).standard_normal(20))
    assert fit(runs_of(N, D, loss), form) == fit(runs_of(N.copy(), D.copy(), loss.copy()), form)


def test_one_bad_run_hardly_moves_a_fit() -> None:
    N, D = cloud()
    loss = Law("additive", LAWS["additive"], 0, 0, 0).loss(N, D, 6 * N * D)
    loss[3] *= 1.2
    assert fit(runs_of(N, D, loss), "additive").coefficients["E"] == pytest.approx(1.69, rel=0.01)


def test_the_optimum_of_a_surface_is_its_least_loss_at_that_compute() -> None:
    for form in ("additive", "coupled", "tied"):
        law = Law(form, LAWS[form], 0, 0, 0)
        N, D = law.optimum(1e20)
        assert pytest.approx(1e20) == 6 * N * D
        for factor in (0.9, 1.1):
            assert law.loss(N * factor, D / factor, 1e20) > law.loss(N, D, 1e20)


def test_profile_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    C = np.geomspace(1e16, 1e20, 9)
    hits = 0
    for seed in range(15):
        loss = Law("frontier", LAWS["frontier"], 0, 0, 0).loss(C, C, C) * np.exp(
            2e-3 * np.random.default_rng(seed).standard_normal(9)
        )
        runs = Runs(C**0.5, C**0.5 / 6, C, loss, np.arange(9), np.ones(9), ("",) * 9)
        law = fit(runs, "frontier")
        low, high = profile(runs, law)["E"]
        assert low <= law.coefficients["E"] <= high
        hits += low <= 1.7 <= high
    assert 11 <= hits <= 15


def test_e_that_one_decade_cannot_tell_is_flagged_and_four_decades_can() -> None:
    def weak(decades: float) -> list[str]:
        C = 1e17 * np.geomspace(1, 10.0**decades, 8)
        loss = Law("frontier", {"E": 1.0, "A": 86.0, "a": 0.1}, 0, 0, 0).loss(C, C, C)
        loss *= np.exp(3e-3 * np.random.default_rng(0).standard_normal(8))
        runs = Runs(C**0.5, C**0.5 / 6, C, loss, np.arange(8), np.ones(8), ("",) * 8)
        law = fit(runs, "frontier")
        return weaknesses(law, profile(runs, law), runs)

    assert any("E is" in said for said in weak(1)) and not weak(6)


@pytest.mark.parametrize("unit", [1e-24, 1.0, 1e18])
def test_a_term_vanishes_by_what_it_adds_and_not_by_its_unit(unit: float) -> None:
    N, D = (column / unit for column in cloud())
    for shown, hidden in (("A", "B"), ("B", "A")):
        k = {"E": 2.0, "a": 0.9, "b": 0.9}
        for name, size in (("A", N), ("B", D)):
            k[name] = (0.3 if name == shown else 1e-9) * float(np.exp(np.log(size).mean())) ** 0.9
        law = Law("additive", k, 0, 0, 0)
        intervals = {"E": (1.9, 2.1), "a": (0.8, 1.0), "b": (0.8, 1.0)}
        said = weaknesses(law, intervals, runs_of(N, D, law.loss(N, D, N * D)))
        assert said == [f"the term of {hidden} vanishes: these runs do not show it."]


def test_what_is_usual_for_an_exponent_helps_few_noisy_budgets_and_leaves_many_exact_ones_alone() -> None:
    def ladder(exponent: float, noise: float, budgets: int, dice: np.random.Generator) -> Runs:
        C = 1e12 * 2.0 ** np.arange(budgets)
        loss = (1.3 + 1.3 * (C / C[-1]) ** -exponent) * np.exp(noise * dice.standard_normal(budgets))
        ones = np.ones(budgets)
        return Runs(C**0.5, C**0.5 / 6, C, loss, np.arange(budgets), ones, tuple("abcdefgh"[:budgets]), optimal=True)

    def missed(noise: float | None) -> float:
        dice = np.random.default_rng(0)
        misses = []
        for exponent in (0.15, 0.2, 0.25) * 20:
            runs = ladder(exponent, 0.007, 5, dice)
            beyond = float(runs.C[-1] * 8)
            truth = 1.3 + 1.3 * 8**-exponent
            misses.append(np.log(fit(runs, "frontier", noise=noise).loss(0, 0, beyond) / truth))
        return float(np.sqrt(np.mean(np.square(misses))))

    assert missed(0.007) < 0.8 * missed(None)
    exact = ladder(0.05, 0.0, 8, np.random.default_rng(0))
    found = fit(exact, "frontier", noise=5e-4)
    assert found.coefficients["a"] == pytest.approx(0.05, rel=0.2) and found.residual_sd < 5e-4


def frontier_of(C: np.ndarray, loss: np.ndarray) -> Runs:
    ones = np.ones(len(C))
    return Runs(C**0.5, C**0.5 / 6, C, loss, np.arange(len(C)), ones, tuple(map(str, range(len(C)))), optimal=True)


def test_small_runs_that_bend_off_the_law_count_less_and_straight_ones_all() -> None:
    C = 1e12 * 2.0 ** np.arange(10)
    straight = 1.3 + 1.3 * (C / C[-1]) ** -0.2
    bent = straight * np.exp(0.03 * np.log10(C[5] / C).clip(0) ** 2)
    dice = np.random.default_rng(0)
    misses: dict[str, list[float]] = {"straight": [], "bent": [], "bent, all alike": []}
    for _ in range(20):
        noise = np.exp(1e-3 * dice.standard_normal(len(C)))
        truth = 1.3 + 1.3 * 8**-0.2
        for name, loss, said in (("straight", straight, 1e-3), ("bent", bent, 1e-3), ("bent, all alike", bent, None)):
            law = fit(frontier_of(C, loss * noise), "frontier", noise=said)
            misses[name].append(np.log(float(law.loss(0, 0, C[-1] * 8)) / truth))
            assert law.misfit > 0.003 if (name, said) == ("bent", 1e-3) else law.misfit < 0.004
    straight_miss, bent_miss, alike_miss = (float(np.sqrt(np.mean(np.square(of)))) for of in misses.values())
    assert straight_miss < 0.005 and bent_miss < 0.5 * alike_miss


def test_what_noise_makes_of_a_forecast_is_as_large_as_said() -> None:
    C = 1e12 * 2.0 ** np.arange(8)
    loss, dice = 1.3 + 1.3 * (C / C[-1]) ** -0.2, np.random.default_rng(0)
    laws = [fit(frontier_of(C, loss * np.exp(2e-3 * dice.standard_normal(8))), "frontier", noise=2e-3) for _ in range(100)]
    scatter = float(np.std([np.log(law.loss(0, 0, C[-1] * 8)) for law in laws]))
    said = sampling_sd(frontier_of(C, loss), fit(frontier_of(C, loss), "frontier", noise=2e-3), C[-1] * 8, 2e-3)
    assert 0.6 < scatter / said < 1.4 and said > 2e-3


def test_the_published_olmo_forecast_is_reproduced(shared_data: Callable[[str], Path]) -> None:
    reruns = "".join(f" and run!={size}-1xC-rerun" for size in ("190M", "370M", "760M", "1B"))
    runs = read(shared_data("scaling/olmo_ladder.csv"), "N<=1.3e9 and D/N>15" + reruns, "c4_loss_ma5").runs
    predicted = float(fit(runs, "additive").loss(13202396160, 5000088518656, 0))
    assert predicted / 2.437876033782959 - 1 == pytest.approx(-0.03835, abs=5e-6)


def test_gadres_five_runs_forecast_the_large_ones(shared_data: Callable[[str], Path]) -> None:
    where = "dataset=rpj and cc_mult=1 and N<=4.2e8 or dataset=rpj and N<2e7 and cc_mult=16"
    law = fit(read(shared_data("scaling/gadre_overtraining.csv"), where, "loss_c4_val").runs, "tied")
    assert float(law.loss(1439795200, 921468928000, 0)) == pytest.approx(2.502053562117363, rel=0.0075)
    assert float(law.loss(6889410560, 137788211200, 0)) == pytest.approx(2.424993099368689, rel=0.0075)


def test_repeated_tokens_are_worth_less_and_never_more_than_the_bound() -> None:
    assert float(effective_tokens(1e9, 1e9)) == 1e9
    assert float(effective_tokens(1e9, 5e9)) == 1e9
    assert 3.6e9 < float(effective_tokens(4e9, 1e9)) < 4e9
    assert float(effective_tokens(1e13, 1e9)) == pytest.approx(1e9 * (1 + 15.39), rel=1e-6)


def test_the_correction_for_repeats_helps_on_published_runs(shared_data: Callable[[str], Path]) -> None:
    runs = read(shared_data("scaling/datablations_repeated.csv")).runs
    assert runs.U is not None
    repeats = runs.D / runs.U
    few = runs.take(repeats <= 4)
    for many in (runs.take((repeats > 4) & (repeats <= 10)), runs.take(repeats > 60)):
        plain = fit(few, "additive").loss(many.N, many.D, many.C) / many.loss - 1
        worth = without_repeats(many)
        corrected = fit(without_repeats(few), "additive").loss(worth.N, worth.D, worth.C) / many.loss - 1
        assert np.median(plain) < 0 and np.median(np.abs(corrected)) < np.median(np.abs(plain))


def sweep(edge: bool = False) -> Runs:
    """Five budgets of seven sizes around the optimum of a Chinchilla law; the last is cut at its optimum on request."""
    law, rows = Law("additive", LAWS["additive"], 0, 0, 0), []
    for i, C in enumerate(np.geomspace(1e17, 1e19, 5)):
        best, _ = law.optimum(C)
        sizes = best * 2.0 ** (np.arange(-3, 4) / 1.3)
        if edge and i == 4:
            sizes = sizes[:4]
        rows += [(N, C / 6 / N, i) for N in sizes]
    N, D, budget = (np.array(column) for column in zip(*rows, strict=True))
    return runs_of(N, D, law.loss(N, D, 0), budget)


def test_the_optimum_of_each_budget_is_found_within_a_tenth_of_a_per_mille() -> None:
    law = Law("additive", LAWS["additive"], 0, 0, 0)
    for one in optima(sweep()):
        N, D = law.optimum(one.C)
        assert one.loss == pytest.approx(float(law.loss(N, D, 0)), rel=1e-4) and pytest.approx(N, rel=0.1) == one.N
        assert not one.edge and one.disagreement < 3e-3


def test_an_optimum_at_the_edge_of_its_sizes_is_marked_and_kept_off_the_frontier() -> None:
    found = optima(sweep(edge=True))
    assert [one.edge for one in found] == [False] * 4 + [True]
    front = frontier(sweep(edge=True))
    assert front is not None and len(front.runs) == 4


def one_budget(sizes: list[float], loss: list[float]) -> Runs:
    N = np.array(sizes)
    return runs_of(N, 1e18 / 6 / N, np.array(loss), np.zeros(len(N), np.int64))


def test_a_model_that_a_digitised_table_holds_twice_is_one_size() -> None:
    (found,) = optima(one_budget([1e7, 2e7, 4e7, 4.00001e7, 8e7, 1.6e8], [4.0, 3.8, 3.7, 3.71, 3.8, 4.0]))
    assert found.sizes == 5 and not found.edge and found.loss == pytest.approx(3.705, rel=2e-3)


def test_an_end_that_is_better_by_noise_only_is_no_edge() -> None:
    sizes = [1e7, 2e7, 4e7, 8e7, 1.6e8]
    (level,) = optima(one_budget(sizes, [3.7, 3.7, 3.75, 3.8, 3.9]))
    (hump,) = optima(one_budget(sizes, [3.695, 3.72, 3.70, 3.8, 3.9]))
    (falling,) = optima(one_budget(sizes, [3.6, 3.7, 3.75, 3.8, 3.9]))
    assert not level.edge and not hump.edge and falling.edge


def test_one_run_per_budget_along_a_rule_is_a_path_and_a_cloud_is_none() -> None:
    C = np.geomspace(1e16, 1e19, 6)
    N = 0.3 * C**0.5 * np.array([1.1, 0.9, 1.2, 1.0, 0.85, 1.05])
    front = frontier(runs_of(N, C / 6 / N, 5 * C**-0.05))
    assert front is not None and front.kind == "path" and len(front.runs) == 6
    N, D = cloud(12)
    assert frontier(runs_of(N, D, LAWS["additive"]["A"] * N**-0.3)) is None
