"""lm-evaluation-harness by its `local-completions` against `tessera serve`: the scores of the model in process."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed (pip install 'tessera[evals]')")
def test_scores_over_http_are_those_in_process(tmp_path: Path, base_folder: Path) -> None:
    out = tmp_path / "result.json"
    words = [sys.executable, str(BENCHMARKS / "lm_eval_http.py"), "--model", str(base_folder), "--count", "3", "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    tasks = json.loads(out.read_text())["tasks"]
    assert set(tasks) == {"next_line", "whole_text", "line_end"}
    for name, row in tasks.items():
        assert row["in process"] and row["other answers"] == 0, name
        assert row["largest difference of a log-probability"] < 1e-4, name
        assert row["over HTTP"] == pytest.approx(row["in process"], abs=1e-6), name
