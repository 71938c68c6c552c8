"""Pages are read as a browser would: every tag closed in order."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tessera.report import write_report


class Balance(HTMLParser):
    """Fails on tags that are not closed in order, and collects the text and the addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def read_page() -> Callable[[Path], Balance]:
    """Reads a page that was written."""

    def read(path: Path) -> Balance:
        page = Balance()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        assert not page.open
        return page

    return read


@pytest.fixture
def parsed(read_page: Callable[[Path], Balance]) -> Callable[[Path], Balance]:
    """Writes the report of a folder and reads it."""
    return lambda folder: read_page(write_report(folder))
