"""What the sections of a report are made of: titles, tables, texts beside each other, numbers for people, and smoothed curves.

Plain values go in, HTML comes out. Names and texts are escaped where they are put in, not here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tessera.report.charts import duration, short
from tessera.report.record import Event, number_of
from tessera.report.style import STYLE
from tessera.run import write_bytes

# Stands where a number is missing.
NOTHING = "&ndash;"


def write_page(path: Path, title: str, body: str) -> Path:
    """Writes a whole page, beside its place first, and returns `path`.

    Args:
        title: not escaped yet.
        body: HTML.
    """
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
    # Generated text may hold lone surrogates, which have no UTF-8.
    write_bytes(path, page.encode(errors="replace"))
    return path


def section(title: str, body: str, style: str = "") -> str:
    """A box of the page under its title."""
    kind = f' class="{style}"' if style else ""
    return f"<section{kind}><h2>{title}</h2>{body}</section>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of ready HTML cells; columns in `numbers` are set right."""
    right = set(numbers)
    kinds = [' class="number"' if i in right else "" for i in range(len(heads))]
    top = "".join(f"<th{kind}>{head}</th>" for kind, head in zip(kinds, heads, strict=True))
    lines = [f"<tr>{top}</tr>"] if any(heads) else []
    for row in rows:
        lines.append("<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def figure(caption: str, chart: str) -> str:
    """A drawing under its caption."""
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def code(prompt: str, text: str) -> str:
    """Prompt and continuation, which may have been written with the prompt before it."""
    continuation = text.removeprefix(prompt)
    return f'<pre><span class="prompt">{escape(prompt)}</span><span class="made">{escape(continuation)}</span></pre>'


def smoothed(values: Sequence[float], seen: float = 1 / 20, run: float = 1 / 50) -> list[float]:
    """Running mean; values that are not finite neither count nor show.

    It is short at first, where the loss falls so fast that a longer mean would lag behind it.

    Args:
        seen, run: the share of what was seen so far, and of the whole run, over which it forgets; the shorter counts.
    """
    mean, means = 0.0, []
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean += (value - mean) / max(min(i * seen, len(values) * run), 1)
        means.append(mean if math.isfinite(value) else math.nan)
    return means


def amount(event: Event, key: str) -> float:
    """The value as a number, or the length of a list of what is counted."""
    return float(len(event[key])) if isinstance(event.get(key), list) else number_of(event, key)


def column(events: Sequence[Event], key: str) -> list[float]:
    """The value of each event; nan where it is missing or none."""
    return [number_of(event, key) for event in events]


def decimals(value: float, digits: int) -> str:
    """With so many digits behind the point."""
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def percent(share: float) -> str:
    """A share as per cent."""
    return f"{share:.1%}".replace("%", " %") if math.isfinite(share) else NOTHING


def shortly(value: float) -> str:
    """Like 1.2M."""
    return short(value) if math.isfinite(value) else NOTHING


def took(seconds: float) -> str:
    """Like 3 m 20 s."""
    return duration(seconds) if math.isfinite(seconds) else NOTHING


def whole(value: float) -> str:
    """Without a fraction, thousands apart."""
    return f"{value:,.0f}" if math.isfinite(value) else NOTHING


def value_of(value: Any) -> str:
    """A setting or fact of any kind as escaped text: thousands apart, floats to 4 digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple | dict):
        return escape(json.dumps(value, ensure_ascii=False))
    return escape(str(value))


def count_of(number: int, thing: str) -> str:
    """Like 2 files."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
