"""Text while it comes."""

from __future__ import annotations

from tessera.engine.stream import TextStream


def test_a_stream_splits_no_character_and_leaks_no_stop_string() -> None:
    text = "naïve 🙂 text, 1\n2\n\nEND and more"
    for size in (1, 2, 3, 7):
        data = text.encode()
        stream = TextStream(("\n\nEND", "\n\n\n"))
        given = [stream.feed(data[at : at + size]) for at in range(0, len(data), size)] + [stream.finish()]
        assert "".join(given) == stream.text == "naïve 🙂 text, 1\n2" and stream.stopped
        assert not any("\ufffd" in piece for piece in given)
    open_end = TextStream(("stop",))
    pieces = [open_end.feed(b"a sto"), open_end.feed(b"ne, a s"), open_end.feed(b"\xf0\x9f"), open_end.finish()]
    assert pieces == ["a ", "stone, a ", "", "s\ufffd"]
