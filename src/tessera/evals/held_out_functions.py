"""Real functions for a code model to complete: the signature and docstring are the prompt, the author's body the reference.

Texts of held-out Python files go in; a few short, documented, top-level functions come out, the same ones for the same
texts and seed whatever order the files arrive in.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SHORTEST_LINES, LONGEST_LINES = 5, 15


@dataclass(frozen=True)
class HeldOutFunction:
    """`prompt` (from `def` to the end of the docstring) and `reference` (the body) together are the function as written."""

    title: str
    prompt: str
    reference: str


def held_out_functions(validation_texts: Iterable[str], count: int = 3, seed: int = 0) -> list[HeldOutFunction]:
    """At most `count` functions of 5 to 15 lines with a docstring, no decorator and a body that does something.

    Texts that are not Python of this interpreter's grammar are passed over. No two functions have the same name.
    """
    # Ordered by a hash and not by a generator, so that one more file in the list does not change all the choices.
    candidates = sorted((f for text in validation_texts for f in _functions(text)), key=lambda f: _order(f, seed))
    by_title: dict[str, HeldOutFunction] = {}
    for function in candidates:
        by_title.setdefault(function.title, function)
    return list(by_title.values())[:count]


def _order(function: HeldOutFunction, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{function.prompt}{function.reference}".encode(errors="surrogatepass")).digest()


def _functions(text: str) -> Iterator[HeldOutFunction]:
    try:
        with warnings.catch_warnings():
            # Other people's invalid escapes are not this run's news.
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    # Not `splitlines`: the parser does not end a line at a form feed, which the standard library uses.
    lines = text.replace("\r\n", "\n").split("\n")
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.decorator_list or ast.get_docstring(node) is None:
            continue
        docstring, *body = node.body
        last_line = node.end_lineno or node.lineno
        if not SHORTEST_LINES <= last_line - node.lineno + 1 <= LONGEST_LINES:
            continue
        if not body or isinstance(body[0], ast.Pass | ast.Raise) or body[0].lineno <= (docstring.end_lineno or 0):
            continue
        split = docstring.end_lineno or node.lineno
        yield HeldOutFunction(
            title=node.name,
            prompt="\n".join(lines[node.lineno - 1 : split]) + "\n",
            reference="\n".join(lines[split:last_line]) + "\n",
        )
