"""Where the next turn is written, in a browser: its pictures, and what was begun in other chats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.serve.page.conftest import dot, pick


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
