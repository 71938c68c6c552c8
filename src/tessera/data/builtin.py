"""Text that every machine has: the standard library of the Python that runs, and sums.

`stdlib` gives its source code, one document per file; `prose` gives what people wrote in it for people: docstrings, extracted
from the syntax tree, and the language reference that `help()` shows; `sums` is arithmetic in words.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from tessera.data.files import IGNORED_FOLDERS, Say, read_file, walk
from tessera.data.reasons import Skipped
from tessera.tokens.document import Document

# The library's own tests are as large as the library and say little; packages installed beside it are not its own.
_IGNORED = IGNORED_FOLDERS | {"test", "tests", "idle_test", "dist-packages"}
# A module with fewer characters of docstrings than this has labels, not prose.
_SHORTEST_PROSE = 200


def stdlib(skipped: list[Skipped], say: Say) -> Iterator[Document]:
    """The `.py` files of the running interpreter's library, without its tests, in sorted order."""
    folder = Path(sysconfig.get_path("stdlib"))
    for name in walk(folder, skipped, _IGNORED):
        if name.endswith(".py"):
            yield from read_file(folder / name, name, None, skipped, say)


def prose(skipped: list[Skipped], say: Say) -> Iterator[Document]:
    """Docstrings of the library, one document per module, then one document per topic of `help()`."""
    # Empty modules hold no prose and are nothing to report.
    for module in stdlib([], say):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(module.text)
        except (SyntaxError, ValueError, RecursionError):
            skipped.append(Skipped(module.source, "not parsable Python"))
            continue
        text = "\n\n".join(_docstrings(tree))
        if len(text) >= _SHORTEST_PROSE:
            yield Document.of_text(text + "\n", module.source)
    yield from help_topics(skipped)


def help_topics(skipped: list[Skipped]) -> Iterator[Document]:
    """The pages of the language reference that come with Python, one document each."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        skipped.append(Skipped("pydoc_data/topics.py", "not installed"))
        return
    for name, text in sorted(topics.items()):
        yield Document.of_text(inspect.cleandoc(text) + "\n", f"pydoc_data/topics.py[{name}]")


_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """0 ... 199 as English writes it: `one hundred and forty-two`.

    Raises:
        ValueError: a number outside of these.
    """
    if not 0 <= number < 200:
        raise ValueError(f"{number} is not among 0 ... 199")
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    return "one hundred" + (f" and {in_words(number % 100)}" if number % 100 else "")


def sums(below: int = 100) -> Iterator[Document]:
    """Every sum and difference of numbers below `below`, at most 100, and every product of such up to 12 times 12, one document
    each, with its question.

    A document that is held out is therefore a sum that was never shown.
    """
    facts = [(a, "plus", b, a + b) for a in range(below) for b in range(below)]
    facts += [(a, "minus", b, a - b) for a in range(below) for b in range(a + 1)]
    facts += [(a, "times", b, a * b) for a in range(min(below, 13)) for b in range(min(below, 13))]
    for a, sign, b, result in facts:
        text = f"What is {in_words(a)} {sign} {in_words(b)}? {in_words(result).capitalize()}.\n"
        yield Document.of_text(text, f"sums[{a} {sign} {b}]")


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Of the module, its classes and functions, in the order in which they are written."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield text
        # Definitions stand in statements only; leaving the expressions out makes this ten times as fast.
        blocks = [getattr(node, field, []) for field in ("body", "handlers", "orelse", "finalbody")]
        stack.extend(reversed([inner for block in blocks if isinstance(block, list) for inner in block]))
