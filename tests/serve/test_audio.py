"""Sound by the SDK: said in each format, streamed, written down; and what is refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from tessera.data.sounds import read_sound, sound_file
from tessera.engine.sounds import LONGEST
from tessera.serve.app import Settings

from .conftest import Running, make_model, serving

TONE = (np.sin(np.arange(1600) * 0.3) * 9000).astype(np.int16)
WAV = ("tone.wav", sound_file(TONE, 8000, "wav"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("audio")
    with serving(Settings(folder), model_folder, make_model(folder / "speaker", False, speaks=True)) as running:
        yield _client(running)


def _client(running: Running) -> OpenAI:
    return running.client()


def said(client: OpenAI, kind: Any = "wav", **more: Any) -> Any:
    return client.audio.speech.create(
        model="speaker", input="three", voice="jackson", response_format=kind, extra_body={"seed": 1} | more
    )


def test_what_is_said_is_a_file_and_the_same_for_a_seed(client: OpenAI) -> None:
    wav = said(client)
    samples, rate = read_sound(wav.content)
    assert wav.response.headers["content-type"] == "audio/wav" and (samples == read_sound(said(client).content)[0]).all()
    assert rate == 8000 and 320 <= len(samples) <= LONGEST * 1600
    # Samples alone are at 24 kHz, as OpenAI sends them.
    assert len(said(client, "pcm").content) == 2 * 3 * len(samples)
    assert len(read_sound(said(client, seconds=0.04).content)[0]) == 320


@pytest.mark.parametrize("kind", ["mp3", "opus", "flac"])
def test_other_formats_are_what_they_are_called(client: OpenAI, kind: str) -> None:
    pytest.importorskip("av", reason="needs PyAV (the extra [sound])")
    made = said(client, kind)
    assert made.response.headers["content-type"].startswith("audio/") and len(read_sound(made.content)[0])
    if kind == "opus":  # which no mark fits into
        return
    (found,) = client.content_provenance_checks.create(file=("said", made.content)).results
    assert found.outcome == "detected" and found.model == "speaker"


def test_a_stream_of_speech_has_the_file_and_its_tokens(client: OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="speaker", input="three", voice="alloy", response_format="wav", stream_format="sse"
    ) as stream:
        text = b"".join(stream.iter_bytes()).decode()
    assert "event: speech.audio.delta" in text and '"output_tokens":' in text and "speech.audio.done" in text


def test_a_recording_is_written_down_in_each_way(client: OpenAI) -> None:
    plain = client.audio.transcriptions.create(model="speaker", file=WAV, extra_body={"seed": 1})
    assert isinstance(plain.text, str) and plain.usage is not None and plain.usage.type == "tokens"
    assert plain.usage.input_token_details is not None and plain.usage.input_token_details.audio_tokens == 10
    assert client.audio.transcriptions.create(model="speaker", file=WAV, response_format="text").strip() == plain.text
    whole = client.audio.transcriptions.create(model="speaker", file=WAV, response_format="verbose_json")
    assert whole.duration == 0.2 and whole.text == plain.text
    srt = client.audio.transcriptions.create(model="speaker", file=WAV, response_format="srt")
    assert srt.startswith("1\n00:00:00,000 --> 00:00:00,200\n")
    assert client.audio.transcriptions.create(model="speaker", file=WAV, response_format="vtt").startswith("WEBVTT")
    events = list(client.audio.transcriptions.create(model="speaker", file=WAV, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[1].text == plain.text  # type: ignore[union-attr]


def test_what_cannot_be_done_is_a_400_that_says_why(client: OpenAI) -> None:
    speech, written = client.audio.speech.create, client.audio.transcriptions.create
    for ask, words in (
        (lambda: speech(model="tiny", input="three", voice="alloy"), "train speak"),
        (lambda: said(client, "aac"), "mp3, opus, flac"),
        (lambda: speech(model="speaker", input="three", voice="alloy", speed=2), "speed"),
        (lambda: said(client, seconds=60), "make it shorter"),
        (lambda: written(model="speaker", file=("a.wav", b"RIFF and no more")), "damaged WAV"),
        (lambda: written(model="speaker", file=("a.wav", sound_file(np.zeros(800, np.int16), 8000, "wav"))), "silent"),
        (lambda: written(model="speaker", file=("a.wav", sound_file(np.resize(TONE, 400_000), 8000, "wav"))), "shorter one"),
        (lambda: written(model="speaker", file=WAV, response_format="diarized_json"), "who speaks when"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            ask()


def test_bytes_of_any_name_are_read_by_what_they_are(client: OpenAI) -> None:
    named = client.audio.transcriptions.create(model="speaker", file=("song.mp3", io.BytesIO(WAV[1])))
    assert isinstance(named.text, str)
