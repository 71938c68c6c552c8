"""The model in the box: found by its name, read as it was shipped or not at all, and never written to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.errors import UserError
from tessera.model import starter, weights


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A box whose model is no more than its settings, and a working directory without a model."""
    folder = tmp_path / "package" / "starter"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(bytes(3_000_000))
    (folder / "CARD.md").write_text("# starter\n")
    starter.write_sums(folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(starter, "FOLDER", folder)
    starter.model_folder.cache_clear()
    yield folder
    starter.model_folder.cache_clear()


def test_its_name_is_a_model_everywhere(box: Path) -> None:
    assert weights.resolve_model("starter") == box / "model"
    assert weights.home(weights.resolve_model("starter")).name == "starter"


def test_a_folder_of_that_name_goes_before_it(box: Path) -> None:
    Path("starter").mkdir()
    (Path("starter") / "config.json").write_text("{}")
    assert weights.resolve_model("starter") == Path("starter")
    assert weights.resolve_model(box) == box / "model", "by its path it is there all the same"


def test_a_package_without_it_says_how_one_is_made(box: Path) -> None:
    (box / "SUMS").unlink()
    with pytest.raises(UserError, match=r"no model in its box; make one by `tessera reproduce starter`"):
        weights.resolve_model("starter")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model/model.safetensors", bytes(2_999_999) + b"\1", "model/model.safetensors is not what it was"),
        ("model/config.json", None, "model/config.json is missing"),
        ("CARD.md", b"", "CARD.md is not what it was"),
        ("model/chat_template.jinja", b"", "model/chat_template.jinja is not in SUMS"),
        ("SUMS", b"\xff", "SUMS has a line that is no checksum"),
    ],
)
def test_damage_is_said_in_a_sentence(box: Path, file: str, content: bytes | None, said: str) -> None:
    if content is None:
        (box / file).unlink()
    else:
        (box / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"the model in the box is damaged ({said})")):
        weights.resolve_model("starter")


def test_the_shipped_files_are_as_their_checksums_say() -> None:
    if not (starter.FOLDER / starter.SUMS).is_file():
        pytest.skip("this checkout holds no model in the box; `tessera reproduce starter` makes one")
    starter.model_folder.cache_clear()
    assert (starter.model_folder() / "config.json").is_file()
