"""Tables of finished runs: a CSV file in, `Runs` out, with everything said that was noticed on the way.

Columns: two of `N`, `D`, `C` (the third by C = 6 N D) and a loss; optional `budget`, `weight`, `name`, `U` and `tokenizer`; all
others only serve --where. What cannot be read is a UserError that names file and line. What can be read but should not be
trusted (rows twice, runs that diverged) is left out and said in a warning.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tessera.errors import UserError
from tessera.scaling.frontier import frontier
from tessera.scaling.law import Array, Runs, Target, fit
from tessera.scaling.noise import between_seeds

FLOPS_PER_PAIR = 6.0
"""C / (N D): two operations per weight forward, four backward (Kaplan et al., arXiv 2001.08361, section 2.1)."""
SAME_BUDGET = 1.1
"""Without a `budget` column, runs whose compute differs by less belong to one budget."""
WIDEST_BUDGET = 1.35
"""From largest to smallest compute of what is still one budget."""
DIVERGED = 1.05
"""A run with no less data and no fewer parameters than another does not lose by this factor; published repeats differ by .1 %."""
FAR_ABOVE = 1.15
"""A run this far above the law of all others, and ten times as far as they scatter, diverged."""
FEWEST_TOKENS_PER_PARAMETER = 2.0
"""Below it a run takes too few steps for its size, and more of both may well be worse; such runs are not called diverged."""
LADDERS_DIFFER = 1.02
"""Where seeds of many runs are this far apart, they are not seeds but runs of different ladders."""
_NAME_COLUMNS = ("name", "run", "config")


@dataclass(frozen=True)
class Table:
    """What a file held.

    Args:
        runs: to fit.
        warnings: what was left out and why, a sentence each.
        notes: what was done with rows that are all right.
    """

    runs: Runs
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    line: int
    cells: Mapping[str, str]


def read(path: str | Path, where: str | None = None, loss: str = "loss") -> Table:
    """Reads a table of runs.

    Args:
        path: a CSV file with a header; may end in .gz.
        where: rows to keep, `C<=1e20 and dataset=rw`; see `condition`.
        loss: column that holds the loss.

    Raises:
        UserError: a file that cannot be read, a missing column, a cell that is no number, a loss that is not positive, several
            tokenizers, rows of several ladders under one N and D, nothing left, one run, one size.
    """
    header, rows = _rows(Path(path))
    _need_columns(path, header, loss)
    if where:
        keep = condition(where, header)
        rows = [row for row in rows if keep(row.cells)]
        if not rows:
            raise UserError(f"no row of {path} satisfies --where {where!r}; look at the values of its columns.")
    unfinished = [row for row in rows if row.cells[loss] == ""]
    rows = [row for row in rows if row.cells[loss] != ""]
    if len(rows) == 1:
        raise UserError(f"{path}: one run says nothing about how loss scales; give at least four budgets.")
    if not rows:
        raise UserError(f"{path} holds no runs with a {loss}.")
    _one_tokenizer(path, rows)
    runs = _columns(path, rows, loss)
    if np.unique(runs.N).size == 1:
        raise UserError(f"{path}: all runs have the same N = {runs.N[0]:.4g}; a law needs runs of different sizes.")
    runs, notes = _given_optima(runs, rows)
    found = clean(runs, str(path))
    empty = [f"{_counted(len(unfinished), 'row')} without a {loss} left out."] if unfinished else []
    return Table(found.runs, (*empty, *found.warnings), (*notes, *found.notes))


def make(
    N: npt.ArrayLike,
    D: npt.ArrayLike,
    C: npt.ArrayLike,
    loss: npt.ArrayLike,
    budget: Sequence[object] | None = None,
    name: Sequence[str] | None = None,
    U: npt.ArrayLike | None = None,
) -> Runs:
    """Runs from columns that a program has at hand, checked by nobody.

    Args:
        N, D, C, loss, U: as in `Runs`.
        budget: labels; None: found by gaps in compute.
        name: of the runs; None: their numbers.
    """
    compute = np.asarray(C, np.float64)
    labels = None if budget is None else [str(label) for label in budget]
    names = tuple(name) if name is not None else tuple(f"run {i}" for i in range(len(compute)))
    columns = (np.asarray(N, np.float64), np.asarray(D, np.float64), compute, np.asarray(loss, np.float64))
    unique = None if U is None else np.asarray(U, np.float64)
    return Runs(*columns, _budgets(compute, labels), np.ones(len(compute)), names, unique)


def clean(runs: Runs, source: str = "the ladder") -> Table:
    """Duplicated rows dropped, seeds averaged, diverged runs left out.

    Args:
        source: what the error says the runs are from.

    Raises:
        UserError: rows of several ladders under one N and D, or one run left.
    """
    runs, repeated = _without_duplicates(runs)
    runs, seeds, apart = _average_seeds(source, runs)
    runs, diverged = _without_diverged(runs)
    if len(runs) < 2:
        raise UserError(f"{source}: one run is left after duplicated and diverged rows; a law needs at least four budgets.")
    return Table(runs, tuple(repeated + apart + diverged), tuple(seeds))


def read_targets(path: str | Path) -> list[Target]:
    """Targets from a CSV file with a column C, or N and D, or all three.

    Raises:
        UserError: as for `read`.
    """
    header, rows = _rows(Path(path))
    if "C" not in header and not {"N", "D"} <= set(header):
        raise UserError(f"{path} has the columns {', '.join(header)}; targets need C, or N and D.")
    found = []
    for row in rows:
        value = {c: _number(path, row, c) if row.cells.get(c, "") else None for c in ("N", "D", "C", "U")}
        found.append(_target(f"{path}, line {row.line}", value))
    return found


def parse_target(text: str) -> Target:
    """`C=3e21`, `N=1e9,D=2e10` or all three; `U=5e9` for the unique tokens behind D.

    Raises:
        UserError: anything else.
    """
    value: dict[str, float | None] = {"N": None, "D": None, "C": None, "U": None}
    for part in text.split(","):
        key, _, number = part.partition("=")
        try:
            value[key.strip()] = float(number) if key.strip() in value else _fail()
        except ValueError:
            raise UserError(f"--target {text!r} is not understood: write C=3e21 or N=1e9,D=2e10.") from None
    return _target(f"--target {text!r}", value)


def _target(place: str, value: Mapping[str, float | None]) -> Target:
    if any(v is not None and not (v > 0 and math.isfinite(v)) for v in value.values()):
        raise UserError(f"{place}: N, D, C and U of a target must be positive numbers.")
    N, D, C, U = (value[key] for key in ("N", "D", "C", "U"))
    if C is not None and (N is None) != (D is None):
        N, D = (C / FLOPS_PER_PAIR / D if D else N), (C / FLOPS_PER_PAIR / N if N else D)
    if C is None and (N is None or D is None):
        raise UserError(f"{place}: a target needs C, or N and D.")
    return Target(N, D, C, U)


def _fail() -> float:
    raise ValueError


def condition(text: str, columns: Sequence[str]) -> Callable[[Mapping[str, str]], bool]:
    """A filter from words: comparisons (`=`, `!=`, `<`, `<=`, `>`, `>=`) joined by `and` or commas, alternatives by `or`.

    The left side is a column or a ratio of two columns (`D/N`); `=` compares numbers as numbers and all else as text, which may
    stand in quotes. Nothing is evaluated.

    Raises:
        UserError: words that are none of this, or a column that is not there.
    """
    alternatives: list[list[Callable[[Mapping[str, str]], bool]]] = [[]]
    at = 0
    while at < len(text):
        found = _CONDITION.match(text, at)
        if not found:
            raise UserError(f"--where {text!r} is not understood at {text[at:]!r}: write 'C<=1e20 and dataset=rw'.")
        column, operator, value, join = found.group("column", "operator", "value", "join")
        alternatives[-1].append(_comparison(text, column.strip(), operator, value.strip("'\""), columns))
        if join.strip().lower() == "or":
            alternatives.append([])
        elif join.strip() and found.end() == len(text):
            raise UserError(f"--where {text!r} ends in {join.strip()!r}; a comparison is missing.")
        at = found.end()
    if not all(alternatives):
        raise UserError(f"--where {text!r} ends in 'or'; a comparison is missing.")
    return lambda cells: any(all(holds(cells) for holds in every) for every in alternatives)


_SAME_TOKENS = 1e-3
"""Relative difference of D that two seeds of one run may have."""
_CONDITION = re.compile(
    r"""\s*(?P<column>[^<>=!'",]+?)\s*(?P<operator><=|>=|!=|==|=|<|>)\s*"""
    r"""(?P<value>'[^']*'|"[^"]*"|[^'",<>=!]+?|[^'",\s]+)(?P<join>\s+and\s+|\s+or\s+|\s+and$|\s+or$|\s*,\s*|\s*$)""",
    re.IGNORECASE,
)


def _comparison(text: str, column: str, operator: str, value: str, columns: Sequence[str]) -> Callable[[Mapping[str, str]], bool]:
    over, _, under = (column, "", "") if column in columns else column.partition("/")
    for name in filter(None, (over, under)):
        if name not in columns:
            raise UserError(f"--where {text!r}: there is no column {name!r}; the columns are {', '.join(columns)}.")
    wanted = _float(value)
    if wanted is None and operator not in ("=", "==", "!="):
        raise UserError(f"--where {text!r}: {value!r} is no number, and {operator} compares numbers.")

    def holds(cells: Mapping[str, str]) -> bool:
        found = _float(cells[over])
        if under:
            divisor = _float(cells[under])
            found = found / divisor if found is not None and divisor else None
        if found is None or wanted is None:
            return operator in ("=", "==", "!=") and (cells[over] == value) == (operator != "!=")
        return {
            "=": found == wanted, "==": found == wanted, "!=": found != wanted,
            "<": found < wanted, "<=": found <= wanted, ">": found > wanted, ">=": found >= wanted,
        }[operator]  # fmt: skip

    return holds


def _rows(path: Path) -> tuple[list[str], list[_Row]]:
    """Header and rows; C, N or D are added where the other two are there, so that --where can ask for them."""
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            rows = []
            for cells in lines:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise UserError(f"{path}, line {lines.line_num}: {len(cells)} cells under {len(header)} columns.")
                named = dict(zip(header, (cell.strip() for cell in cells), strict=True))
                rows.append(_Row(lines.line_num, named))
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path} cannot be read: {reason}.") from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{path} is no CSV file: it needs a header line and comma-separated rows in UTF-8.") from None
    if not header:
        raise UserError(f"{path} is empty; it needs a header line and rows.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} twice.")
    missing = [c for c in ("N", "D", "C") if c not in header]
    if len(missing) == 1:
        rows = [replace(row, cells={**row.cells, missing[0]: _third(row.cells, missing[0])}) for row in rows]
        header = [*header, missing[0]]
    return header, rows


def _third(cells: Mapping[str, str], missing: str) -> str:
    """N, D or C from the other two, as text; empty where one of them is no number."""
    N, D, C = (_float(cells.get(c, "")) for c in ("N", "D", "C"))
    try:
        if missing == "C":
            return repr(FLOPS_PER_PAIR * N * D) if N is not None and D is not None else ""
        other = N if N is not None else D
        return repr(C / FLOPS_PER_PAIR / other) if C is not None and other is not None else ""
    except ZeroDivisionError:
        return ""


def _need_columns(path: str | Path, header: Sequence[str], loss: str) -> None:
    lacking = [c for c in ("N", "D", "C") if c not in header]
    if lacking:
        shown = ", ".join(header)
        raise UserError(f"{path} has no column {' or '.join(lacking)}; two of N, D and C are needed (columns: {shown}).")
    if loss not in header:
        hint = "" if loss != "loss" else "; name the column that holds it by --loss"
        raise UserError(f"{path} has no column {loss!r}{hint} (columns: {', '.join(header)}).")


def _one_tokenizer(path: str | Path, rows: Sequence[_Row]) -> None:
    kinds = sorted({row.cells.get("tokenizer", "") for row in rows})
    if len(kinds) > 1:
        shown = ", ".join(repr(kind) for kind in kinds[:3])
        raise UserError(
            f"{path} mixes the tokenizers {shown}: losses per token compare only within one; choose by --where tokenizer=..."
        )


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _number(path: str | Path, row: _Row, column: str) -> float:
    text = row.cells[column]
    value = _float(text)
    if value is None:
        given = [c for c in ("N", "D", "C") if c != column]
        if text == "" and column in ("N", "D", "C"):
            raise UserError(f"{path}, line {row.line}: {column} is empty or cannot be worked out from {' and '.join(given)}.")
        raise UserError(f"{path}, line {row.line}: {column} is {text!r}, not a number.")
    if math.isnan(value) or value <= 0 or math.isinf(value):
        what = "a loss of a finished run" if column not in ("N", "D", "C", "U", "weight") else column
        raise UserError(f"{path}, line {row.line}: {column} is {text}; {what} must be a positive number.")
    return value


def _columns(path: str | Path, rows: Sequence[_Row], loss: str) -> Runs:
    first = rows[0].cells
    filled = []
    for row in rows:
        cells = dict(row.cells)
        empty = [c for c in ("N", "D", "C") if cells[c] == ""]
        if len(empty) == 1:
            cells[empty[0]] = _third(cells, empty[0])
        filled.append(replace(row, cells=cells))
    column = {c: np.array([_number(path, row, c) for row in filled], np.float64) for c in ("N", "D", "C")}
    losses = np.array([_number(path, row, loss) for row in rows], np.float64)
    weight = np.array([_number(path, row, "weight") if "weight" in first else 1.0 for row in rows], np.float64)
    names = next((c for c in _NAME_COLUMNS if c in first), None)
    name = tuple((row.cells[names] if names else "") or f"line {row.line}" for row in rows)
    U = None
    if "U" in first:
        U = np.array([_number(path, row, "U") if row.cells["U"] else D for row, D in zip(rows, column["D"], strict=True)])
    labels = [row.cells["budget"] for row in rows] if "budget" in first else None
    return Runs(column["N"], column["D"], column["C"], losses, _budgets(column["C"], labels), weight, name, U)


def _budgets(C: Array, labels: Sequence[str] | None) -> npt.NDArray[np.int64]:
    """Numbers of budgets in order of compute: by label, else by gaps in compute."""
    if labels is not None:
        of = np.array(labels)
        ordered = sorted(set(labels), key=lambda label: (float(np.median(C[of == label])), label))
        return np.array([ordered.index(label) for label in labels], np.int64)
    order = np.argsort(C, kind="stable")
    for gap in (SAME_BUDGET, 1.01):
        number = np.concatenate([[0], np.cumsum(C[order][1:] > gap * C[order][:-1])])
        spans = [np.ptp(np.log(C[order][number == n])) for n in range(number[-1] + 1)]
        # Where compute varies without gaps, runs do not stand in budgets, and only equal compute makes one.
        if max(spans) < np.log(WIDEST_BUDGET):
            break
    result = np.empty(len(C), np.int64)
    result[order] = number
    return result


def _given_optima(runs: Runs, rows: Sequence[_Row]) -> tuple[Runs, list[str]]:
    """One row per budget where all runs of each budget carry the same loss: it is the budget's optimum then, not a run's own."""
    groups = [np.flatnonzero(runs.budget == b) for b in np.unique(runs.budget)]
    several = [g for g in groups if np.unique(runs.N[g]).size > 1]
    if len(several) < 2 or len(several) < len(groups) / 2 or any(np.ptp(runs.loss[g]) > 0 for g in several):
        return runs, []
    product = runs.N * runs.D
    best = [_float(row.cells.get("n_star", "")) for row in rows]
    chosen = runs.take([int(g[0]) for g in groups])
    N = np.array([best[g[0]] or float(np.exp(np.log(runs.N[g]).mean())) for g in groups])
    D = np.array([float(np.median(product[g])) for g in groups]) / N
    name = tuple(f"the optimum at {C:.3g} FLOPs" for C in chosen.C)
    said = "All rows of a budget have the same loss: it was taken as the budget's optimum, one point per budget."
    return replace(chosen, N=N, D=D, name=name, U=None, optimal=True), [said]


def _without_duplicates(runs: Runs) -> tuple[Runs, list[str]]:
    seen: dict[tuple[float, ...], int] = {}
    twice = []
    for i in range(len(runs)):
        key = (runs.N[i], runs.D[i], runs.C[i], runs.loss[i], runs.U[i] if runs.U is not None else 0.0)
        if key in seen:
            twice.append(i)
        seen.setdefault(key, i)
    if not twice:
        return runs, []
    said = f"{_counted(len(twice), 'row')} stood twice and counted once: {_listed([runs.name[i] for i in twice])}."
    return runs.take(sorted(seen.values())), [said]


def _average_seeds(path: str | Path, runs: Runs) -> tuple[Runs, list[str], list[str]]:
    """One row per (N, D, U), with the mean loss; the spread within gives the noise between seeds. Seeds pack their documents
    into rows differently, so that D may differ a little."""
    groups: list[list[int]] = []
    unique = runs.U if runs.U is not None else np.zeros(len(runs))
    for i in map(int, np.lexsort((runs.D, unique, np.round(runs.N, 6)))):
        first = groups[-1][0] if groups else i
        same = math.isclose(runs.N[i], runs.N[first], rel_tol=1e-6) and unique[i] == unique[first]
        if groups and same and math.isclose(runs.D[i], runs.D[first], rel_tol=_SAME_TOKENS):
            groups[-1].append(i)
        else:
            groups.append([i])
    groups = sorted(map(sorted, groups))
    several = [g for g in groups if len(g) > 1]
    if not several:
        return runs, [], []
    wide = [g for g in several if runs.loss[g].max() > LADDERS_DIFFER * runs.loss[g].min()]
    if len(wide) > max(1, len(several) / 4):
        worst = max(float(runs.loss[g].max() / runs.loss[g].min()) for g in wide)
        raise UserError(
            f"{path}: runs of the same N and D differ by up to {worst - 1:.0%} in loss, so they belong to different ladders; "
            "choose one by --where."
        )
    lost = [i for g in wide for i in g if runs.loss[i] > DIVERGED * runs.loss[g].min()]
    kept = [[i for i in g if i not in lost] for g in groups]
    averaged = runs.take([g[0] for g in kept])
    loss, D, C = (np.array([column[g].mean() for g in kept]) for column in (runs.loss, runs.D, runs.C))
    noise, heavy = between_seeds([runs.loss[g] for g in kept], C)
    said = f"{_counted(sum(len(g) > 1 for g in kept), 'run')} had several seeds; their losses were averaged."
    warnings = [f"Diverged, left out: {_listed([runs.name[i] for i in lost])}."] if lost else []
    if len(np.unique(averaged.budget)) == len(kept):
        # Of a surface the form is off by more than noise is; runs along one path are weighed as those of a ladder.
        averaged = replace(averaged, weight=averaged.weight * heavy)
    return replace(averaged, loss=loss, D=D, C=C, seed_noise=noise), [said] if noise is not None else [], warnings


def _without_diverged(runs: Runs) -> tuple[Runs, list[str]]:
    """Leaves out runs whose loss no law can explain.

    More parameters and more tokens together never hurt: of two runs so ordered the larger must not lose by DIVERGED. The run in
    most such contradictions goes first, so that one loss that is far too low does not take all others along. Beside that, a size
    whose loss stands above those of both its neighbours in the same budget.
    """
    if runs.optimal:
        return runs, []
    N, D, loss = runs.N, runs.D, runs.loss
    usual = FEWEST_TOKENS_PER_PARAMETER * N <= D
    if runs.U is not None:
        usual &= runs.D <= 4.01 * runs.U
    # clash[i, j]: i is at least as large as j in both and still clearly worse.
    clash = (N[:, None] >= N) & (D[:, None] >= D) & (loss[:, None] > DIVERGED * loss) & usual[:, None] & usual
    high: list[int] = []
    low: list[int] = []
    while clash.any():
        above, below = clash.sum(1), clash.sum(0)
        i = int(np.argmax(above + below + 0.5 * (above > 0)))
        (high if above[i] >= below[i] else low).append(i)
        clash[i], clash[:, i] = False, False
    for budget in np.unique(runs.budget):
        rows = np.array([i for i in np.flatnonzero(runs.budget == budget) if i not in high], np.int64)
        rows = rows[np.argsort(N[rows], kind="stable")]
        for before, i, after in zip(rows, rows[1:], rows[2:], strict=False):
            if loss[i] > 1.03 * max(loss[before], loss[after]) and N[before] < N[i] < N[after]:
                high.append(int(i))
    high += [i for i in _far_above(runs, [i for i in range(len(runs)) if i not in high and i not in low]) if usual[i]]
    said = []
    if high:
        said.append(
            f"Diverged, left out: {_listed([runs.name[i] for i in sorted(high)])}; the other runs speak for a lower loss."
        )
    if low:
        said.append(f"Too good to be true, left out: {_listed([runs.name[i] for i in sorted(low)])}; larger runs do worse.")
    return runs.take([i for i in range(len(runs)) if i not in high and i not in low]), said


def _far_above(runs: Runs, rows: list[int]) -> list[int]:
    """Of these rows, those far above the law of the others; sweeps, whose far sizes are rightly bad, are left alone."""
    kept = runs.take(rows)
    front = frontier(kept) if len(kept) >= 6 else None
    if front is not None and front.kind == "path" and len(front.runs) == len(kept):
        found = []
        for i, row in enumerate(rows):
            others = kept.take([j for j in range(len(kept)) if j != i])
            law = fit(others, "frontier")
            excess = np.log(kept.loss[i] / law.loss(0.0, 0.0, kept.C[i]))
            if excess > max(np.log(FAR_ABOVE), 10 * law.residual_sd):
                found.append((float(excess), row))
        # Beside one bad run its neighbours look bad too; the worst goes, and the rest is looked at again.
        worst = [max(found)[1]] if found else []
        return worst + _far_above(runs, [row for row in rows if row not in worst]) if worst else []
    if front is None and len(kept) >= 10:
        residual = np.log(kept.loss / fit(kept, "tied").loss(kept.N, kept.D, kept.C))
        far = residual > max(np.log(FAR_ABOVE), 10 * 1.4826 * float(np.median(np.abs(residual))))
        return [rows[i] for i in np.flatnonzero(far)]
    return []


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
