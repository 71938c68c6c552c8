"""Every kind of source, and everything that can be wrong with a file."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tessera.data import builtin, files
from tessera.data.reasons import Skipped
from tessera.data.sources import documents
from tessera.errors import UserError


def read(uri: str) -> tuple[dict[str, str], dict[str, str]]:
    """Text by source, reason by skipped path."""
    skipped: list[Skipped] = []
    found = {d.source: d.text for d in documents(uri, skipped)}
    return found, {s.path: s.reason for s in skipped}


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def test_reads_every_format_of_a_folder_in_sorted_order(tmp_path: Path) -> None:
    rows = [{"id": i, "text": f"row {i}"} for i in range(2)]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "code.rs").write_text("fn main() {}\n")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwith a mark\r\n")
    (tmp_path / "b.jsonl").write_bytes(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines) + gzip.compress(b"\n" + lines))
    (tmp_path / "d.txt.zst").write_bytes(zstd(b"packed text"))
    (tmp_path / "e.json").write_text(json.dumps(rows))
    (tmp_path / "f.csv").write_text('id,text\n7,"two\nlines"\n')
    (tmp_path / "g.tsv").write_text("content\tid\ntabbed\t1\n")
    (tmp_path / "settings.json").write_text('{"name": "x"}')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "h.parquet")
    views = pyarrow.array([row["text"] for row in rows], pyarrow.string_view())
    pyarrow.parquet.write_table(pyarrow.table({"text": views}), tmp_path / "i.parquet")
    found, skipped = read(f"files:{tmp_path}")
    assert found == {
        "a.txt": "with a mark\r\n",
        **{
            f"{name}[{i}]": f"row {i}" for name in ("b.jsonl", "c.jsonl.gz", "e.json", "h.parquet", "i.parquet") for i in range(2)
        },
        **{f"c.jsonl.gz[{i + 2}]": f"row {i}" for i in range(2)},
        "d.txt.zst": "packed text",
        "deep/er/code.rs": "fn main() {}\n",
        "f.csv[0]": "two\nlines",
        "g.tsv[0]": "tabbed",
        "settings.json": '{"name": "x"}',
    }
    assert list(found) == sorted(found)
    assert not skipped


def test_what_cannot_be_read_is_skipped_with_its_reason(tmp_path: Path) -> None:
    good = tmp_path / "good.txt"
    good.write_text("good")
    packed = gzip.compress(os.urandom(4000).hex().encode())
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "program.bin").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "cut.txt.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "cut.txt.zst").write_bytes(zstd(os.urandom(4000).hex().encode())[:2000])
    (tmp_path / "no.gz").write_text("not gzip")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    (tmp_path / "some.jsonl").write_text('{"text": "one"}\n{"text": \n{"text": "\\ud800"}\n{"text": 3}\n')
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    skipped: list[Skipped] = []
    found = [d.source for d in documents(f"files:{tmp_path}", skipped)]
    assert found == ["good.txt", "some.jsonl[0]"]
    reasons = {s.path: s.reason for s in skipped}
    assert reasons["empty.txt"] == reasons["blank.txt"] == "empty"
    assert reasons["program.bin"] == "binary"
    assert reasons["picture.png"] == "not a PNG, JPEG, WebP or GIF picture"
    assert reasons["latin.txt"] == "not UTF-8"
    assert reasons["link"] == reasons["self"] == "a broken link"
    assert reasons["pipe"] == "not a regular file"
    assert {"cut.txt.gz", "cut.txt.zst", "no.gz", "bad.parquet", "numbers.csv", "some.jsonl[2]"} <= set(reasons)
    of_lines = [s.reason for s in skipped if s.path == "some.jsonl"]
    assert sorted(of_lines) == ["1 lines that are not JSON, the first is line 2", "1 rows without text in the column 'text'"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "b.txt").chmod(0)
    assert read(f"files:{tmp_path}") == ({"a.txt": "a"}, {"b.txt": "Permission denied"})


def test_globs_and_ignored_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "a.py",
        "a.md",
        "x/b.py",
        "x/y/c.py",
        ".git/d.py",
        "node_modules/e.py",
        "x/__pycache__/f.py",
        ".env",
        "mine/pyvenv.cfg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "mine" / "g.py").write_text("in a virtual environment")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(read("files:~/**/*.py")[0]) == ["a.py", "x/b.py", "x/y/c.py"]
    assert list(read("files:~/*/*.py")[0]) == ["x/b.py"]
    assert list(read("files:~/x/**")[0]) == ["b.py", "y/c.py"]
    assert list(read("files:~/[!b].?d")[0]) == ["a.md"]
    assert list(read("files:~")[0]) == ["a.md", "a.py", "x/b.py", "x/y/c.py"]


def test_the_text_column_is_named_or_chosen(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("number,title,body\n123456789012345678,hi,longer words\n2,ho,more of them\n")
    said: list[str] = []
    assert [d.text for d in documents(f"files:{path}", [], said.append)] == ["longer words", "more of them"]
    assert len(said) == 1 and "'body'" in said[0]
    assert list(read(f"files:{path}#column=title")[0].values()) == ["hi", "ho"]
    with pytest.raises(UserError, match="without text in the column 'nope'"):
        read(f"files:{path}#column=nope")


@pytest.mark.parametrize("first", ["1,a good film that I saw twice", "nobody would call a column so: it is a whole sentence,x"])
def test_a_first_row_that_is_no_head_is_not_lost(tmp_path: Path, first: str) -> None:
    (tmp_path / "t.csv").write_text(f"{first}\n2,{'bad ' * 40}\n")
    said: list[str] = []
    found = [d.text for d in documents(f"files:{tmp_path / 't.csv'}#column=column 2", [], said.append)]
    assert found == [first.partition(",")[2], "bad " * 40]
    assert len(said) == 1 and said[0].endswith("took the first row as data, since it does not look like names of columns")


def test_a_very_long_text_becomes_pieces_that_join_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE_CHARACTERS", 1000)
    text = "".join(f"línea {i}\n" for i in range(1000))
    (tmp_path / "long.txt").write_text(text)
    found, _ = read(f"files:{tmp_path}")
    assert len(found) > 5
    assert "".join(found.values()) == text
    assert all(piece.endswith("\n") for piece in found.values())


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("files:/no/such/place", "no file or folder"),
        ("files:~nobody-of-this-name/texts", "no file or folder ~nobody-of-this-name"),
        (f"files:{__file__}/*", "nothing lies below it"),
        ("files:/dev/null", "neither a file nor a folder"),
        ("http://x", "none of files:"),
        ("builtin:nothing", "none of files:"),
        ("hub:", "none of files:"),
        ("files:/*.[!]", "hold no set of characters"),
        ("python:nodots", "package.module.function"),
        ("python:no_such_module.f", "cannot be imported"),
    ],
)
def test_a_wrong_address_is_one_sentence(uri: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(uri)
    assert "\n" not in str(caught.value)


def test_an_empty_source_stops_and_names_the_first_skipped_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="yields no document"):
        read(f"files:{tmp_path}")
    (tmp_path / "x.bin").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"x\.bin: binary"):
        read(f"files:{tmp_path}")


def test_generators_by_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_generator.py").write_text(
        "from tessera.tokens.document import Document\n"
        "def mixed():\n    yield 'plain'\n    yield Document.of_text('whole', 'mine')\n"
        "def wrong():\n    yield 3\n"
        "def one():\n    return 'a text'\n"
        "def broken():\n    yield 'x'\n    raise ValueError('two\\nlines')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert read("python:my_generator.mixed")[0] == {"my_generator.mixed[0]": "plain", "mine": "whole"}
    with pytest.raises(UserError, match="yielded a int"):
        read("python:my_generator.wrong")
    with pytest.raises(UserError, match="returned one str; it must yield"):
        read("python:my_generator.one")
    with pytest.raises(UserError, match="raised ValueError: two lines"):
        read("python:my_generator.broken")
    for name, text in (("half", "def f(:\n"), ("sick", "raise RuntimeError('two\\nlines')\n")):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(UserError, match=r"cannot be imported: (SyntaxError: \w|RuntimeError: two lines)") as caught:
            read(f"python:{name}.f")
        assert "\n" not in str(caught.value)
    assert str(tmp_path) not in sys.path


def test_prose_is_docstrings_and_topics() -> None:
    # The first modules alone: parsing all of them takes seconds.
    found = {d.source: d.text for d in itertools.islice(documents("builtin:prose", []), 12)}
    assert "Record of phased-in incompatible language changes" in found["__future__.py"]
    assert "self.optional = optionalRelease" not in found["__future__.py"]
    assert not any(os.path.isabs(source) for source in found)
    topics = {d.source: d.text for d in builtin.help_topics([])}
    assert len(topics) > 50
    assert "anonymous functions" in topics["pydoc_data/topics.py[lambda]"]


def test_hub_reads_local_folders_and_reports_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(
        "".join(json.dumps({"text": f"t{i}", "title": f"n{i}"}) + "\n" for i in range(3))
    )
    assert list(read(f"hub:{tmp_path / 'set'}")[0].values()) == ["t0", "t1", "t2"]
    assert read(f"hub:{tmp_path / 'set'}?split=train&limit=2#column=title")[0] == {"set[0]": "n0", "set[1]": "n1"}
    with pytest.raises(UserError, match="could not be read"):
        read(f"hub:{tmp_path / 'set'}?split=nope")
    with pytest.raises(UserError, match="is not hub:"):
        read("hub:x?limit=many")
    monkeypatch.chdir(tmp_path / "set")
    assert list(read("hub:.")[0].values()) == ["t0", "t1", "t2"]


def test_sums_in_words_are_right_and_each_is_a_document_of_its_own() -> None:
    found = {document.source: document.text for document in documents("builtin:sums", [])}
    assert found["sums[40 plus 2]"] == "What is forty plus two? Forty-two.\n"
    assert found["sums[99 plus 21]"] == "What is ninety-nine plus twenty-one? One hundred and twenty.\n"
    assert found["sums[12 times 12]"] == "What is twelve times twelve? One hundred and forty-four.\n"
    assert len(found) == 100 * 100 + 100 * 101 // 2 + 13 * 13 == len(set(found.values()))
    few = {document.source: document.text for document in documents("builtin:sums?below=20", [])}
    assert few.items() <= found.items() and len(few) == 20 * 20 + 20 * 21 // 2 + 13 * 13
    with pytest.raises(UserError, match="is none of"):
        list(documents("builtin:sums?below=101", []))
