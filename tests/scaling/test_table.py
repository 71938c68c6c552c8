"""What a table of runs may hold, and what is said of one that is wrong."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tessera.errors import UserError
from tessera.scaling.law import Target
from tessera.scaling.table import Table, clean, make, parse_target, read, read_targets

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(text: str) -> Path:
        path = tmp_path / "runs.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return put


def table(write: Write, text: str, **options: str) -> Table:
    return read(write(text), **options)


def refusal(write: Write, text: str, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        read(write(text), **options)
    said = str(caught.value)
    assert "\n" not in said and caught.value.exit_code == 2
    return said


@pytest.mark.parametrize(
    "columns",
    [
        "N,D,loss\n1e7,2e8,4\n2e7,4e8,3.5\n",
        "N,C,loss\n1e7,1.2e16,4\n2e7,4.8e16,3.5\n",
        "C,D,loss\n1.2e16,2e8,4\n4.8e16,4e8,3.5\n",
    ],
)
def test_any_two_of_n_d_c_give_the_third(write: Write, columns: str) -> None:
    runs = table(write, columns).runs
    assert np.allclose(runs.N, [1e7, 2e7]) and np.allclose(runs.D, [2e8, 4e8]) and np.allclose(runs.C, [1.2e16, 4.8e16])


def test_integers_beyond_int64_do_not_wrap(write: Write) -> None:
    runs = table(write, f"N,D,loss\n7000000000,{10**13},2.4\n70000000000,{10**14},2.2\n").runs
    assert runs.C.tolist() == [6.0 * 7e9 * 1e13, 6.0 * 7e10 * 1e14] and runs.C.dtype == np.float64


def test_given_compute_is_kept_where_it_counts_more_than_6nd(write: Write) -> None:
    assert table(write, "N,D,C,loss\n1e7,2e8,2e16,4\n2e7,4e8,7e16,3.5\n").runs.C.tolist() == [2e16, 7e16]


@pytest.mark.parametrize(
    "text, words",
    [
        ("N,loss\n1e7,4\n2e7,3.5\n", "no column D or C"),
        ("N,D\n1e7,2e8\n", "no column 'loss'"),
        ("N,D,loss\n1e7,2e8,4\n2e7,many,3.5\n", "line 3: D is 'many', not a number"),
        ("N,D,loss\n1e7,2e8,4\n2e7,4e8,-3.5\n", "line 3: loss is -3.5"),
        ("N,D,loss\n1e7,2e8,nan\n2e7,4e8,3.5\n", "line 2: loss is nan"),
        ("N,D,loss\n1e7,2e8,4\n0,4e8,3.5\n", "line 3: N is 0"),
        ("N,D,loss\n1e7,2e8,4\n", "one run says nothing"),
        ("N,D,loss\n", "holds no runs"),
        ("", "is empty"),
        ("N,D,loss\n1e7,2e8,4\n1e7,4e8,3.5\n", "all runs have the same N"),
        ("N,D,loss,tokenizer\n1e7,2e8,4,a\n2e7,4e8,3.5,b\n", "mixes the tokenizers 'a', 'b'"),
        ("N,D,loss\n1e7,2e8\n2e7,4e8,3.5\n", "line 2: 2 cells under 3 columns"),
        ("N,N,D,loss\n1e7,1e7,2e8,4\n", "column 'N' twice"),
    ],
)
def test_bad_input_is_answered_by_one_sentence(write: Write, text: str, words: str) -> None:
    assert words in refusal(write, text)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="no CSV file"):
        read(tmp_path / "binary.csv")


def test_packed_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv.gz"
    path.write_bytes(gzip.compress(b"N,D,loss\n1e7,2e8,4\n2e7,4e8,3.5\n"))
    assert len(read(path).runs) == 2


LADDER = "N,D,loss,set,name\n1e7,2e8,4,a,one\n2e7,4e8,3.5,a,two\n4e7,8e8,3.1,b,three\n8e7,1.6e9,2.8,b c,four\n"


@pytest.mark.parametrize(
    "where, names",
    [
        ("C<=1e17", ["one", "two"]),
        ("C>1e17 and N>=4e7", ["three", "four"]),
        ("C>1e16,set!=b,name!='one'", ["two", "four"]),
        ("set = 'b c' or name=one", ["one", "four"]),
        ("D/N>=20 and N<3e7", ["one", "two"]),
        ("loss/N<=1.5e-7", ["three", "four"]),
        ("N==20000000 or N==4e7", ["two", "three"]),
    ],
)
def test_where_keeps_rows(write: Write, where: str, names: list[str]) -> None:
    assert list(table(write, LADDER, where=where).runs.name) == names


@pytest.mark.parametrize("where", ["C<=1e17 and", "C<=much", "colour=red", "__import__('os')", "C", "or C<=1e17", "C<=1e17 or"])
def test_where_that_is_no_comparison_is_refused(write: Write, where: str) -> None:
    assert "--where" in refusal(write, LADDER, where=where)


def test_no_row_left_by_where_is_said(write: Write) -> None:
    assert "no row" in refusal(write, LADDER, where="set=z")


def test_another_column_may_hold_the_loss(write: Write) -> None:
    text = "N,D,val\n1e7,2e8,4\n2e7,4e8,3.5\n"
    assert table(write, text, loss="val").runs.loss.tolist() == [4, 3.5]
    assert "--loss" in refusal(write, text)


def test_rows_that_stand_twice_count_once_with_a_warning(write: Write) -> None:
    found = table(write, LADDER + "2e7,4e8,3.5,a,two again\n")
    assert len(found.runs) == 4 and "stood twice" in found.warnings[0] and "two again" in found.warnings[0]


def test_seeds_are_averaged_and_their_noise_is_measured(write: Write) -> None:
    found = table(write, LADDER + "2e7,4e8,3.507,a,two again\n")
    assert len(found.runs) == 4 and found.runs.loss[1] == pytest.approx(3.5035) and not found.warnings
    # One pair, and not of the largest run, says no more than the order of magnitude.
    assert found.runs.seed_noise is not None and 0.5 < found.runs.seed_noise / (0.007 / 3.5 / 2**0.5) < 2


def test_runs_of_several_ladders_are_not_averaged(write: Write) -> None:
    other = "".join(line.replace(",4,", ",4.4,").replace(",3.5,", ",3.8,") + "\n" for line in LADDER.splitlines()[1:3])
    assert "different ladders" in refusal(write, LADDER + other)


def test_diverged_runs_are_left_out_by_name(write: Write) -> None:
    found = table(write, LADDER + "1.6e8,3.2e9,5.9,b,bad\n3.2e8,6.4e9,2.4,b,six\n")
    assert "bad" not in found.runs.name and len(found.runs) == 5
    assert len(found.warnings) == 1 and "Diverged" in found.warnings[0] and "bad" in found.warnings[0]
    # One loss that is far too low takes itself away, not all that are larger.
    found = table(write, LADDER.replace(",4,", ",0.4,"))
    assert list(found.runs.name) == ["two", "three", "four"] and "Too good" in found.warnings[0]


@pytest.mark.parametrize("bad", range(7))
def test_a_diverged_rung_is_found_wherever_it_stands(bad: int) -> None:
    C = 1e16 * np.geomspace(1, 1e3, 7)
    loss = (1.7 + 86 * C**-0.092) * np.exp(1e-3 * np.random.default_rng(0).standard_normal(7))
    loss[bad] *= 1.3
    N = 0.1 * C**0.5
    found = clean(make(N, C / 6 / N, C, loss, name=[f"rung {i}" for i in range(7)]))
    assert len(found.runs) == 6 and f"rung {bad}" not in found.runs.name and f"rung {bad};" in found.warnings[0]


def test_a_ladder_that_bends_keeps_all_its_runs() -> None:
    C = np.array([8.8e11, 2.2e12, 5.1e12, 1.3e13, 2.8e13, 5e13])
    found = clean(make(0.1 * C**0.5, C**0.5 / 0.6, C, [4.986, 4.438, 3.988, 3.437, 2.592, 2.1]))
    assert len(found.runs) == 6 and not found.warnings


def test_a_bad_size_inside_a_sweep_is_left_out_by_name(write: Write) -> None:
    rows = [
        f"{N:.6g},{1e17 / 6 / N:.6g},{loss},{name}"
        for N, loss, name in zip([1e7, 2e7, 3e7, 4e7, 8e7], [4, 3.7, 4.2, 3.6, 3.8], "abcde", strict=True)
    ]
    found = table(write, "N,D,loss,name\n" + "\n".join(rows))
    assert list(found.runs.name) == ["a", "b", "d", "e"] and "c" in found.warnings[0]


def test_budgets_are_found_by_compute_or_by_label(write: Write) -> None:
    text = "N,C,loss\n1e7,1e17,4\n2e7,1.03e17,3.9\n1e7,2e17,3.8\n2e7,2.01e17,3.7\n"
    assert table(write, text).runs.budget.tolist() == [0, 0, 1, 1]
    text = "N,C,loss,budget\n1e7,1e17,4,small\n2e7,1.03e17,3.9,small\n4e7,1.08e17,3.8,large\n"
    assert table(write, text).runs.budget.tolist() == [0, 0, 1]
    scattered = "N,C,loss\n" + "".join(f"{1e7 * i},{1e17 * 1.05**i},{4 - 0.1 * i}\n" for i in range(1, 9))
    assert table(write, scattered).runs.budget.tolist() == list(range(8))


def test_a_loss_per_budget_is_taken_as_its_optimum(shared_data: Callable[[str], Path]) -> None:
    where = "dataset=rw,hparams=tuned,warmup=short,decay=const,param_count=standard,val=val"
    found = read(shared_data("scaling/porian_isoflops.csv"), where, "loss_star")
    assert found.runs.optimal and len(found.runs) == 12 and not found.warnings and "optimum" in found.notes[0]


def test_a_whole_published_file_of_many_ladders_is_refused(shared_data: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="different ladders"):
        read(shared_data("scaling/porian_isoflops.csv"))


def test_targets_are_read(tmp_path: Path) -> None:
    assert parse_target("C=3e21") == Target(C=3e21)
    assert parse_target("N=1e9,D=2e10") == Target(N=1e9, D=2e10)
    assert parse_target("N=1e9,C=6e19") == Target(N=1e9, D=1e10, C=6e19)
    path = tmp_path / "targets.csv"
    path.write_text("N,D,C\n1e9,2e10,\n,,3e21\n", encoding="utf-8")
    assert read_targets(path) == [Target(N=1e9, D=2e10), Target(C=3e21)]


@pytest.mark.parametrize("text", ["C=much", "X=1", "N=1e9", "C=-1", "C=nan", "", "C"])
def test_a_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="target"):
        parse_target(text)


def test_runs_made_by_a_program_are_cleaned_like_a_file(write: Write) -> None:
    N, D, loss = [1e7, 2e7, 2e7, 4e7], [2e8, 4e8, 4e8, 8e8], [4, 3.5, 3.507, 3.1]
    runs = make(N, D, [6 * n * d for n, d in zip(N, D, strict=True)], loss, budget=["a", "b", "b", "c"])
    found = clean(runs)
    assert found.runs.budget.tolist() == [0, 1, 2] and found.runs.loss[1] == pytest.approx(3.5035) and found.notes
