"""`/v1/images`: pictures drawn by a caption, edited and varied, by the same code as `tessera generate`.

They come in the response, in an event of a stream with unfinished ones before it, or as an address that works for an hour.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Form, UploadFile
from fastapi import Path as PathPart
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field, StringConstraints
from starlette.responses import FileResponse, Response

from tessera.data.pictures import encoded, hole, on_white, read_picture, sized
from tessera.data.reasons import Unreadable
from tessera.engine.constraints import PictureGrid
from tessera.engine.pictures import GUIDANCE, Drawing, Steps, Wish, drawing, named, pasted, refuse_large, unfinished
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.provenance import marked
from tessera.serve import bodies
from tessera.serve.context import Call, Here, in_thread
from tessera.serve.door import OPEN_PICTURES
from tessera.serve.errors import ApiError, invalid, not_found, sentence
from tessera.serve.generation import unless_left
from tessera.serve.models import Served, now
from tessera.serve.rounds import Rounds, maker
from tessera.serve.store import new_id
from tessera.serve.streams import MAY_STREAM, EventStream, event
from tessera.tokens.pictures import known_size

router = APIRouter(tags=["images"])

_KIND = "picture"
_URL_SECONDS = 3600
_MOST_DRAWN = 64
"""Pictures of one request, those that `best_of` drops included."""
_FILES: dict[int | str, dict[str, Any]] = {200: {"content": {f"image/{kind}": {} for kind in ("png", "jpeg", "webp")}}}


class Wanted(bodies.Sampled):
    """What all three routes take. Fields without a use here are checked and let be; `guidance`, `guidance_interval` and `best_of`
    are ours."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: Annotated[str, StringConstraints(pattern=r"^(auto|[1-9]\d{0,3}x[1-9]\d{0,3})$")] = "auto"
    response_format: Literal["url", "b64_json"] = "b64_json"
    user: str | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] = GUIDANCE
    guidance_interval: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] = [0.0, 1.0]
    best_of: Annotated[int, Field(ge=1, le=16)] = 1
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = 100

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width that were asked for; the API has the width first."""
        found = re.fullmatch(r"(\d+)x(\d+)", self.size)
        return None if found is None else (int(found[2]), int(found[1]))


class Drawn(Wanted):
    """What both routes take that are given a prompt."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=32_000)]
    background: Literal["auto", "opaque", "transparent"] = "auto"
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] = "auto"
    complexity: Literal["low", "medium", "high"] | None = None
    moderation: Literal["low", "auto"] = "auto"
    safety_identifier: str | None = None
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0


class Generate(Drawn):
    """The body of `POST /v1/images/generations`."""

    style: Literal["vivid", "natural"] | None = None


class Edit(Drawn):
    """The form of `POST /v1/images/edits`. The SDK calls a single picture `image` and each of several `image[]`."""

    model_config = ConfigDict(strict=False)

    image: UploadFile | None = None
    images: Annotated[list[UploadFile], Field(alias="image[]")] = []
    mask: UploadFile | None = None
    input_fidelity: Literal["high", "low"] | None = None


class Vary(Wanted):
    """The form of `POST /v1/images/variations`; with a `prompt`, which is ours, of what it says."""

    model_config = ConfigDict(strict=False)

    image: UploadFile
    prompt: Annotated[str, StringConstraints(max_length=32_000)] = ""


@router.post("/v1/images/generations", responses=MAY_STREAM)
async def generate(body: Generate, here: Here) -> Response:
    """Draws what the prompt says."""
    served = await maker(here, body.model, "image")
    return await _answer(here, served, body, Wish(body.prompt.strip(), body.shape), "image_generation")


@router.post("/v1/images/edits", responses=MAY_STREAM)
async def edit(body: Annotated[Edit, Form(media_type="multipart/form-data")], here: Here) -> Response:
    """Draws a region anew: what is transparent in the mask, or without a mask in the picture; all else stays as it is."""
    served = await maker(here, body.model, "image")
    given = [*([body.image] if body.image is not None else []), *body.images]
    if not given:
        raise ApiError(400, "Missing required parameter: 'image'.", "image", "missing_required_parameter")
    if len(given) > 1:
        raise invalid("Models here edit one picture at a time.", "image", "unsupported_value")
    picture = await _read(given[0], "image")
    mask = None if body.mask is None else await _read(body.mask, "mask")
    _refuse_large(served, body.shape)
    try:
        known, hidden = await in_thread(hole, picture, mask, body.shape, *known_size(served.vocabulary))
    except UserError as error:
        raise invalid(sentence(error), "mask") from None
    return await _answer(here, served, body, Wish(body.prompt.strip(), known=known, hidden=hidden), "image_edit")


@router.post("/v1/images/variations")
async def vary(body: Annotated[Vary, Form(media_type="multipart/form-data")], here: Here) -> Response:
    """Draws other pictures of the same: the model says first what it sees, and draws that beside the picture."""
    served = await maker(here, body.model, "image")
    picture = await _read(body.image, "image")
    _refuse_large(served, body.shape)
    source = on_white(await in_thread(sized, picture, body.shape, *known_size(served.vocabulary)))
    return await _answer(here, served, body, Wish(body.prompt.strip(), source=source), "")


@router.get(OPEN_PICTURES + "{name}", response_class=Response, responses=_FILES)
async def show(name: Annotated[str, PathPart(pattern=r"^img_[0-9a-f]{24}\.[a-z]{3,4}$")], here: Here) -> Response:
    """A picture by the address that a request was answered with; whoever has it may look, for an hour."""
    id, _, kind = name.partition(".")
    for record in await in_thread(here.server.store.everywhere, _KIND, {"id": id}):
        if record.body["format"] == kind:
            path = here.server.blobs.path(record.private["digest"])
            headers = {"x-content-type-options": "nosniff", "cache-control": "private, max-age=3600"}
            return FileResponse(path, media_type=f"image/{kind}", headers=headers)
    raise not_found("picture", name)


def _refuse_large(served: Served, shape: tuple[int, int] | None) -> None:
    if shape is not None:
        refuse_large(served, shape)


async def _answer(here: Call, served: Served, body: Wanted, wish: Wish, events: str) -> Response:
    """Draws it `n` times.

    Args:
        events: what the events of a stream are called; empty: there are none.
    """
    if body.n * body.best_of > _MOST_DRAWN:
        raise invalid(f"'n' times 'best_of' may be {_MOST_DRAWN} at most.", "best_of")
    stream = False
    if isinstance(body, Drawn):
        if body.background == "transparent":
            raise invalid("Models here draw opaque pictures.", "background", "unsupported_value")
        if body.partial_images and not body.stream:
            raise invalid("'partial_images' are for streams; give 'stream'.", "partial_images")
        stream = body.stream
    params = body.sampling(1, max_tokens=1)[0]
    begin, end = body.guidance_interval
    if begin >= end:
        raise invalid("'guidance_interval' begins before it ends, between 0 and 1.", "guidance_interval")
    distilled = "image" in served.guided and not body.model_fields_set & {"guidance", "guidance_interval"}
    wish = replace(wish, guidance=body.guidance, interval=(begin, end), distilled=distilled, best_of=body.best_of)
    rounds = Rounds(served, _steps(served, wish, body.n, params), here.caller)
    try:
        await rounds.start()
    except UserError as error:
        raise invalid(sentence(error), "size" if body.shape is not None else "prompt") from None
    if stream:
        assert isinstance(body, Drawn)
        return EventStream(_stream(served, body, rounds, events))
    made = await unless_left(here.request, rounds.finish())
    data = [await in_thread(_datum, here, body, served.name, *one) for one in made]
    shown = {"created": now(), "data": data, "background": "opaque", "output_format": body.output_format}
    return JSONResponse(shown | {"size": _size(made[0][1].pixels), "usage": _usage(served, rounds)})


def _steps(served: Served, wish: Wish, count: int, params: SamplingParams) -> Steps[list[tuple[Wish, Drawing]]]:
    """A wish so many times, its own caption found first where it has none."""
    named_wish = yield from named(served, wish)
    drawn = yield from drawing(served, [named_wish] * count, params)
    caption = "" if wish.caption else named_wish.caption
    return [(replace(wish, caption=caption), replace(one, pixels=pasted(wish, one.pixels))) for one in drawn]


def _datum(here: Call, body: Wanted, model: str, wish: Wish, made: Drawing) -> dict[str, Any]:
    """A picture as the response has it; a caption that the model found itself goes with it."""
    file = _file(body, model, wish, made)
    said = {"revised_prompt": wish.caption} if wish.source is not None and wish.caption else {}
    if body.response_format == "b64_json":
        return {"b64_json": base64.b64encode(file).decode()} | said

    def refer(digest: str, _: int) -> str:
        expires_at = now() + _URL_SECONDS
        shown = {"id": new_id("img_"), "object": _KIND, "created_at": now(), "format": body.output_format}
        here.server.store.put(here.owner, _KIND, shown, {"digest": digest}, expires_at=expires_at)
        return f"{shown['id']}.{body.output_format}"

    name = here.server.blobs.write([file], refer)
    return {"url": str(here.request.base_url).rstrip("/") + OPEN_PICTURES + name} | said


def _file(body: Wanted, model: str, wish: Wish, made: Drawing) -> bytes:
    """A finished picture, which says who made it."""
    file = encoded(made.pixels, body.output_format, body.output_compression)
    return marked(file, body.output_format, model, composite=wish.known is not None)


async def _stream(served: Served, body: Drawn, rounds: Rounds[list[tuple[Wish, Drawing]]], events: str) -> AsyncGenerator[bytes]:
    """Unfinished pictures, evenly over the tokens of each, and the finished ones."""
    head = {"created_at": now(), "background": "opaque", "output_format": body.output_format, "quality": "auto"}

    def picture(kind: str, file: bytes, pixels: np.ndarray, **more: Any) -> bytes:
        data = {"type": f"{events}.{kind}", "b64_json": base64.b64encode(file).decode(), **head, "size": _size(pixels), **more}
        return event(data, data["type"])

    drawn: dict[int, list[int]] = {}
    async with aclosing(rounds.tokens()) as tokens:
        async for index, request, token in tokens:
            grid = request.constraint
            # Of those of which the best is kept, the first is shown.
            if not isinstance(grid, PictureGrid) or index % body.best_of:
                continue
            ids = drawn.setdefault(index, [])
            ids.append(token.id)
            shown = [grid.tokens * (n + 1) // (body.partial_images + 1) for n in range(body.partial_images)]
            for number in (n for n, at in enumerate(shown) if at == len(ids)):
                pixels = await in_thread(unfinished, served, grid, ids)
                file = await in_thread(encoded, pixels, body.output_format, body.output_compression)
                yield picture("partial_image", file, pixels, partial_image_index=number)
    usage = _usage(served, rounds)
    for wish, made in rounds.result:
        yield picture("completed", await in_thread(_file, body, served.name, wish, made), made.pixels, usage=usage)


def _usage(served: Served, rounds: Rounds[Any]) -> dict[str, Any]:
    """Tokens of all rounds. A known part of a picture that is edited counts as drawn."""
    media = served.vocabulary.ids_of("image")

    def pictures(parts: Sequence[np.ndarray]) -> int:
        return sum(int(np.isin(part, media).sum()) for part in parts)

    def details(total: int, parts: Sequence[np.ndarray]) -> dict[str, int]:
        of_pictures = pictures(parts)
        return {"image_tokens": of_pictures, "text_tokens": total - of_pictures}

    usage = rounds.usage
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": details(usage.prompt, [done.prompt_ids for done in rounds.completions]),
        "output_tokens": usage.completion,
        "output_tokens_details": details(usage.completion, [done.ids for done in rounds.completions]),
        "total_tokens": usage.prompt + usage.completion,
    }


async def _read(file: UploadFile, param: str) -> np.ndarray:
    """(H, W, 4) uint8.

    Raises:
        ApiError: 400, it is no picture that can be read.
    """
    try:
        return await in_thread(read_picture, await file.read(), True)
    except Unreadable as error:
        raise invalid(f"The {param} cannot be read: {error}.", param, "invalid_image") from None


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
