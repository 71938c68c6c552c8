"""What an isolation must deny before anything else runs in it: each attempt is made, really, from the candidate's process.

A probe is a function that returns only when it got what it must not have; any exception in it is a denial.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from tessera.errors import RunFailed
from tessera.sandbox.box import Limits, Sandbox

_ATTEMPTS = """
import ctypes, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)

def host_files(secret):
    for path in (secret, "/etc/passwd", "/root", "/home", "/etc/hostname"):
        try:
            os.listdir(path) if os.path.isdir(path) else open(path).read()
        except OSError:
            continue
        # An empty folder made by the isolation itself is no host's.
        if not os.path.isdir(path) or os.listdir(path):
            return True
    raise OSError

def outside_writes(path):
    for target in (path, "/tmp/probe", "/dev/shm/probe", "probe", "/var/tmp/probe"):
        try:
            with open(target, "w") as file:
                file.write("x")
            return True
        except OSError:
            continue
    raise OSError

def network_sockets():
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM).fileno()

def local_sockets(name):
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(name)

def signals(pid):
    os.kill(pid, 0)
    return True

def own_group_signals():
    os.killpg(0, 0)
    return True

def signals_of_files():
    for command in (8, 10, 15):
        if libc.fcntl(0, command, 9) == 0:
            return True
    raise OSError

def other_processes(pid):
    for path in (f"/proc/{pid}/cmdline", "/proc/1/cmdline", "/proc/self/environ"):
        try:
            return open(path, "rb").read()
        except OSError:
            continue
    raise OSError

def tracing():
    # PTRACE_TRACEME: to trace another would stop it where that is not denied. For the same reason it comes last.
    if libc.ptrace(0, 0, 0, 0) != 0:
        raise OSError

def namespaces():
    for flags in (0x10000000, 0x20000000, 0x40000000, 0x00020000):
        if libc.unshare(flags) == 0:
            return True
    raise OSError

def forks():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return True

def programs():
    import subprocess
    return subprocess.run(["/bin/sh", "-c", "true"])

def memory(size):
    # Asked for and not touched, so that it takes no time where it is given.
    import mmap
    return len(mmap.mmap(-1, size))

def busy():
    while True:
        pass
"""

NAMES = (
    "host files", "outside writes", "network sockets", "local sockets", "signals", "own group signals", "signals of files",
    "other processes", "namespaces", "forks", "programs", "memory", "tracing", "busy loop",
)  # fmt: skip


def let_through(isolation: str) -> list[str]:
    """The attempts that an isolation does not deny, by name; sound ones give an empty list.

    Raises:
        RunFailed: nothing runs in it, not even a harmless program.
    """
    box = Sandbox(isolation, Limits(seconds=10.0, memory_bytes=256 << 20))
    harmless = box.run("def add(a, b):\n    return a + b\n", "assert add(1, 2) == 3")
    if not harmless.passed:
        raise RunFailed(f"a harmless program does not run ({harmless.status} {harmless.error})")
    holes = []
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        secret, outside, door = Path(folder, "secret"), Path(folder, "written"), Path(folder, "door")
        secret.write_text("secret")
        listening.bind(str(door))
        listening.listen(1)
        arguments: dict[str, object] = {
            "host files": str(secret),
            "outside writes": str(outside),
            "local sockets": str(door),
            "signals": os.getpid(),
            "other processes": os.getpid(),
            "memory": 10 * box.limits.memory_bytes,
        }
        calls = [
            f"{name.replace(' ', '_')}({arguments[name]!r})" if name in arguments else f"{name.replace(' ', '_')}()"
            for name in NAMES[:-1]
        ]
        tests = "holes = []\n" + "".join(
            f"try:\n    {call}\n    holes.append({name!r})\nexcept Exception:\n    pass\n"
            for call, name in zip(calls, NAMES[:-1], strict=True)
        )
        # The last assertion fails with the names of the holes, which is how they come out.
        result = box.run(_ATTEMPTS, tests + "assert not holes, ', '.join(holes)")
        if result.status == "wrong":
            holes += result.error.split(", ")
        elif not result.passed:
            raise RunFailed(f"the probe itself did not run ({result.status} {result.error})")
        if outside.exists() and "outside writes" not in holes:
            holes.append("outside writes")
    if Sandbox(isolation, Limits(0.3)).run(_ATTEMPTS, "busy()").status != "timeout":
        holes.append("busy loop")
    return holes
