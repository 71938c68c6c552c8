"""The page in a real browser, without a key, with a wrong one and with the right one; everything comes from the server itself."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tessera.serve.app import Settings
from tests.serve.conftest import Running, serving, wait_for
from tests.serve.page.conftest import KEY, LONG, ask, choose, dot, home, pick, rate, settings


def test_the_page_asks_for_a_key_then_answers_are_kept_found_and_opened_again(page: Any, server: Running) -> None:
    page.goto(home(server))
    page.get_by_label("API key").fill("sk-wrong-key")
    page.get_by_role("button", name="Come in").click()
    page.get_by_text("Incorrect API key provided.").wait_for()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_text("What shall we talk about?").wait_for()
    settings(page, temperature=0, most_tokens=12)
    box = page.get_by_label("Message")
    box.fill("A zebra")
    box.press("Shift+Enter")
    box.press_sequentially("and a gnu")
    box.press("Enter")
    page.get_by_text("12 tokens").wait_for()
    assert page.locator(".bubble").inner_text() == "A zebra\nand a gnu"
    page.get_by_text("cut off").wait_for()
    answer = page.locator(".answer .text").inner_text()
    page.reload()
    page.locator(".bubble").wait_for()
    assert page.locator(".answer .text").inner_text() == answer
    page.keyboard.press("Control+k")
    page.keyboard.type("giraffe")
    page.get_by_text("Nothing found.").wait_for()
    page.keyboard.press("Control+a")
    page.keyboard.type("GNU zebra")
    page.locator(".chat-row", has_text="A zebra and a gnu").wait_for()


def test_a_link_to_a_chat_opens_it_once_a_key_is_given(page: Any, server: Running, api: httpx.Client) -> None:
    chat = api.post("/tessera/chats", json={"title": "Linked to"}).json()["id"]
    api.post(f"/tessera/chats/{chat}/turns", json={"role": "user", "text": "Asked elsewhere"})
    page.goto(f"{home(server)}?chat={chat}")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.locator(".bubble", has_text="Asked elsewhere").wait_for()
    page.wait_for_url(f"{home(server)}?chat={chat}")


def test_pictures_of_a_stranger_are_not_kept(page: Any, server: Running) -> None:
    page.goto(home(server))
    page.get_by_text("This server asks for a key").wait_for()
    with page.expect_response("**/upload/*"):
        page.evaluate("takeFiles([new File(['x'], 'x.png', { type: 'image/png' })])")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_text("What shall we talk about?").wait_for()
    assert page.locator(".thumb").count() == 0


def test_escape_stops_an_answer_in_the_engine_and_what_came_is_kept(inside: Any, server: Running) -> None:
    choose(inside, "endless")
    settings(inside, temperature=0)  # goes round in circles until the context is full
    before = server.engine_tokens
    ask(inside, "Go on")
    inside.locator(".stop").wait_for()
    inside.keyboard.press("Escape")
    inside.get_by_text("stopped", exact=True).wait_for()
    assert server.idle() and server.engine_tokens - before < LONG - 100
    inside.reload()
    inside.get_by_text("stopped", exact=True).wait_for()


def test_a_chat_of_the_list_is_opened_by_a_click_and_the_address_names_it(
    inside: Any, api: httpx.Client, server: Running
) -> None:
    chat = api.post("/tessera/chats", json={"title": "Clicked"}).json()["id"]
    api.post(f"/tessera/chats/{chat}/turns", json={"role": "user", "text": "Asked before"})
    inside.reload()
    inside.locator(".chat-row", has_text="Clicked").locator(".chat-title").click()
    inside.locator(".bubble", has_text="Asked before").wait_for()
    inside.wait_for_url(f"{home(server)}?chat={chat}")


def test_enter_twice_says_it_once(inside: Any, api: httpx.Client) -> None:
    settings(inside, most_tokens=5)
    box = inside.get_by_label("Message")
    box.fill("Only once")
    enter = "new KeyboardEvent('keydown', { key: 'Enter', bubbles: true, cancelable: true })"
    box.evaluate(f"box => {{ box.dispatchEvent({enter}); box.dispatchEvent({enter}); }}")
    inside.get_by_label("Another answer").wait_for()
    assert len(api.get("/tessera/chats", params={"query": "Only once"}).json()["data"]) == 1
    assert inside.locator(".bubble").count() == 1 and not box.input_value()


def test_settings_that_are_empty_are_left_to_the_server(inside: Any) -> None:
    settings(inside, temperature="", top_p="", most_tokens=5)
    ask(inside, "A word")
    inside.get_by_label("Another answer").wait_for()
    assert inside.locator(".failure").count() == 0


def leave(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closes the tab, and the server waits for nobody to come back."""
    from nicegui import core

    monkeypatch.setattr(core.app.config, "reconnect_timeout", 0.0)
    page.close()


def test_what_came_of_an_answer_is_kept_where_the_person_leaves(
    inside: Any, api: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(inside, "endless")
    settings(inside, temperature=0)
    ask(inside, "Go on")
    inside.wait_for_function("[...document.querySelectorAll('.answer .text')].some(part => part.textContent)")
    path = f"/tessera/chats/{inside.url.partition('=')[2]}"
    leave(inside, monkeypatch)
    assert wait_for(lambda: len(api.get(path).json()["turns"]) == 2, 30) and server.idle()
    answer = api.get(path).json()["turns"][1]
    assert answer["text"] and answer["finish_reason"] == "stopped"


def test_a_film_is_forgotten_where_the_person_leaves(
    inside: Any, api: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(inside, "a ball")
    inside.locator(".bubble").wait_for()
    path = f"/tessera/chats/{inside.url.partition('=')[2]}"
    leave(inside, monkeypatch)
    assert wait_for(lambda: len(api.get(path).json()["turns"]) == 2, 30)
    assert api.get("/v1/videos").json()["data"] == [] and server.idle()


def test_other_answers_and_edits_are_branches_and_thumbs_make_a_pair(inside: Any, api: httpx.Client) -> None:
    settings(inside, most_tokens=20)
    ask(inside, "First")
    rate(inside, "Thumb up", "Noted.")
    inside.get_by_label("Another answer").click()
    inside.get_by_text("2/2").wait_for()
    rate(inside, "Thumb down", "Kept: 1 pair")
    row = json.loads(api.get("/tessera/preferences.jsonl").text.splitlines()[-1])
    assert row["prompt"] == [{"role": "user", "content": "First"}] and row["chosen"] != row["rejected"]
    inside.get_by_label("Branch before").click()
    inside.get_by_text("1/2").wait_for()
    # The model's answers are noise: a browser shows neither all its white space nor its marks.
    assert _letters(inside.locator(".answer .text").inner_text()) == _letters(row["chosen"][0]["content"])
    inside.locator(".question").hover()
    inside.get_by_label("Edit").click()
    inside.locator(".editor textarea").fill("Second")
    inside.get_by_role("button", name="Send", exact=True).click()
    inside.locator(".bubble", has_text="Second").wait_for()
    inside.locator(".question").hover()
    inside.locator(".question").get_by_label("Branch before").click()
    inside.locator(".bubble", has_text="First").wait_for()


def test_models_answer_side_by_side_and_a_base_model_goes_on_with_a_text(inside: Any) -> None:
    settings(inside, temperature=0, most_tokens=6)
    inside.get_by_label("Models").click()
    inside.get_by_role("option", name="base").click()
    inside.keyboard.press("Escape")
    inside.get_by_text("Begin a text").wait_for()
    ask(inside, "Once upon")
    inside.wait_for_function("document.querySelectorAll('.side .answer .speed').length === 2")
    assert inside.locator(".answer .prompt").all_inner_texts() == ["Once upon"] * 2
    assert all(inside.locator(".answer .made").all_inner_texts())


def test_a_picture_that_a_model_cannot_read_is_refused_in_words(inside: Any, tmp_path: Path) -> None:
    pick(inside, dot(tmp_path / "dot.png"))
    inside.locator(".thumb img").wait_for()
    ask(inside, "What is this?")
    inside.get_by_role("alert").get_by_text("does not read pictures").wait_for()
    assert inside.locator(".question img").evaluate("image => image.naturalWidth") == 1


def test_pictures_that_are_added_at_once_all_arrive_and_one_may_come_again(inside: Any, tmp_path: Path) -> None:
    first, *others = (dot(tmp_path / f"{number}.png") for number in range(3))
    held: list[Any] = []
    inside.route("**/upload/*", lambda route: held.append(route))
    inside.route("**/upload/*", lambda route: route.continue_(), times=1)
    pick(inside, first, *others)
    inside.wait_for_function("document.querySelectorAll('.q-uploader__file').length === 2")  # the first has come
    inside.route("**/upload/*", lambda route: route.continue_())
    for route in held:
        route.continue_()
    inside.locator(".thumb img").nth(2).wait_for()
    inside.wait_for_function("!document.querySelector('.q-uploader__file')")
    pick(inside, first)
    inside.locator(".thumb img").nth(3).wait_for()


def test_pictures_are_drawn_in_the_conversation_and_kept_and_a_model_that_sees_them_answers(inside: Any, tmp_path: Path) -> None:
    inside.get_by_label("Models").click()
    for name in ("painter", "tiny"):
        inside.get_by_role("option", name=name).click()
    inside.keyboard.press("Escape")
    inside.get_by_text("What shall be drawn?").wait_for()
    ask(inside, "a dot")
    inside.locator(".answer .speed").wait_for()
    picture = inside.locator(".answer img.drawn")
    size = "image => [image.naturalWidth, image.naturalHeight]"
    assert picture.evaluate(size) == [6, 4] and picture.bounding_box()["width"] > 200
    shown = picture.get_attribute("src")
    inside.reload()
    inside.locator(".answer img.drawn").wait_for()
    assert inside.locator(".answer img.drawn").get_attribute("src") == shown
    assert inside.get_by_label("Thumb up").count() == 0
    inside.keyboard.press("Control+Shift+o")
    inside.get_by_text("What shall be drawn?").wait_for()
    inside.locator(".pill", has_text="Draw").click()
    inside.get_by_role("menuitem", name="Chat").click()
    (tmp_path / "drawn.png").write_bytes(base64.b64decode(str(shown).partition(",")[2]))
    pick(inside, tmp_path / "drawn.png")
    inside.locator(".thumb img").wait_for()
    settings(inside, most_tokens=5)
    ask(inside, "What is this?")
    inside.get_by_label("Another answer").wait_for()
    assert inside.locator(".failure").count() == 0
    assert inside.locator(".question img").count() == 1


def test_the_tour_offers_what_a_model_can_and_each_card_is_answered_in_its_way(inside: Any, api: httpx.Client) -> None:
    cards = inside.locator(".card-idea")
    # The model knows dialogue and does not think, so the sum and the two answers are not offered.
    titles = ("Complete this function", "Fill in this gap")
    assert [text.partition("\n")[2] for text in cards.all_inner_texts()] == list(titles)
    choose(inside, "able")
    inside.wait_for_function("document.querySelectorAll('.card-idea').length === 8")
    inside.get_by_role("button", name="Fill in this gap").click()
    inside.locator(".tour-on").wait_for()
    head, behind = inside.locator(".document .prompt").all_inner_texts()
    assert head.startswith("def answer(values)") and behind.strip() == "return max(found, default=0)"
    assert inside.locator(".document").inner_text().startswith(head) and "<gap>" not in inside.locator(".thread").inner_text()
    inside.get_by_role("button", name="Next: 37 + 58").click()
    inside.wait_for_function("document.querySelectorAll('.side .answer .speed').length === 2")
    assert inside.locator(".answer .who").all_inner_texts() == ["able, effort low", "able, effort high"]
    inside.wait_for_function("document.querySelectorAll('.side .thought').length === 2")
    inside.get_by_role("button", name="Next: Draw a seven").click()
    inside.locator(".answer img").wait_for()
    inside.locator(".tour-on").wait_for()
    assert inside.locator(".answer img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [8, 8]
    inside.get_by_role("button", name="Next: What is in this picture?").click()
    inside.locator(".question img.drawn").wait_for()
    inside.locator(".tour-on").wait_for()
    shown = inside.locator(".question img.drawn")
    assert shown.evaluate("image => image.naturalWidth") == 8 and shown.bounding_box()["width"] > 150
    inside.get_by_role("button", name="Next: A red ball").click()
    inside.locator(".tour-on").wait_for()
    # Found and read in one step: between two the page may have drawn the turn again, and what has left the page has no style.
    film = inside.wait_for_function(
        "() => { const v = document.querySelector('.answer video'); return v?.readyState > 1 && "
        "[v.loop, v.muted, v.error, v.videoWidth, getComputedStyle(v).imageRendering]; }"
    )
    assert film.json_value() == [True, True, None, 8, "pixelated"]
    assert api.get("/v1/videos").json()["data"] == []  # what is in the chat is kept nowhere else
    inside.get_by_role("button", name="Next: Play C E G").click()
    inside.wait_for_function("document.querySelector('.answer audio')?.readyState > 0")
    controls, error, seconds = inside.locator(".answer audio").evaluate("a => [a.controls, a.error, a.duration]")
    assert controls and error is None and seconds > 0
    assert inside.locator(".answer .sound").inner_text() == f"{seconds:.2f} s"
    inside.reload()
    inside.wait_for_function("document.querySelector('.answer audio')?.readyState > 0")
    assert inside.locator(".tour-on").count() == 0
    kept = ("Play C E G", "A red ball", "What is in this picture?", "Draw a seven", "37 + 58", "Fill in this gap")
    for begun, title in zip(inside.locator(".chat-title").all_inner_texts(), kept, strict=False):
        assert begun.startswith(title)


def test_what_a_card_sets_ends_with_its_chat(inside: Any) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    settings(inside, temperature=0.7)
    inside.get_by_role("button", name="Complete this function").click()
    inside.locator(".tour-on").wait_for()
    inside.get_by_label("Settings").click()
    # What is told to the browser comes in pieces, ten a second.
    expect(inside.get_by_label("Temperature")).to_have_value("0.2")
    inside.keyboard.press("Escape")
    inside.get_by_role("button", name="All to try").click()
    inside.get_by_text("What shall we talk about?").wait_for()
    inside.get_by_label("Settings").click()
    expect(inside.get_by_label("Temperature")).to_have_value("0.7")
    expect(inside.get_by_label("Most tokens")).to_have_value("")


def film(page: Any, text: str) -> None:
    """Asks for one."""
    choose(page, "able")
    page.locator(".pill", has_text="Chat").click()
    page.get_by_role("menuitem", name="Film").click()
    # What is sent before the server has heard of the mode is a message.
    page.locator(".pill", has_text="Film").wait_for()
    page.get_by_role("menu").wait_for(state="detached")
    ask(page, text)


def test_a_film_is_made_in_a_mode_of_its_own(inside: Any, server: Running) -> None:
    film(inside, "a ball")
    # Found and measured in one step: between two the page may draw the turn again.
    inside.wait_for_function("document.querySelector('.answer video')?.getBoundingClientRect().width > 100")
    assert inside.locator(".bubble").inner_text() == "a ball" and server.idle()


def test_markdown_code_and_formulas_are_drawn_offline_and_nothing_in_them_runs(
    inside: Any, server: Running, api: httpx.Client
) -> None:
    text = (
        "**Bold** $x^2$ <img src=x onerror='window.ran = 1'>\n\n$$\n\\frac{a}{b}\n$$\n\n"
        "```python\ndef f(): return 1\n```\n\n![p](https://example.org/p.png) [l](javascript:window.ran=1)\n"
    )
    chat = api.post("/tessera/chats", json={"title": "Drawn"}).json()["id"]
    asked = api.post(f"/tessera/chats/{chat}/turns", json={"role": "user", "text": "<b>Draw</b>"}).json()["id"]
    body = {"role": "assistant", "text": text, "after": [asked], "model": "tiny", "reasoning": "First I think."}
    api.post(f"/tessera/chats/{chat}/turns", json=body)
    inside.goto(f"{home(server)}?chat={chat}")
    inside.locator(".answer strong", has_text="Bold").wait_for()
    assert inside.locator(".answer math").count() == 2 and inside.locator(".answer mfrac").bounding_box()["height"] > 10
    keyword, plain = (
        inside.locator(f".answer .code {which}").first.evaluate("e => getComputedStyle(e).color") for which in (".k", "code")
    )
    assert keyword != plain
    assert not inside.get_by_text("First I think.").is_visible()
    inside.get_by_text("Thought before it answered").click()
    inside.get_by_text("First I think.").wait_for()
    assert inside.locator(".answer .text img").count() == 0 and inside.locator(".bubble").inner_text() == "<b>Draw</b>"
    assert inside.evaluate("window.ran") is None


def test_what_is_said_for_a_moment_can_be_read(inside: Any) -> None:
    inside.evaluate("takeFiles([new File(['x'], 'words.txt', { type: 'text/plain' })])")
    inside.locator(".q-notification", has_text="words.txt is no picture").wait_for()
    colours = """() => {
      const [note] = document.querySelectorAll(".q-notification");
      const kinds = ["negative", "positive", "warning", "info"];
      return kinds.map((kind) => {
        note.className = note.className.replace(/bg-\\w+/, `bg-${kind}`);
        const style = getComputedStyle(note);
        return [style.color, style.backgroundColor];
      });
    }"""
    pairs = inside.evaluate(colours)
    assert len({ground for _, ground in pairs}) == 4
    for pair in pairs:
        dark, light = sorted(_luminance(colour) for colour in pair)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


def test_links_of_an_answer_open_apart(inside: Any, server: Running, api: httpx.Client) -> None:
    chat = api.post("/tessera/chats", json={"title": "Linked"}).json()["id"]
    asked = api.post(f"/tessera/chats/{chat}/turns", json={"role": "user", "text": "Where?"}).json()["id"]
    body = {"role": "assistant", "text": "[link](/favicon.ico) ![picture](/favicon.ico)", "after": [asked], "model": "tiny"}
    api.post(f"/tessera/chats/{chat}/turns", json=body)
    inside.goto(f"{home(server)}?chat={chat}")
    for name in ("link", "picture"):
        with inside.expect_popup() as opened:
            inside.get_by_role("link", name=name).click()
        opened.value.close()
    assert inside.url == f"{home(server)}?chat={chat}"


def test_runs_and_tuning_are_shown_and_a_small_screen_has_room_for_all(inside: Any, api: httpx.Client) -> None:
    inside.get_by_role("tab", name="Runs").click()
    inside.locator(".chart svg path[stroke]").first.wait_for(state="attached")
    inside.locator(".tiles .value", has_text="1.99k").wait_for()
    inside.get_by_role("tab", name="Tuning").click()
    inside.get_by_text("None yet. Jobs are started through the API").wait_for()
    inside.set_viewport_size({"width": 390, "height": 780})
    for tab in range(3):
        inside.get_by_role("tab").nth(tab).click()
        inside.wait_for_timeout(200)
        assert inside.evaluate("document.documentElement.scrollWidth") == 390
    inside.get_by_label("Light or dark").click()
    inside.get_by_label("Light or dark").click()
    inside.locator("body.body--dark").wait_for(state="attached")


def test_the_list_of_chats_is_open_where_there_is_room(inside: Any, server: Running) -> None:
    new, chats = inside.get_by_role("button", name="New chat"), inside.get_by_label("History")
    outside = "document.querySelector('.fresh').getBoundingClientRect().right <= 0"
    within = "document.querySelector('.fresh').getBoundingClientRect().left >= 0"
    inside.wait_for_function(within)
    chats.click()
    inside.wait_for_function(outside)
    chats.click()
    inside.wait_for_function(within)
    inside.set_viewport_size({"width": 390, "height": 844})
    inside.wait_for_function(outside)
    inside.reload()
    inside.get_by_text("What shall we talk about?").wait_for()
    inside.wait_for_function(outside)
    chats.click()
    inside.wait_for_function(within)
    new.click()
    inside.wait_for_function(outside)
    inside.set_viewport_size({"width": 1200, "height": 800})
    inside.wait_for_function(within)


def test_a_tuning_job_is_drawn_as_it_goes_and_cancelled_by_a_button(inside: Any, api: httpx.Client) -> None:
    row = {"messages": [{"role": "user", "content": "Say red"}, {"role": "assistant", "content": "red."}]}
    sent = {"file": ("examples.jsonl", "\n".join([json.dumps(row)] * 20).encode())}
    file = api.post("/v1/files", data={"purpose": "fine-tune"}, files=sent).json()["id"]
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 100, "batch_size": 1}}}
    job = api.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file, "method": method}).json()["id"]
    inside.get_by_role("tab", name="Tuning").click()
    inside.get_by_role("cell", name="running").wait_for()
    chart = inside.locator(".q-tab-panel .chart svg")
    chart.locator("path[stroke]").first.wait_for(state="attached", timeout=180_000)  # the job gives way to everybody else
    assert chart.bounding_box()["width"] > 400
    inside.get_by_role("button", name="Cancel the job").click()
    inside.get_by_role("cell", name="cancelled").wait_for()
    inside.get_by_role("button", name="Cancel the job").wait_for(state="hidden")
    assert api.get(f"/v1/fine_tuning/jobs/{job}").json()["status"] == "cancelled"


def test_thumbs_become_a_job_whose_model_answers(inside: Any, api: httpx.Client) -> None:
    for question in ("Left?", "Right?"):
        chat = api.post("/tessera/chats", json={"title": question}).json()["id"]
        asked = api.post(f"/tessera/chats/{chat}/turns", json={"role": "user", "text": question}).json()["id"]
        for text, thumb in (("Yes.", "up"), ("No, never.", "down")):
            body = {"role": "assistant", "text": text, "after": [asked], "model": "tiny"}
            turn = api.post(f"/tessera/chats/{chat}/turns", json=body).json()["id"]
            api.post(f"/tessera/chats/{chat}/turns/{turn}", json={"rating": thumb})
    inside.get_by_role("tab", name="Tuning").click()
    before = len(api.get("/v1/fine_tuning/jobs").json()["data"])
    inside.get_by_role("button", name="Tune on these pairs").evaluate("button => { button.click(); button.click(); }")
    inside.get_by_role("cell", name="succeeded").wait_for(timeout=180_000)
    assert len(api.get("/v1/fine_tuning/jobs").json()["data"]) == before + 1
    inside.get_by_role("tab", name="Chat").click()
    inside.get_by_label("Models").click()
    inside.get_by_role("option", name=":thumbs:").first.click()
    inside.get_by_role("option", name="tiny", exact=True).click()
    inside.keyboard.press("Escape")
    settings(inside, most_tokens=5)
    ask(inside, "Left?")
    inside.locator(".answer .speed").wait_for()
    assert ":thumbs:" in inside.locator(".answer .who").inner_text()


def test_without_keys_foreign_names_and_pages_are_kept_from_the_page_too(tmp_path: Path, model_folder: Path) -> None:
    with serving(Settings(tmp_path, page=True), model_folder) as running:
        at = httpx.URL(home(running))
        socket = {
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "MDEyMzQ1Njc4OWFiY2RlZg==",
        }
        foreign = {"origin": "https://evil.example"}
        assert httpx.get(at, headers={"host": "evil.example"}).status_code == 403
        assert httpx.post(at.join("/_nicegui_ws/socket.io/"), headers=foreign).status_code == 403
        assert (
            httpx.get(at.join("/_nicegui_ws/socket.io/?transport=websocket&EIO=4"), headers=socket | foreign).status_code == 403
        )


def test_no_page_is_no_page(running: Running) -> None:
    assert httpx.get(home(running)).status_code == 404


def _luminance(colour: str) -> float:
    """Of `rgb(R, G, B)`, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _letters(text: str) -> str:
    return "".join(c for c in text if c.isalpha())
