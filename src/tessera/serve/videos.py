"""`/v1/videos`: films as jobs, made by a caption, from a first frame, or from another film; by the code of `tessera generate`.

A job and what it was asked lie in the store, so that a server that was killed makes it anew after its next start. Frames are
kept, not a file: each variant is written when it is fetched, an MP4 where PyAV is installed, else a GIF.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import math
import secrets
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, StringConstraints, ValidationError
from starlette.datastructures import UploadFile
from starlette.responses import Response

from tessera.data.films import film_file, read_film, resampled
from tessera.data.pictures import encoded, on_white, read_picture, resized
from tessera.data.reasons import Unreadable
from tessera.engine.films import GUIDANCE, TEMPERATURE, Film, FilmWish, half, long_film, quantizer_of
from tessera.engine.pictures import Steps
from tessera.engine.sampling import SamplingParams
from tessera.errors import UserError
from tessera.provenance import MEDIA, marked
from tessera.serve.bodies import Body, Part, Seed, Temperature
from tessera.serve.context import Call, Here, Id, Limit, Order, Server, in_thread
from tessera.serve.errors import ApiError, invalid, of_validation, sentence
from tessera.serve.files import forget_bytes
from tessera.serve.models import Served, now
from tessera.serve.rounds import Rounds, maker
from tessera.serve.store import Record, new_id

router = APIRouter(tags=["videos"])

_KIND = "video"
_MOST_FRAMES = 512
_POLL_MILLISECONDS = 500
_RETELL = 10
"""Percent: progress is written down when it has grown by so much."""
_VARIANTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {} for kind in ("video/mp4", "image/gif", "image/webp", "image/png")}}
}

Prompt = Annotated[str, StringConstraints(min_length=1, max_length=32_000)]
Seconds = Annotated[str, StringConstraints(pattern=r"^\d{1,4}(\.\d{1,3})?$")]
Size = Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,3}x[1-9]\d{0,3}$")]


class Reference(Part):
    """A picture: by an address with the picture in it, `data:image/png;base64,...`."""

    image_url: str


class Existing(Part):
    """A film that was made here."""

    id: str


class Create(Body):
    """The body or form of `POST /v1/videos`; `guidance`, `temperature` and `seed` are ours."""

    model_config = ConfigDict(strict=False, arbitrary_types_allowed=True)

    prompt: Prompt
    model: str | None = None
    seconds: Seconds | None = None
    size: Size | None = None
    input_reference: UploadFile | Reference | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    temperature: Temperature = TEMPERATURE
    seed: Seed | None = None


class Remix(Body):
    """The body of `POST /v1/videos/{id}/remix`."""

    prompt: Prompt


class Change(Body):
    """The body or form of `POST /v1/videos/edits`."""

    model_config = ConfigDict(strict=False, arbitrary_types_allowed=True)

    prompt: Prompt
    video: UploadFile | Existing
    model: str | None = None


class Extend(Change):
    """The body or form of `POST /v1/videos/extensions`."""

    seconds: Seconds | None = None


def _accepts(schema: type[Body]) -> dict[str, Any]:
    """For the OpenAPI document: JSON, or a form where files go along."""
    fields = {
        name: {"type": "string"} | ({"format": "binary"} if name in ("input_reference", "video") else {})
        for name in schema.model_fields
    }
    form = {"type": "object", "properties": fields, "required": [n for n, f in schema.model_fields.items() if f.is_required()]}
    anything = {"schema": {"type": "object", "required": form["required"]}}
    return {"requestBody": {"content": {"application/json": anything, "multipart/form-data": {"schema": form}}, "required": True}}


@router.post("/v1/videos", openapi_extra=_accepts(Create))
async def create(here: Here) -> dict[str, Any]:
    """Begins a film."""
    body = await _read(here.request, Create)
    served = await maker(here, body.model, "video")
    quantizer = quantizer_of(served)
    frames, height, width = quantizer.shape
    if body.size is not None:
        width, height = map(int, body.size.split("x"))
    total = frames if body.seconds is None else _frames(body.seconds, quantizer.per_second)
    given = np.empty((0, height, width, 3), np.uint8)
    if body.input_reference is not None:
        if height * width > served.context * math.prod(quantizer.shape[1:]):  # before anything of that size is made
            raise invalid(f"The model reads {served.context} tokens, too few for a frame of {width}x{height}.", "size")
        picture = await _picture(body.input_reference)
        given = await in_thread(lambda: resized(on_white(picture), height, width)[None])
    return await _begin(here, served, body.prompt, given, total, body.guidance, body.seed, temperature=body.temperature)


@router.get("/v1/videos")
async def list_videos(here: Here, after: str | None = None, limit: Limit = 20, order: Order = "desc") -> dict[str, Any]:
    """The films, finished or not."""
    return await here.page(_KIND, after, limit, order)


@router.post("/v1/videos/edits", openapi_extra=_accepts(Change))
async def edit(here: Here) -> dict[str, Any]:
    """Another film from the first frame of one, of the same length."""
    body = await _read(here.request, Change)
    served = await maker(here, body.model, "video")
    film, source = await _film(here, served, body.video)
    return await _begin(here, served, body.prompt, film[:1], len(film), remixed_from=source)


@router.post("/v1/videos/extensions", openapi_extra=_accepts(Extend))
async def extend(here: Here) -> dict[str, Any]:
    """A film and what comes after it, in one."""
    body = await _read(here.request, Extend)
    served = await maker(here, body.model, "video")
    film, source = await _film(here, served, body.video)
    quantizer = quantizer_of(served)
    more = half(quantizer) if body.seconds is None else _frames(body.seconds, quantizer.per_second)
    return await _begin(here, served, body.prompt, film, len(film) + more, remixed_from=source)


@router.get("/v1/videos/{video_id}")
async def retrieve(video_id: Id, here: Here, response: Response) -> dict[str, Any]:
    """Where a film stands."""
    shown = (await here.find(_KIND, video_id, _KIND)).body
    if shown["status"] in ("queued", "in_progress"):
        response.headers["openai-poll-after-ms"] = str(_POLL_MILLISECONDS)
    return shown


@router.delete("/v1/videos/{video_id}")
async def delete(video_id: Id, here: Here) -> dict[str, Any]:
    """Forgets a film; one that is being made is given up."""
    await here.find(_KIND, video_id, _KIND)
    await here.server.cancel(video_id)
    record = await here.find(_KIND, video_id, _KIND)
    await here.delete(_KIND, video_id, _KIND)
    if record.private["digest"]:
        await in_thread(forget_bytes, here.server, record.private["digest"])
    return {"id": video_id, "object": "video.deleted", "deleted": True}


@router.post("/v1/videos/{video_id}/remix")
async def remix(video_id: Id, body: Remix, here: Here) -> dict[str, Any]:
    """Another film from the first frame of one that was made here, of the same length."""
    record = await here.find(_KIND, video_id, _KIND)
    served = await maker(here, record.body["model"], "video")
    film, source = await _film(here, served, Existing(id=video_id))
    return await _begin(here, served, body.prompt, film[:1], len(film), remixed_from=source)


@router.get("/v1/videos/{video_id}/content", response_class=Response, responses=_VARIANTS)
async def content(video_id: Id, here: Here, variant: Literal["video", "thumbnail", "spritesheet"] = "video") -> Response:
    """The film as a file, its first frame, or all of its frames side by side."""
    frames, record = await _finished(here, video_id)
    film = {"model": record.body["model"], "made": record.body["completed_at"], "composite": bool(record.private.get("given"))}
    file, kind = await in_thread(_file, frames, variant, record.private["per_second"], film)
    return Response(file, media_type=kind)


async def resume(server: Server) -> None:
    """Begins anew what a stop of the server has cut off."""
    for record in await in_thread(server.store.everywhere, _KIND):
        if record.body["status"] in ("queued", "in_progress"):
            server.spawn(record.id, _make(server, record.owner, record.id))


async def _begin(
    here: Call,
    served: Served,
    prompt: str,
    given: np.ndarray,
    total: int,
    guidance: float | None = None,
    seed: int | None = None,
    remixed_from: str | None = None,
    temperature: float = TEMPERATURE,
) -> dict[str, Any]:
    """Checks that the film can be made, puts the job into the store and starts it."""
    quantizer = quantizer_of(served)
    height, width = given.shape[1:3]
    if not 1 <= total <= _MOST_FRAMES:
        raise invalid(f"A film may have {_MOST_FRAMES} frames at most, at {quantizer.per_second:g} a second.", "seconds")
    private = {
        "digest": "", "prompt": prompt.strip(), "shape": [height, width], "total": total, "guidance": guidance,
        "temperature": temperature,
        "seed": secrets.randbits(63) if seed is None else seed, "per_second": quantizer.per_second, "given": len(given),
    }  # fmt: skip
    try:
        # The first round says whether size and length are possible; it is asked again when the job runs.
        await in_thread(next, _steps(served, private, given))
    except UserError as error:
        usual = f"{quantizer.shape[2]}x{quantizer.shape[1]}"
        raise invalid(f"{sentence(error)} Its films are {usual}.", "size", "unsupported_value") from None
    shown = {
        "id": new_id("video_"), "object": "video", "created_at": now(), "completed_at": None, "expires_at": None, "error": None,
        "model": served.name, "progress": 0, "prompt": prompt, "remixed_from_video_id": remixed_from,
        "seconds": f"{total / quantizer.per_second:.3g}", "size": f"{width}x{height}", "status": "queued",
    }  # fmt: skip
    await in_thread(_keep, here.server, here.owner, shown, private, given)
    here.server.spawn(str(shown["id"]), _make(here.server, here.owner, str(shown["id"])))
    return shown


async def _make(server: Server, owner: str, id: str) -> None:
    """Makes a film from its record; what goes wrong is written there."""
    record = await in_thread(server.store.get, owner, _KIND, id)
    if record is None:
        return

    async def note(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
        await in_thread(server.store.update, owner, _KIND, id, change)

    try:
        found = server.models.find(record.body["model"], owner)
        served = found if isinstance(found, Served) else await in_thread(server.models.get, record.body["model"], owner)
        given = await in_thread(_frames_of, server, record.private)
        caller = server.caller(owner, {"started": time.perf_counter()})
        rounds = Rounds(served, _steps(served, record.private, given), caller, patient=True)
        await note(lambda shown, _: shown.update(status="in_progress"))
        await rounds.start()
        made, told = 0, 0
        wanted = _tokens(served, record.private, len(given))
        async for _ in rounds.tokens():
            made += 1
            if (percent := min(99, 100 * made // wanted)) >= told + _RETELL:
                told = percent
                await note(lambda shown, _, percent=percent: shown.update(progress=percent))  # type: ignore[misc]
        done = {**record.body, "status": "completed", "progress": 100, "completed_at": now()}
        await in_thread(_keep, server, owner, done, record.private, rounds.result.frames)
        if record.private["digest"]:
            await in_thread(forget_bytes, server, record.private["digest"])
    except asyncio.CancelledError:
        # The server stops: the next one begins anew.
        raise
    except Exception as error:
        said = {"code": getattr(error, "code", None) or "server_error", "message": sentence(error)}
        await note(lambda shown, _: shown.update(status="failed", error=said))
        if not isinstance(error, ApiError | UserError):
            raise


def _steps(served: Served, private: Mapping[str, Any], given: np.ndarray) -> Steps[Film]:
    """What is asked of the engine for a film."""
    asked = private["guidance"]
    wish = FilmWish(
        private["prompt"], guidance=GUIDANCE if asked is None else asked, distilled=asked is None and "video" in served.guided
    )
    # A film that an older server left in its queue names no temperature.
    params = SamplingParams(1, private.get("temperature", TEMPERATURE), seed=private["seed"])
    return long_film(served, wish, given, private["total"], params)


def _tokens(served: Served, private: Mapping[str, Any], given: int) -> int:
    """That have to be drawn for a film, about."""
    quantizer = quantizer_of(served)
    height, width = private["shape"]
    steps = max(1, -(-(private["total"] - given) // quantizer.config.time_stride))
    return steps * (height // quantizer.config.stride * width // quantizer.config.stride + 1)


async def _read(request: Request, schema: type[Any]) -> Any:
    """JSON or a form, as the SDK sends the one or the other.

    Raises:
        ApiError: 400.
    """
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        form = await request.form()
        given: Any = dict(form)
        for name in ("input_reference", "video"):
            nested = {key[len(name) + 1 : -1]: value for key, value in form.items() if key.startswith(f"{name}[")}
            if nested:
                given = {key: value for key, value in given.items() if not key.startswith(f"{name}[")} | {name: nested}
    else:
        try:
            given = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise ApiError(400, "The body is not JSON.", code="invalid_json") from None
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise of_validation(error.errors(), given) from None


async def _picture(reference: UploadFile | Reference) -> np.ndarray:
    """(H, W, 4) uint8.

    Raises:
        ApiError: 400, it is no picture that can be read.
    """
    if isinstance(reference, Reference):
        head, comma, packed = reference.image_url.partition(",")
        if not comma or not head.startswith("data:") or not head.endswith(";base64"):
            raise invalid("Pictures are taken as files or as 'data:' addresses.", "input_reference", "unsupported_value")
        try:
            data = base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError):
            raise invalid("The picture is not base64.", "input_reference", "invalid_image") from None
    else:
        data = await reference.read()
    try:
        return await in_thread(read_picture, data, True)
    except Unreadable as error:
        raise invalid(f"The input_reference cannot be read: {error}.", "input_reference", "invalid_image") from None


async def _film(here: Call, served: Served, video: UploadFile | Existing) -> tuple[np.ndarray, str | None]:
    """The frames of a film that was made here or that comes along, as the model takes them, and its id if it has one.

    Raises:
        ApiError: 404, there is none; 400, it is not finished, or cannot be read.
    """
    quantizer = quantizer_of(served)
    if isinstance(video, Existing):
        frames, record = await _finished(here, video.id)
        return resampled(frames, record.private["per_second"], quantizer.per_second), video.id
    data = await video.read()

    def read() -> np.ndarray:
        with tempfile.NamedTemporaryFile(suffix=".film") as file:
            file.write(data)
            file.flush()
            _, height, width = quantizer.shape
            frames, rate = read_film(Path(file.name), _MOST_FRAMES, lambda frame: resized(frame, height, width))
        return resampled(frames, rate, quantizer.per_second)

    try:
        return await in_thread(read), None
    except Unreadable as error:
        raise invalid(f"The video cannot be read: {error}.", "video", "invalid_video") from None


async def _finished(here: Call, id: str) -> tuple[np.ndarray, Record]:
    """The frames of a film, and its record.

    Raises:
        ApiError: 404; 400, it is not finished.
    """
    record = await here.find(_KIND, id, _KIND)
    if record.body["status"] != "completed":
        raise invalid(f"The film is {record.body['status']}; its content is there when it is completed.", "video_id", "not_ready")
    return await in_thread(_frames_of, here.server, record.private), record


def _keep(server: Server, owner: str, shown: Mapping[str, Any], private: Mapping[str, Any], frames: np.ndarray) -> None:
    """Puts a film into the store, its frames beside."""
    if not len(frames):
        server.store.put(owner, _KIND, shown, private)
        return
    file = io.BytesIO()
    np.save(file, frames, allow_pickle=False)

    def refer(digest: str, _: int) -> None:
        server.store.put(owner, _KIND, shown, {**private, "digest": digest})

    server.blobs.write([zlib.compress(file.getvalue())], refer)


def _frames_of(server: Server, private: Mapping[str, Any]) -> np.ndarray:
    """(T, H, W, 3) uint8: what lies beside a record, T = 0 where that is nothing."""
    if not private["digest"]:
        return np.empty((0, *private["shape"], 3), np.uint8)
    packed = b"".join(server.blobs.read(private["digest"]))
    frames: np.ndarray = np.load(io.BytesIO(zlib.decompress(packed)), allow_pickle=False)
    return frames


def _file(frames: np.ndarray, variant: str, per_second: float, film: Mapping[str, Any]) -> tuple[bytes, str]:
    """The file of a variant, which says who made it, and its media type: of films an MP4 where one can be written, else a GIF."""
    if variant == "thumbnail":
        return marked(encoded(frames[0], "webp", 100), "webp", **film), "image/webp"
    if variant == "spritesheet":
        return marked(encoded(np.concatenate(list(frames), 1), "png", 100), "png", **film), "image/png"
    try:
        file, ending = film_file(frames, per_second, "mp4"), "mp4"
    except UserError:
        file, ending = film_file(frames, per_second, "gif"), "gif"
    return marked(file, ending, **film), MEDIA[ending]


def _frames(seconds: str, per_second: float) -> int:
    return round(float(seconds) * per_second)
