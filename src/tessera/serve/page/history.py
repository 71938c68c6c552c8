"""The list of chats beside the conversation: search, open, rename, forget."""

from __future__ import annotations

import asyncio
import datetime
from typing import TYPE_CHECKING, Any

from nicegui import ui

from tessera.serve.page.client import Refused

if TYPE_CHECKING:
    from tessera.serve.page.view import Page

_AT_A_TIME = 40
_PAUSE_SECONDS = 0.25


class History:
    """Draws itself where it is made.

    Args:
        page: of which it is a part.
        drawer: in which it is.
    """

    def __init__(self, page: Page, drawer: ui.left_drawer) -> None:
        self._page = page
        self._drawer = drawer
        self._chats: list[dict[str, Any]] = []
        self._more = False
        self._asked = 0
        fresh = ui.button("New chat", icon="add", on_click=self.begin, color=None)
        fresh.props("outline no-caps align=left").classes("fresh").tooltip("Ctrl+Shift+O")
        self._search = (
            ui.input(placeholder="Search  Ctrl+K", on_change=self._look)
            .props('dense outlined clearable aria-label="Search chats" type=search')
            .classes("search")
        )
        with self._search.add_slot("prepend"):
            ui.icon("search", size="18px")
        self._list = ui.element("div").classes("chats").props('role=list aria-label="Chats"')

    async def load(self) -> None:
        """Fetches the first of the chats that the search finds."""
        await self._fetch(from_start=True)

    def focus(self) -> None:
        """Opens the drawer; the browser itself goes to the search where it is to be seen already."""
        self._drawer.show()
        self._search.run_method("focus")

    def changed(self, chat: dict[str, Any]) -> None:
        """A chat is new, or has another title."""
        known = next((i for i, other in enumerate(self._chats) if other["id"] == chat["id"]), None)
        if known is None:
            self._chats.insert(0, chat)
        else:
            self._chats[known] = chat
        self.draw()

    def draw(self) -> None:
        """Shows what was fetched."""
        self._list.clear()
        with self._list:
            if not self._chats:
                ui.label("Nothing found." if self._search.value else "No chats yet.").classes("dim none")
            group = ""
            for chat in self._chats:
                if (day := _day(chat["created_at"])) != group:
                    group = day
                    ui.label(day).classes("day")
                self._row(chat)
            if self._more:
                ui.button("More", on_click=lambda: self._fetch(), color=None).props("flat dense no-caps").classes("quiet")

    def _row(self, chat: dict[str, Any]) -> None:
        here = " here" if chat["id"] == self._page.chat.chat_id else ""
        with ui.element("div").classes(f"chat-row{here}").props("role=listitem"):
            title = ui.element("button").classes("chat-title").on("click", lambda: self._open(chat["id"]))
            with title:
                ui.label(chat["title"] or "Untitled")
            with (
                ui.button(icon="more_horiz", color=None)
                .props('flat dense round size=sm aria-label="Chat menu"')
                .classes("quiet"),
                ui.menu(),
            ):
                ui.menu_item("Rename", lambda: self._rename(chat)).props("role=menuitem")
                ui.menu_item("Delete", lambda: self._ask_to_forget(chat)).props("role=menuitem")

    async def _look(self) -> None:
        """Searches once the person has stopped typing."""
        sought = self._search.value
        await asyncio.sleep(_PAUSE_SECONDS)
        if sought == self._search.value:
            await self.load()

    async def _open(self, chat_id: str) -> None:
        ui.run_javascript(f"if (window.innerWidth < 900) getElement({self._drawer.id}).hide()")
        self._page.tabs.value = "chat"
        await self._page.chat.open(chat_id)

    def begin(self) -> None:
        """An empty chat."""
        ui.run_javascript(f"if (window.innerWidth < 900) getElement({self._drawer.id}).hide()")
        self._page.tabs.value = "chat"
        self._page.chat.begin()

    async def _fetch(self, from_start: bool = False) -> None:
        self._asked += 1
        asked, known = self._asked, [] if from_start else self._chats
        query: dict[str, Any] = {"limit": _AT_A_TIME, "query": self._search.value or ""}
        if known:
            query["after"] = known[-1]["id"]
        try:
            page = await self._page.client.get("/tessera/chats", **query)
        except Refused as refused:
            self._page.say(refused.message)
            return
        if asked != self._asked:
            return  # meanwhile something else is searched for
        self._chats = known + page["data"]
        self._more = page["has_more"]
        self.draw()

    def _rename(self, chat: dict[str, Any]) -> None:
        async def keep() -> None:
            dialog.close()
            try:
                self.changed(await self._page.client.post(f"/tessera/chats/{chat['id']}", {"title": field.value[:200]}))
            except Refused as refused:
                self._page.say(refused.message)

        with ui.dialog() as dialog, ui.card().classes("key-card"):
            field = (
                ui.input("Title", value=chat["title"]).props("outlined dense autofocus").classes("wide").on("keydown.enter", keep)
            )
            ui.button("Rename", on_click=keep, color=None).props("unelevated no-caps").classes("primary")
        dialog.open()

    def _ask_to_forget(self, chat: dict[str, Any]) -> None:
        async def forget() -> None:
            dialog.close()
            try:
                await self._page.client.delete(f"/tessera/chats/{chat['id']}")
            except Refused as refused:
                self._page.say(refused.message)
                if refused.status != 404:  # else it is gone already
                    return
            self._chats = [other for other in self._chats if other["id"] != chat["id"]]
            if chat["id"] == self._page.chat.chat_id:
                self._page.chat.begin()
            self.draw()

        with ui.dialog() as dialog, ui.card().classes("key-card"):
            ui.label(f"Delete \u201c{chat['title'] or 'Untitled'}\u201d?").classes("card-title wide")
            ui.label("Its turns and the pairs of its thumbs are deleted too, for good.").classes("dim")
            with ui.row().classes("choices"):
                ui.button("Cancel", on_click=dialog.close, color=None).props("flat no-caps autofocus").classes("quiet")
                ui.button("Delete", on_click=forget, color=None).props("unelevated no-caps").classes("primary")
        dialog.open()


def _day(seconds: int) -> str:
    days = (datetime.date.today() - datetime.date.fromtimestamp(seconds)).days
    if days < 2:
        return "Today" if days < 1 else "Yesterday"
    return "Last 7 days" if days < 7 else datetime.date.fromtimestamp(seconds).strftime("%B %Y")
