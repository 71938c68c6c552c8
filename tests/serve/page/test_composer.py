"""Where the next turn is written, in a browser: its pictures, and what was begun in other chats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.serve.page.conftest import ask, dot, pick, settings


def test_what_is_no_picture_is_not_added_and_each_file_is_told_why(inside: Any, tmp_path: Path) -> None:
    named = tmp_path / "named.png"
    named.write_text("only words")
    pick(inside, named)
    inside.get_by_text("named.png cannot be read: not a PNG, JPEG, WebP or GIF picture.").wait_for()
    large = "new File([new Uint8Array(9 << 20)], 'large.png', { type: 'image/png' })"
    inside.evaluate(f"takeFiles([new File(['x'], 'words.txt', {{ type: 'text/plain' }}), {large}])")
    inside.get_by_text("words.txt is no picture; only pictures can be added.").wait_for()
    inside.get_by_text("large.png has more than 8 MiB, the most that a picture may have.").wait_for()
    assert inside.locator(".thumb").count() == 0
    assert inside.locator(".uploader input").get_attribute("accept") == "image/*"
    pick(inside, dot(tmp_path / "dot.png"))
    inside.locator(".thumb img").wait_for()


def test_the_browser_itself_opens_the_chooser_of_files(inside: Any) -> None:
    inside.evaluate("window.socket.disconnect()")
    with inside.expect_file_chooser(timeout=10_000):
        inside.get_by_label("Add a picture").click()


def test_what_is_being_written_stays_with_its_chat(inside: Any, api: httpx.Client, tmp_path: Path) -> None:
    ids = {name: api.post("/tessera/chats", json={"title": name}).json()["id"] for name in ("Chat of one", "Chat of two")}
    inside.reload()
    box, thumbs = inside.get_by_label("Message"), inside.locator(".thumb")

    def move(name: str, text: str, pictures: int = 0) -> None:
        """Goes to a chat, where that is to be found."""
        if name == "New chat":
            inside.get_by_role("button", name=name).click()
        else:
            inside.locator(".chat-row", has_text=name).locator(".chat-title").click()
        inside.wait_for_function("text => document.querySelector('.composer textarea').value === text", arg=text)
        # The address follows what is shown, and Back goes by addresses.
        inside.wait_for_function("id => new URLSearchParams(location.search).get('chat') === id", arg=ids.get(name))
        assert thumbs.count() == pictures

    box.fill("Of none yet")
    move("Chat of one", "")
    box.fill("To one")
    pick(inside, dot(tmp_path / "dot.png"))
    thumbs.wait_for()
    move("Chat of two", "")
    box.fill("To two")
    move("Chat of one", "To one", 1)
    move("New chat", "")
    move("Chat of two", "To two")
    inside.go_back()
    inside.locator(".chat-row.here").wait_for(state="detached")
    box.fill("Of the new one")
    inside.go_back()
    inside.wait_for_function("document.querySelector('.composer textarea').value === 'To one'")
    inside.go_forward()
    inside.wait_for_function("document.querySelector('.composer textarea').value === 'Of the new one'")
    settings(inside, most_tokens=5)
    ask(inside, "Said")
    inside.locator(".answer .speed").wait_for()
    move("Chat of two", "To two")
