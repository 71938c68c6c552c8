"""Programs that escape or cheat: all denied, none passes; honest ones pass."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.errors import RunFailed, UserError
from tessera.sandbox import box, probe
from tessera.sandbox.box import Limits, Sandbox, open_sandbox

if sys.platform != "linux":
    pytest.skip("generated code is isolated on Linux only; elsewhere it is refused", allow_module_level=True)

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\nassert add('a', 'b') == 'ab'\n"
HONEST = "def add(a, b):\n    return a + b\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        sandbox = open_sandbox(limits=Limits(seconds=5.0))
    except RunFailed as error:
        pytest.skip(str(error))
    yield sandbox
    sandbox.close()


CHEATS = dict(
    part.split("\n", 1) for part in (Path(__file__).parent / "cheats.txt").read_text(encoding="utf-8").split("#### ")[1:]
)
"""Name -> program that does not add, and tries to pass the tests all the same."""


@pytest.mark.parametrize("name", CHEATS)
def test_no_program_passes_by_cheating(sandbox: Sandbox, name: str) -> None:
    quick = Sandbox(sandbox.isolation, Limits(seconds=0.8)) if "loop" in name or "threads" in name else sandbox
    result = quick.run(CHEATS[name], TESTS)
    assert not result.passed, result
    assert result.status in ("wrong", "raised", "died", "timeout", "load", "syntax")
    # The next program in the same sandbox is not worse off for it.
    assert quick.run(HONEST, TESTS).passed
    if quick is not sandbox:
        quick.close()


ESCAPES = {
    "read the password file": "open('/etc/passwd').read()",
    "read a secret": "open({secret!r}).read()",
    "list the root": "__import__('os').listdir('/root')",
    "list the folder of temporary files": "__import__('os').listdir({folder!r})[0]",
    "read the environment of its parent": "open('/proc/%d/environ' % __import__('os').getppid(), 'rb').read()",
    "read the memory of its parent": "open('/proc/%d/mem' % __import__('os').getppid(), 'rb')",
    "write beside the secret": "open({folder!r} + '/new', 'w')",
    "write to /tmp": "open('/tmp/new', 'w').write('x')",
    "delete the secret": "__import__('os').unlink({secret!r})",
    "rename the secret": "__import__('os').rename({secret!r}, {secret!r} + '2')",
    "change its mode": "__import__('os').chmod({secret!r}, 0o777)",
    "link to it": "__import__('os').link({secret!r}, '/tmp/l')",
    "a folder": "__import__('os').mkdir('/tmp/new-folder')",
    "a device": "__import__('os').mknod('/tmp/dev', 0o600 | 0o20000)",
    "a TCP socket": "__import__('socket').socket()",
    "a UDP socket": "__import__('socket').socket(type=2)",
    "a pair of sockets": "__import__('socket').socketpair()",
    "a name server": "__import__('socket').gethostbyname('localhost').index('1')",
    "a signal to init": "__import__('os').kill(1, 0)",
    "a signal to its parent": "__import__('os').kill(__import__('os').getppid(), 9)",
    "a signal to its group": "__import__('os').killpg(0, 0)",
    "a file that signals its parent": "__import__('fcntl').fcntl(0, 8, __import__('os').getppid())",
    "a signal of its own choice": "__import__('fcntl').fcntl(0, 10, 9)",
    "a child": "__import__('os').fork()",
    "a shell by os.system": "1 / (__import__('os').system('true') == 0)",
    "a shell by posix": "1 / (__import__('posix').system('true') == 0)",
    "a program": "__import__('subprocess').run(['/bin/true'])",
    "another program in its place": "__import__('os').execv('/bin/true', ['true'])",
    "a spawned program": "__import__('os').posix_spawn('/bin/true', ['true'], {{}})",
    "root": "__import__('os').setuid(0)",
    "a session": "__import__('os').setsid()",
    "a higher limit": "__import__('resource').setrlimit(9, (1 << 40, 1 << 40))",
    "another root": "__import__('os').chroot('/')",
    "shared memory": "__import__('multiprocessing.shared_memory').shared_memory.SharedMemory(create=True, size=9)",
    "memory files": "__import__('os').memfd_create('x')",
    "tracing by system call": "1 / (__import__('ctypes').CDLL(None).ptrace(16, __import__('os').getppid(), 0, 0) == 0)",
    "a user namespace by system call": "1 / (__import__('ctypes').CDLL(None).unshare(0x10000000) == 0)",
    "a child by system call": "1 / (__import__('ctypes').CDLL(None).syscall(56, 17, 0, 0, 0, 0) > 0)",
    "mounting": "1 / (__import__('ctypes').CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0)",
    "keys of the kernel": "1 / (__import__('ctypes').CDLL(None).syscall(250, 0, -3, 0, 0, 0) >= 0)",
    "another process's memory": "1 / (__import__('ctypes').CDLL(None).syscall(310, {parent}, 0, 0, 0, 0, 0) >= 0)",
    "a ring of system calls": "1 / (__import__('ctypes').CDLL(None).syscall(425, 8, bytes(120)) >= 0)",
}


def test_no_program_gets_out(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    words = {"secret": str(secret), "folder": str(tmp_path), "parent": os.getpid()}
    escaped = []
    for name, attempt in ESCAPES.items():
        # It answers rightly only once it is out.
        program = f"{attempt.format(**words)}\n{HONEST}"
        if sandbox.run(program, TESTS).status not in ("load", "died"):
            escaped.append(name)
    assert escaped == []
    assert [path.name for path in tmp_path.iterdir()] == ["secret"] and secret.read_text() == "secret"


def test_a_program_cannot_end_a_loop_of_its_tests(sandbox: Sandbox) -> None:
    program = "def f(x):\n    raise StopIteration\n"
    for tests in (
        "assert all(map(lambda c: f(c[0]) == c[1], [(1, 2), (2, 4)]))",
        "for got, want in zip(map(f, [1, 2]), [2, 4]):\n    assert got == want",
    ):
        assert sandbox.run(program, tests).status == "raised"


def test_there_are_enough_attempts() -> None:
    assert len(CHEATS) + len(ESCAPES) >= 30


HONEST_PROGRAMS = {
    "a function": (HONEST, TESTS),
    "threads and imports": (
        "import threading, dataclasses, decimal, json, random, statistics, datetime\nseen = []\n"
        "def add(a, b):\n    t = threading.Thread(target=seen.append, args=(a + b,))\n    t.start()\n    t.join()\n"
        "    return seen.pop()\n",
        TESTS,
    ),
    "every plain type": (
        "def same(x):\n    return x\n",
        "for v in (None, True, 0, -2**90, 1.5, float('inf'), 2j, 'é\\ud800', b'x', [1, (2,)], {3, 4}, frozenset([5]),"
        " {'a': [6], (7,): 8}, range(3)):\n    assert same(v) == v and type(same(v)) is type(v)\n",
    ),
    "a class of its own": (
        "class P:\n    def __init__(self, x):\n        self.x = x\ndef x_of(ps):\n    return [p.x for p in ps]\n",
        "assert x_of([P(1), P(2)]) == [1, 2]",
    ),
    "an iterator": ("def squares(n):\n    for i in range(n):\n        yield i * i\n", "assert list(squares(3)) == [0, 1, 4]"),
    "an error that is asked for": (
        "def root(x):\n    if x < 0:\n        raise ValueError('negative')\n    return x ** 0.5\n",
        "try:\n    root(-1)\n    assert False\nexcept ValueError as e:\n    assert 'negative' in str(e)\n"
        "assert math.isclose(root(2), 2 ** .5)",
    ),
    "state between the calls": ("n = 0\ndef count():\n    global n\n    n += 1\n    return n\n", "count()\nassert count() == 2"),
    "a main part that is not run": (HONEST + "if __name__ == '__main__':\n    1 / 0\n", TESTS),
    "much output": ("print('x' * 10**6)\n" + HONEST, TESTS),
}


@pytest.mark.parametrize("name", HONEST_PROGRAMS)
def test_honest_programs_pass(sandbox: Sandbox, name: str) -> None:
    result = sandbox.run(*HONEST_PROGRAMS[name])
    assert result.passed and result.isolation == sandbox.isolation, result


def test_each_way_to_fail_is_told_from_the_others(sandbox: Sandbox) -> None:
    programs = {
        "wrong": "def add(a, b):\n    return a - b\n",
        "raised": "def add(a, b):\n    return undefined\n",
        "load": "import nothing_of_this_name\n",
        "syntax": "def add(a, b)\n",
        "died": "import os\ndef add(a, b):\n    os._exit(1)\n",
    }
    found = sandbox.run_all([(program, TESTS, "") for program in programs.values()])
    assert [result.status for result in found] == list(programs)


def test_a_function_named_like_a_built_in_one_is_tested_only_where_the_task_names_it(sandbox: Sandbox) -> None:
    program = "def sum(a, b):\n    return a + b\n"
    assert sandbox.run(program, "assert sum(1, 2) == 3", "sum").passed
    assert sandbox.run(program, "assert sum(1, 2) == 3").status == "raised"


def test_the_probe_finds_every_hole_of_a_plain_process() -> None:
    assert set(probe.let_through("unsafe_local")) >= {
        "host files",
        "network sockets",
        "local sockets",
        "signals",
        "forks",
        "memory",
    }


def test_where_nothing_holds_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "_probed", lambda: (None, ("bubblewrap: not installed", "landlock: lets through signals")))
    with pytest.raises(RunFailed, match=r"not run .*lets through signals"):
        open_sandbox()


def test_running_without_isolation_takes_a_flag_and_a_variable_and_marks_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(box.UNSAFE_VARIABLE, raising=False)
    with pytest.raises(UserError, match="TESSERA_UNSAFE_LOCAL=1"):
        open_sandbox(unsafe_local=True)
    monkeypatch.setenv(box.UNSAFE_VARIABLE, "1")
    unsafe = open_sandbox(unsafe_local=True)
    result = unsafe.run(HONEST, TESTS)
    assert result.passed and result.isolation == "unsafe_local"
    unsafe.close()


def test_a_run_costs_at_most_60_ms_more_than_an_interpreter(sandbox: Sandbox) -> None:
    def plain() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
        return time.perf_counter() - start

    sandbox.run(HONEST, TESTS)
    more = [sandbox.run(HONEST, TESTS).seconds - plain() for _ in range(9)]
    assert statistics.median(more) <= 0.06


def test_secrets_of_the_environment_do_not_get_in(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_TEST_TOKEN", "secret")
    fresh = Sandbox(sandbox.isolation, sandbox.limits)
    assert os.environ["TESSERA_TEST_TOKEN"] == "secret"
    assert fresh.run(
        "import os\ndef names():\n    return sorted(os.environ)\n", "assert 'TESSERA_TEST_TOKEN' not in names()"
    ).passed
    fresh.close()
