"""The conversation: what was said, what is being said, and what can be done about it.

`composer` is where the next turn is written. The chat itself is kept by the server (`/tessera/chats`); the page holds a
copy of what it shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nicegui import background_tasks, ui

from tessera.serve.page.answering import THOUGHT, Answering, LiveView, drawn, played, untold
from tessera.serve.page.asking import Asking
from tessera.serve.page.client import Refused
from tessera.serve.page.composer import EFFORTS, Composer
from tessera.serve.page.markdown import to_html
from tessera.serve.page.tour import Card, draw_cards, offered
from tessera.serve.turns import GAP, Exchange, Turn, Voice, before, failures, pick, voice, way

if TYPE_CHECKING:
    from tessera.serve.page.view import Page

_FLUSH_SECONDS = 0.1
_TITLE = 60
_RATED_TOKENS, _RATED_SECONDS = 10, 0.05
"""What an answer has at least whose speed is shown."""
_GREETINGS = {
    "chat": "What shall we talk about?",
    "complete": "Begin a text",
    "draw": "What shall be drawn?",
    "film": "What shall the film show?",
    "play": "What shall be heard?",
}
_MAKES = {"draw": "pictures", "film": "films", "play": "sounds"}
"""Mode -> what a model has to have learned for it."""
_ABILITIES = {"pictures": "draws and sees pictures", "films": "makes films", "sounds": "plays and listens", "thinking": "thinks"}


class ChatPanel:
    """Draws itself where it is made.

    Args:
        page: of which it is a part.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._chat: dict[str, Any] = {}
        self._turns: list[dict[str, Any]] = []
        self._picked: dict[str, str] = {}
        self._running: list[Answering] = []
        self._failures: dict[tuple[str, Voice], str] = {}
        self._following: set[asyncio.Task[None]] = set()
        self._editing = ""
        self._opening = ""
        self._sending = False
        self._card: Card | None = None
        self._places: dict[tuple[str, Voice], ui.element] = {}
        self._edits: dict[str, ui.button] = {}
        self._drawn: list[str] = []
        with ui.element("div").classes("talk"):
            self._column = ui.element("div").classes("thread").props('role=log aria-label="Conversation"')
        self.composer = Composer(self)
        ui.timer(_FLUSH_SECONDS, self._flush)

    @property
    def page(self) -> Page:
        """Of which it is a part."""
        return self._page

    @property
    def chat_id(self) -> str:
        """Of the chat that is shown; empty: none is kept yet."""
        return str(self._chat.get("id", ""))

    @property
    def sending(self) -> bool:
        """Whether something is on its way to the chat: nothing else is said meanwhile."""
        return self._sending

    @property
    def models(self) -> list[str]:
        """That answer."""
        return list(self._page.select.value or [])

    @property
    def mode(self) -> str:
        """`chat`; where a model knows no dialogue and nobody said otherwise, what all of them make, or `complete`."""
        if self._chat:
            return str(self._chat["mode"])
        if self.composer.mode:
            return self.composer.mode
        if self.can("dialogue"):
            return "chat"
        return next((mode for mode, what in _MAKES.items() if self.can(what)), "complete")

    @property
    def modes(self) -> list[str]:
        """That there are for these models."""
        return ["chat", "complete", *(mode for mode, what in _MAKES.items() if self.can(what))]

    def can(self, what: str) -> bool:
        """Whether all models that are chosen have a field of `/v1/models` that says yes."""
        return bool(self.models) and all(self._page.model(name).get(what) for name in self.models)

    @property
    def longest_thought(self) -> int:
        """Tokens that a model of those chosen may think, marks included."""
        return max((2 + most for name in self.models for most in self._page.model(name).get("thinking", {}).values()), default=0)

    def show(self) -> None:
        """The tab is looked at."""
        self.composer.focus()

    def begin(self, anew: bool = True) -> None:
        """An empty chat, which is kept once something is said.

        Args:
            anew: where another one is shown, the one that was begun before it is forgotten.
        """
        anew = anew and bool(self.chat_id)
        self._leave()
        self._opening = ""
        self._chat, self._turns, self._picked, self._card = {}, [], {}, None
        with self._column:  # what was clicked may be gone once it is drawn anew
            self.composer.reset("", empty=anew)
            self._moved()

    async def open(self, chat_id: str) -> None:
        """Shows a chat that is kept."""
        self._opening = chat_id
        if chat_id == self.chat_id:
            self._page.moved()
            return
        try:
            chat = await self._page.client.get(f"/tessera/chats/{chat_id}")
        except Refused as refused:
            self._page.say(refused.message)
            if self._opening == chat_id:
                self._page.moved(replaces=True)
            return
        if self._opening != chat_id:
            return  # meanwhile another one is to be shown
        self._leave()
        self._card, self._turns = None, chat.pop("turns")
        self._chat, self._picked, self._failures = chat, dict(chat["picked"]), failures(self._turns)
        with self._column:  # as in `begin`
            self.composer.reset(chat["instructions"])
            last = self._way()
            if last:
                models = {model for model, _ in last[-1].answers}
                if names := [name for name in self._page.in_order(models) if self._page.model(name)]:
                    self._page.select.value = names
            self._moved()
            ui.run_javascript("toEnd(true)")

    def models_changed(self) -> None:
        """Others are to answer from now on."""
        self.composer.draw()
        if not self._chat:
            self.draw()

    async def send(self, text: str, images: Sequence[str]) -> bool:
        """Says something; False where it was not said."""
        if not self.models:
            self._page.say("Choose a model first.", "warning")
            return False
        exchanges = self._way()
        after = [turn["id"] for turn in exchanges[-1].shown(self._picked)] if exchanges else []
        if exchanges and not after:
            self._page.say("The last turn has no answer yet; ask again for one, or edit it.", "warning")
            return False
        return await self._say(text, images, after)

    async def try_out(self, card: Card) -> None:
        """Begins a chat with a card of the tour."""
        if self._sending:
            return
        self.begin()
        self._card = card
        with self._column:
            await self.composer.show(card.steps[0], card.mode, *card.content())

    async def stop(self) -> None:
        """What comes, ends here."""
        for answering in self._running:
            answering.stop()

    async def end(self) -> None:
        """What comes, ends here; returns once all that came is kept."""
        await self.stop()
        await asyncio.gather(*self._following, return_exceptions=True)

    def draw(self) -> None:
        """Shows the conversation anew."""
        self._column.clear()
        self._places, self._edits = {}, {}
        exchanges = self._way()
        self._drawn = [exchange.turn["id"] for exchange in exchanges]
        with self._column:
            if not exchanges:
                self._greet()
            for number, exchange in enumerate(exchanges):
                self._exchange(exchange, number == len(exchanges) - 1)
            if exchanges and self._card is not None and not self._running:
                self._go_on(self._card)
        self.composer.running(bool(self._running))

    def _draw_answer(self, asked: str, one: Voice) -> None:
        """Shows one answer anew and leaves the rest, where somebody may just be clicking."""
        exchanges = {exchange.turn["id"]: exchange for exchange in self._way()}
        place = self._places.get((asked, one))
        if place is None or list(exchanges) != self._drawn or self._card is not None:
            self.draw()
            return
        place.clear()
        with place:
            self._answer(exchanges[asked], one)
        if asked in self._edits:
            self._edits[asked].set_visibility(not self._awaited(asked))
        self.composer.running(bool(self._running))

    def _awaited(self, asked: str) -> bool:
        return any(answering.asked == asked for answering in self._running)

    def _way(self) -> list[Exchange]:
        return way(self._turns, self._picked)

    def _leave(self) -> None:
        self.composer.leave()
        for answering in self._running:
            answering.stop()
        self._running, self._failures, self._editing = [], {}, ""

    def _moved(self, replaces: bool = False) -> None:
        self.draw()
        self._page.history.draw()
        self._page.moved(replaces)

    def _flush(self) -> None:
        for answering in self._running:
            answering.flush()

    # What is done.

    async def _say(self, text: str, images: Sequence[str], after: Sequence[str]) -> bool:
        client, chat, turns = self._page.client, self._chat, self._turns
        turn = {"role": "user", "after": list(after), "text": text, "images": list(images)}
        self._sending = True
        try:
            if too_long := await self._too_long(turn):
                self._page.say(too_long, "warning")
                return False
            if not chat:
                title = self._card.title if self._card else " ".join(text.split())[:_TITLE] or "A picture"
                settings = {"mode": self.mode, "title": title, "instructions": self.composer.instructions}
                chat = await client.post("/tessera/chats", settings)
                if turns is self._turns:
                    self._chat = chat
                    self._moved(replaces=True)
                self._page.history.changed(chat)
            said = await client.post(f"/tessera/chats/{chat['id']}/turns", turn)
        except Refused as refused:
            self._page.say(refused.message)
            return False
        finally:
            self._sending = False
        if turns is not self._turns:
            return True  # another chat is shown by now; in its own this turn waits for an answer
        self._turns.append(said)
        self._picked |= pick((t for t in self._turns if t["role"] == "user" and t["after"] == said["after"]), said["id"])
        efforts = [step.effort for step in self._card.steps] if self._card and not after else [""]
        self._ask(said, [(model, self._effort(model, effort)) for model in self.models for effort in efforts])
        ui.run_javascript("toEnd(true)")
        return True

    def _effort(self, model: str, asked: str = "") -> str:
        """The effort to ask a model for: what the card or else the dial says, where the model thinks at all."""
        thinks = self.mode == "chat" and self._page.model(model).get("thinking")
        return asked or self.composer.effort if thinks else ""

    def _ask(self, asked: Turn, voices: Sequence[Voice]) -> None:
        """Lets models answer a turn, all at once."""
        for one in voices:
            self._failures.pop((asked["id"], one), None)
        begun = [Answering(self._page.client, self._asking(asked, model), effort) for model, effort in voices]
        self._running += begun
        self.draw()
        for answering in begun:
            following = background_tasks.create(self._follow(answering, self.chat_id))
            self._following.add(following)
            following.add_done_callback(self._following.discard)

    def _asking(self, asked: Turn, model: str) -> Asking:
        """What a model is asked."""
        instructions = self._chat["instructions"] if self._chat else self.composer.instructions
        context = self._page.model(model).get("context_length", 0)
        turns = before(self._turns, asked, model)
        return Asking(self.mode, model, context, turns, instructions, self.composer.settings(self.mode))

    async def _too_long(self, turn: Turn) -> str:
        """Why one of the models has no room for a turn that is to be said; empty: all have."""
        sentences = [await self._asking(turn, model).too_long(self._page.client) for model in self.models]
        return next(filter(None, sentences), "")

    async def _follow(self, answering: Answering, chat_id: str) -> None:
        came = await answering.run()
        try:
            if came:
                turn = await self._page.client.post(f"/tessera/chats/{chat_id}/turns", answering.turn())
            else:
                failure = {"model": answering.voice[0], "effort": answering.voice[1], "message": answering.failure[:4000]}
                await self._page.client.post(f"/tessera/chats/{chat_id}/turns/{answering.asked}/failures", failure)
        except Refused as refused:
            if came:
                answering.failure, came = refused.message, False
        if chat_id != self.chat_id or self._column.is_deleted:
            return
        self._running = [other for other in self._running if other is not answering]
        if not came:
            self._failures[answering.asked, answering.voice] = answering.failure
        elif all(other["id"] != turn["id"] for other in self._turns):  # else it was left and opened again meanwhile
            self._turns.append(turn)
            siblings = (t for t in self._turns if t["after"] == turn["after"] and voice(t) == voice(turn))
            self._picked |= pick(siblings, turn["id"])
        with self._column:
            if came and answering.failure:
                self._page.say(answering.failure)
            self._draw_answer(answering.asked, answering.voice)
            ui.run_javascript("toEnd(false)")

    async def _pick(self, siblings: Sequence[Turn], chosen: str) -> None:
        self._picked |= pick(siblings, chosen)
        self.draw()
        try:
            await self._page.client.post(f"/tessera/chats/{self.chat_id}", {"picked": self._picked})
        except Refused as refused:
            self._page.say(refused.message)

    async def _rate(self, rated: Turn, thumb: str) -> None:
        turn = next(turn for turn in self._turns if turn["id"] == rated["id"])
        rating = None if turn["rating"] == thumb else thumb
        try:
            kept = await self._page.client.post(f"/tessera/chats/{self.chat_id}/turns/{turn['id']}", {"rating": rating})
        except Refused as refused:
            self._page.say(refused.message)
            return
        turn["rating"] = kept["rating"]
        if rating and kept["pairs"]:
            many = "1 pair" if kept["pairs"] == 1 else f"{kept['pairs']} pairs"
            self._page.say(f"Kept: {many} of a better and a worse answer (tab Tuning).", "positive")
        elif rating:
            other = "down" if rating == "up" else "up"
            self._page.say(f"Noted. Another answer with a thumb {other} makes a pair to tune on.", "info")
        self._draw_answer(turn["after"][0], voice(turn))

    async def _say_again(self, turn: Turn, text: str) -> None:
        if self._sending:
            return
        with self._column:  # as in `begin`
            if await self._say(text, turn["images"], turn["after"]) and self._editing == turn["id"]:
                self._editing = ""

    # What is shown.

    def _greet(self) -> None:
        with ui.element("div").classes("greet"):
            ui.label(_GREETINGS[self.mode]).classes("greet-title")
            for name in self.models:
                model = self._page.model(name)
                kind = "knows dialogue" if model.get("dialogue") else "goes on with any text"
                kind = ", ".join([kind, *(says for what, says in _ABILITIES.items() if model.get(what))])
                ui.label(f"{name}: {kind}, reads {model.get('context_length', 0):,} tokens").classes("dim")
            draw_cards(offered(self.can), self.try_out)

    def _go_on(self, card: Card) -> None:
        """The way on through the tour."""
        there = offered(self.can)
        at = there.index(card) + 1 if card in there else 0
        with ui.element("div").classes("tour-on"):
            if at < len(there):
                on = ui.button(f"Next: {there[at].title}", on_click=lambda: self.try_out(there[at]), color=None)
                on.props("outline no-caps icon-right=arrow_forward").classes("idea")
            ui.button("All to try", on_click=self.begin, color=None).props("flat no-caps").classes("quiet")

    def _exchange(self, exchange: Exchange, last: bool) -> None:
        asked = exchange.turn["id"]
        others = [*(a.voice for a in self._running if a.asked == asked), *(one for of, one in self._failures if of == asked)]
        voices = [*exchange.answers, *(one for one in others if one not in exchange.answers)]
        models = self._page.in_order({model for model, _ in voices})
        voices.sort(key=lambda one: (models.index(one[0]), EFFORTS.index(one[1]) if one[1] in EFFORTS else 0))
        if self.mode != "complete":
            self._question(exchange)
        elif self._editing == exchange.turn["id"]:
            self._editor(exchange.turn)
        with ui.element("div").classes("answers" + (" side" if len(voices) > 1 else "")):
            for one in voices:
                place = ui.element("div").classes("answer").props(f'role=article aria-label="Answer of {_name(one)}"')
                self._places[exchange.turn["id"], one] = place
                with place:
                    self._answer(exchange, one)
        if last and not exchange.answers and not any(self._page.model(model) for model in models):

            def ask_all() -> None:
                self._ask(exchange.turn, [(model, self._effort(model)) for model in self.models])

            with ui.element("div").classes("answers"):
                again = ui.button("Ask for an answer", icon="refresh", on_click=ask_all, color=None)
                again.props("flat no-caps dense").classes("quiet")

    def _question(self, exchange: Exchange) -> None:
        turn = exchange.turn
        if self._editing == turn["id"]:
            self._editor(turn)
            return
        with ui.element("div").classes("question").props("role=article aria-label=You"):
            if turn["images"]:
                with ui.element("div").classes("pictures"):
                    for url in turn["images"]:
                        ui.element("img").props("alt=picture").classes("picture").props["src"] = url
            with ui.element("div").classes("tools"):
                self._branches(exchange.siblings, turn)
                edit = self._edits[turn["id"]] = self._tool("edit", "Edit", lambda: self._edit(turn["id"]))
                edit.set_visibility(not self._awaited(turn["id"]))
                self._tool("content_copy", "Copy", lambda: _copy(turn["text"]))
            if turn["text"]:
                ui.label(turn["text"]).classes("bubble")

    def _editor(self, turn: Turn) -> None:
        with ui.element("div").classes("editor"):
            field = ui.textarea(value=turn["text"]).props('autogrow outlined autofocus aria-label="Edit"').classes("wide")
            with ui.element("div").classes("tools"):
                ui.button("Cancel", on_click=lambda: self._edit(""), color=None).props("flat no-caps dense").classes("quiet")
                again = ui.button("Send", on_click=lambda: self._say_again(turn, field.value), color=None)
                again.props("unelevated no-caps dense").classes("primary")

    def _answer(self, exchange: Exchange, one: Voice) -> None:
        shown = next((turn for turn in exchange.shown(self._picked) if voice(turn) == one), None)
        coming = next((a for a in self._running if a.asked == exchange.turn["id"] and a.voice == one), None)
        failure = self._failures.get((exchange.turn["id"], one))
        plain = self.mode == "complete"
        ui.label(_name(one)).classes("who")
        head, _, behind = exchange.turn["text"].partition(GAP)
        if failure is not None:
            with ui.element("div").classes("failure").props("role=alert"):
                ui.icon("error_outline", size="20px")
                ui.label(failure)
            self._tools(exchange, one, None)
        elif coming is not None:
            with ui.element("div").classes("document" if plain else ""):
                if plain:
                    ui.label(head).classes("prompt")
                coming.show(LiveView(plain))
                if behind and plain:
                    ui.label(behind).classes("prompt")
        elif shown is not None:
            if shown.get("left_out"):
                untold(shown["left_out"])
            if shown["reasoning"]:
                with ui.expansion(THOUGHT, icon="psychology").classes("thought"):
                    ui.label(shown["reasoning"]).classes("thought-text")
            if plain:
                with ui.element("div").classes("document"):
                    ui.label(head).classes("prompt")
                    ui.label(shown["text"]).classes("made")
                    if behind:
                        ui.label(behind).classes("prompt")
            else:
                made = shown.get("media", [])
                for url in shown["images"]:
                    drawn(url)
                for url in made:
                    played(url)
                if shown["text"] or not (shown["images"] or made):
                    ui.html(to_html(shown["text"])).classes("text")
            self._tools(exchange, one, shown)

    def _tools(self, exchange: Exchange, one: Voice, shown: Turn | None) -> None:
        with ui.element("div").classes("tools"):
            if self.mode == "complete":
                self._branches(exchange.siblings, exchange.turn)
                self._tool("edit", "Edit", lambda: self._edit(exchange.turn["id"]))
            if shown is not None:
                self._branches(exchange.answers[one], shown)
                if shown["text"]:
                    self._tool("content_copy", "Copy", lambda: _copy(shown["text"]))
            if self._page.model(one[0]):
                self._tool("refresh", "Another answer", lambda: self._ask(exchange.turn, [one]))
            if shown is None:
                return
            # Of pictures and gaps no pairs are made: a preference job learns from what is said or follows.
            pictures = any(turn["images"] for turn in before(self._turns, exchange.turn, one[0]))
            thumbs = shown["text"] and not pictures and not (self.mode == "complete" and GAP in exchange.turn["text"])
            for thumb, icon in (("up", "thumb_up"), ("down", "thumb_down")) if thumbs else ():
                given = shown["rating"] == thumb
                filled = "" if given else "o_"
                button = self._tool(filled + icon, f"Thumb {thumb}", lambda thumb=thumb: self._rate(shown, thumb))
                button.classes("given" if given else "").props(f"aria-pressed={str(given).lower()}")
            if shown["finish_reason"] != "stop":
                said = {"length": "cut off: no room for more tokens", "stopped": "stopped"}[shown["finish_reason"]]
                ui.label(said).classes("dim small")
            if shown["tokens"]:
                ui.label(_speed(shown["tokens"], shown["seconds"])).classes("dim small speed")

    def _branches(self, siblings: Sequence[Turn], shown: Turn) -> None:
        if len(siblings) < 2:
            return
        at = [turn["id"] for turn in siblings].index(shown["id"])
        back, on = siblings[at - 1]["id"], siblings[(at + 1) % len(siblings)]["id"]
        self._tool("chevron_left", "Branch before", lambda: self._pick(siblings, back)).set_enabled(at > 0)
        ui.label(f"{at + 1}/{len(siblings)}").classes("dim small")
        self._tool("chevron_right", "Branch after", lambda: self._pick(siblings, on)).set_enabled(at + 1 < len(siblings))

    def _tool(self, icon: str, says: str, does: Any) -> ui.button:
        button = (
            ui.button(icon=icon, on_click=does, color=None)
            .props(f'flat dense round size=sm aria-label="{says}"')
            .classes("quiet")
        )
        with button:
            ui.tooltip(says).props("delay=500")
        return button

    def _edit(self, turn_id: str) -> None:
        self._editing = turn_id
        self.draw()


def _name(one: Voice) -> str:
    return one[0] + (f", effort {one[1]}" if one[1] not in ("", "none") else "")


def _speed(tokens: int, seconds: float) -> str:
    """Of an answer; of a short one only its length, as the time from its first token to its last says little."""
    rate = f", {tokens / seconds:.0f}/s" if tokens >= _RATED_TOKENS and seconds >= _RATED_SECONDS else ""
    return f"{tokens} token{'s' if tokens > 1 else ''}{rate}"


def _copy(text: str) -> None:
    ui.run_javascript(f"copyText(decodeURIComponent('{''.join(f'%{byte:02x}' for byte in text.encode())}'))")
