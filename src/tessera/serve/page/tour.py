"""The cards of the tour: what the chosen models can be asked with one click."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache

from nicegui import ui

from tessera.data.pictures import png
from tessera.serve.turns import GAP
from tessera.tour import STEPS, Step, askings

_MODES = {"complete": "complete", "fill": "complete", "draw": "draw", "film": "film", "play": "play"}
"""Kind of a step -> mode of the chat; all others are said in a dialogue."""
_ICONS = {
    "complete": "code", "fill": "space_bar", "chat": "calculate", "draw": "brush", "look": "image_search",
    "film": "movie", "play": "music_note", "judge": "balance",
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """One thing to try: a step, or several that ask the same with other efforts."""

    steps: tuple[Step, ...]

    @property
    def title(self) -> str:
        """What stands on it."""
        return self.steps[0].card or self.steps[0].title

    @property
    def mode(self) -> str:
        """Of the chat that it begins."""
        return _MODES.get(self.steps[0].kind, "chat")

    def content(self) -> tuple[str, list[str]]:
        """What is said: a text, and pictures as `data:` URLs."""
        step, asking = self.steps[0], askings(self.steps[0], 0)[0]
        text = f"{asking.prompt}{GAP}{step.suffix}" if step.kind == "fill" else asking.prompt
        if asking.picture is None:
            return text, []
        return text, [f"data:image/png;base64,{base64.b64encode(png(asking.picture)).decode()}"]


@cache
def cards() -> tuple[Card, ...]:
    """All of them; steps that share a card are one."""
    shared: dict[str, tuple[Step, ...]] = {}
    for step in STEPS:
        title = step.card or step.title
        shared[title] = (*shared.get(title, ()), step)
    return tuple(map(Card, shared.values()))


def offered(can: Callable[[str], bool]) -> list[Card]:
    """Those for which every need is met."""
    return [card for card in cards() if all(map(can, card.steps[0].needs))]


def draw_cards(there: Sequence[Card], choose: Callable[[Card], Awaitable[None]]) -> None:
    """Shows cards as buttons."""
    with ui.element("div").classes("tour"):
        for card in there:
            button = ui.button(card.title, icon=_ICONS[card.steps[0].kind], on_click=lambda card=card: choose(card), color=None)
            button.props("outline no-caps align=left").classes("idea card-idea")
