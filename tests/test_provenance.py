"""Content credentials: a file says who made it, says so no more when it was changed, and is trusted by whoever holds the key."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

import numpy as np
import pytest

from tessera.data.films import film_file, read_film
from tessera.data.pictures import encoded, read_picture
from tessera.data.sounds import read_sound, sound_file
from tessera.errors import UserError
from tessera.provenance import MEDIA, key_folder, marked, read_mark

DICE = np.random.default_rng(0)
PIXELS = DICE.integers(0, 256, (8, 8, 3), dtype=np.uint8)
SAMPLES = DICE.integers(-9000, 9000, 4000).astype(np.int16)


def file_of(kind: str) -> bytes:
    """A file of a kind, as the commands write it."""
    if kind in ("png", "jpeg", "webp"):
        return encoded(PIXELS, kind)
    if kind in ("gif", "mp4"):
        return film_file(np.stack([np.roll(PIXELS, n, 1).repeat(4, 0).repeat(4, 1) for n in range(5)]), 8, kind)
    return sound_file(SAMPLES, 8000, kind)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "mp4", "wav", "flac", "mp3"])
def test_every_kind_carries_its_mark_and_loses_it_when_a_bit_is_changed(kind: str, tmp_path: Path) -> None:
    plain = file_of(kind)
    made = marked(plain, kind, "starter", made=1_800_000_000)
    mark = read_mark(made)
    assert (mark.state, mark.ours, mark.model, mark.issuer) == ("trusted", True, "starter", "Tessera")
    assert mark.made == "2027-01-15T08:00:00Z"
    assert read_mark(plain).state == "not_present"
    changed = bytearray(made)
    where = made.rfind(plain[-24:-16])  # within what was there before the mark
    assert where > 0
    changed[where + 2] ^= 1
    with contextlib.suppress(ValueError):  # so damaged that it is no such file any more
        assert not read_mark(bytes(changed)).ours
    path = tmp_path / f"file.{kind}"
    path.write_bytes(made)
    if kind in ("png", "webp"):
        assert (read_picture(path) == PIXELS).all()
    elif kind in ("gif", "mp4"):
        assert read_film(path)[0].shape == (5, 32, 32, 3)
    elif kind in ("wav", "flac"):
        assert (np.rint(read_sound(path)[0] * 32768) == SAMPLES).all()


def test_under_another_key_it_is_whole_and_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = marked(file_of("png"), "png", "theirs")
    monkeypatch.setenv("TESSERA_KEYS", str(tmp_path / "mine"))
    mark = read_mark(made)
    assert (mark.state, mark.ours, mark.model) == ("valid", True, "theirs")
    (key,) = (tmp_path / "mine").glob("*.json")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_what_is_signed_in_another_shape_is_left_out() -> None:
    mark = read_mark(marked(file_of("png"), "png", 7))  # type: ignore[arg-type]
    assert mark.ours and mark.model is None


def test_what_cannot_carry_a_mark_comes_back_as_it_is() -> None:
    assert "ogg" not in MEDIA and marked(b"OggS", "ogg", "starter") == b"OggS"


@pytest.mark.parametrize("junk", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7"])
def test_what_is_no_such_file_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError):
        read_mark(junk)


def test_a_folder_that_cannot_hold_the_key_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TESSERA_KEYS", str(tmp_path / "file"))
    assert key_folder() == tmp_path / "file"
    with pytest.raises(UserError, match="set TESSERA_KEYS"):
        marked(file_of("png"), "png", "starter")
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / "provenance.json").write_text("{}")
    monkeypatch.setenv("TESSERA_KEYS", str(tmp_path / "spoilt"))
    with pytest.raises(UserError, match="set TESSERA_KEYS"):
        read_mark(file_of("png"))
