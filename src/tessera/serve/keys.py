"""Who may come in: API keys with their limits, and, where there are none, only what comes from this machine's own pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tessera.errors import UserError
from tessera.serve.errors import ApiError, too_busy

LOCAL = "local"
"""Owner of all objects where there are no keys."""


@dataclass(frozen=True)
class Key:
    """One line of a key file.

    Args:
        digest: SHA-256 of the key; the key itself is not kept.
        owner: whose objects it sees: the name in the file, else derived from the key.
        requests_per_minute: None: no limit.
        tokens_per_minute: of prompts and completions; None: no limit.
        operator: may look at what concerns the server as a whole: the training runs beside its models, the ledger, `/metrics`.
    """

    digest: bytes
    owner: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    operator: bool = False


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file, a line each: `KEY [name=NAME] [requests_per_minute=N] [tokens_per_minute=N] [operator=yes]`.

    A `#` begins a comment.

    Raises:
        UserError: no such file, no key in it, a line that is not of that form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"the key file {path} cannot be read: {os.strerror(error.errno or 0)}.") from None
    except UnicodeDecodeError:
        raise UserError(f"the key file {path} is not UTF-8 text.") from None
    keys = tuple(
        _read_key(words, f"{path}, line {n}") for n, line in enumerate(lines, 1) if (words := line.split("#")[0].split())
    )
    if not keys:
        raise UserError(f"{path} holds no key; write one on each line.")
    return keys


def _read_key(words: list[str], where: str) -> Key:
    digest = hashlib.sha256(words[0].encode()).digest()
    settings = dict(word.partition("=")[::2] for word in words[1:])
    name = settings.pop("name", "") or digest.hex()[:24]
    try:
        limits = {limit: int(settings.pop(limit)) for limit in ("requests_per_minute", "tokens_per_minute") if limit in settings}
    except ValueError:
        raise UserError(f"{where}: a limit must be a whole number.") from None
    operator = settings.pop("operator", "no")
    if operator not in ("yes", "no"):
        raise UserError(f"{where}: operator must be yes or no, not {operator}.")
    if settings or len(words[0]) < 8 or len(name) > 64 or any(limit < 1 for limit in limits.values()):
        raise UserError(
            f"{where}: write a key of 8 characters or more, then at most name=, requests_per_minute=, tokens_per_minute= "
            "and operator=."
        )
    return Key(digest, name, limits.get("requests_per_minute"), limits.get("tokens_per_minute"), operator == "yes")


@dataclass
class _Bucket:
    """What is left of a limit; it fills up evenly over a minute and may be overdrawn by one request."""

    limit: int
    left: float
    at: float

    def look(self, now: float) -> float:
        self.left = min(self.limit, self.left + (now - self.at) * self.limit / 60)
        self.at = now
        return self.left

    def wait(self, wanted: float) -> float:
        """Seconds until `wanted` is there."""
        return (wanted - self.left) * 60 / self.limit


@dataclass
class Limits:
    """How much each owner may still ask for.

    Args:
        keys: with their limits; keys of one name share the limits of the first.
        clock: seconds.
    """

    keys: Iterable[Key]
    clock: Callable[[], float] = time.monotonic
    _requests: dict[str, _Bucket] = field(default_factory=dict)
    _tokens: dict[str, _Bucket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.keys:
            for limit, buckets in ((key.requests_per_minute, self._requests), (key.tokens_per_minute, self._tokens)):
                if limit is not None:
                    buckets.setdefault(key.owner, _Bucket(limit, limit, self.clock()))

    def enter(self, owner: str) -> dict[str, str]:
        """Counts a request and returns headers that say what is left.

        Raises:
            ApiError: 429, a limit is reached.
        """
        now, headers = self.clock(), {}
        for name, buckets, wanted in (("requests", self._requests, 1.0), ("tokens", self._tokens, 0.0)):
            bucket = buckets.get(owner)
            if bucket is None:
                continue
            left = bucket.look(now)
            if left < wanted:
                raise too_busy(f"Rate limit reached: {bucket.limit} {name} per minute.", bucket.wait(max(wanted, 1)))
            bucket.left -= wanted
            headers[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.left)))
            headers[f"x-ratelimit-reset-{name}"] = f"{max(0.0, bucket.wait(bucket.limit)):.1f}s"
        return headers

    def spend(self, owner: str, tokens: int) -> None:
        """Counts tokens after they were read or written."""
        bucket = self._tokens.get(owner)
        if bucket is not None:
            bucket.look(self.clock())
            bucket.left -= tokens


def find_owner(keys: Iterable[Key], authorization: str) -> str:
    """Whose key stands in an `Authorization` header. Takes the same time whichever key it is, and if it is none.

    Raises:
        ApiError: 401.
    """
    scheme, _, given = authorization.partition(" ")
    digest = hashlib.sha256(given.strip().encode()).digest()
    found = ""
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key.owner
    if scheme.lower() != "bearer" or not found:
        what = "Incorrect API key provided." if given else "No API key provided; send it as 'Authorization: Bearer KEY'."
        headers = {"www-authenticate": "Bearer"}
        raise ApiError(401, what, code="invalid_api_key", type="invalid_request_error", headers=headers)
    return found


def refuse_foreign(headers: Mapping[str, str]) -> None:
    """Without keys the browser of this machine must not become a stranger's: no foreign page (Origin), no foreign name (Host).

    Raises:
        ApiError: 403.
    """
    host = headers.get("host", "")
    name = _host_name(f"//{host}")
    if not (name in ("localhost", socket.gethostname().lower()) or _is_address(name)):
        raise ApiError(403, "This server without keys is only reached by its address or as localhost.", code="host_not_allowed")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise ApiError(403, "Pages of other origins may not use this server without keys.", code="origin_not_allowed")


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is reached from this machine only."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _host_name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
