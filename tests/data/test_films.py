"""Films: files in and out, their rate and size, what is refused, and the physics of those that are drawn here."""

from __future__ import annotations

import json
import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera import recipe
from tessera.data.builtin_films import MOTIONS, STYLES, THINGS, Scene, films, scene
from tessera.data.corpus import SPLITS, gather
from tessera.data.film_tasks import film_cut, film_documents, held_out_films, least_film_context
from tessera.data.films import (
    MOST_FRAMES_READ,
    captioned_film,
    cut_film,
    film_file,
    film_parts,
    find_loop,
    fitted_film,
    read_film,
    resampled,
)
from tessera.data.pictures import fitted
from tessera.data.reasons import Skipped, Unreadable
from tessera.data.sources import documents
from tessera.errors import UserError
from tessera.tokens.films import QUESTION

SCENES = [scene(np.random.Generator(np.random.PCG64(seed))) for seed in range(60)]


def test_a_gif_holds_the_very_frames_and_their_rate(tmp_path: Path) -> None:
    drawn = SCENES[0].film()
    still = np.concatenate([drawn, drawn[-1:], drawn[-1:]])  # frames that are equal stay frames
    (tmp_path / "a.gif").write_bytes(film_file(still, 8.0, "gif"))
    frames, per_second = read_film(tmp_path / "a.gif")
    assert (frames == still).all() and abs(per_second - 8) < 0.4


def test_an_mp4_comes_back_nearly_and_by_its_content(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs PyAV (the extra [film])")
    drawn = SCENES[1].film()
    (tmp_path / "a.gif").write_bytes(film_file(drawn, 8.0, "mp4"))
    frames, per_second = read_film(tmp_path / "a.gif")
    assert frames.shape == drawn.shape and per_second == 8
    assert np.abs(frames.astype(int) - drawn).mean() < 8


def test_an_mp4_that_was_filmed_upright_stands_upright() -> None:
    pytest.importorskip("av", reason="needs PyAV (the extra [film])")
    lying = np.zeros((3, 32, 64, 3), np.uint8)
    lying[:, :, :32] = 255
    file = film_file(lying, 8.0, "mp4")
    # The matrix by which a film is shown, in the header of its track: turned right by a quarter.
    plain, turned = (
        struct.pack(">9i", *rows)
        for rows in ((1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), (0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30))
    )
    at = file.index(plain, file.index(b"tkhd"))
    frames, _ = read_film(file[:at] + turned + file[at + len(plain) :])
    assert frames.shape == (3, 64, 32, 3) and frames[:, :28].min() > 200 and frames[:, 36:].max() < 55


def test_a_frame_that_stays_long_is_not_repeated_past_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = [Image.fromarray(np.full((40, 40, 3), shade, np.uint8)) for shade in (0, 255)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[20, 60_000], loop=0)
    frames, per_second = read_film(tmp_path / "a.gif", 100)
    assert len(frames) == 100 and per_second == 50 and (frames[1:] == 255).all()
    monkeypatch.setattr("tessera.data.films.MOST_PIXELS_READ", 40 * 40 * 99)
    with pytest.raises(Unreadable, match="pixels"):
        read_film(tmp_path / "a.gif", 100)


def test_a_gif_lasts_as_long_as_its_frames_stay_together(tmp_path: Path) -> None:
    first, *rest = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in range(0, 240, 12)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[20, 30] * 10, loop=0)
    frames, per_second = read_film(tmp_path / "a.gif")
    assert per_second == 50 and len(frames) == 25 and len(np.unique(frames)) == 20
    first.save(tmp_path / "b.gif", save_all=True, append_images=rest[:5], duration=[20, 30] * 3, loop=0)
    frames, _ = read_film(tmp_path / "b.gif")
    assert len(frames) == 8 and len(np.unique(frames)) == 6


def test_frames_that_came_at_any_times_stay_as_long_as_they_did(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs PyAV (the extra [film])")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        # Half a second of quick frames, then five that stay for a second each.
        for shade, milliseconds in zip(range(0, 220, 20), [*range(0, 600, 100), *range(1500, 6500, 1000)], strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), format="rgb24")
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, per_second = read_film(tmp_path / "a.mkv")
    assert len(frames) / per_second == pytest.approx(6.05, abs=0.1)
    quick = (frames[:, 0, 0, 0] < 90).mean()
    assert quick < 0.15, "they were a twelfth of it"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "not a GIF"), (b"GIF89a", "not a GIF|damaged"), (b"\0\0\0\x18ftypmp42" + b"\0" * 40, "damaged|without a film")],
)
def test_what_is_no_film_is_refused_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(Unreadable, match=words):
        read_film(tmp_path / "a.mp4")


def test_a_gif_with_a_frame_that_is_larger_than_the_film_is_refused(tmp_path: Path) -> None:
    small, large = (film_file(np.zeros((1, side, side, 3), np.uint8), 8.0, "gif") for side in (8, 16))
    picture = large[large.index(b",\0\0\0\0\x10\0\x10\0") :]
    (tmp_path / "a.gif").write_bytes(small[:-1] + picture)
    with pytest.raises(Unreadable, match="frames change their size"):
        read_film(tmp_path / "a.gif")


def test_without_its_library_a_film_file_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 40)
    with pytest.raises(Unreadable, match="pip install"):
        read_film(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"pip install.*ends in \.gif"):
        film_file(SCENES[0].film(), 8.0, "webm")


def test_a_loop_ends_where_it_begins_and_moves_on_as_it_did() -> None:
    # From wall to wall and back: 20 frames, in which every place but the walls comes twice, once in each direction.
    film = Scene("red", "ball", "moves to the right", "", 0, 10).film(47)
    loop = find_loop(film, 6)
    assert (loop.last - loop.first) % 20 == 0 and loop.seam == 0 < loop.step
    assert (film[loop.first : loop.last + 1][-1] == film[loop.first]).all()
    assert find_loop(film, 6, 3).first == 3 and find_loop(film, 25).last - find_loop(film, 25).first == 40
    # Where there is none the nearest is taken, and its seam said.
    away = Scene("red", "ball", "moves to the right", "", 0, 10).film(9)
    assert find_loop(away, 6).seam > find_loop(away, 6).step > 0
    still = np.repeat(film[:1], 12, 0)
    assert find_loop(still, 3).last - find_loop(still, 3).first == 10


def test_a_folder_of_films_has_captions_and_broken_ones_are_listed(tmp_path: Path) -> None:
    (tmp_path / "hops").mkdir()
    (tmp_path / "hops" / "one.gif").write_bytes(film_file(SCENES[0].film(), 8.0, "gif"))
    (tmp_path / "hops" / "two.gif").write_bytes(b"GIF89a and no more")
    skipped: list[Skipped] = []
    (found,) = documents(f"files:{tmp_path}", skipped, wanted=frozenset({"video"}))
    parts = film_parts(found)
    assert parts is not None and parts[0].caption == "hops" and parts[0].signal.shape == (9, 32, 32, 3)
    assert [s.path for s in skipped] == ["hops/two.gif"]
    # Where films are not asked for, a GIF is a picture.
    (still,) = documents(f"files:{tmp_path}", [])
    assert [s.kind for s in still.segments] == ["text", "image"]


def test_a_film_that_claims_to_last_for_years_is_not_made_so_long() -> None:
    frames = np.zeros((2, 1, 1, 3), np.uint8)
    assert len(resampled(frames, 1e-3, 8.0)) == MOST_FRAMES_READ and len(resampled(frames, 1.0, 8.0)) == 16


def test_rate_size_and_length_are_brought_to_what_is_wanted() -> None:
    numbered = np.arange(24, dtype=np.uint8)[:, None, None, None].repeat(30, 1).repeat(50, 2).repeat(3, 3)
    assert resampled(numbered, 24.0, 8.0)[:, 0, 0, 0].tolist() == list(range(1, 24, 3))
    assert resampled(numbered[:3], 4.0, 8.0)[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert fitted_film(numbered, 1024, 4).shape == (24, 24, 40, 3)
    assert [len(piece) for piece in cut_film(numbered, 9, 2)] == [9, 9]
    assert [len(piece) for piece in cut_film(numbered[:6], 9, 4)] == [5]


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_frames_are_shrunk_as_they_are_decoded_so_that_large_films_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    if ending == "mp4":
        pytest.importorskip("av", reason="needs PyAV (the extra [film])")
    large = np.stack([np.asarray(Image.fromarray(f).resize((92, 44), Image.Resampling.NEAREST)) for f in SCENES[0].film(30)])
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / f"a.{ending}").write_bytes(film_file(large, 8.0, ending))
    (tmp_path / "films" / f"b.{ending}").write_bytes(film_file(large[::-1], 8.0, ending))
    frames, per_second = read_film(tmp_path / "films" / f"a.{ending}")
    wanted = fitted_film(frames, 1024, 4)
    assert wanted.shape == (30, 24, 48, 3) and fitted_film(wanted, 1024, 4).shape != wanted.shape
    monkeypatch.setattr("tessera.data.films.MOST_PIXELS_READ", wanted[..., 0].size)
    with pytest.raises(Unreadable, match="more than are read"):
        read_film(tmp_path / "films" / f"a.{ending}")
    calls = 0

    def shrink(frame: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return fitted(frame, 1024, 4)

    found = read_film(tmp_path / "films" / f"a.{ending}", shrink=shrink)
    assert (found[0] == wanted).all() and found[1] == per_second and calls == 30
    # A recipe's corpus holds what the two steps one after the other have given.
    settings = recipe.Films(most_frames=9, quantizer=recipe.Quantizer(stride=4))
    data = recipe.Data(sources=(recipe.Source(uri=f"files:{tmp_path / 'films'}/*.{ending}"),), films=settings, deduplicate="none")
    corpus = gather(data, tmp_path / "cache", lambda line: None)
    pieces = [p[0].signal.tobytes() for s in SPLITS for d in corpus.documents(s, 0) if (p := film_parts(d)) is not None]
    stride = film_cut(settings).time_stride
    assert {piece.tobytes() for piece in cut_film(resampled(wanted, per_second, 8.0), 9, stride)} <= set(pieces)
    monkeypatch.setattr("tessera.data.films.MOST_PIXELS_DECODED", large[..., 0].size - 1)
    with pytest.raises(Unreadable, match="more than are read"):
        read_film(tmp_path / "films" / f"a.{ending}", shrink=shrink)


def test_any_later_stretch_is_what_follows_from_the_beginning() -> None:
    for drawn in SCENES:
        assert (drawn.film(5, first=4) == drawn.film()[4:]).all()
        places = np.array([drawn.place(t) for t in range(200)])
        assert places.min() >= 0 and places.max() <= 20
        assert np.abs(np.diff(places[:, 1])).max() <= 2


def test_everything_that_can_be_said_occurs() -> None:
    said = " / ".join("".join(str(s.content) for s in d.segments if s.kind == "text") for d in films(400))
    assert all(word in said for word in (*MOTIONS, *THINGS, *(s for s in STYLES if s)))
    assert Scene("red", "ball", "bounces to the left", "", 20, 0).caption == "a red ball bounces to the left"


def test_tasks_are_chosen_by_content_and_seed_alone() -> None:
    settings = recipe.Films(views=4, caption_dropout=0.3)
    drawn = list(films(20))
    made = list(film_documents(drawn, settings, seed=1))
    assert len(made) == 80 and {len(d.segments) for d in made} == {1, 2, 3}
    told = [d for d in made if d.segments[0].kind == "video" and len(d.segments) == 3]
    assert all(not d.segments[0].learn and d.segments[1].content == QUESTION and d.segments[2].learn for d in told)
    again = list(film_documents(reversed(drawn), settings, seed=1))
    assert sorted(d.text for d in again) == sorted(d.text for d in made)


def test_a_question_about_a_film_is_asked_and_answered_beside_its_caption(tmp_path: Path) -> None:
    answer = "No, " * 100
    rows = [
        {"file_name": "one.gif", "text": "a ball", "question": "Does it jump?", "answer": answer},
        {"file_name": "two.gif", "question": "What colour?", "answer": "red"},
    ]
    for row, drawn in zip(rows, SCENES, strict=False):
        (tmp_path / row["file_name"]).write_bytes(film_file(drawn.film(13), 8.0, "gif"))
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = recipe.Films(views=12, tasks=recipe.FilmTasks(tell=1, film=1))
    data = recipe.Data(sources=(recipe.Source(uri=f"files:{tmp_path}"),), films=settings)
    corpus = gather(data, tmp_path / "cache", lambda line: None)
    found = sorted((d for split in SPLITS for d in corpus.documents(split, 0)), key=lambda d: d.source)
    parts = [each[0] for document in found if (each := film_parts(document)) is not None]
    assert [(p.caption, p.questions) for p in parts] == [
        ("a ball", [("Does it jump?", answer)]),
        ("", [("What colour?", "red")]),
    ] and {len(p.signal) for p in parts} == {9}
    made = list(film_documents(found, settings, seed=1))
    told = {tuple(str(s.content) for s in d.segments[1:]) for d in made if not d.segments[0].learn and len(d.segments) == 3}
    assert told >= {(QUESTION, "a ball"), ("Does it jump?", answer), ("What colour?", "red")}
    held_out = [tuple(str(s.content) for s in d.segments[1:]) for d in held_out_films(found, settings) if len(d.segments) == 3]
    assert held_out == [(QUESTION, "a ball"), ("What colour?", "red")]
    plain = [captioned_film(p.signal, p.caption, 8.0, "x") for p in parts]
    assert least_film_context(found, settings) > least_film_context(plain, settings) + len(answer) / 8
