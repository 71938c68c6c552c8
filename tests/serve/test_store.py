"""The store keeps what it was given, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tessera.errors import UserError
from tessera.serve.store import Blobs, Store, Unknown


def _as_postgres() -> list[str]:
    """Words before a command that PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a database: $TESSERA_TEST_POSTGRES, or a server that is started from the binaries of this machine."""
    url = os.environ.get("TESSERA_TEST_POSTGRES")
    if url:
        yield url
        return
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = shutil.which("pg_ctl")
    if found is None:
        pytest.skip("no PostgreSQL here: set TESSERA_TEST_POSTGRES to a URL, or put pg_ctl on the path")
    if os.geteuid() == 0 and subprocess.run(["id", "postgres"], capture_output=True).returncode:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    binaries = Path(found).resolve().parent
    folder = Path(subprocess.run([*_as_postgres(), "mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    try:
        initdb = [str(binaries / "initdb"), "-D", str(folder / "db"), "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8"]
        subprocess.run([*_as_postgres(), *initdb], capture_output=True, check=True, cwd="/")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        start = [str(binaries / "pg_ctl"), "-D", str(folder / "db"), "-o", options, "-w", "-l", str(folder / "log"), "start"]
        subprocess.run([*_as_postgres(), *start], capture_output=True, check=True, cwd="/")
        yield f"postgresql:///postgres?host={folder}&user=postgres"
        stop = [str(binaries / "pg_ctl"), "-D", str(folder / "db"), "-m", "immediate", "stop"]
        subprocess.run([*_as_postgres(), *stop], capture_output=True, check=True, cwd="/")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a b%20c.db'}"
    place: str = request.getfixturevalue("postgres")
    engine = sa.create_engine(place.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS objects, alembic_version"))
    engine.dispose()
    return place


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.close()


def test_tables_of_this_form_are_opened_without_migrations(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(url).close()
    monkeypatch.setitem(sys.modules, "alembic", None)
    again = Store(url)
    again.put("me", "thing", {"id": "x"})
    again.close()
    with sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:")).begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(UserError, match="alembic"):
        Store(url)


def test_an_object_comes_back_as_it_went_in(store: Store) -> None:
    body = {"id": "x", "text": "ünï 🙂 \" '", "deep": [{"a": [1, 2.5, None, True]}], "large": 2**53}
    store.put("me", "thing", body, {"hidden": 1})
    record = store.get("me", "thing", "x")
    assert record is not None and record.body == body and record.private == {"hidden": 1}
    store.put("me", "thing", {"id": "x", "new": True})
    record = store.get("me", "thing", "x")
    assert record is not None and record.body == {"id": "x", "new": True} and record.private == {}


@pytest.mark.parametrize(
    ("value", "kept"), [(float("nan"), None), (float("-inf"), None), ("\ud83d", "\ufffd"), ("a\\ud83d", "a\\ud83d"), ("\0", "?")]
)
def test_what_no_json_is_stops_no_search(store: Store, value: Any, kept: Any) -> None:
    store.put("me", "thing", {"id": "odd", "status": "new", "deep": [{"x": value}]}, {"state": "new", "x": value})
    store.put("you", "thing", {"id": "plain", "status": "new"}, {"state": "new"})
    assert {r.id for r in store.everywhere("thing", {"status": "new"})} == {"odd", "plain"}
    assert {r.id for r in store.everywhere("thing", private={"state": "new"})} == {"odd", "plain"}
    record = store.get("me", "thing", "odd")
    assert record is not None
    assert record.body["deep"][0]["x"] in ([kept] if kept != "?" else ["\0", "\ufffd"])


def test_objects_outlive_the_server(url: str) -> None:
    first = Store(url)
    first.put("me", "thing", {"id": "x"})
    first.close()
    second = Store(url)
    assert second.get("me", "thing", "x") is not None
    second.close()


def test_owners_and_kinds_are_walls(store: Store) -> None:
    store.put("me", "thing", {"id": "x"})
    store.put("you", "thing", {"id": "x", "yours": True})
    assert store.get("she", "thing", "x") is None and store.get("me", "other", "x") is None
    assert not store.delete("she", "thing", "x") and store.delete("me", "thing", "x")
    record = store.get("you", "thing", "x")
    assert record is not None and record.body == {"id": "x", "yours": True}
    assert store.page("she", "thing").records == ()
    assert store.update("she", "thing", "x", lambda body, _: body.clear()) is None


def test_a_list_has_pages_in_both_directions(store: Store) -> None:
    ids = [f"n{i}" for i in range(7)]
    for i, id in enumerate(ids):
        store.put("me", "thing", {"id": id, "model": "even" if i % 2 == 0 else "odd", "metadata": {"a.b": str(i)}})
        store.put("me", "other", {"id": id})

    def page(**query: object) -> tuple[list[str], bool]:
        found = store.page("me", "thing", **query)  # type: ignore[arg-type]
        return [record.id for record in found.records], found.has_more

    assert page(limit=3) == (["n6", "n5", "n4"], True) and page(limit=3, after="n4") == (["n3", "n2", "n1"], True)
    assert page(limit=3, after="n1") == (["n0"], False) and page(limit=7, order="asc") == (ids, False)
    assert page(order="asc", after="n4") == (["n5", "n6"], False) and page(order="asc", before="n2") == (["n0", "n1"], False)
    assert page(order="asc", where={"model": "even"}) == (["n0", "n2", "n4", "n6"], False)
    assert page(where={"metadata.a.b": "3"}) == (["n3"], False)
    store.put("me", "thing", {"id": "part"}, parent="n0")
    for query in ({"after": "nowhere"}, {"after": "n3", "parent": "n0"}):
        with pytest.raises(Unknown):
            page(**query)


def test_what_is_changed_keeps_its_place(store: Store) -> None:
    for id in ("a", "b"):
        store.put("me", "thing", {"id": id})
    store.update("me", "thing", "a", lambda body, private: (body.update(seen=True), private.update(n=1)))
    records = store.page("me", "thing", order="asc").records
    assert [record.body for record in records] == [{"id": "a", "seen": True}, {"id": "b"}] and records[0].private == {"n": 1}


def test_parts_go_with_the_whole(store: Store) -> None:
    store.put("me", "whole", {"id": "w"})
    store.put("me", "result", {"id": "w"})
    store.put_all("me", "whole.part", [({"id": f"p{i}"}, {}) for i in range(3)], parent="w")
    store.put("me", "whole.part", {"id": "free"})
    store.put("me", "beside", {"id": "b"}, parent="w")
    assert store.get("me", "whole.part", "p1", parent="w") is not None
    assert store.get("me", "whole.part", "free", parent="w") is None
    store.delete("me", "result", "w")
    assert [r.id for r in store.page("me", "whole.part", parent="w").records] == ["p2", "p1", "p0"], "of another kind, same id"
    store.delete("me", "whole", "w")
    assert [r.id for r in store.page("me", "whole.part").records] == ["free"]
    assert store.get("me", "beside", "b") is None, "a kind of its own, whose parent it was"


def test_what_has_expired_is_gone(store: Store) -> None:
    store.put("me", "thing", {"id": "old"}, {"digest": "d"}, expires_at=int(time.time()) - 1)
    store.put("me", "thing", {"id": "young"}, expires_at=int(time.time()) + 1000)
    assert store.get("me", "thing", "old") is None and [r.id for r in store.page("me", "thing").records] == ["young"]
    assert [record.private for record in store.expire()] == [{"digest": "d"}] and store.expire() == []


def test_changes_from_many_threads_all_count(store: Store) -> None:
    store.put("me", "counter", {"id": "c", "n": 0})

    def count() -> None:
        for _ in range(20):
            store.update("me", "counter", "c", lambda body, _: body.update(n=body["n"] + 1))

    threads = [threading.Thread(target=count) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = store.get("me", "counter", "c")
    assert record is not None and record.body["n"] == 100


def test_everything_of_a_kind_is_found_whoever_owns_it(store: Store) -> None:
    for owner in ("me", "you"):
        store.put(owner, "job", {"id": "j", "status": "queued"}, {"digest": "d"})
    store.put("me", "job", {"id": "k", "status": "done"})
    assert [record.owner for record in store.everywhere("job", {"status": "queued"})] == ["me", "you"]
    assert len(store.everywhere("job", private={"digest": "d"})) == 2


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////no/such/folder/x.db", "oracle://x", "postgresql://nobody@127.0.0.1:1/x"])
def test_a_database_that_cannot_be_opened_is_one_sentence(url: str) -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        Store(url)


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(UserError) as error:
        Store("postgresql://me:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(error.value)


def test_what_a_killed_server_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    (tmp_path / "aside" / "half").write_bytes(b"half")

    def fail() -> Iterator[bytes]:
        yield b"some"
        raise OSError("the client left")

    with pytest.raises(OSError):
        blobs.write(fail(), lambda digest, size: None)
    Blobs(tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_objects_are_found_by_each_of_their_words_in_any_case(store: Store) -> None:
    store.put("me", "chat", {"id": "a"}, words="Grüße aus 100% Öland\0")
    store.put("me", "chat", {"id": "b"})
    store.update("me", "chat", "b", lambda body, private: None, "GRÜSSE, \udc80 nichts weiter")

    def found(words: str) -> list[str]:
        return [record.id for record in store.page("me", "chat", words=words, order="asc").records]

    assert found("grüsse") == ["a", "b"] and found("ÖLAND grüße") == ["a"] and found("weiter öland") == []
    assert found("100%") == ["a"] and found("1_0") == [] and found("") == ["a", "b"]


def test_what_no_id_can_be_is_nowhere(store: Store) -> None:
    store.put("me", "thing", {"id": "a", "metadata": {"topic": "x"}})
    for id in ("a\0", "\0", "\ud800", "a" * 5000):
        assert store.get("me", "thing", id) is None
        assert not store.delete("me", "thing", id) and store.update("me", "thing", id, lambda body, private: None) is None
        for where in ({"metadata.topic": id}, {f"metadata.{id}": "x"}):
            assert not store.page("me", "thing", where=where).records
        with pytest.raises(Unknown):
            store.page("me", "thing", after=id)
