"""The colours that the reports of runs and the page of the server share, for light and dark screens."""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "ground": "#fbfaf8",
    "card": "#ffffff",
    "ink": "#1d2126",
    "dim": "#6a7079",
    "rule": "#e4e1db",
    "accent": "#2458c6",
    "second": "#c2571a",
    "faint": "#a9bbe3",
    "code": "#f4f2ee",
    "good": "#1c7a4a",
    "warn": "#a4520c",
    "warn-ground": "#fdf1e3",
}
DARK: Mapping[str, str] = {
    "ground": "#14161a",
    "card": "#1b1e24",
    "ink": "#e7e6e3",
    "dim": "#979da8",
    "rule": "#2d323b",
    "accent": "#7fa6ff",
    "second": "#f2a065",
    "faint": "#3c5287",
    "code": "#121419",
    "good": "#6fd09d",
    "warn": "#f3b577",
    "warn-ground": "#33261a",
}


def variables(colours: Mapping[str, str]) -> str:
    """Colours as declarations of CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
