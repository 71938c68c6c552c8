"""Pictures by the SDK: drawn, edited, varied, streamed and fetched; and what is refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image

from tessera.data.pictures import fitted, png, read_picture
from tessera.engine.pictures import seeing
from tessera.serve.app import Settings
from tessera.serve.keys import read_keys

from .conftest import COLOURS, Running, make_model, serving

PALETTE = {tuple(colour) for colour in COLOURS.tolist()}
KEY = "sk-alice-0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Running]:
    """Behind a key: a model without pictures and one with them."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "keys.txt").write_text(f"{KEY} name=alice\n")
    with serving(
        Settings(folder, keys=read_keys(folder / "keys.txt")), model_folder, make_model(folder / "painter", False, draws=True)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return server.client(KEY)


def pixels(datum: Any) -> np.ndarray:
    return read_picture(base64.b64decode(datum.b64_json))


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


def test_pictures_have_the_size_that_was_asked_for_and_the_same_for_a_seed(client: OpenAI) -> None:
    made = client.images.generate(model="painter", prompt="a dot", n=2, size="5x3", extra_body={"seed": 7, "best_of": 2})
    assert made.data is not None and len(made.data) == 2 and made.size == "5x3" and made.output_format == "png"
    for datum in made.data:
        assert pixels(datum).shape == (3, 5, 3) and colours(pixels(datum)) <= PALETTE
    again = client.images.generate(prompt="a dot", size="5x3", extra_body={"seed": 7, "best_of": 2})
    assert again.data is not None and (pixels(again.data[0]) == pixels(made.data[0])).all(), "the first model that draws"
    usage = again.usage
    assert usage is not None and usage.input_tokens_details.text_tokens > 0 and usage.total_tokens > usage.input_tokens
    assert usage.output_tokens_details is not None and usage.output_tokens_details.image_tokens == 2 * 15
    usual = client.images.generate(model="painter", prompt="a dot")
    assert usual.size == "6x4" and usual._request_id


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_an_address_shows_the_file_without_a_key_and_other_addresses_nothing(client: OpenAI, kind: Any) -> None:
    made = client.images.generate(model="painter", prompt="a dot", response_format="url", output_format=kind)
    assert made.data is not None and made.data[0].url is not None and made.data[0].b64_json is None
    shown = httpx2.get(made.data[0].url)
    assert shown.status_code == 200 and shown.headers["content-type"] == f"image/{kind}"
    assert Image.open(io.BytesIO(shown.content)).format == kind.upper()
    other = made.data[0].url.rpartition("img_")[0] + f"img_{'0' * 24}.{kind}"
    assert httpx2.get(other).status_code == 404 and httpx2.get(other).json()["error"]["code"] == "not_found"


def test_a_picture_says_who_made_it_and_others_do_not(client: OpenAI) -> None:
    made = client.images.generate(model="painter", prompt="a dot", stream=True, partial_images=1)
    files = [base64.b64decode(event.b64_json) for event in made]
    unfinished, finished = (client.content_provenance_checks.create(file=("a.png", file)) for file in files)
    (found,) = finished.results
    assert finished.object == "content_provenance_check" and found.type == "c2pa"
    assert (found.outcome, found.validation_state, found.model, found.issuer) == ("detected", "trusted", "painter", "Tessera")
    assert found.generated_at is not None and found.generated_at.startswith("20")
    (nothing,) = unfinished.results
    assert nothing.type == "c2pa" and (nothing.outcome, nothing.validation_state) == ("not_detected", "not_present")
    changed = bytearray(files[1])
    changed[-20] ^= 1
    (broken,) = client.content_provenance_checks.create(file=("a.png", bytes(changed))).results
    assert broken.type == "c2pa" and (broken.outcome, broken.validation_state, broken.model) == ("not_detected", "invalid", None)
    for junk in (b"", b"words"):
        with pytest.raises(openai.BadRequestError) as refused:
            client.content_provenance_checks.create(file=("a.png", junk))
        assert refused.value.param == "file" and refused.value.code == "invalid_file"


def test_a_stream_shows_unfinished_pictures_and_ends_with_the_whole_one(client: OpenAI) -> None:
    asked: Any = {"model": "painter", "prompt": "a dot", "size": "6x6"}
    events = list(client.images.generate(**asked, stream=True, partial_images=2, extra_body={"seed": 3}))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # type: ignore[union-attr]
    whole = client.images.generate(**asked, extra_body={"seed": 3})
    assert whole.data is not None and (pixels(events[2]) == pixels(whole.data[0])).all()
    first = pixels(events[0])
    assert (first[:1] == pixels(events[2])[:1]).all() and (first[4:] == 255).all()
    assert events[2].usage.output_tokens > 36 and events[2].size == "6x6"  # type: ignore[union-attr]


def test_an_edit_keeps_every_pixel_that_the_mask_does_not_name(client: OpenAI) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)  # no colour of it is in the palette
    hidden = np.zeros((4, 6), bool)
    hidden[2:, :3] = True
    mask = np.dstack([np.zeros_like(photo), np.where(hidden, 0, 255).astype(np.uint8)])
    made = client.images.edit(model="painter", image=("a.png", png(photo)), mask=("m.png", png(mask)), prompt="a dot", n=2)
    assert made.data is not None and len(made.data) == 2
    for datum in made.data:
        assert (pixels(datum)[~hidden] == photo[~hidden]).all() and colours(pixels(datum)[hidden]) <= PALETTE
    # Without a mask its own transparent pixels are the hole; as one of several it goes by another name.
    own = png(np.dstack([photo, mask[..., 3]]))
    events = list(client.images.edit(model="painter", image=[("a.png", own)], prompt="a dot", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert (pixels(events[1])[~hidden] == photo[~hidden]).all()


def test_a_variation_tells_what_it_took_the_picture_for(client: OpenAI) -> None:
    photo = png(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    made = client.images.create_variation(model="painter", image=("a.png", photo), n=2, extra_body={"seed": 1})
    assert made.data is not None and [pixels(datum).shape for datum in made.data] == [(4, 6, 3)] * 2
    assert made.usage is not None and made.usage.input_tokens_details.image_tokens >= 24


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"model": "tiny"}, "model", "tessera train draw"),
        ({"size": "1024x1024"}, "size", "give a smaller size"),
        ({"size": "large"}, "size", "pattern"),
        ({"size": "0x3"}, "size", "pattern"),
        ({"n": 11}, "n", "10"),
        ({"n": "2"}, "n", "integer"),
        ({"prompt": ""}, "prompt", "character"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"output_format": "svg"}, "output_format", "png"),
        ({"partial_images": 2}, "partial_images", "stream"),
        ({"extra_body": {"guidance": -1}}, "guidance", "greater"),
        ({"extra_body": {"n": 10, "best_of": 16}}, "best_of", "64"),
        ({"extra_body": {"colour": "red"}}, "colour", "Unrecognized"),
    ],
)
def test_fields_are_checked(client: OpenAI, change: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.images.generate(**{"model": "painter", "prompt": "a dot"} | change)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("image", "mask", "param", "words"),
    [
        (b"no picture", None, "image", "not a PNG"),
        (bomb(), None, "image", "3,?600,?000,?000|60000 x 60000|pixels"),
        (png(np.zeros((4, 6, 3), np.uint8))[:40], None, "image", "cannot be read"),
        (b"", None, "image", "not a PNG"),
        (png(np.zeros((4, 6, 3), np.uint8)), None, "mask", "Nothing is to be drawn"),
        (png(np.zeros((4, 6, 3), np.uint8)), png(np.zeros((3, 6, 3), np.uint8)), "mask", "has the size of its picture"),
        (png(np.zeros((4, 6, 3), np.uint8)), b"x", "mask", "not a PNG"),
    ],
)
def test_uploads_are_checked(client: OpenAI, image: bytes, mask: bytes | None, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.images.edit(
            model="painter", image=("a.png", image), prompt="a dot", **({} if mask is None else {"mask": ("m.png", mask)})
        )
    assert refused.value.param == param


def test_a_size_that_no_context_holds_is_refused_before_it_is_made(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("made")

    for name in ("hole", "sized"):
        monkeypatch.setattr(f"tessera.serve.images.{name}", never)
    picture = np.full((4, 4, 4), 255, np.uint8)
    picture[0, 0, 3] = 0
    for ask in (
        lambda: client.images.edit(model="painter", image=("a.png", png(picture)), prompt="a dot", size="9999x9999", n=10),  # type: ignore[call-overload]
        lambda: client.images.create_variation(model="painter", image=("a.png", png(picture[..., :3])), size="9999x9999"),  # type: ignore[arg-type]
    ):
        with pytest.raises(openai.BadRequestError, match="give a smaller size"):
            ask()


def test_two_pictures_none_and_a_form_without_one_are_refused(client: OpenAI, server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="one picture at a time"):
        client.images.edit(model="painter", image=[("a.png", b"x"), ("b.png", b"y")], prompt="a dot")
    headers = {"authorization": f"Bearer {KEY}"}
    for sent in ({"data": {"prompt": "x"}}, {"json": {"prompt": "x"}}):
        refused = httpx2.post(f"{server.url}/images/edits", headers=headers, **sent)  # type: ignore[arg-type]
        assert refused.status_code == 400 and set(refused.json()["error"]) == {"message", "type", "param", "code"}


def test_a_picture_in_a_message_is_read_as_the_command_line_shows_it(client: OpenAI, server: Running) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    url = f"data:image/png;base64,{base64.b64encode(png(photo)).decode()}"
    served = server.models.get("painter", "alice")
    for text, question in (("How many?", "How many?"), ("", "")):
        parts: Any = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
        messages: Any = [{"role": "user", "content": parts}]
        chat = client.chat.completions.create(model="painter", messages=messages, max_tokens=8, temperature=0)
        asked = seeing(served, fitted(photo, 24), question)
        same = client.completions.create(model="painter", prompt=asked, max_tokens=8, temperature=0)
        assert chat.choices[0].message.content == same.choices[0].text
        assert chat.usage is not None and chat.usage.prompt_tokens == len(asked)
        shown: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": url, "detail": "auto"}]}]
        shown[0]["content"].append({"type": "input_text", "text": text})
        answer = client.responses.create(model="painter", input=shown, max_output_tokens=8, temperature=0)
        assert answer.output_text == same.choices[0].text
    assert client.responses.input_items.list(answer.id).data[0].content[0].image_url == url  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("url", "model", "words"),
    [
        ("https://example.org/a.png", "painter", "are not followed"),
        ("data:image/png;base64,????", "painter", "not valid base64"),
        ("data:image/png;base64,AAAA", "painter", "not a PNG"),
        (f"data:image/png;base64,{base64.b64encode(bomb()).decode()}", "painter", "pixels"),
        (f"data:image/png;base64,{base64.b64encode(png(COLOURS[None])).decode()}", "tiny", "does not read pictures"),
    ],
)
def test_pictures_in_messages_are_checked(client: OpenAI, url: str, model: str, words: str) -> None:
    message: Any = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.chat.completions.create(model=model, messages=[message], max_tokens=1)
    assert str(refused.value.param).startswith("messages[0]")
    shown: Any = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
    with pytest.raises(openai.BadRequestError, match=words):
        client.responses.create(model=model, input=[shown], max_output_tokens=1)


def test_who_leaves_a_stream_stops_the_drawing(client: OpenAI, server: Running) -> None:
    before = server.engine_tokens
    with server.slowed():
        stream = client.images.generate(model="painter", prompt="a dot", size="30x30", stream=True, partial_images=3)
        next(iter(stream))
        stream.close()
        assert server.idle(30)
    assert server.engine_tokens - before < 30 * 31
