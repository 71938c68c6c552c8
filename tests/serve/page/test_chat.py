"""The conversation in a browser: what it does where something is too long, fails, or is left and opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tessera.serve.page.client import Client, Refused
from tests.serve.conftest import Running
from tests.serve.page.conftest import SHORT, ask, choose, dot, home, pick, settings


def test_turns_that_fit_no_longer_are_left_out_and_that_is_said(inside: Any, api: httpx.Client) -> None:
    choose(inside, "short")
    settings(inside, temperature=0, most_tokens=20, instructions_for_a_new_chat="Be brief.")
    for turn in range(5):
        ask(inside, f"Question {turn} " + "and so on " * 5)
        inside.wait_for_function(f"document.querySelectorAll('.answer .speed').length === {turn + 1}")
    assert inside.locator(".failure").count() == 0
    said = inside.get_by_text("left out.").all_inner_texts()
    assert said[0] == "The first turn no longer fits and was left out."
    assert said[-1].startswith("The first ") and said[-1].endswith(" turns no longer fit and were left out.")
    chat = inside.url.partition("=")[2]
    answers = [turn for turn in api.get(f"/tessera/chats/{chat}").json()["turns"] if turn["role"] == "assistant"]
    assert answers[0]["left_out"] == 0 and 2 <= answers[-1]["left_out"] < 4
    inside.reload()
    inside.get_by_text(said[-1]).wait_for()


def test_a_message_that_is_too_long_by_itself_goes_back_to_where_it_is_written(inside: Any, api: httpx.Client) -> None:
    choose(inside, "short")
    long = "far too long " * (SHORT // 10)
    ask(inside, long)
    inside.get_by_text("It was not sent; shorten it.").wait_for()
    inside.wait_for_function("document.querySelector('.composer textarea').value.length > 100")
    assert inside.get_by_label("Message").input_value() == long
    assert inside.locator(".bubble").count() == 0
    settings(inside, most_tokens=5)
    ask(inside, "Shorter")
    inside.locator(".answer .speed").wait_for()
    inside.locator(".question").hover()
    inside.get_by_label("Edit").click()
    inside.locator(".editor textarea").fill(long)
    inside.get_by_role("button", name="Send", exact=True).click()
    inside.get_by_text("It was not sent; shorten it.").nth(0).wait_for()
    assert inside.locator(".editor textarea").input_value() == long


def test_why_a_turn_was_not_answered_stands_there_until_it_is(
    inside: Any, api: httpx.Client, server: Running, tmp_path: Path
) -> None:
    pick(inside, dot(tmp_path / "dot.png"))
    inside.locator(".thumb img").wait_for()
    ask(inside, "What is this?")
    alert = inside.get_by_role("alert")
    alert.get_by_text("does not read pictures").wait_for()
    inside.reload()
    alert.get_by_text("does not read pictures").wait_for()
    chat = api.post("/tessera/chats", json={"title": "Failed"}).json()["id"]
    asked = api.post(f"/tessera/chats/{chat}/turns", json={"role": "user", "text": "Well?"}).json()["id"]
    body = {"model": "tiny", "message": "The server was busy."}
    api.post(f"/tessera/chats/{chat}/turns/{asked}/failures", json=body)
    inside.goto(f"{home(server)}?chat={chat}")
    alert.get_by_text("The server was busy.").wait_for()
    assert inside.get_by_text("Ask for an answer").count() == 0
    settings(inside, most_tokens=5)
    inside.get_by_label("Another answer").click()
    inside.locator(".answer .speed").wait_for()
    inside.reload()
    inside.locator(".answer .speed").wait_for()
    assert alert.count() == 0


def test_the_browsers_way_back_leads_through_chats_and_tabs(inside: Any, api: httpx.Client, server: Running) -> None:
    chats = []
    for name in ("First of all", "Second of all"):
        chats.append(api.post("/tessera/chats", json={"title": name}).json()["id"])
        api.post(f"/tessera/chats/{chats[-1]}/turns", json={"role": "user", "text": f"{name}, asked"})
    inside.reload()
    first, second = (inside.locator(".bubble", has_text=f"{name}, asked") for name in ("First of all", "Second of all"))
    inside.locator(".chat-row", has_text="First of all").locator(".chat-title").click()
    first.wait_for()
    inside.get_by_role("tab", name="Runs").click()
    inside.wait_for_url(f"{home(server)}?tab=runs&chat={chats[0]}")
    inside.locator(".chat-row", has_text="Second of all").locator(".chat-title").click()
    second.wait_for()
    inside.wait_for_url(f"{home(server)}?chat={chats[1]}")
    inside.go_back()
    inside.locator(".tiles .value").first.wait_for()
    inside.go_back()
    first.wait_for()
    inside.go_back()
    inside.get_by_text("What shall we talk about?").wait_for()
    assert inside.url == home(server)
    for _ in range(3):
        inside.go_forward()
    second.wait_for()
    inside.get_by_role("button", name="New chat").click()
    inside.get_by_text("What shall we talk about?").wait_for()
    settings(inside, most_tokens=5)
    ask(inside, "Third of all")
    inside.locator(".answer .speed").wait_for()
    assert inside.url.startswith(f"{home(server)}?chat=")
    inside.go_back()
    second.wait_for()
    inside.get_by_role("tab", name="Runs").click()
    inside.wait_for_url("**/?tab=runs&**")
    inside.reload()
    inside.locator(".tiles .value").first.wait_for()
    inside.get_by_role("tab", name="Chat").click()
    second.wait_for()
    api.delete(f"/tessera/chats/{chats[1]}")
    inside.goto(f"{home(server)}?chat={chats[1]}")
    inside.get_by_text("No chat found").wait_for()
    inside.wait_for_url(home(server))


def test_a_chat_is_deleted_once_that_is_confirmed_and_stays_where_it_is_refused(
    inside: Any, api: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = api.post("/tessera/chats", json={"title": "Doomed"}).json()["id"]
    inside.goto(f"{home(server)}?chat={chat}")
    row = inside.locator(".chat-row.here", has_text="Doomed")  # open, so that no list is drawn anew under the menu

    def delete(button: str) -> None:
        row.get_by_label("Chat menu").click()
        inside.get_by_role("menuitem", name="Delete").click()
        inside.get_by_role("button", name=button, exact=True).click()
        inside.get_by_role("dialog").wait_for(state="hidden")

    async def refuse(client: Client, path: str) -> None:
        raise Refused("Not now.", 500)

    delete("Cancel")
    with monkeypatch.context() as patch:
        patch.setattr(Client, "delete", refuse)
        delete("Delete")
        inside.get_by_text("Not now.").wait_for()
    assert row.count() == 1 and api.get(f"/tessera/chats/{chat}").status_code == 200
    delete("Delete")
    row.wait_for(state="detached")
    assert api.get(f"/tessera/chats/{chat}").status_code == 404
    inside.wait_for_url(home(server))


def test_no_speed_is_shown_that_could_not_be_measured(inside: Any, api: httpx.Client, server: Running) -> None:
    chat = api.post("/tessera/chats", json={"title": "Fast"}).json()["id"]
    after: list[str] = []
    for tokens, seconds in ((4, 0.001), (40, 0.004), (9, 3.0), (40, 2.0)):
        body: dict[str, Any] = {"role": "user", "text": "How fast?", "after": after}
        asked = api.post(f"/tessera/chats/{chat}/turns", json=body).json()["id"]
        body = {"role": "assistant", "text": "So.", "after": [asked], "model": "tiny", "tokens": tokens, "seconds": seconds}
        after = [api.post(f"/tessera/chats/{chat}/turns", json=body).json()["id"]]
    inside.goto(f"{home(server)}?chat={chat}")
    inside.locator(".answer .speed").nth(3).wait_for()
    said = ["4 tokens", "40 tokens", "9 tokens", "40 tokens, 20/s"]
    assert inside.locator(".answer .speed").all_inner_texts() == said
