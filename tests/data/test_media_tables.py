"""Pictures, films and recordings in the rows of tables and the samples of archives, as Hugging Face and WebDataset write them."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import Image
from scipy.io import wavfile

from tessera.data.captions import Medium
from tessera.data.files import read_files
from tessera.data.films import film_file, film_parts
from tessera.data.pictures import parts_of, png
from tessera.data.reasons import Skipped
from tessera.data.sounds import sound_parts
from tessera.data.sources import documents
from tessera.errors import UserError

RED = np.full((4, 6, 3), (200, 0, 0), np.uint8)
BLUE = np.full((4, 6, 3), (0, 0, 200), np.uint8)


def read(uri: str, *wanted: Medium) -> tuple[list[Any], str]:
    """Documents, and what was skipped with its reason, one a line."""
    skipped: list[Skipped] = []
    found = list(documents(uri, skipped, wanted=frozenset(wanted)))
    return found, "\n".join(f"{one.path}: {one.reason}" for one in skipped)


def wav() -> bytes:
    file = io.BytesIO()
    wavfile.write(file, 8000, (3000 * np.sin(np.arange(1600) / 3)).astype(np.int16))
    return file.getvalue()


def tar(path: Path, members: Mapping[str, bytes], how: str = "w") -> None:
    with tarfile.open(path, how) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))


SAMPLES = {
    "set/0001.png": png(RED),
    "set/0001.json": json.dumps({"caption": "a red field", "question": "Which colour?", "answer": "red"}).encode(),
    "set/0002.txt": b"a blue field\n",
    "set/0002.png": png(BLUE),
    "set/0003.wav": wav(),
    "set/0003.json": b'{"text": "beep", "speaker": "ann"}',
    "set/0004.txt": b"Only words.",
    "set/0005.png": b"no picture",
    "set/0006.cls": b"3",
    "set/.hidden.txt": b"not read",
    "set/0007.gif": film_file(np.stack([RED, BLUE]), 4.0, "gif"),
    "set/0007.caption": b"it turns blue",
}


def test_samples_of_an_archive_are_pictures_with_their_captions(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", SAMPLES)
    found, skipped = read(f"files:{tmp_path}", "image")
    first, second, words, gif = found
    parts = parts_of(first)
    assert parts is not None and parts.caption == "a red field" and parts.questions == [("Which colour?", "red")]
    assert np.array_equal(parts.signal, RED) and first.source == "a.tar/set/0001"
    parts = parts_of(second)
    assert parts is not None and parts.caption == "a blue field" and np.array_equal(parts.signal, BLUE)
    assert words.text == "Only words."
    # Without films the first frame of an animation is a picture.
    parts = parts_of(gif)
    assert parts is not None and parts.caption == "it turns blue"
    assert "a.tar/set/0005: not a PNG" in skipped and "a.tar: 1 samples: a recording, and none are asked for" in skipped


def test_samples_of_an_archive_are_films_and_recordings_where_they_are_asked_for(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar.gz", SAMPLES, "w:gz")
    found, skipped = read(f"files:{tmp_path / 'a.tar.gz'}", "video", "audio")
    sound, words, film = found
    spoken = sound_parts(sound)
    assert spoken is not None and spoken[0].caption == "beep, spoken by ann" and len(spoken[0].questions) == 2
    shown = film_parts(film)
    assert shown is not None and shown[0].caption == "it turns blue" and shown[0].signal.shape == (2, 4, 6, 3)
    assert words.text == "Only words."
    assert "3 samples: a picture, and none are asked for" in skipped


def test_an_archive_that_breaks_off_keeps_what_came_before(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", SAMPLES)
    data = (tmp_path / "a.tar").read_bytes()
    for left in (4096, 4300, 4700, len(data) // 2):
        (tmp_path / "a.tar").write_bytes(data[:left])
        found, skipped = read(f"files:{tmp_path}", "image")
        assert 0 < len(found) < 5 and "a.tar: a damaged archive" in skipped
    (tmp_path / "a.tar").write_bytes(b"no archive" * 200)
    with pytest.raises(UserError, match="damaged archive"):
        read(f"files:{tmp_path}", "image")


def test_a_pipe_that_is_called_like_an_archive_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    skipped: list[Skipped] = []
    assert not list(read_files(str(tmp_path), None, skipped, lambda line: None))
    assert skipped == [Skipped("a.tar", "not a regular file")]


def test_an_archive_of_many_files_is_not_remembered(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(4000):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"a"))
    tracemalloc.start()
    found = sum(1 for _ in read_files(str(tmp_path / "a.tar"), None, [], lambda line: None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == 4000 and peak < 500_000


def test_a_caption_column_of_an_archive_can_be_named(tmp_path: Path) -> None:
    tar(
        tmp_path / "a.tar",
        {"1.png": png(RED), "1.json": b'{"text": "long words", "tag": "red"}', "2.json": b'{"tag": "only this"}'},
    )
    (first, second), _ = read(f"files:{tmp_path}#column=tag", "image")
    parts = parts_of(first)
    assert parts is not None and parts.caption == "red" and second.text == "only this"


def table() -> datasets.Dataset:
    """Pictures with a label and a caption, recordings beside them; one row without a picture, one with a damaged one."""
    features = datasets.Features({
        "picture": datasets.Image(), "kind": datasets.ClassLabel(names=["red_field", "blue field"]),
        "label": datasets.ClassLabel(names=["red_field", "blue field"]), "sound": datasets.Audio(decode=False),
    })  # fmt: skip
    cells = [{"bytes": png(RED), "path": "a.png"}, {"bytes": png(BLUE), "path": None}, None, {"bytes": b"x", "path": None}]
    sounds = [{"bytes": wav(), "path": None}] * 4
    # Not by `from_dict`, which wants a further package where there is sound.
    columns = {"picture": cells, "kind": [0, 1, 0, 0], "label": [0, 1, 0, 1], "sound": sounds}
    return datasets.Dataset(pyarrow.Table.from_pydict(columns, schema=features.arrow_schema))


@pytest.mark.parametrize("form", ["saved", "parquet on the hub", "parquet as a file"])
def test_rows_with_pictures_are_pictures_with_their_labels(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "set"
    if form == "saved":
        table().save_to_disk(str(folder))
    else:
        folder.mkdir()
        table().to_parquet(str(folder / "train.parquet"))
    uri = f"files:{folder}" if form == "parquet as a file" else f"hub:{folder}"
    found, skipped = read(uri, "image")
    parts = [parts_of(document) for document in found]
    assert [part.caption for part in parts if part] == ["red field", "blue field"]
    assert parts[0] is not None and np.array_equal(parts[0].signal, RED)
    assert "1 rows with nothing in the column 'picture'" in skipped and "not a PNG" in skipped
    heard, _ = read(uri, "audio")
    assert len(heard) == 4 and all(sound_parts(document) is not None for document in heard)
    with pytest.raises(UserError, match="a picture, and none are asked for"):
        read(uri)


def test_a_picture_folder_by_the_hubs_own_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    for name, pixels in (("cat", RED), ("dog", BLUE)):
        (tmp_path / "set/train" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "set/train" / name / "1.png")
    found, _ = read(f"hub:{tmp_path / 'set'}", "image")
    assert sorted(part.caption for part in map(parts_of, found) if part) == ["cat", "dog"]
