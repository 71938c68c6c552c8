"""A process that waits, imports done, and splits for each run; the part splits into the candidate and its harness, confines both,
and ends them in time.

The order is what keeps secrets. The candidate is split off before the tests and the nonce are even read, and without any
descriptor but two pipes to the harness; so neither is in its memory, and it can only answer calls. The harness runs the tests
and says the nonce after the last of them. It compares values of built-in types (see `wire`) in its own process, where nothing
that the candidate has patched exists.
"""

from __future__ import annotations

import ast
import builtins
import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tessera.sandbox.confine import CannotConfine, confine
from tessera.sandbox.wire import Gone, Opaque, decode, encode, receive, send

_MODULES = frozenset(
    {"cmath", "collections", "datetime", "decimal", "fractions", "functools", "itertools", "math", "random", "re"}
)
"""What a test may use without importing it; never the candidate's."""

_RESULT = 1
"""The descriptor on which the harness, and only it, answers whoever started the run."""


def main() -> NoReturn:
    """Takes connections from the socket that standard input is, until the other side closes it; one run each."""
    for name in ("collections", "functools", "heapq", "itertools", "math", "re", "string", "typing"):
        # What most programs import; done once, before any of them is there.
        importlib.import_module(name)
    gc.freeze()
    # The kernel then buries the runs.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    door = socket.socket(fileno=0)
    while True:
        word, connections, _, _ = socket.recv_fds(door, 1, 1)
        if not word:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            door.detach()
            os.dup2(connections[0], 0)
            os.dup2(connections[0], _RESULT)
            os.closerange(3, 4096)
            try:
                _run()
            except (Gone, OSError):
                os._exit(1)
        os.close(connections[0])


def _run() -> NoReturn:
    """Reads the candidate with its limits, then the tests with the nonce; the harness answers."""
    settings = receive(0)
    calls_out, calls_in = os.pipe()
    answers_out, answers_in = os.pipe()
    candidate = os.fork()
    if candidate == 0:
        _keep_only(calls_out, answers_in)
        send(answers_in, {"problem": _confined(settings)})
        _candidate(settings["program"], calls_out, answers_in)
    os.close(calls_out)
    os.close(answers_in)
    tests = receive(0)
    harness = os.fork()
    if harness == 0:
        _keep_only(calls_in, answers_out, _RESULT)
        # The first message is written before a line of the candidate's has run.
        if problem := _confined(settings) or receive(answers_out)["problem"]:
            _say({"unconfined": problem})
        _harness(tests, calls_in, answers_out)
    for descriptor in (calls_in, answers_out, 0):
        os.close(descriptor)

    def out_of_time(number: int, frame: Any) -> None:
        send(_RESULT, {"status": "timeout"})
        for child in (harness, candidate):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, settings["seconds"])
    os.waitpid(harness, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.kill(candidate, signal.SIGKILL)
    os.waitpid(candidate, 0)
    os._exit(0)


def _keep_only(*kept: int) -> None:
    """Closes every other descriptor and puts nothing at all behind the three standard ones."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        if descriptor not in kept:
            os.dup2(nothing, descriptor)
    start = 3
    for descriptor in sorted(d for d in kept if d > 2):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, 4096)


def _confined(settings: dict[str, Any]) -> str:
    """Confines this process; what was wrong, or nothing."""
    if settings["isolation"] != "unsafe_local":
        try:
            confine(settings["memory_bytes"], int(settings["seconds"]) + 1, settings["landlock"])
        except (CannotConfine, OSError, ValueError) as error:
            return str(error) or type(error).__name__
    return ""


def _candidate(program: str, read: int, write: int) -> NoReturn:
    """Loads the program, then answers calls until nobody asks any more."""
    sys.path[:] = [path for path in sys.path if path.startswith(sys.base_prefix) or path.startswith("/usr/lib")]
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    # A module of its own, so that what looks its class up by `sys.modules[__name__]` finds it.
    module = type(sys)("candidate")
    sys.modules["candidate"] = module
    namespace = module.__dict__
    try:
        code = compile(program, "<candidate>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        send(write, {"raised": [type(error).__name__, str(error)[:500]], "stage": "syntax"})
        os._exit(0)
    try:
        exec(code, namespace)
    except Exception as error:
        send(write, {"raised": _named(error), "stage": "load"})
        os._exit(0)
    send(write, {"loaded": True})
    while True:
        name, arguments, keywords = receive(read)
        try:
            function = namespace[name] if isinstance(name, str) else getattr(kept[name[0]], name[1])
            value = function(
                *decode(arguments, kept.__getitem__), **{k: decode(v, kept.__getitem__) for k, v in keywords.items()}
            )
            answer = {"value": encode(value, keep)}
        except KeyError as error:
            missing = isinstance(name, str) and name not in namespace
            answer = {"raised": ["NameError", f"name {name!r} is not defined"] if missing else _named(error)}
        except Exception as error:
            answer = {"raised": _named(error)}
        send(write, answer)


def _named(error: BaseException) -> list[str]:
    """Name of the nearest built-in class, and the text."""
    name = next((kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind), "Exception")
    try:
        return [name, str(error)[:500]]
    except Exception:
        return [name, ""]


def _harness(tests: dict[str, Any], write: int, read: int) -> NoReturn:
    """Runs the tests, each name that they do not define being a function of the candidate's."""
    stage = "load"
    try:
        loaded = receive(read)
        if "raised" in loaded:
            stage = "syntax" if loaded.get("stage") == "syntax" else "load"
            kind, text = loaded["raised"]
            _say({"status": stage, "error": f"{kind}: {text}"[:500]})
        stage = "raised"

        def ask(name: Any, *arguments: Any, **keywords: Any) -> Any:
            send(write, [name, encode(arguments), {k: encode(v) for k, v in keywords.items()}])
            answer = receive(read)
            if "raised" in answer:
                kind, text = answer["raised"]
                error = getattr(builtins, str(kind), None)
                if not (isinstance(error, type) and issubclass(error, Exception)):
                    error = Exception
                if issubclass(error, StopIteration | StopAsyncIteration):
                    error = RuntimeError  # it would end a loop of the tests, as one over map(), without a word
                try:
                    raise error(str(text))
                except TypeError:
                    # UnicodeError and its like want more than a text.
                    raise ValueError(str(text)) from None
            return decode(answer["value"])

        namespace: dict[str, Any] = {"__name__": "tests"}
        tree = ast.parse(tests["tests"])
        for name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - (set(dir(builtins)) - {tests["entry"]}):
            if name in _MODULES:
                namespace[name] = importlib.import_module(name)
            else:
                namespace[name] = _Function(ask, name)
        try:
            exec(compile(tree, "<tests>", "exec"), namespace)
        except AssertionError as error:
            _say({"status": "wrong", "error": str(error)[:500]})
        _say({"status": "passed", "nonce": tests["nonce"]})
    except Gone:
        _say({"status": "died", "error": "the candidate's process ended or wrote what is no answer"})
    except BaseException as error:
        _say({"status": stage, "error": f"{type(error).__name__}: {error}"[:500]})


class _Function:
    """Stands in the tests for a function or class of the candidate's."""

    __slots__ = ("_ask", "_name")

    def __init__(self, ask: Callable[..., Any], name: str) -> None:
        self._ask, self._name = ask, name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._ask(self._name, *arguments, **keywords)


def _say(message: dict[str, Any]) -> NoReturn:
    send(_RESULT, message)
    os._exit(0)


# What a subclass of it would let the candidate's objects do in the harness must stay impossible.
assert Opaque.__eq__ is object.__eq__
