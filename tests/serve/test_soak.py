"""Half a minute of `benchmarks/soak.py`: clients that leave, send rubbish and too much, and a kill in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SECONDS = os.environ.get("TESSERA_SOAK_SECONDS", "20")


def test_bad_clients_and_a_kill_leave_nothing_stuck_and_nothing_lost(tmp_path: Path, model_folder: Path) -> None:
    out = tmp_path / "result.json"
    # Caches are still filling in so short a time: that memory is flat within 5 % is what ten minutes show.
    words = ["--seconds", SECONDS, "--clients", "12", "--growth", "0.6", "--model", str(model_folder), "--out", str(out)]
    done = subprocess.run([sys.executable, str(BENCHMARKS / "soak.py"), *words], capture_output=True, text=True, timeout=600)
    assert out.exists(), done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert not result["violations"] and done.returncode == 0, done.stdout[-5000:]
    assert result["slots_held"] == 0 and result["stored"]["lost"] == 0 and result["stored"]["checked"] > 0
    assert result["requests"] > 100 and len(result["lives"]) == 2 and result["down_seconds"] > 0
