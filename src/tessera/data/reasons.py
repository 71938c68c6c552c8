"""Why something was left out: what every reader of files says in the same words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skipped:
    """A file, or rows of one, that was left out, and why."""

    path: str
    reason: str


class Unreadable(Exception):
    """Why a file, or the rest of it, is left out."""


def words(error: Exception) -> str:
    """An exception in one line, without the path that it may name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
