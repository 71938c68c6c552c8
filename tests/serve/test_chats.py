"""What the page keeps: chats as trees, found again by their words; thumbs that become the rows of a preference job; runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tessera.scaling import ledger
from tessera.serve.app import Settings
from tessera.serve.keys import LOCAL
from tessera.serve.store import Store
from tessera.serve.turns import before, failures, pairs, text_of, way
from tests.serve.conftest import Running, database_for, serving


@pytest.fixture
def http(running: Running) -> httpx.Client:
    return httpx.Client(base_url=running.url.removesuffix("/v1"))


def say(http: httpx.Client, chat: str, role: str, text: str, after: list[str] | None = None, model: str = "") -> dict[str, Any]:
    body = {"role": role, "text": text, "after": after or [], "model": model}
    answer = http.post(f"/tessera/chats/{chat}/turns", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_chats_are_found_by_words_in_any_case_and_forgotten_with_their_turns(http: httpx.Client) -> None:
    chat = http.post("/tessera/chats", json={"title": "Grüße"}).json()["id"]
    asked = say(http, chat, "user", "Where is ÖLAND, 100% sure?")
    say(http, chat, "assistant", "In the Baltic\0 Sea.", [asked["id"]], "tiny")

    def found(query: str) -> list[str]:
        return [c["id"] for c in http.get("/tessera/chats", params={"query": query}).json()["data"]]

    assert chat in found("öland baltic") and chat in found("GRÜSSE") and chat in found("100%")
    assert found("öland pacific") == [] and found("1_0%") == []
    assert len(http.get(f"/tessera/chats/{chat}").json()["turns"]) == 2
    http.delete(f"/tessera/chats/{chat}")
    assert http.get(f"/tessera/chats/{chat}").status_code == 404 and found("öland") == []


def test_thumbs_under_one_question_become_the_rows_of_a_preference_job(http: httpx.Client) -> None:
    chat = http.post("/tessera/chats", json={"instructions": "Be brief."}).json()["id"]
    first = say(http, chat, "user", "Hello")
    hello = say(http, chat, "assistant", "Hi.", [first["id"]], "tiny")
    asked = say(http, chat, "user", "Two and two?", [hello["id"]])
    answers = [say(http, chat, "assistant", text, [asked["id"]], "tiny") for text in ("Four.", "Five.", "Six.")]

    def rate(turn: dict[str, Any], rating: str | None) -> int:
        return int(http.post(f"/tessera/chats/{chat}/turns/{turn['id']}", json={"rating": rating}).json()["pairs"])

    assert [rate(a, r) for a, r in zip(answers, ("up", "down", "down"), strict=True)] == [0, 1, 2]
    assert rate(answers[2], None) == 1  # a thumb that is taken back takes its pair along
    rows = [json.loads(line) for line in http.get("/tessera/preferences.jsonl").text.splitlines()]
    history = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", "Two and two?")]
    assert rows[-1] == {
        "prompt": [{"role": role, "content": text} for role, text in history],
        "chosen": [{"role": "assistant", "content": "Four."}],
        "rejected": [{"role": "assistant", "content": "Five."}],
    }
    http.delete(f"/tessera/chats/{chat}")
    assert http.get("/tessera/preferences").json()["data"] == []


def test_why_a_turn_was_not_answered_is_kept_until_it_is(http: httpx.Client) -> None:
    chat = http.post("/tessera/chats", json={}).json()["id"]
    asked = say(http, chat, "user", "Hello")
    at = f"/tessera/chats/{chat}/turns/{asked['id']}/failures"
    for model, effort, message in (("one", "", "Busy."), ("two", "low", "Full."), ("one", "", "Gone.")):
        body = {"model": model, "effort": effort, "message": message}
        turn = http.post(at, json=body).json()
    kept = [{"model": "two", "effort": "low", "message": "Full."}, {"model": "one", "effort": "", "message": "Gone."}]
    assert turn["failures"] == kept
    found = {(asked["id"], ("two", "low")): "Full.", (asked["id"], ("one", "")): "Gone."}
    assert failures(http.get(f"/tessera/chats/{chat}").json()["turns"]) == found
    answer = say(http, chat, "assistant", "Hi.", [asked["id"]], "one")
    assert list(failures(http.get(f"/tessera/chats/{chat}").json()["turns"]).values()) == ["Full."]
    refused = http.post(at.replace(asked["id"], answer["id"]), json={"model": "one", "message": "No."})
    assert refused.status_code == 400 and "Only turns of the user" in refused.text


def test_what_is_said_of_a_picture_makes_no_pair(http: httpx.Client) -> None:
    chat = http.post("/tessera/chats", json={}).json()["id"]
    picture = "data:image/png;base64,AAAA"
    asked = http.post(f"/tessera/chats/{chat}/turns", json={"role": "user", "text": "What?", "images": [picture]}).json()
    for text, rating in (("A dot.", "up"), ("A cat.", "down")):
        answer = say(http, chat, "assistant", text, [asked["id"]], "tiny")
        rated = http.post(f"/tessera/chats/{chat}/turns/{answer['id']}", json={"rating": rating}).json()
        assert rated["pairs"] == 0


def test_a_pair_with_a_picture_that_was_kept_once_is_not_exported(tmp_path: Path, model_folder: Path) -> None:
    url = database_for(tmp_path) or f"sqlite:///{tmp_path / 'tessera.db'}"
    words = {"prompt": "Red", "chosen": " ball", "rejected": " wall"}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    seen = {"prompt": [{"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}], "chosen": [], "rejected": []}
    store = Store(url)
    for number, row in enumerate((seen, words)):
        store.put(LOCAL, "preference", {"id": f"pref_{number}", "created_at": number} | row)
    store.close()
    with serving(Settings(tmp_path), model_folder) as server:
        lines = httpx.get(f"{server.url.removesuffix('/v1')}/tessera/preferences.jsonl").text.splitlines()
    assert [json.loads(line) for line in lines] == [words]


def test_a_turn_must_stand_in_its_chat(http: httpx.Client) -> None:
    one, other = (http.post("/tessera/chats", json={}).json()["id"] for _ in range(2))
    asked = say(http, one, "user", "Here")
    for body in (
        {"role": "assistant", "text": "x", "after": [asked["id"]]},
        {"role": "assistant", "text": "x"},
        {"role": "user", "text": "x", "images": ["https://example.org/x.png"]},
    ):
        answer = http.post(f"/tessera/chats/{other}/turns", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["param"], answer.text


def test_a_way_through_the_tree_shows_what_was_picked_and_each_model_remembers_its_own_answers() -> None:
    def turn(id: str, role: str, after: list[str], model: str = "") -> dict[str, Any]:
        return {"id": id, "role": role, "after": after, "model": model}

    turns = [
        turn("q", "user", []),
        turn("a1", "assistant", ["q"], "a"),
        turn("b1", "assistant", ["q"], "b"),
        turn("a2", "assistant", ["q"], "a"),
        turn("r", "user", ["a2", "b1"]),
        turn("s", "user", ["a1"]),
    ]
    assert [e.turn["id"] for e in way(turns, {})] == ["q", "r"]
    assert [e.turn["id"] for e in way(turns, {"a1": "a1", "a2": "a1", "b1": "b1"})] == ["q", "s"]
    assert [t["id"] for t in before(turns, turns[4], "a")] == ["q", "a2", "r"]
    assert [t["id"] for t in before(turns, turns[4], "b")] == ["q", "b1", "r"]


def test_answers_of_one_model_with_two_efforts_stand_side_by_side() -> None:
    asked = {"id": "q", "role": "user", "after": []}
    answers = [
        {"id": id, "role": "assistant", "after": ["q"], "model": "a", "effort": effort}
        for id, effort in (("l", "low"), ("h", "high"), ("m", "low"))
    ]
    (exchange,) = way([asked, *answers], {})
    assert {voice: [turn["id"] for turn in there] for voice, there in exchange.answers.items()} == {
        ("a", "low"): ["l", "m"],
        ("a", "high"): ["h"],
    }
    assert [turn["id"] for turn in exchange.shown({"m": "l"})] == ["l", "h"]


def test_a_gap_is_filled_where_it_is_and_goes_on_as_part_of_the_text() -> None:
    def turn(role: str, text: str, **more: Any) -> dict[str, Any]:
        return {"id": text, "role": role, "text": text, "after": [], "model": "a", "rating": None, **more}

    asked, filled = turn("user", "one <gap> three"), turn("assistant", "two")
    assert text_of([asked]) == ("one ", " three")
    assert text_of([asked, filled, turn("user", ", four")]) == ("one two three, four", None)
    assert text_of([turn("user", "no gap"), turn("assistant", " <gap>")]) == ("no gap <gap>", None)
    rated = [turn("assistant", text, after=[asked["id"]], rating=rating) for text, rating in (("two", "up"), ("2", "down"))]
    assert pairs([asked, *rated], asked, "complete") == []


def test_films_and_sounds_are_kept_with_a_turn_and_nothing_else_is_taken_for_one(http: httpx.Client) -> None:
    chat = http.post("/tessera/chats", json={"mode": "film"}).json()["id"]
    asked = say(http, chat, "user", "a ball")
    film = "data:video/mp4;base64,AAAA"
    body = {"role": "assistant", "text": "", "after": [asked["id"]], "model": "tiny", "effort": "low", "media": [film]}
    kept = http.post(f"/tessera/chats/{chat}/turns", json=body).json()
    assert kept["media"] == [film] and kept["effort"] == "low" and http.get(f"/tessera/chats/{chat}").json()["turns"][-1] == kept
    for wrong in ("data:text/html;base64,AAAA", "https://example.org/film.mp4", "data:video/mp4,AAAA"):
        assert http.post(f"/tessera/chats/{chat}/turns", json=body | {"media": [wrong]}).status_code == 400


def test_curves_follow_a_run_that_is_going_on_and_one_that_was_resumed(tmp_path: Path, model_folder: Path) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("summary: A run.\n")
    metrics = run / "metrics.jsonl"

    def step(number: int, loss: float | None) -> str:
        return json.dumps({"event": "step", "step": number, "tokens": number * 10, "loss": loss, "seconds": number}) + "\n"

    metrics.write_text(step(1, 4.0) + step(2, 3.0) + '{"event": "step", "tok')
    intervals = {"0.5": [1.9, 2.1], "0.8": [1.85, 2.2], "0.9": [1.8, 2.2], "0.99": [1.0, 3.0]}
    sealed = {"run": "runs/one", "seal": "s", "target": {"C": 1e13}, "reach": 8.0, "loss": 2.0, "intervals": intervals}
    ledger.append(run.parent / "ledger.jsonl", "sealed", sealed)
    with serving(Settings(tmp_path / "data", runs=run.parent), model_folder) as server:
        http = httpx.Client(base_url=server.url.removesuffix("/v1"))
        assert [r["id"] for r in http.get("/tessera/runs").json()["data"]] == ["one"]
        assert http.get("/tessera/runs/one").json()["losses"] == [[10, 4.0], [20, 3.0]]
        metrics.write_text(step(1, 4.0) + step(2, 3.0) + step(3, None) + step(2, 2.5))
        assert http.get("/tessera/runs/one").json()["losses"] == [[10, 4.0], [20, 2.5]]
        entry = http.get("/tessera/ledger").json()["data"][0]
        assert (entry["run"], entry["foretold"], entry["state"]) == ("one", 2.0, "open")
        assert http.get("/tessera/runs/..").status_code == 404 and http.get("/tessera/runs/two").status_code == 404
