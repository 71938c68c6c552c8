"""Content credentials: every picture, film and recording that a model makes says so, under a key of one's own.

The mark is a C2PA manifest inside the file, written and read by the Content Authenticity Initiative's library: what was made,
when, by which model and that a trained algorithm made it, bound to the file's bytes and signed. The key and its certificate are
made when the first file is marked and stay with the person; nobody else vouches for them, so that other people's tools call such
a mark valid and not trusted. Whoever changes the file breaks the signature, and whoever saves it anew loses the mark: one that is
there proves something, one that is not proves nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import io
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tessera
from tessera.errors import UserError

if TYPE_CHECKING:
    import c2pa

MEDIA = {
    "png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif", "mp4": "video/mp4",
    "wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg",
}  # fmt: skip
"""Endings of the files that are written here and can carry a mark -> media type."""
GENERATOR = "Tessera"
_SOURCES = {
    False: "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    True: "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
}
_MODEL = "com.tessera.model"
_YEARS = 20
State = Literal["trusted", "valid", "invalid", "not_present"]


@dataclass(frozen=True)
class Mark:
    """What a file says of its making.

    Args:
        state: `trusted`: whole, and under this person's own key; `valid`: whole, under another key; `invalid`: the file or the
            mark was changed; `not_present`.
        ours: made by Tessera, here or elsewhere, and whole.
        issuer: of the certificate.
        model: that made it.
        made: UTC, RFC 3339.
    """

    state: State
    ours: bool = False
    issuer: str | None = None
    model: str | None = None
    made: str | None = None


def marked(data: bytes, ending: str, model: str, composite: bool = False, made: float | None = None) -> bytes:
    """The file with its mark; a kind of file that cannot carry one comes back as it is.

    Args:
        data: a whole file.
        ending: what kind it is, like `png`.
        model: name of the model that made it.
        composite: some of it was given: an edited picture, a film that goes on.
        made: seconds since 1970; None: now.

    Raises:
        UserError: the key can be neither read nor made.
    """
    media = MEDIA.get(ending)
    if media is None:
        return data
    import c2pa

    then = datetime.datetime.now(datetime.UTC) if made is None else datetime.datetime.fromtimestamp(made, datetime.UTC)
    when = then.isoformat(timespec="seconds").replace("+00:00", "Z")
    agent = {"name": GENERATOR, "version": tessera.__version__}
    action = {
        "action": "c2pa.created", "when": when, "softwareAgent": agent, "digitalSourceType": _SOURCES[composite],
        "parameters": {_MODEL: model},
    }  # fmt: skip
    assertions = [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}]
    manifest = {"claim_generator_info": [agent], "title": f"made by {model}", "format": media, "assertions": assertions}
    file = io.BytesIO()
    with _signer() as signer, c2pa.Builder(json.dumps(manifest), _settings()) as builder:
        builder.sign(signer, media, io.BytesIO(data), file)
    return file.getvalue()


def read_mark(data: bytes) -> Mark:
    """What a file says of its making.

    Args:
        data: a whole file, of any kind that can carry a mark.

    Raises:
        ValueError: it is none of these, or damaged.
    """
    import c2pa

    try:
        found = c2pa.Reader.try_create(None, io.BytesIO(data), None, _settings())
    except c2pa.C2paError as error:
        raise ValueError(str(error)) from error
    if found is None:
        return Mark("not_present")
    with found as reader:
        manifest = reader.get_active_manifest() or {}
        state = str(reader.get_validation_state() or "Invalid").lower()
    known: State = "trusted" if state == "trusted" else "valid" if state == "valid" else "invalid"
    # What others sign may have any shape.
    agents = [_part(one, "name") for one in manifest.get("claim_generator_info") or []]
    assertions = [a for a in manifest.get("assertions") or [] if str(_part(a, "label")).startswith("c2pa.actions")]
    actions = [action for a in assertions for action in _part(_part(a, "data"), "actions") or []]
    first = actions[0] if actions else None
    said = (
        _part(manifest.get("signature_info"), "issuer"),
        _part(_part(first, "parameters"), _MODEL),
        _part(first, "when"),
    )
    issuer, model, made = (text if isinstance(text, str) else None for text in said)
    return Mark(known, GENERATOR in agents and known != "invalid", issuer, model, made)


def key_folder() -> Path:
    """Where key and certificates are kept: $TESSERA_KEYS, or ~/.local/share/tessera/keys."""
    named = os.environ.get("TESSERA_KEYS")
    return Path(named) if named else Path(os.environ.get("XDG_DATA_HOME", "~/.local/share")).expanduser() / "tessera" / "keys"


def _part(whole: Any, name: str) -> Any:
    """A field of an object; None where there is no such field, or no object."""
    return whole.get(name) if isinstance(whole, dict) else None


def _signer() -> c2pa.Signer:
    import c2pa

    key, chain, _ = _identity(key_folder())
    return c2pa.Signer.from_info(c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, chain, key, None))


def _settings() -> c2pa.Context:
    """How marks are checked: one's own authority is trusted, and nothing is fetched."""
    import c2pa

    _, _, authority = _identity(key_folder())
    return c2pa.Context.from_dict({
        "trust": {"user_anchors": authority.decode()},
        "verify": {"verify_after_sign": False, "verify_trust": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
        "builder": {"thumbnail": {"enabled": False}},
    })  # fmt: skip


@cache
def _identity(folder: Path) -> tuple[bytes, bytes, bytes]:
    """Private key, certificate chain and authority, each as PEM; made where they are not there yet."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / ".lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = folder / "provenance.json"
            if not path.is_file():
                aside = path.with_suffix(".part")
                with contextlib.suppress(FileNotFoundError):
                    aside.unlink()
                with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                    json.dump(_made_identity(), file)
                aside.replace(path)
            kept = json.loads(path.read_text(encoding="utf-8"))
            return kept["key"].encode(), kept["chain"].encode(), kept["authority"].encode()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the key that marks what models make can neither be read nor made in {folder}: {error}; "
            "set TESSERA_KEYS to a folder of your own."
        ) from None


def _made_identity() -> dict[str, str]:
    """A new authority, and a key that it vouches for: the standard takes no certificate that vouches for itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(common: str) -> x509.Name:
        kinds = ((NameOID.ORGANIZATION_NAME, GENERATOR), (NameOID.COMMON_NAME, common))
        return x509.Name([x509.NameAttribute(kind, text) for kind, text in kinds])

    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    end = begin + datetime.timedelta(days=365 * _YEARS)
    keys = {role: ec.generate_private_key(ec.SECP256R1()) for role in ("authority", "signer")}
    names = {"authority": name("an authority of one's own"), "signer": name("content credentials")}
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
    usage, certificates = dict.fromkeys(others, False), {}
    for role, key in keys.items():
        mine, public = role == "authority", key.public_key()
        issuer = keys["authority"].public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[role])
            .issuer_name(names["authority"])
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=mine, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=not mine, key_cert_sign=mine, crl_sign=mine, **usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        )
        if not mine:
            builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.4")]), critical=False)
        certificates[role] = builder.sign(keys["authority"], hashes.SHA256())
    pem = {role: one.public_bytes(serialization.Encoding.PEM).decode() for role, one in certificates.items()}
    private = keys["signer"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # The authority's own key is thrown away: it has vouched for the one key that there is.
    return {"key": private.decode(), "chain": pem["signer"] + pem["authority"], "authority": pem["authority"]}
