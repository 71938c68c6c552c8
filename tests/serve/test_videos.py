"""Films by the SDK: jobs that are made, gone on with, remixed, fetched and forgotten; and what is refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from openai.types import Video
from PIL import Image

from tessera.data.pictures import png
from tessera.serve.app import Settings

from .conftest import Running, make_model, serving

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
FIRST = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("videos")
    with serving(Settings(folder), model_folder, make_model(folder / "filmer", False, films=True)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return server.client()


def made(client: OpenAI, **asked: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        video = client.videos.create_and_poll(prompt="a ball", poll_interval_ms=20, **asked)
    assert video.status == "completed" and video.progress == 100 and video.completed_at, video.error
    return video


def frames(client: OpenAI, id: str) -> np.ndarray:
    """All frames, by the sheet that loses nothing."""
    sheet = np.array(Image.open(io.BytesIO(client.videos.download_content(id, variant="spritesheet").content)))
    return sheet.reshape(len(sheet), -1, len(sheet), 3).swapaxes(0, 1)


def test_a_film_is_made_as_a_job_and_fetched_in_three_forms(client: OpenAI) -> None:
    video = made(client, model="filmer", extra_body={"seed": 1})
    assert (video.size, video.seconds, video.model) == ("8x8", "0.625", "filmer")
    assert frames(client, video.id).shape == (5, 8, 8, 3)
    assert (frames(client, made(client, extra_body={"seed": 1}).id) == frames(client, video.id)).all(), "the same seed"
    film = client.videos.download_content(video.id)
    assert film.response.headers["content-type"] in ("video/mp4", "image/gif") and len(film.content) > 100
    for variant in ("video", "thumbnail", "spritesheet"):
        file = client.videos.download_content(video.id, variant=variant).content  # type: ignore[arg-type]
        (found,) = client.content_provenance_checks.create(file=("film", file)).results
        assert found.outcome == "detected" and found.model == "filmer"
    first = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="thumbnail").content))
    assert first.format == "WEBP" and first.size == (8, 8)
    assert video.id in [listed.id for listed in client.videos.list(limit=50)]
    assert client.videos.retrieve(video.id).prompt == "a ball"
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_a_film_begins_with_the_picture_and_goes_on_where_it_ended(client: OpenAI) -> None:
    begun = made(client, input_reference=("first.png", png(FIRST)), seconds="1")
    film = frames(client, begun.id)
    assert len(film) == 8 and (film[0] == FIRST).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The SDK's own method takes only files here; ids go by its plain `post`.
        asked = {"prompt": "it moves", "seconds": "1", "video": {"id": begun.id}}
        longer = client.videos.poll(client.post("/videos/extensions", body=asked, cast_to=Video).id)
        other = client.videos.poll(client.videos.remix(begun.id, prompt="it stops").id)
    assert longer.remixed_from_video_id == begun.id and longer.seconds == "2"
    assert len(frames(client, longer.id)) == 16 and (frames(client, longer.id)[:8] == film).all()
    assert len(frames(client, other.id)) == 8 and (frames(client, other.id)[0] == FIRST).all()


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"model": "tiny"}, "model", "tessera train film"),
        ({"size": "1280x720"}, "size", "Its films are 8x8"),
        ({"size": "9x8"}, "size", "multiples of 4"),
        ({"seconds": "4000"}, "seconds", "512 frames at most"),
        ({"seconds": "soon"}, "seconds", "Invalid value"),
        ({"input_reference": ("a.png", b"nothing")}, "input_reference", "cannot be read"),
        ({"extra_body": {"guidance": -1}}, "guidance", "Invalid value"),
        ({"extra_body": {"temperature": 3}}, "temperature", "Invalid value"),
    ],
)
def test_what_cannot_be_made_is_refused_before_it_is_queued(client: OpenAI, asked: Any, param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        made(client, **asked)
    assert refused.value.param == param


def test_what_is_not_there_is_not_found_and_a_broken_film_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.videos.download_content("video_none")
    with pytest.raises(openai.NotFoundError):
        client.videos.remix("video_none", prompt="x")
    far = {"prompt": "x", "input_reference": {"image_url": "http://127.0.0.1/a.png"}}
    with pytest.raises(openai.BadRequestError, match="data:"):
        client.post("/videos", body=far, cast_to=Video)
    with pytest.raises(openai.BadRequestError, match="cannot be read"):
        client.videos.extend(prompt="x", seconds="1", video=("a.gif", b"GIF89a nothing"))
