"""`tessera serve` refuses in one sentence what cannot be served."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tessera.commands.serve import serve
from tessera.errors import UserError


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match=r"in use; give another --port"):
        serve([str(tmp_path / "no model")], port=taken.getsockname()[1])


def test_an_open_door_must_be_meant() -> None:
    with pytest.raises(UserError, match="--without-keys"):
        serve(["nowhere"], host="0.0.0.0")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        serve([str(tmp_path)], port=0)


@pytest.mark.parametrize("text", ["", "short"])
def test_a_key_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match="keys"):
        serve(["nowhere"], api_key_file=str(tmp_path / "keys"))
