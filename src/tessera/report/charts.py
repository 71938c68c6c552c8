"""Small charts as inline SVG text, for pages that must be one file, light, and readable on light and dark ground.

Numbers go in, a string of SVG comes out. Colours are CSS classes and `currentColor`, so the page that holds the chart
decides them. Values that are not finite leave a gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 66, 14, 10, 40
# More points than pixels only make the page heavy.
MOST_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: shown in the legend and in the tip over each point.
        xs, ys: as long as each other; not finite where there is no value.
        style: CSS class that gives the colour: `ink`, `accent`, `second`, `faint`.
        line: join the values.
        points: draw a dot at each value.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str = "accent"
    line: bool = True
    points: bool = False


@dataclass(frozen=True)
class Band:
    """The ground between two lines, drawn behind the series.

    Args:
        name: shown in the legend.
        xs, lows, highs: as long as each other, finite.
    """

    name: str
    xs: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    style: str = "band"


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    width: int = 860,
    height: int = 340,
    log_y: bool = False,
    from_zero: bool = False,
    log_x: bool = False,
    bands: Sequence[Band] = (),
) -> str:
    """Lines over a common x axis, with ticks at round numbers; an empty string where nothing is finite.

    Args:
        x_label, y_label: with their units.
        width, height: of the drawing; the page scales it to its column.
        log_y: logarithmic y; values that are not positive are left out.
        from_zero: the y axis starts at 0.
        log_x: logarithmic x, all of it positive; else the x axis includes 0.
        bands: drawn first.
    """
    kept = [(one, _thinned([(x, y) for x, y in zip(one.xs, one.ys, strict=True) if math.isfinite(x)])) for one in series]
    if log_y:
        kept = [(one, [(x, y if y > 0 else math.nan) for x, y in points]) for one, points in kept]
    finite = [(x, y) for _, points in kept for x, y in points if math.isfinite(y)]
    if not finite:
        return ""
    finite += [(x, y) for band in bands for ys in (band.lows, band.highs) for x, y in zip(band.xs, ys, strict=True)]
    if log_x:
        x_low, x_high = _padded(min(math.log(x) for x, _ in finite), max(math.log(x) for x, _ in finite), 0.03)
        x_ticks = _decade_ticks(math.exp(x_low), math.exp(x_high))
    else:
        x_low, x_high = _padded(min(0.0, *(x for x, _ in finite)), max(x for x, _ in finite), 0.0)
        x_ticks = _ticks(x_low, x_high, width / 110)
    if log_y:
        bottom, top = _padded(min(math.log(y) for _, y in finite), max(math.log(y) for _, y in finite), 0.04)
        y_ticks = _log_ticks(math.exp(bottom), math.exp(top))
    else:
        lows = 0.0 if from_zero else min(y for _, y in finite)
        bottom, top = _padded(lows, max(y for _, y in finite), 0.06)
        bottom = max(bottom, 0.0) if lows >= 0 else bottom
        y_ticks = _ticks(bottom, top, height / 55)

    def at_x(x: float) -> float:
        return LEFT + ((math.log(x) if log_x else x) - x_low) / (x_high - x_low) * (width - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return height - BOTTOM - ((math.log(y) if log_y else y) - bottom) / (top - bottom) * (height - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_label)} against {escape(x_label)}">']
    for tick in y_ticks:
        y = at_y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{width - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in x_ticks:
        parts.append(f'<text x="{at_x(tick):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{short(tick)}</text>')
    middle = (TOP + height - BOTTOM) / 2
    parts.append(f'<path class="axis" d="M{LEFT} {height - BOTTOM}H{width - RIGHT}"/>')
    parts.append(f'<text x="{(LEFT + width - RIGHT) / 2}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    for band in bands:
        there = [(at_x(x), at_y(y)) for x, y in zip(band.xs, band.lows, strict=True)]
        back = [(at_x(x), at_y(y)) for x, y in zip(band.xs, band.highs, strict=True)][::-1]
        parts.append(f'<path class="{band.style}" d="{_path([*there, *back])}Z"/>')
    for one, points in kept:
        if one.line:
            drawn = _path([(at_x(x), at_y(y)) if math.isfinite(y) else None for x, y in points])
            parts.append(f'<path class="line {one.style}" d="{drawn}"/>')
        if one.points:
            parts += [
                f'<circle class="{one.style}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3.5">'
                f"<title>{escape(one.name)} {y:.4g} at {short(x)}</title></circle>"
                for x, y in points
                if math.isfinite(y)
            ]
    return "".join(parts) + "</svg>"


def legend(series: Sequence[Series | Band]) -> str:
    """The names of the series with their colours, as HTML."""
    return '<p class="legend">' + "".join(f'<span><i class="{s.style}"></i>{escape(s.name)}</span>' for s in series) + "</p>"


def bar_chart(bars: Sequence[tuple[str, float, str]], unit: str, width: int = 860) -> str:
    """Horizontal bars from 0, each (name, value, CSS class) with its value written at its end."""
    names, row = 190, 38
    scale = (width - names - 110) / max(value for _, value, _ in bars)
    height = row * len(bars)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(unit)}">']
    for i, (name, value, style) in enumerate(bars):
        y = i * row + row / 2
        parts.append(f'<text class="name" x="{names - 12}" y="{y + 5}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="{style}" x="{names}" y="{y - 11}" width="{value * scale:.1f}" height="22" rx="3"/>')
        parts.append(f'<text class="value" x="{names + value * scale + 9:.1f}" y="{y + 5}">{value:.3f}</text>')
    return "".join(parts) + "</svg>"


def short(value: float) -> str:
    """A number for people: 1.2M, 30k, 0.05, 2e-5."""
    if abs(value) >= 1e15:
        return f"{value:.2g}".replace("e+", "e")
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.99995:
            return f"{value / size:.3g}{unit}"
    if 0 < abs(value) < 0.00099995:
        power = math.floor(math.log10(abs(value) * 1.0001))
        return f"{value / 10.0**power:.3g}e{power}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time for people: 2.5 s, 3 m 20 s, 4 h 5 m."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 60} m {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """SVG path data; None lifts the pen."""
    commands, pen_down = [], False
    for point in points:
        if point is not None:
            commands.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = point is not None
    return "".join(commands)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS`, each the mean of its neighbours; a gap stays where a whole group has no value."""
    if len(points) <= MOST_POINTS:
        return points
    thinned = []
    for i in range(MOST_POINTS):
        group = points[i * len(points) // MOST_POINTS : (i + 1) * len(points) // MOST_POINTS]
        values = [y for _, y in group if math.isfinite(y)]
        thinned.append((group[-1][0], math.fsum(values) / len(values) if values else math.nan))
    return thinned


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """The range with some air; one value alone gets a range around it."""
    if high <= low:
        return low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    return low - share * (high - low), high + share * (high - low)


def _ticks(low: float, high: float, wanted: float) -> list[float]:
    """About `wanted` round numbers within the range, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / max(wanted, 2)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decade_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 times these where the axis is short."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    steps = (1,) if high / low > 1e6 else (1, 2, 5) if high / low < 1e3 else (1, 3)
    return [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: 1, 2, 5 where it spans decades, else enough to read it by."""
    if high / low < 3:
        return _ticks(low, high, 5)
    steps = (1, 1.5, 2, 3, 4, 5, 7) if high / low < 30 else (1, 2, 5) if high / low < 1e3 else (1,)
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
