"""What clients keep for the server: JSON that only this server can read and nobody can change (AES-256 in GCM, NIST SP 800-38D).

The key lies in a file beside the store and is made at its first use. Another owner's content does not open.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import zlib
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_VERSION = b"\x01"
_NONCE_BYTES = 12
_KEY_BYTES = 32


class Vault:
    """Seals and opens.

    Args:
        path: of the key's file, readable only by this user.
    """

    def __init__(self, path: Path) -> None:
        self._cipher = AESGCM(_key(path))

    def seal(self, owner: str, value: Any) -> str:
        """`value` as text without meaning for anybody else."""
        nonce = os.urandom(_NONCE_BYTES)
        plain = zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
        return base64.urlsafe_b64encode(_VERSION + nonce + self._cipher.encrypt(nonce, plain, owner.encode())).decode()

    def open(self, owner: str, text: str) -> Any:
        """What `seal` was given.

        Raises:
            ValueError: it was not sealed here, for this owner, or it was changed.
        """
        try:
            sealed = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise ValueError("not base64") from None
        nonce, rest = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        if sealed[:1] != _VERSION or len(nonce) < _NONCE_BYTES:
            raise ValueError("not sealed here")
        try:
            return json.loads(zlib.decompress(self._cipher.decrypt(nonce, rest, owner.encode())))
        except InvalidTag:
            raise ValueError("not sealed here for this owner, or changed") from None


def _key(path: Path) -> bytes:
    """The key in a file, which is made whole or not at all; of two makers the first wins."""
    if not path.exists():
        aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(os.urandom(_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            if not path.exists():
                os.link(aside, path)
        except FileExistsError:
            pass
        finally:
            aside.unlink(missing_ok=True)
    return path.read_bytes()
