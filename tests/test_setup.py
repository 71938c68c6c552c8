"""The set-up script ./tessera, run as a copy in a folder of its own against stand-ins for python3 and pip.

The stand-ins replace what the machine offers (a Python, a package index, a disk), never the script; nothing is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]

# Answers the script's question for its version, makes a .venv of stand-ins, and leaves everything else to the real Python.
_PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) echo "${FAKE_VERSION:-3.12.4}" ;;
  *ensurepip*) exit "${FAKE_NO_VENV:-0}" ;;
  "-m venv "*)
    [ -z "${FAKE_VENV_ERROR-}" ] || { echo "$FAKE_VENV_ERROR"; exit 1; }
    mkdir -p "$3/bin" && cp "$FAKES/venv-python" "$3/bin/python" && cp "$FAKES/venv-tessera" "$3/bin/tessera" ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""

# The Python inside .venv: pip and pytest, each of which only notes that it was called.
_VENV_PYTHON = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
  "-m pip "*)
    sleep "${FAKE_PIP_SECONDS:-0}"
    [ -z "${FAKE_PIP_ERROR-}" ] || { echo "$FAKE_PIP_ERROR"; exit 1; } ;;
esac
"""
_VENV_TESSERA = '#!/bin/sh\necho "tessera in $(pwd): $*"\nexit "${FAKE_EXIT:-0}"\n'


@dataclass(frozen=True)
class Machine:
    """A checkout with the script and the lock, and a PATH that holds plain tools and the stand-ins only."""

    checkout: Path
    bin: Path
    environment: Mapping[str, str]

    def start(
        self, *arguments: str, script: Path | None = None, folder: Path | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [script or self.checkout / "tessera", *arguments],
            cwd=folder or self.checkout,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, *arguments: str, script: Path | None = None, folder: Path | None = None, **environment: str
    ) -> tuple[int, str, str]:
        process = self.start(*arguments, script=script, folder=folder, **environment)
        output, errors = process.communicate(timeout=30)
        return process.returncode, output, errors

    def pip_calls(self) -> list[str]:
        calls = Path(self.environment["CALLS"])
        return [line for line in calls.read_text().splitlines() if "pip install" in line] if calls.exists() else []


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    for name in ("tessera", "constraints.txt", "pyproject.toml"):
        shutil.copy(_ROOT / name, checkout)
    programs, fakes = tmp_path / "bin", tmp_path / "fakes"
    programs.mkdir()
    fakes.mkdir()
    for tool in ("sh", "cat", "cksum", "dirname", "readlink", "mkdir", "cp", "rm", "tail", "sleep"):
        (programs / tool).symlink_to(str(shutil.which(tool)))
    _write_program(programs / "python3", _PYTHON)
    _write_program(fakes / "venv-python", _VENV_PYTHON)
    _write_program(fakes / "venv-tessera", _VENV_TESSERA)
    environment = {"PATH": str(programs), "FAKES": str(fakes), "REAL_PYTHON": sys.executable, "CALLS": str(tmp_path / "calls")}
    return Machine(checkout, programs, environment)


def _assert_one_sentence(errors: str, *words: str) -> None:
    lines = [line for line in errors.splitlines() if not line.startswith("Setting up: ")]
    assert len(lines) == 1, errors
    assert lines[0].startswith("tessera: ")
    for word in words:
        assert word in lines[0]


def test_the_script_is_plain_posix_shell() -> None:
    shells = [shell for shell in ("sh", "dash", "bash") if shutil.which(shell)]
    for shell in shells:
        assert subprocess.run([shell, "-n", _ROOT / "tessera"], check=False).returncode == 0, shell


def test_first_call_installs_and_second_goes_straight_to_the_command(machine: Machine) -> None:
    code, output, errors = machine.run("plan", "my recipe")
    assert (code, output) == (0, f"tessera in {machine.checkout}: plan my recipe\n")
    assert "Setting up: " in errors
    assert machine.pip_calls() == ["-m pip install --no-compile --constraint constraints.txt --editable ."]
    assert machine.run("plan") == (0, f"tessera in {machine.checkout}: plan\n", "")
    assert len(machine.pip_calls()) == 1


def test_the_exit_code_is_that_of_the_command(machine: Machine) -> None:
    assert machine.run(FAKE_EXIT="130")[0] == 130


def test_test_adds_the_test_packages_once_and_runs_pytest_in_the_checkout(machine: Machine, tmp_path: Path) -> None:
    machine.run("plan")
    for _ in range(2):
        assert machine.run("test", "-k", "a name", folder=tmp_path)[0] == 0
    assert [call.endswith(".[test]") for call in machine.pip_calls()] == [False, True]
    assert Path(machine.environment["CALLS"]).read_text().splitlines()[-1] == "-m pytest -k a name"
    machine.run("plan")
    assert len(machine.pip_calls()) == 2


def test_a_changed_lock_is_installed_with_the_packages_that_were_there(machine: Machine) -> None:
    machine.run("test")
    with (machine.checkout / "constraints.txt").open("a") as lock:
        lock.write("another==1.0\n")
    machine.run("plan")
    assert [call.endswith(".[test]") for call in machine.pip_calls()] == [True, True]


def test_works_through_links_and_keeps_the_callers_folder(machine: Machine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "one").symlink_to(machine.checkout / "tessera")
    (elsewhere / "two").symlink_to("one")
    assert machine.run("plan", script=elsewhere / "two", folder=elsewhere)[:2] == (0, f"tessera in {elsewhere}: plan\n")
    assert (machine.checkout / ".venv").is_dir()


def test_a_moved_checkout_is_set_up_again(machine: Machine, tmp_path: Path) -> None:
    machine.run("plan")
    moved = machine.checkout.rename(tmp_path / "moved")
    assert machine.run("plan", script=moved / "tessera", folder=moved)[0] == 0
    assert len(machine.pip_calls()) == 2


def test_a_vanished_python_is_replaced(machine: Machine) -> None:
    machine.run("plan")
    (machine.checkout / ".venv/bin/python").unlink()
    assert machine.run("plan")[0] == 0
    assert len(machine.pip_calls()) == 2


def test_without_python_one_sentence_says_what_to_install(machine: Machine) -> None:
    (machine.bin / "python3").unlink()
    code, _, errors = machine.run()
    assert code == 1
    _assert_one_sentence(errors, "Python 3.11 or newer", "no python3", "install")


def test_an_old_python_is_named(machine: Machine) -> None:
    for version in ("3.10.13", "3.9.18", "2.7.18"):
        code, _, errors = machine.run(FAKE_VERSION=version)
        assert code == 1
        _assert_one_sentence(errors, "Python 3.11 or newer", version, "install")


def test_a_newer_python_beside_an_old_one_is_used(machine: Machine) -> None:
    _write_program(machine.bin / "python3", _PYTHON.replace("${FAKE_VERSION:-3.12.4}", "3.9.18"))
    _write_program(machine.bin / "python3.12", _PYTHON)
    assert machine.run()[0] == 0


def test_a_missing_venv_module_is_named_with_its_package(machine: Machine) -> None:
    code, _, errors = machine.run(FAKE_NO_VENV="1")
    assert code == 1
    _assert_one_sentence(errors, "apt install python3.12-venv")


@pytest.mark.parametrize("step", ["FAKE_VENV_ERROR", "FAKE_PIP_ERROR"])
def test_a_full_disk_is_one_sentence(machine: Machine, step: str) -> None:
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    code, _, errors = machine.run(script=None, folder=None, **{step: said})
    assert code == 1
    _assert_one_sentence(errors, "disk space", "free")


def test_no_network_is_one_sentence(machine: Machine) -> None:
    said = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError': /simple/\nERROR: No such package"
    code, _, errors = machine.run(FAKE_PIP_ERROR=said)
    assert code == 1
    _assert_one_sentence(errors, "network")


def test_another_failure_shows_what_pip_said(machine: Machine) -> None:
    code, _, errors = machine.run(FAKE_PIP_ERROR="ERROR: No matching distribution found for torch==2.13.0")
    assert code == 1
    assert "No matching distribution found for torch==2.13.0" in errors
    assert errors.splitlines()[-1].startswith("tessera: ")


def test_a_failed_set_up_is_not_taken_for_a_finished_one(machine: Machine) -> None:
    machine.run(FAKE_PIP_ERROR="ERROR: it broke")
    assert machine.run()[0] == 0
    assert len(machine.pip_calls()) == 2


def test_an_interrupted_set_up_is_not_taken_for_a_finished_one(machine: Machine) -> None:
    process = machine.start(FAKE_PIP_SECONDS="20")
    _wait_for_pip(machine, 1)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)
    assert machine.run()[0] == 0
    assert len(machine.pip_calls()) == 2


def test_a_second_set_up_waits_for_the_first_and_uses_its_work(machine: Machine) -> None:
    first = machine.start("plan", FAKE_PIP_SECONDS="1")
    _wait_for_pip(machine, 1)
    code, _, errors = machine.run("plan")
    assert (first.wait(timeout=60), code) == (0, 0)
    assert "waiting for another set-up" in errors
    assert len(machine.pip_calls()) == 1
    first.communicate()


def test_the_lock_holds_exact_versions_and_torch_in_any_build() -> None:
    pins = [line for line in (_ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(pin.count("==") == 1 and "--hash" not in pin and "+" not in pin for pin in pins)
    assert "torch==2.13.0" in pins
    assert not [pin for pin in pins if pin.startswith(("nvidia", "cuda", "triton"))]


def test_every_package_that_is_asked_for_is_locked() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    locked = {pin.split("==")[0].lower().replace("_", "-") for pin in (_ROOT / "constraints.txt").read_text().splitlines()}
    for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
        assert re.split(r"\[|>=", requirement)[0] in locked


def _wait_for_pip(machine: Machine, calls: int) -> None:
    deadline = time.monotonic() + 10
    while len(machine.pip_calls()) < calls and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(machine.pip_calls()) == calls
