"""Where the next turn is written, with its pictures, and how it is to be answered."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nicegui import events, ui
from nicegui.elements.mixins.value_element import ValueElement

from tessera.data.pictures import read_picture
from tessera.data.reasons import Unreadable
from tessera.serve.turns import GAP
from tessera.tour import Step

if TYPE_CHECKING:
    from tessera.serve.page.chat import ChatPanel

EFFORTS = ("as the model likes", "none", "minimal", "low", "medium", "high", "xhigh", "max")
_MOST_PICTURE_BYTES = 8 << 20
_MOST_PICTURES = 8
_ANY_VOICE = "alloy"
"""One that no model has heard, which leaves it to the model."""

_MODES = {
    "chat": ("Chat", "forum", "Message"),
    "complete": ("Complete", "notes", "Text to go on with"),
    "draw": ("Draw", "brush", "What shall be drawn"),
    "film": ("Film", "movie", "What shall happen in the film"),
    "play": ("Play", "music_note", "What shall be said or played"),
}

_SENDS = "(event) => { if (event.shiftKey || event.isComposing) return; event.preventDefault(); emit(event.target.value); }"
_REJECTED = "(files) => emit(files.map((one) => [one.failedPropValidation, one.file.name]))"


@dataclass
class _Draft:
    """What is being written in a chat: a text, and pictures as `data:` URLs."""

    text: str = ""
    images: list[str] = field(default_factory=list)


class Composer:
    """Draws itself where it is made.

    Args:
        panel: of which it is a part.
    """

    def __init__(self, panel: ChatPanel) -> None:
        self._panel = panel
        self._draft = _Draft()
        self._drafts: dict[str, _Draft] = {}
        self._running = False
        self._before: tuple[Any, ...] | None = None
        self.mode = ""
        with ui.element("div").classes("composer"), ui.element("div").classes("box"):
            self._pictures = ui.element("div").classes("pictures")
            self._field = ui.textarea().props('autogrow borderless dense autofocus aria-label="Message"').classes("wide")
            self._field.on("keydown.enter", lambda event: self._send(event.args), js_handler=_SENDS)
            with ui.element("div").classes("bar"):
                self._upload = ui.upload(
                    multiple=True,
                    auto_upload=True,
                    max_file_size=_MOST_PICTURE_BYTES,
                    on_upload=self._add,
                )
                self._upload.props('accept="image/*"').classes("uploader")
                self._upload.on("rejected", lambda event: self._reject(event.args), js_handler=_REJECTED)
                # Not a reset, which would end the uploads that are under way.
                self._upload.on("uploaded", lambda: self._upload.run_method("removeUploadedFiles"), args=[])
                self._attach = ui.button(icon="add_photo_alternate", color=None)
                # By the browser itself, which opens no chooser where it does not know any more of a click.
                self._attach.on("click", js_handler=f"() => getElement({self._upload.id}).$refs.qRef.pickFiles()")
                self._attach.props('flat dense round aria-label="Add a picture"').classes("quiet")
                with ui.button(color=None).props("flat dense no-caps").classes("pill") as self._mode_button:
                    # Closed by the browser: an item is gone before the server could hear that its menu shall close.
                    self._mode_menu = ui.menu().props("auto-close no-refocus")
                with ui.button(color=None).props("flat dense no-caps icon=psychology").classes("pill") as self._effort_button:
                    self._effort_menu()
                with ui.button(icon="tune", color=None).props('flat dense round aria-label="Settings"').classes("quiet"):
                    self._settings_menu()
                ui.element("div").classes("space")
                self._hint = ui.label().classes("hint dim")
                self._stop = ui.button(icon="stop", on_click=panel.stop, color=None).props(
                    'round unelevated aria-label="Stop (Esc)"'
                )
                self._stop.classes("send stop")
                self._go = ui.button(icon="arrow_upward", on_click=lambda: self._send(self._field.value), color=None)
                self._go.props('round unelevated aria-label="Send (Enter)"').classes("send")
        self.running(False)

    @property
    def instructions(self) -> str:
        """What the model is told before a dialogue."""
        return str(self._instructions.value or "")

    def settings(self, mode: str) -> dict[str, Any]:
        """The fields of a request that say how to answer."""
        most = int(self._most.value or 0)
        if mode == "film":
            return {}
        dials = {"temperature": self._temperature, "top_p": self._top_p}
        given: dict[str, Any] = {name: float(dial.value) for name, dial in dials.items() if dial.value is not None}
        if mode == "draw":
            return given | ({"size": self._size.value} if self._size.value else {})
        if mode == "play":
            return given | {"voice": _ANY_VOICE, "response_format": "wav"}
        if mode == "complete":
            return given | {"max_tokens": most or 256}
        return given | ({"max_completion_tokens": most} if most else {})

    @property
    def effort(self) -> str:
        """How much to think, where that is said; empty: as the model likes."""
        return EFFORTS[int(self._effort.value)] if self._effort.value else ""

    async def show(self, step: Step, mode: str, text: str, images: list[str]) -> None:
        """Puts a step of the tour here, and sends it; the dials are as they were in the next chat."""
        self._before = self._before or tuple(dial.value for dial in self._dials)
        self.mode = mode
        thought = 0 if step.effort == "none" else self._panel.longest_thought
        values = (step.temperature, 1.0, step.max_tokens + thought if mode in ("chat", "complete") else None, step.size)
        for dial, value in zip(self._dials, values, strict=True):
            dial.value = value
        self.draw()
        self._panel.draw()
        self._draft = _Draft("", images)
        self._show_draft()
        await self._send(text)

    def leave(self) -> None:
        """Keeps what is being written for when its chat, which is shown until now, is opened again."""
        self._draft.text = self._field.value or ""
        self._drafts[self._panel.chat_id] = self._draft

    def reset(self, instructions: str, empty: bool = False) -> None:
        """For another chat.

        Args:
            instructions: of it.
            empty: with nothing in it, instead of what was left there.
        """
        left = self._drafts.pop(self._panel.chat_id, _Draft())
        self._draft = _Draft() if empty else left
        self._show_draft()
        self._instructions.value = instructions
        for dial, value in zip(self._dials, self._before or (), strict=False):
            dial.value = value
        self._before, self.mode = None, ""
        self.draw()
        self.focus()

    def running(self, running: bool) -> None:
        """Answers come, or none does."""
        self._running = running
        self._stop.set_visibility(running)
        self._go.set_visibility(not running)
        self._hint.text = "Esc stops" if running else "Enter sends, Shift+Enter breaks the line"

    def write(self, text: str) -> None:
        """Puts something there for the person to send."""
        self._field.value = text
        self.focus()

    def focus(self) -> None:
        """Puts the cursor there, unless something else is being written."""
        ui.run_javascript("setTimeout(toComposer, 50)")

    def draw(self) -> None:
        """What depends on the chat and on the models."""
        mode = self._panel.mode
        chats = mode == "chat"
        self._mode_button.text, icon, placeholder = _MODES[mode]
        if mode == "complete" and self._panel.can("fills"):
            placeholder += f"; {GAP} is filled in"
        self._mode_menu.clear()
        with self._mode_menu:
            for other in self._panel.modes:
                item = ui.menu_item(_MODES[other][0], lambda other=other: self._change_mode(other), auto_close=False)
                item.props("role=menuitem")
        self._mode_button.props(f"icon={icon}")
        self._mode_button.set_enabled(not self._panel.chat_id)
        self._effort_button.set_visibility(chats)
        self._attach.set_visibility(chats)
        self._field.props(f'placeholder="{placeholder}"')
        self._instructions.set_visibility(chats)
        self._instructions.set_enabled(not self._panel.chat_id)

    async def _send(self, text: str | None) -> None:
        text, draft = text or "", self._draft
        if self._running or self._panel.sending or not (text.strip() or draft.images):
            return
        images = list(draft.images)
        said = await self._panel.send(text, images)
        # It stays there until it is said: were it taken away and put back, the browser's word that it is gone might come last.
        left = (self._field.value or "") if draft is self._draft else draft.text
        if said:
            draft.text = "" if left.strip() == text.strip() else left
            draft.images = [url for url in draft.images if url not in images]
        else:
            draft.text = left or text
        if draft is self._draft:
            self._show_draft()

    def _change_mode(self, mode: str) -> None:
        self.mode = mode
        self.draw()
        self._panel.draw()
        self.focus()

    def _effort_menu(self) -> None:
        def show() -> None:
            level = int(self._effort.value)
            self._effort_button.text = f"Effort: {EFFORTS[level]}" if level else "Effort"
            label.text = f"Thinks: {EFFORTS[level]}"

        with ui.menu().classes("menu"):
            label = ui.label("Thinks: as the model likes").classes("card-title")
            self._effort = ui.slider(min=0, max=len(EFFORTS) - 1, value=0, on_change=show)
            self._effort.props('snap markers aria-label="Effort"')
            ui.label("How long a model that thinks before it answers may do so.").classes("dim small")
        self._effort_button.text = "Effort"

    def _settings_menu(self) -> None:
        with ui.menu().classes("menu"):
            ui.label("How to answer").classes("card-title")
            self._instructions = ui.textarea("Instructions for a new chat").props("autogrow outlined dense").classes("wide")
            self._temperature = (
                ui.number("Temperature", value=1.0, min=0, max=2, step=0.1).props("outlined dense").classes("wide")
            )
            self._top_p = ui.number("Top p", value=1.0, min=0.01, max=1, step=0.05).props("outlined dense").classes("wide")
            self._most = ui.number("Most tokens (empty: all that fit)", min=1, step=1).props("outlined dense").classes("wide")
            self._size = ui.input("Size of pictures, 8x8 (empty: as learned)").props("outlined dense").classes("wide")
        self._dials: tuple[ValueElement[Any], ...] = (self._temperature, self._top_p, self._most, self._size)

    async def _add(self, event: events.UploadEventArguments) -> None:
        # The page itself sends no such thing: it asks for a key first, and refuses what is too large.
        if not self._panel.page.models or event.file.size() > _MOST_PICTURE_BYTES:
            return
        draft, kind, content = self._draft, event.file.content_type or "", await event.file.read()
        try:
            await asyncio.to_thread(read_picture, content)
        except Unreadable as error:
            self._panel.page.say(f"{event.file.name} cannot be read: {error}.", "warning")
            return
        if not kind.startswith("image/") or len(draft.images) >= _MOST_PICTURES:
            self._panel.page.say(f"Only pictures can be added, at most {_MOST_PICTURES}.", "warning")
            return
        draft.images.append(f"data:{kind};base64,{base64.b64encode(content).decode()}")
        self._show_pictures()

    def _reject(self, files: list[tuple[str, str]]) -> None:
        """Says why files are not added: for each what the browser found wrong, and its name."""
        said = {
            "accept": "{} is no picture; only pictures can be added.",
            "max-file-size": f"{{}} has more than {_MOST_PICTURE_BYTES >> 20} MiB, the most that a picture may have.",
        }
        for why, name in files:
            if why in said:  # else it is on its way already
                self._panel.page.say(said[why].format(name), "warning")

    def _show_draft(self) -> None:
        self._field.value = self._draft.text
        self._show_pictures()

    def _show_pictures(self) -> None:
        self._pictures.clear()
        with self._pictures:
            for number, url in enumerate(self._draft.images):
                with ui.element("div").classes("thumb"):
                    ui.element("img").props('alt="picture to send"').props["src"] = url
                    remove = ui.button(icon="close", on_click=lambda number=number: self._drop(number), color=None)
                    remove.props('round dense size=xs aria-label="Remove the picture"')

    def _drop(self, number: int) -> None:
        del self._draft.images[number]
        self._show_pictures()
