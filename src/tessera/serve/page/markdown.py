"""From what a model writes to HTML: Markdown with highlighted code and formulas, made here, so that nothing is fetched.

HTML in the text is shown as text, and pictures become links (they could carry words of the conversation to a stranger). Formulas
become MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

import latex2mathml.converter
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

_LONGEST_HIGHLIGHTED = 100_000
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")


class Blocks:
    """A growing text as HTML, of which only the end is made anew: a long answer must not cost more with every token."""

    def __init__(self) -> None:
        self._done = ""
        self._open = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Takes what came; returns the HTML of what no later word can change, and of the rest."""
        self._open += text
        cut = _last_break(self._open)
        if cut:
            self._done += to_html(self._open[:cut])
            self._open = self._open[cut:]
        return self._done, to_html(self._open)


def to_html(text: str) -> str:
    """Markdown as HTML that is safe to show."""
    html: str = _parser().render(text)
    return html


def _last_break(text: str) -> int:
    """Where the part of the text ends that no later line can change.

    That is after an empty line, outside of code and formulas, before a line that begins at the margin and is of no list.
    """
    fence, at, last = "", 0, 0
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not line.strip(" `~\n"):
            fence = ""
        at += len(line)
        follows = lines[number + 1] if number + 1 < len(lines) else ""
        if not fence and not line.strip() and re.match(r"[^\W\d]|[#`$\\]", follows) and _closed(text[last:at]):
            last = at
    return last


def _closed(text: str) -> bool:
    """Whether every formula that stands apart has come to its end."""
    return text.count("$$") % 2 == 0 and text.count("\\[") == text.count("\\]")


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "highlight": _code}).enable(["table", "strikethrough"])
    parser.use(texmath_plugin, delimiters="brackets")
    parser.use(dollarmath_plugin, allow_digits=False, double_inline=True)
    for name in ("math_inline", "math_inline_double", "math_block", "math_block_label", "math_block_eqno"):
        parser.add_render_rule(name, _math)
    parser.add_render_rule("fence", _fence)
    parser.add_render_rule("code_block", _fence)
    parser.add_render_rule("image", _image)
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return parser


def _fence(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    token = tokens[at]
    language = token.info.split()[0] if token.info.split() else ""
    head = f'<div class="code-head"><span>{escape(language)}</span><button type="button" class="copy">Copy</button></div>'
    return f'<div class="code">{head}<pre><code>{_code(token.content, language)}</code></pre></div>\n'


def _code(text: str, language: str, *_: Any) -> str:
    if not language or len(text) > _LONGEST_HIGHLIGHTED:
        return escape(text)
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        return escape(text)
    html: str = highlight(text, lexer, HtmlFormatter(nowrap=True))
    return html


def _math(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    token = tokens[at]
    tex, apart = token.content.strip(), token.type != "math_inline"
    if r"\href" in tex:
        return f"<code>{escape(tex)}</code>"
    try:
        formula: str = latex2mathml.converter.convert(tex, display="block" if apart else "inline")
    except Exception:  # the library has an exception of its own for every mistake, and some of Python's
        return f"<code>{escape(tex)}</code>"
    return f'<div class="scroll">{formula}</div>' if token.block else formula


def _image(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    url = escape(str(tokens[at].attrs.get("src", "")))
    return f'<a href="{url}">{escape(tokens[at].content or "picture")}</a>'
