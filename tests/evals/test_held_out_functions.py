"""The functions that a code model is asked to complete are real, whole, and the same every time."""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap

from tessera.evals.held_out_functions import HeldOutFunction, held_out_functions


def source(name: str, body: str = "x = 1\ny = 2\nreturn x + y", docstring: str = '"""What it does."""') -> str:
    return f"def {name}(a, b=2):\n" + textwrap.indent(f"{docstring}\n{body}", "    ") + "\n"


def test_prompt_and_reference_are_the_function_as_written() -> None:
    text = "import os\n\n" + source("add") + "\n\nx = 3\n"
    expected = HeldOutFunction("add", 'def add(a, b=2):\n    """What it does."""\n', "    x = 1\n    y = 2\n    return x + y\n")
    assert held_out_functions([text]) == [expected]
    assert held_out_functions([text.replace("\n", "\r\n")]) == [expected]
    assert held_out_functions(["\f\n" + text]) == [expected]


def test_only_short_plain_documented_functions_are_asked_for() -> None:
    unfit = [
        source("undocumented", docstring="a = 0"),
        source("long", body="\n".join(["x = 1"] * 20)),
        source("short", body="return 1"),
        source("stub", body="raise NotImplementedError(\n'a'\n'b'\n'c')"),
        "@cache\n" + source("decorated"),
        "class C:\n" + textwrap.indent(source("method"), "    "),
        "def f(:\n",
        "x = '\0'\n",
        "Plain prose, not Python.",
    ]
    assert held_out_functions(unfit) == []


def test_the_choice_depends_on_the_texts_and_the_seed_alone() -> None:
    texts = [source(f"f{i}") for i in range(20)] + [source("f3", body="return (\na\n+ b\n)")]
    chosen = held_out_functions(texts, seed=1)
    assert len({f.title for f in chosen}) == 3
    assert chosen == held_out_functions(reversed(texts), seed=1)
    assert chosen != held_out_functions(texts, seed=2)
    assert len(held_out_functions(texts, count=50)) == 20


def test_functions_of_the_standard_library_parse_when_put_together_again() -> None:
    text = inspect.getsource(textwrap) + inspect.getsource(argparse)
    chosen = held_out_functions([text, inspect.getsource(inspect)], count=5)
    assert len(chosen) == 5
    for function in chosen:
        assert isinstance(ast.parse(function.prompt + function.reference).body[0], ast.FunctionDef)
        assert f"{function.prompt}{function.reference}" in text + inspect.getsource(inspect)
