"""The door of the sandbox: `open_sandbox()` finds an isolation that holds, `Sandbox.run` judges programs in it.

Two isolations, the stronger first: `bubblewrap` (namespaces: no host files, no network, no other processes) around what `confine`
does, and `landlock`, which is that alone. Where neither withstands every attempt of `probe`, nothing runs.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tessera.errors import RunFailed, UserError
from tessera.sandbox.confine import landlock_version, library_folders

UNSAFE_VARIABLE = "TESSERA_UNSAFE_LOCAL"
# Of a virtual environment, the interpreter that it was made from: its packages are not there without `site` in any case.
_PYTHON: str = getattr(sys, "_base_executable", sys.executable)
_SOURCE = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path.insert(0, sys.argv[1]); from tessera.sandbox.launcher import main; main()"
_GRACE_SECONDS = 5.0
"""For the interpreter to start and end, on top of the program's own time."""
_LARGEST_ANSWER = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Args:
        seconds: of wall-clock time, and as much CPU time to the next whole second.
        memory_bytes: of address space.
    """

    seconds: float = 3.0
    memory_bytes: int = 512 << 20


@dataclass(frozen=True)
class Result:
    """What became of a program.

    Args:
        status: `passed`; `wrong` (a test's assertion failed), `raised` (in a test), `died`, `timeout`, `load` (it raises when it
            is loaded), `syntax` (it is no Python).
        error: of the candidate, for people.
        isolation: `bubblewrap`, `landlock`, or `unsafe_local`.
        seconds: of the whole run.
    """

    status: str
    error: str
    isolation: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Every assertion held, and the harness said so."""
        return self.status == "passed"


class Sandbox:
    """An isolation that runs programs. Get one from `open_sandbox`.

    A process with the interpreter's imports done waits inside the isolation and splits for each run; it ends with this one.
    """

    def __init__(self, isolation: str, limits: Limits) -> None:
        self.isolation, self.limits = isolation, limits
        self._lock = threading.Lock()
        self._waiting: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    def run(self, program: str, tests: str, entry: str = "") -> Result:
        """Loads a program in one process and runs the tests in another, which calls what the program defines.

        Args:
            program: Python source; not trusted.
            tests: Python source with assertions; trusted to be fair, confined all the same. Names that are neither built in nor
                defined in it are the program's functions and classes; arguments and results travel as plain values.
            entry: name of the function to test, for the case that it is one of a built-in function; no other of the program's
                names takes the place of a built-in one in the tests.

        Raises:
            RunFailed: the confinement failed, which says nothing about the program.
        """
        nonce = secrets.token_hex(16)
        settings = {
            "program": program,
            "isolation": self.isolation,
            "seconds": self.limits.seconds,
            "memory_bytes": self.limits.memory_bytes,
            "landlock": self.isolation == "landlock" or landlock_version() > 0,
        }
        start = time.perf_counter()
        answer = self._launch(_framed(settings) + _framed({"tests": tests, "nonce": nonce, "entry": entry}))
        seconds = time.perf_counter() - start
        if "unconfined" in answer:
            raise RunFailed(f"the sandbox failed: {answer['unconfined']}.")
        status = str(answer.get("status", "died"))
        if status == "passed" and not secrets.compare_digest(str(answer.get("nonce")), nonce):
            status = "died"
        return Result(status, str(answer.get("error", "")), self.isolation, seconds)

    def run_all(self, programs: list[tuple[str, str, str]]) -> list[Result]:
        """Runs (program, tests, entry) each, as many at a time as there are processors; results in the same order."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(lambda each: self.run(*each), programs))

    def close(self) -> None:
        """Ends the process that waits."""
        with self._lock:
            if self._waiting is not None:
                process, door = self._waiting
                door.close()
                process.wait()
                self._waiting = None

    def _launch(self, messages: bytes) -> dict[str, object]:
        """One run: the harness's answer, or what stands for none."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._knock(theirs)
            ours.settimeout(self.limits.seconds + _GRACE_SECONDS)
            answer = bytearray()
            try:
                ours.sendall(messages)
                while len(answer) < _LARGEST_ANSWER and (part := ours.recv(_LARGEST_ANSWER)):
                    answer += part
            except TimeoutError:
                return {"status": "timeout"}
            except OSError:
                return {"unconfined": "its launcher ended"}
        size = int.from_bytes(answer[:4], "big")
        if not 0 < size <= len(answer) - 4:
            return {"unconfined": "its launcher did not answer"}
        said = json.loads(answer[4 : 4 + size])
        return said if isinstance(said, dict) else {}

    def _knock(self, theirs: socket.socket) -> None:
        """Hands a run's connection to the process that waits, which is started where there is none."""
        with self._lock:
            if self._waiting is not None and self._waiting[0].poll() is not None:
                self._waiting[1].close()
                self._waiting = None
            if self._waiting is None:
                self._waiting = self._start()
            try:
                socket.send_fds(self._waiting[1], [b"r"], [theirs.fileno()])
            except OSError as error:
                raise RunFailed(f"the sandbox's launcher does not start ({error.strerror}).") from None

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        command: list[str] = [_PYTHON, "-I", "-S", "-c", _START, str(_SOURCE)]
        if self.isolation == "bubblewrap":
            command = [*_bubblewrap(), *command]
        door, inside = socket.socketpair()
        with inside:
            process = subprocess.Popen(
                command,
                stdin=inside.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=dict[str, str](),
                start_new_session=True,
            )
        return process, door


def open_sandbox(unsafe_local: bool = False, limits: Limits | None = None) -> Sandbox:
    """The strongest isolation that withstands the probe here.

    Args:
        unsafe_local: runs programs as plain processes where no isolation works; also needs the environment variable
            TESSERA_UNSAFE_LOCAL=1. Every result is marked with it.

    Raises:
        RunFailed: none withstands it; the sentence says what each let through.
        UserError: unsafe_local without the variable.
    """
    limits = limits or Limits()
    if unsafe_local:
        if os.environ.get(UNSAFE_VARIABLE) != "1":
            raise UserError(f"running generated code without isolation also needs the environment variable {UNSAFE_VARIABLE}=1.")
        return Sandbox("unsafe_local", limits)
    found, failures = _probed()
    if found is None:
        raise RunFailed(f"no sandbox works here, so generated code is not run ({'; '.join(failures)}); see docs/sandbox.md.")
    return Sandbox(found, limits)


@lru_cache(maxsize=1)
def _probed() -> tuple[str | None, tuple[str, ...]]:
    """The isolation to use, and what was wrong with those before it."""
    from tessera.sandbox.probe import let_through

    failures = []
    for isolation in ("bubblewrap", "landlock"):
        if isolation == "bubblewrap" and shutil.which("bwrap") is None:
            failures.append("bubblewrap: not installed")
            continue
        try:
            holes = let_through(isolation)
        except RunFailed as error:
            failures.append(f"{isolation}: {str(error).rstrip('.')}")
            continue
        if not holes:
            return isolation, tuple(failures)
        failures.append(f"{isolation}: lets through {', '.join(holes)}")
    return None, tuple(failures)


def _bubblewrap() -> list[str]:
    """bwrap's arguments: an empty root with the interpreter in it, read-only, and nothing else."""
    words = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    words += ["--new-session", "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--clearenv"]
    words += ["--dev", "/dev", "--chdir", "/"]
    executable = os.path.realpath(_PYTHON)
    for path in dict.fromkeys(["/usr/lib", "/lib", "/lib64", *library_folders(), _PYTHON, executable]):
        words += ["--ro-bind-try", path, path]
    return [*words, "--ro-bind", str(_SOURCE / "tessera"), str(_SOURCE / "tessera"), "--"]


def _framed(message: object) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body
