"""The page as a whole: what is where, who looks at it, and how it comes to the models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import FastAPI, Request
from nicegui import app, ui
from pygments.formatters import HtmlFormatter

from tessera.look import DARK, LIGHT, variables
from tessera.serve.page.chat import ChatPanel
from tessera.serve.page.client import Client, Refused
from tessera.serve.page.history import History
from tessera.serve.page.training import RunsPanel, TuningPanel

_HERE = Path(__file__).parent
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><rect width="24" height="24" rx="5" fill="#2458c6"/>'
    '<g fill="#fff"><rect x="5" y="5" width="6" height="6" rx="1"/><rect x="13" y="5" width="6" height="6" rx="1" opacity=".55"/>'
    '<rect x="5" y="13" width="6" height="6" rx="1" opacity=".55"/><rect x="13" y="13" width="6" height="6" rx="1"/></g></svg>'
)
_TABS = (("chat", "forum", "Chat"), ("runs", "show_chart", "Runs"), ("tuning", "tune", "Tuning"))
_DARK = {"auto": None, "light": False, "dark": True}
_DARK_ICONS = {"auto": "brightness_auto", "light": "light_mode", "dark": "dark_mode"}


def prepared() -> FastAPI:
    """NiceGUI's application with the page in it, to be called once in a process."""

    async def show(request: Request, chat: str = "", tab: str = "chat") -> None:
        host, port = request.scope["server"]
        await Page(Client((host, port))).build(chat, tab)

    ui.page("/", title="Tessera", favicon=_ICON, dark=None)(show)
    # It wants to be told the application into which it is mounted; here the door hands it what is for it.
    ui.run_with(FastAPI(), title="Tessera", tailwind=False, reconnect_timeout=10.0, show_welcome_message=False)
    return app


@dataclass
class Page:
    """One browser's view."""

    client: Client
    models: list[dict[str, Any]] = field(default_factory=list)

    async def build(self, chat_id: str, tab: str) -> None:
        """Draws everything once; what changes redraws itself."""
        _add_style()
        viewer = ui.context.client
        self._wanted = chat_id
        self._address = _address(tab, chat_id)
        self.dark = ui.dark_mode(None)
        # Without a value the server would ask the browser for one, and a busy browser does not answer in time.
        drawer = ui.left_drawer(value=False, bordered=True).props("width=272 breakpoint=900 show-if-above").classes("drawer")
        with drawer:
            with ui.row().classes("brand"):
                ui.html(_ICON, sanitize=False).classes("logo")
                ui.label("Tessera")
            self.history = History(self, drawer)
        with ui.element("div").classes("main"):
            with ui.element("div").classes("top"):
                ui.button(icon="menu", on_click=drawer.toggle, color=None).props('flat dense round aria-label="History"').classes(
                    "quiet"
                )
                self.select = (
                    ui.select({}, multiple=True, on_change=self._choose)
                    .props('borderless dense options-dense aria-label="Models" popup-content-class="models-menu"')
                    .classes("models")
                )
                ui.element("div").classes("space")
                with ui.tabs().props("dense inline-label no-caps narrow-indicator").classes("tabs") as self.tabs:
                    for name, icon, label in _TABS:
                        ui.tab(name, label, icon)
                self.dark_button = ui.button(icon=_DARK_ICONS["auto"], on_click=self._next_dark, color=None)
                self.dark_button.props('flat dense round aria-label="Light or dark"').classes("quiet")
            with ui.tab_panels(self.tabs, value="chat").props("transition-duration=120").classes("panels"):
                with ui.tab_panel("chat").classes("chat-panel"):
                    self.chat = ChatPanel(self)
                with ui.tab_panel("runs"):
                    runs = RunsPanel(self)
                with ui.tab_panel("tuning"):
                    tuning = TuningPanel(self)
        self._key_dialog()
        self.tabs.on_value_change(lambda event: {"runs": runs.show, "tuning": tuning.show}.get(event.value, self.chat.show)())
        watched = {"runs": runs.refresh, "tuning": tuning.refresh}
        ui.timer(2.0, lambda: watched[self.tabs.value]() if self.tabs.value in watched else None)
        ui.on("find", lambda: self.history.focus())
        ui.on("fresh", self.history.begin)
        ui.on("back", lambda event: self._come_back(event.args))
        self.tabs.on("update:model-value", lambda: self.moved(), args=[])  # by a click, not where the page itself turns to it
        viewer.on_delete(self._leave)
        await viewer.connected()
        kept = await ui.run_javascript(
            "[localStorage.getItem('tessera-dark'), sessionStorage.getItem('tessera-key')]", timeout=10
        )
        if kept[0] in _DARK:
            self._set_dark(kept[0])
        await self.enter(kept[1] or "")

    async def enter(self, key: str) -> None:
        """Comes in with a key, or asks for one; then opens the chat that the address names."""
        if key:
            old, self.client = self.client, Client(self.client.address, key)
            await old.close()
        try:
            self.models = await self._answering()
        except Refused as refused:
            if refused.status == 401:
                self.key_error.text = refused.message if key else ""
                self.key_dialog.open()
                return
            self.say(refused.message)
            return
        self.key_dialog.close()
        self._offer()
        self._turn_to(self._address)
        self.chat.begin()
        await self.history.load()
        if self._wanted:
            chat_id, self._wanted = self._wanted, ""
            await self.chat.open(chat_id)

    def moved(self, replaces: bool = False) -> None:
        """Tells the browser what is shown, so that links, reloading and the way back lead there.

        Args:
            replaces: what was shown before, which is nothing to come back to.
        """
        address = _address(self.tabs.value, self.chat.chat_id)
        if address == self._address or self._wanted:
            return
        self._address = address
        ui.run_javascript(f"history.{'replaceState' if replaces else 'pushState'}(null, '', '{address}')")

    async def _come_back(self, address: str) -> None:
        """Shows what the browser went back to, or on to."""
        self._address = address or "/"
        if not self.models:
            return
        self._turn_to(address)
        if chat_id := _named(address).get("chat"):
            await self.chat.open(chat_id)
        else:
            self.chat.begin(anew=False)

    def _turn_to(self, address: str) -> None:
        tab = _named(address).get("tab")
        self.tabs.value = tab if tab in [name for name, _, _ in _TABS] else "chat"

    async def _answering(self) -> list[dict[str, Any]]:
        """The models that one can talk to: those that only judge texts are left out.

        Raises:
            Refused: a key is needed.
        """
        models: list[dict[str, Any]] = (await self.client.get("/v1/models"))["data"]
        return [model for model in models if not model.get("moderation")]

    async def load_models(self) -> None:
        """Asks again which there are."""
        try:
            self.models = await self._answering()
        except Refused as refused:
            self.say(refused.message)
            return
        self._offer()

    def _offer(self) -> None:
        names = [model["id"] for model in self.models]
        self.select.set_options(names, value=[name for name in self.select.value or [] if name in names] or names[:1])

    def model(self, name: str) -> dict[str, Any]:
        """What the server says about a model."""
        return next((model for model in self.models if model["id"] == name), {})

    def in_order(self, names: Collection[str]) -> list[str]:
        """Models in the order in which they are served, then those that are served no more."""
        served = [model["id"] for model in self.models]
        return sorted(names, key=lambda name: (served.index(name) if name in served else len(served), name))

    def say(self, message: str, kind: str = "negative") -> None:
        """Tells the person something for a moment."""
        options = {"timeout": 6000, "textColor": "white"}  # warnings would else be written in black
        ui.notify(message, type=kind, position="top", multi_line=True, **options)  # type: ignore[arg-type]

    def _choose(self) -> None:
        self.select.props["display-value"] = " · ".join(self.select.value) or "Choose a model"
        self.select.update()
        self.chat.models_changed()

    async def _leave(self) -> None:
        await self.chat.end()
        await self.client.close()

    def _key_dialog(self) -> None:
        async def come_in() -> None:
            key = str(given.value or "").strip()
            await self.enter(key)
            if self.models:
                ui.run_javascript(f"sessionStorage.setItem('tessera-key', {_quoted(key)})")

        with ui.dialog().props("persistent") as self.key_dialog, ui.card().classes("key-card"):
            ui.label("This server asks for a key").classes("card-title")
            ui.label("It is kept in this browser tab only, and goes to this server only.").classes("dim")
            given = ui.input(placeholder="sk-...", password=True).props('outlined dense autofocus aria-label="API key"')
            given.classes("wide").on("keydown.enter", come_in)
            self.key_error = ui.label().classes("warn-text")
            ui.button("Come in", on_click=come_in, color=None).props("unelevated no-caps").classes("primary")

    def _next_dark(self) -> None:
        names = list(_DARK)
        now = next(name for name, value in _DARK.items() if value is self.dark.value)
        name = names[(names.index(now) + 1) % len(names)]
        self._set_dark(name)
        ui.run_javascript(f"localStorage.setItem('tessera-dark', '{name}')")

    def _set_dark(self, name: str) -> None:
        self.dark.value = _DARK[name]
        self.dark_button.props(f"icon={_DARK_ICONS[name]}")


def _address(tab: str, chat_id: str) -> str:
    """Of a view of the page."""
    shown = {"tab": tab if tab != "chat" else "", "chat": chat_id}
    query = urlencode({name: value for name, value in shown.items() if value})
    return f"?{query}" if query else "/"


def _named(address: str) -> dict[str, str]:
    """What an address names, `tab` and `chat`."""
    return dict(parse_qsl(address.partition("?")[2]))


def _quoted(text: str) -> str:
    """As a word of JavaScript."""
    return "decodeURIComponent('" + "".join(f"%{byte:02x}" for byte in text.encode()) + "')"


def _add_style() -> None:
    light = HtmlFormatter(style="friendly").get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark").get_style_defs("body.body--dark .code")
    colours = f":root {{ {variables(LIGHT)} }}\nbody.body--dark {{ {variables(DARK)} }}\n"
    ui.add_css(f"{light}\n{dark}\n{colours}{(_HERE / 'page.css').read_text(encoding='utf-8')}")
    ui.add_head_html(f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>")
    ui.colors(primary="var(--accent)", negative="#b3372f", positive="#1c7a4a", warning="#a4520c", info="#2458c6")
