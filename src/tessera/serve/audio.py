"""`/v1/audio`: text said or played, recordings written down, by the same code as `tessera generate`.

A voice is the name of a speaker as the captions have it; OpenAI's own voices, which no model here has heard, leave it to it.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Form, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import ConfigDict, Field, StringConstraints
from starlette.responses import Response

from tessera.data.reasons import Unreadable
from tessera.data.sounds import fitted_sound, read_sound, resampled, sound_file
from tessera.engine.request import Completion
from tessera.engine.sounds import GUIDANCE, TEMPERATURE, Sound, SoundWish, hearing, sound_quantizer_of, sounding
from tessera.errors import UserError
from tessera.provenance import marked
from tessera.serve import bodies
from tessera.serve.context import Here, in_thread
from tessera.serve.errors import ApiError, invalid, sentence
from tessera.serve.generation import unless_left
from tessera.serve.models import Served
from tessera.serve.rounds import Rounds, maker
from tessera.serve.streams import MAY_STREAM, EventStream, event

router = APIRouter(tags=["audio"])

_FORMATS = {
    "mp3": ("mp3", "audio/mpeg"),
    "opus": ("ogg", "audio/ogg"),
    "flac": ("flac", "audio/flac"),
    "wav": ("wav", "audio/wav"),
}
"""As the API calls them: endings of files, and what they are over the wire."""
_PCM_RATE = 24_000
"""Of samples without a file around them, as OpenAI sends them."""
_OTHERS = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "juniper", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
"""OpenAI's voices."""
_SPOKEN: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {} for kind in (*(wire for _, wire in _FORMATS.values()), "audio/pcm", "text/event-stream")}}
}
_WRITTEN: dict[int | str, dict[str, Any]] = {200: {"content": {**MAY_STREAM[200]["content"], "text/plain": {}}}}


class Voice(bodies.Part):
    """A voice by its id."""

    id: str


class Speak(bodies.Sampled):
    """The body of `POST /v1/audio/speech`; `guidance`, `seconds` and the ways to sample are ours."""

    model: str
    input: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    voice: str | Voice
    instructions: Annotated[str, StringConstraints(max_length=4096)] = ""
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    stream_format: Literal["sse", "audio"] = "audio"
    guidance: Annotated[float, Field(ge=0, le=100)] = GUIDANCE
    temperature: bodies.Temperature = TEMPERATURE
    seconds: Annotated[float, Field(gt=0, le=3600)] | None = None

    @property
    def caption(self) -> str:
        """What is asked for, as the captions that were learned have it."""
        voice = (self.voice if isinstance(self.voice, str) else self.voice.id).strip()
        spoken = f", spoken by {voice}" if voice and voice.lower() not in _OTHERS else ""
        return self.input.strip() + spoken


class Transcribe(bodies.Sampled):
    """The form of `POST /v1/audio/transcriptions`. `prompt` is the question; without one the words are written down."""

    model_config = ConfigDict(strict=False)

    file: UploadFile
    model: str
    language: str = ""
    prompt: Annotated[str, StringConstraints(max_length=4096)] = ""
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"] = "json"
    temperature: bodies.Temperature = 0.0
    stream: bool = False
    include: Annotated[list[str], Field(alias="include[]")] = []
    timestamp_granularities: Annotated[list[str], Field(alias="timestamp_granularities[]")] = []
    chunking_strategy: str = ""


@router.post("/v1/audio/speech", responses=_SPOKEN)
async def speak(body: Speak, here: Here) -> Response:
    """Says what the text says, or plays it, where that is what the model has learned."""
    served = await maker(here, body.model, "audio")
    if body.response_format == "aac":
        raise invalid("Models here answer with mp3, opus, flac, wav or pcm.", "response_format", "unsupported_value")
    if body.speed != 1:
        raise invalid("Models here speak at the speed that they have learned; leave 'speed' at 1.", "speed", "unsupported_value")
    distilled = "audio" in served.guided and "guidance" not in body.model_fields_set
    wish = SoundWish(body.caption, None, body.seconds, body.guidance, distilled=distilled)
    rounds = Rounds(served, sounding(served, [wish], body.sampling(1, max_tokens=1)[0]), here.caller)
    try:
        await rounds.start()
        (made,) = await unless_left(here.request, rounds.finish())
        data = await in_thread(_file, made, body.response_format, served.name)
    except UserError as error:
        raise invalid(sentence(error), "input") from None
    if body.stream_format == "sse":
        return EventStream(_spoken(data, rounds))
    return Response(data, media_type="audio/pcm" if body.response_format == "pcm" else _FORMATS[body.response_format][1])


@router.post("/v1/audio/transcriptions", responses=_WRITTEN)
async def transcribe(body: Annotated[Transcribe, Form(media_type="multipart/form-data")], here: Here) -> Response:
    """Writes down what is heard, or answers a question about it."""
    served = await maker(here, body.model, "audio")
    if body.response_format == "diarized_json" or "word" in body.timestamp_granularities:
        raise invalid(
            "Models here do not say who speaks when, nor when each word begins.", "response_format", "unsupported_value"
        )
    rate = round(sound_quantizer_of(served).per_second)
    sound = await in_thread(_read, await body.file.read(), rate)
    rounds = Rounds(served, hearing(served, sound, body.prompt, body.sampling(1, max_tokens=1)[0]), here.caller)
    try:
        await rounds.start()
    except UserError as error:
        raise invalid(sentence(error), "file") from None
    heard = await unless_left(here.request, rounds.finish())
    text, usage = heard.text.strip(), _usage(served, heard)
    if body.stream:
        return EventStream(_written(text, usage))
    seconds = len(sound) / rate
    if body.response_format in ("text", "srt", "vtt"):
        return PlainTextResponse(_plain(text, seconds, body.response_format))
    shown: dict[str, Any] = {"text": text, "usage": usage}
    if body.response_format == "verbose_json":
        shown |= {"task": "transcribe", "language": body.language or "unknown", "duration": seconds, "segments": []}
    return JSONResponse(shown)


def _file(made: Sound, kind: str, model: str) -> bytes:
    if kind == "pcm":
        samples = resampled(made.samples.astype(np.float64), made.per_second, _PCM_RATE)
        return samples.round().clip(-32_768, 32_767).astype("<i2").tobytes()
    ending = _FORMATS[kind][0]
    return marked(sound_file(made.samples, made.per_second, ending), ending, model)


async def _spoken(data: bytes, rounds: Rounds[list[Sound]]) -> AsyncGenerator[bytes]:
    """A finished sound as the events of a stream."""
    yield event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}, "speech.audio.delta")
    usage = {"input_tokens": rounds.usage.prompt, "output_tokens": rounds.usage.completion}
    usage["total_tokens"] = sum(usage.values())
    yield event({"type": "speech.audio.done", "usage": usage}, "speech.audio.done")


async def _written(text: str, usage: dict[str, Any]) -> AsyncGenerator[bytes]:
    """Finished words as the events of a stream."""
    yield event({"type": "transcript.text.delta", "delta": text}, "transcript.text.delta")
    yield event({"type": "transcript.text.done", "text": text, "usage": usage}, "transcript.text.done")


def _plain(text: str, seconds: float, kind: str) -> str:
    """The words as text, or as the one subtitle of a recording."""
    if kind == "text":
        return text + "\n"
    comma = "," if kind == "srt" else "."
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    end = f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{comma}{thousandths:03}"
    cue = f"00:00:00{comma}000 --> {end}\n{text}\n"
    return f"1\n{cue}" if kind == "srt" else f"WEBVTT\n\n{cue}"


def _usage(served: Served, heard: Completion) -> dict[str, Any]:
    of_sound = int(np.isin(heard.prompt_ids, served.vocabulary.ids_of("audio")).sum())
    return {
        "type": "tokens",
        "input_tokens": heard.prompt_tokens,
        "input_token_details": {"audio_tokens": of_sound, "text_tokens": heard.prompt_tokens - of_sound},
        "output_tokens": len(heard.ids),
        "total_tokens": heard.prompt_tokens + len(heard.ids),
    }


def _read(data: bytes, rate: int) -> np.ndarray:
    """(T,) int16; ApiError 400 where it is no recording that can be read."""
    try:
        return fitted_sound(*read_sound(data), rate)
    except Unreadable as error:
        raise ApiError(400, f"The file cannot be read: {error}.", "file", "invalid_audio") from None
