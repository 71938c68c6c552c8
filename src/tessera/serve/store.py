"""What the server keeps: objects as JSON in a database, contents of files on disk. Every object belongs to one key's owner.

SQLite by default, PostgreSQL by URL; the same statements run on both. An object has a kind (`response`, `file`, ...), an id, a
body (what the API shows), `private` (what it does not show) and, if it is part of another, a parent. Methods block for the
length of one transaction; routes call them from a thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

from tessera.errors import UserError
from tessera.tokens.text import scalar_json, scalar_text

T = TypeVar("T")

_MIGRATIONS = Path(__file__).parent / "migrations"
_CHUNK = 1 << 20

tables = sa.MetaData()
objects = sa.Table(
    "objects",
    tables,
    sa.Column("position", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("id", sa.String(128), nullable=False),
    sa.Column("parent", sa.String(128), nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("private", sa.JSON, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=True),
    sa.Column("words", sa.Text, nullable=True),
    sa.UniqueConstraint("owner", "kind", "id", name="objects_id"),
    sa.Index("objects_parent", "owner", "kind", "parent", "position"),
)


@dataclass(frozen=True)
class Record:
    """One object.

    Args:
        owner: to whom it belongs.
        id: unique among the owner's objects of its kind.
        body: as the API shows it.
        private: what belongs to it and is not shown.
    """

    owner: str
    id: str
    body: dict[str, Any]
    private: dict[str, Any]


@dataclass(frozen=True)
class Page:
    """Some objects of a list, and whether there are more."""

    records: tuple[Record, ...]
    has_more: bool


class Unknown(Exception):
    """`after` or `before` names no object of the list."""


class Store:
    """Objects in a database.

    Args:
        url: of SQLAlchemy, `sqlite:///path` or `postgresql://...`.

    Raises:
        UserError: the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = _open(url)
            _migrate(self._engine)
        except (ArgumentError, NoSuchModuleError, ImportError, OperationalError) as error:
            why = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise UserError(f"the database {_without_password(url)} cannot be opened: {why}.") from None
        self._writing = threading.Lock() if self._engine.dialect.name == "sqlite" else None

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    def put(
        self,
        owner: str,
        kind: str,
        body: Mapping[str, Any],
        private: Mapping[str, Any] | None = None,
        parent: str = "",
        expires_at: int | None = None,
        words: str | None = None,
    ) -> None:
        """Keeps an object by its `body["id"]`, in place of one that is there already. By its `words`, `page` finds it again."""
        self.put_all(owner, kind, [(body, private or {})], parent, expires_at, words)

    def put_all(
        self,
        owner: str,
        kind: str,
        given: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
        parent: str = "",
        expires_at: int | None = None,
        words: str | None = None,
    ) -> None:
        """Keeps several (body, private), all or none."""
        with self._transaction() as connection:
            for body, private in given:
                values: dict[str, Any] = {"body": dict(body), "private": dict(private), "parent": parent}
                values |= {"expires_at": expires_at, "words": words if words is None else _plain(words)}
                here = _is(owner, kind, body["id"])
                if connection.execute(sa.update(objects).where(here).values(values)).rowcount == 0:
                    row = values | {"owner": owner, "kind": kind, "id": body["id"]}
                    connection.execute(sa.insert(objects).values(row))

    def get(self, owner: str, kind: str, id: str, parent: str | None = None) -> Record | None:
        """An object, or None where this owner has none such."""
        where = _is(owner, kind, id) & _alive()
        if parent is not None:
            where &= objects.c.parent == parent
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(objects).where(where)).one_or_none()
        return None if row is None else _record(row)

    def update(
        self,
        owner: str,
        kind: str,
        id: str,
        change: Callable[[dict[str, Any], dict[str, Any]], object],
        more_words: str = "",
    ) -> Record | None:
        """Changes an object in one transaction.

        Args:
            change: changes (body, private) in place.
            more_words: by which it is found from now on, beside those that it has.

        Returns:
            what it is now; None where there is none.
        """
        with self._transaction() as connection:
            query = sa.select(objects).where(_is(owner, kind, id) & _alive()).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            record = _record(row)
            change(record.body, record.private)
            values: dict[str, Any] = {"body": record.body, "private": record.private}
            if more_words:
                values["words"] = f"{row.words or ''}\n{_plain(more_words)}"
            connection.execute(sa.update(objects).where(objects.c.position == row.position).values(values))
        return record

    def delete(self, owner: str, kind: str, id: str, parent: str | None = None) -> bool:
        """Forgets an object and its parts; says whether it was there.

        What has it as its parent is a part, unless its kind is that of another object's parts, as `upload.part` is of uploads:
        ids are unique among those of a kind, and a model that a job made has the id of the job, whose events stay.
        """
        where = _is(owner, kind, id) & _alive()
        if parent is not None:
            where &= objects.c.parent == parent
        with self._transaction() as connection:
            gone = connection.execute(sa.delete(objects).where(where)).rowcount
            if gone:
                parts = objects.c.kind.startswith(f"{kind}.", autoescape=True) | ~objects.c.kind.contains(".", autoescape=True)
                connection.execute(sa.delete(objects).where((objects.c.owner == owner) & (objects.c.parent == id) & parts))
        return gone > 0

    def page(
        self,
        owner: str,
        kind: str,
        parent: str | None = None,
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
        order: str = "desc",
        where: Mapping[str, str] | None = None,
        words: str = "",
    ) -> Page:
        """Objects by the time at which they came.

        Args:
            parent: only its parts.
            after, before: id of an object in the list; only those behind or in front of it.
            limit: at most so many.
            order: `asc` or `desc`.
            where: only those in whose body these fields (`metadata.topic`) have these texts.
            words: only those in whose words each of these occurs, be it in capitals or not.

        Raises:
            Unknown: `after` or `before` is not there.
        """
        place = objects.c.position
        wanted = (objects.c.owner == owner) & (objects.c.kind == kind) & _alive()
        if parent is not None:
            wanted &= objects.c.parent == parent
        for path, text in (where or {}).items():
            wanted &= _field(objects.c.body, path) == _sought(text)
        for word in _plain(words).split():
            wanted &= objects.c.words.contains(word, autoescape=True)
        with self._engine.connect() as connection:
            for mark, behind in ((after, True), (before, False)):
                if mark is None:
                    continue
                there = _is(owner, kind, mark) if parent is None else _is(owner, kind, mark) & (objects.c.parent == parent)
                at = connection.execute(sa.select(place).where(there)).scalar_one_or_none()
                if at is None:
                    raise Unknown(mark)
                wanted &= place > at if behind == (order == "asc") else place < at
            sort = place.asc() if order == "asc" else place.desc()
            rows = connection.execute(sa.select(objects).where(wanted).order_by(sort).limit(limit + 1)).all()
        return Page(tuple(_record(row) for row in rows[:limit]), len(rows) > limit)

    def everywhere(
        self, kind: str, where: Mapping[str, str] | None = None, private: Mapping[str, str] | None = None
    ) -> list[Record]:
        """All objects of a kind, whoever owns them, oldest first: for what concerns the server as a whole.

        Args:
            where: only those in whose body these fields have these texts.
            private: the same of what is not shown.
        """
        wanted = (objects.c.kind == kind) & _alive()
        for column, fields in ((objects.c.body, where), (objects.c.private, private)):
            for path, text in (fields or {}).items():
                wanted &= _field(column, path) == _sought(text)
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(objects).where(wanted).order_by(objects.c.position)).all()
        return [_record(row) for row in rows]

    def expire(self) -> list[Record]:
        """Forgets the objects whose time is over and returns them."""
        over = objects.c.expires_at <= int(time.time())
        with self._transaction() as connection:
            rows = connection.execute(sa.select(objects).where(over)).all()
            connection.execute(sa.delete(objects).where(over))
        return [_record(row) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """SQLite has one writer at a time: to wait here costs less than its busy loop."""
        if self._writing is None:
            with self._engine.begin() as connection:
                yield connection
            return
        with self._writing, self._engine.begin() as connection:
            yield connection


class Blobs:
    """Contents of files, each once, under the SHA-256 of what is in it.

    Args:
        folder: is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        """Held while bytes come to be, or cease to be, referred to."""
        (folder / "aside").mkdir(parents=True, exist_ok=True)
        for left in (folder / "aside").iterdir():  # by a server that was killed while it wrote
            left.unlink()

    def write(self, chunks: Iterable[bytes], refer: Callable[[str, int], T]) -> T:
        """Keeps bytes.

        Args:
            refer: is told their digest and count once they are on the disk, and notes who has them.
        """
        digest, size = hashlib.sha256(), 0
        aside = self.folder / "aside" / secrets.token_hex(8)
        try:
            with open(aside, "xb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            place = self.path(digest.hexdigest())
            with self.lock:
                place.parent.mkdir(exist_ok=True)
                aside.replace(place)
                return refer(digest.hexdigest(), size)
        finally:
            aside.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Where the bytes with this digest lie."""
        return self.folder / digest[:2] / digest

    def read(self, digest: str) -> Iterator[bytes]:
        """The bytes, piece by piece."""
        with open(self.path(digest), "rb") as file:
            yield from chunks_of(file)

    def forget(self, digest: str, referred: Callable[[], object]) -> None:
        """Removes the bytes unless somebody still refers to them."""
        with self.lock:
            if not referred():
                self.path(digest).unlink(missing_ok=True)


def chunks_of(file: IO[bytes]) -> Iterator[bytes]:
    """What a file holds, in pieces of 1 MiB."""
    while chunk := file.read(_CHUNK):
        yield chunk


def new_id(prefix: str) -> str:
    """`prefix` and 24 random letters and digits, which nobody can guess."""
    return prefix + secrets.token_hex(12)


def _json(value: Any) -> str:
    """A value as every reader takes it: a database that looks into one object looks into all, and what is no JSON stops it."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return _json(scalar_json(value))
    return json.dumps(scalar_json(value)) if "\\ud" in text else text


def _json_without_nul(value: Any) -> str:
    """PostgreSQL keeps a NUL and cannot read it again."""
    text = _json(value)
    return text if "\\u0000" not in text else _json(scalar_json(value, lambda part: scalar_text(part).replace("\0", "\ufffd")))


def _open(url: str) -> sa.Engine:
    if url.startswith(("postgres://", "postgresql://")):
        url = "postgresql+psycopg://" + url.split("://", 1)[1]
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True, json_serializer=_json_without_nul)
    engine = sa.create_engine(url, json_serializer=_json, connect_args={"timeout": 30, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        # A write-ahead log: readers never wait for the writer, and a kill loses nothing that was committed.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine


def _migrate(engine: sa.Engine) -> None:
    """Brings the tables to this version's form."""
    if _revision(engine) == max(path.stem for path in (_MIGRATIONS / "versions").glob("*.py"))[:4]:
        return
    # Only where there is something to do: it takes a third of a second.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except SQLAlchemyError as error:
            raise UserError(f"the database could not be brought to this version's form: {error}.") from None


def _revision(engine: sa.Engine) -> str | None:
    """Of the form that the tables have; None where there are none."""
    if not sa.inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "URL"


def _is(owner: str, kind: str, id: str) -> sa.ColumnElement[bool]:
    return (objects.c.owner == owner) & (objects.c.kind == kind) & (objects.c.id == _sought(id))


def _field(column: sa.Column[Any], path: str) -> sa.ColumnElement[str]:
    """The text at `metadata.topic` of a body."""
    return column[tuple(_sought(path).split(".", 1))].as_string()


def _sought(text: str) -> str:
    """Text that a client seeks, as a database takes it; what none can hold is nowhere."""
    return scalar_text(text).replace("\0", "\ufffd")


def _alive() -> sa.ColumnElement[bool]:
    return objects.c.expires_at.is_(None) | (objects.c.expires_at > int(time.time()))


def _plain(text: str) -> str:
    """Text in the form in which it is searched: without case, and without what a database does not take as text."""
    return text.casefold().replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


def _record(row: sa.Row[Any]) -> Record:
    return Record(row.owner, row.id, row.body, row.private)
