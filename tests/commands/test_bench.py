"""`tessera bench`: runs a script of the checkout as it is, or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessera.commands.bench import SCRIPTS, bench
from tessera.device import PROCESS_SETTINGS
from tessera.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_name_is_a_script_of_the_checkout() -> None:
    assert not [script for script in SCRIPTS.values() if not (BENCHMARKS / script).is_file()]


def test_options_and_the_exit_code_go_through_and_our_own_process_settings_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PROCESS_SETTINGS.items():
        monkeypatch.setenv(name, value)
    seen = tmp_path / "seen"
    script = f"import json, os, sys\nopen({str(seen)!r}, 'w').write(json.dumps([sys.argv[1:], dict(os.environ)]))\nsys.exit(3)\n"
    (tmp_path / SCRIPTS["train"]).write_text(script, encoding="utf-8")
    assert bench("train", ["--threads", "2", "--json"], tmp_path) == 3
    words, environment = json.loads(seen.read_text(encoding="utf-8"))
    assert words == ["--threads", "2", "--json"] and not PROCESS_SETTINGS.keys() & environment.keys()


def test_no_checkout_and_no_such_benchmark_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="come with a checkout"):
        bench("train", [], tmp_path)
    with pytest.raises(UserError, match="the benchmarks are train"):
        bench("nonsense", [])
