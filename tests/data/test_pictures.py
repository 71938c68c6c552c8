"""Picture files as people have them: any format, any orientation, broken ones; captions beside them; the built-in sets."""

from __future__ import annotations

import io
import itertools
import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.data import builtin_pictures as builtin
from tessera.data.pictures import captioned, fitted, hole, parts_of, png, read_picture, resized
from tessera.data.reasons import Skipped, Unreadable
from tessera.data.sources import documents
from tessera.errors import UserError
from tessera.tokens.document import Document, Segment

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
NOISE = np.random.default_rng(1).integers(0, 256, (90, 90, 3), dtype=np.uint8)


def encoded(form: str, pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is that large and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_every_format_is_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert (read_picture(encoded(form, **options)) == PIXELS).all()
    assert (read_picture(png(PIXELS)) == PIXELS).all()
    smooth = np.repeat(np.repeat(PIXELS[:2, :2], 16, 0), 16, 1)
    for form in ("JPEG", "GIF"):
        found = read_picture(encoded(form, smooth))
        assert found.shape == smooth.shape and np.abs(found.astype(int) - smooth).mean() < 12
    (tmp_path / "really-a-png.jpg").write_bytes(encoded("PNG"))
    assert (read_picture(tmp_path / "really-a-png.jpg") == PIXELS).all()


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert read_picture(file.getvalue())[0, 0].tolist() == [255, 0, 0]


def test_pictures_stand_upright_and_transparency_is_laid_on_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # was turned left by the camera
    assert read_picture(encoded("PNG", exif=exif)).shape == (9, 6, 3)
    assert (read_picture(encoded("PNG", exif=exif)) == np.rot90(PIXELS, 3)).all()
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    clear[0, 1] = (0, 0, 0, 128)
    found = read_picture(encoded("PNG", clear))
    assert found[0, 0].tolist() == [10, 20, 30] and found[1, 1].tolist() == [255] * 3 and found[0, 1].tolist() == [127] * 3
    assert (read_picture(encoded("PNG", clear), alpha=True)[..., 3] == clear[..., 3]).all()


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert read_picture(encoded("PNG", deep))[..., 0].tolist() == [[0, 100, 255]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x89PNG\r\n\x1a\nrubbish", "not a PNG"),
        (b"", "not a PNG"),
        (encoded("PNG", NOISE)[:3000], "damaged"),
        (encoded("JPEG", NOISE)[:2000], "damaged"),
        (bomb(20_000, 20_000), "more than"),
        (bomb(0, 5), "not a PNG|damaged|without pixels"),
        (encoded("BMP"), "not a PNG"),
    ],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read_picture(data)


def test_a_folder_takes_captions_from_its_list_and_leaves_out_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "b.PNG", "deep/c.webp"):
        (tmp_path / name).write_bytes(encoded("WEBP" if name.endswith("webp") else "PNG"))
    (tmp_path / "cut.png").write_bytes(encoded("PNG")[:60])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "captions.tsv").write_text("file\tname\tmood\na.png\ta red cat\tcalm\nc.webp\ta dog\twild\n")
    skipped: list[Skipped] = []
    found = {d.source: parts_of(d) for d in documents(f"files:{tmp_path}", skipped)}
    captions = {name: parts.caption for name, parts in found.items() if parts}
    assert captions == {"a.png": "a red cat", "b.PNG": "", "deep/c.webp": "a dog"}
    assert {s.path for s in skipped} == {"cut.png", "empty.jpg"}
    moods = [parts_of(d) for d in documents(f"files:{tmp_path}#column=mood", [])]
    assert [p.caption for p in moods if p] == ["calm", "", "wild"]


@pytest.mark.parametrize(("name", "between"), [("captions.tsv", "\t"), ("metadata.csv", ",")])
def test_a_list_of_two_columns_needs_no_names_for_them(tmp_path: Path, name: str, between: str) -> None:
    for file in ("a.png", "b.png"):
        (tmp_path / file).write_bytes(encoded("PNG"))
    (tmp_path / name).write_text(f"a.png{between}a red cat\nb.png{between}a dog\n")
    for uri in (f"files:{tmp_path}", f"files:{tmp_path}#column=mood"):
        assert [p.caption for d in documents(uri, []) if (p := parts_of(d))] == ["a red cat", "a dog"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("file\ttext\na.png\tcaf\xe9\n", "it is not UTF-8 text"),
        ("picture\ttext\na.png\ta cat\n", "it has no column file_name, file or path"),
    ],
)
def test_a_list_that_cannot_be_used_is_told_once(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "captions.tsv").write_bytes(text.encode("latin-1"))
    said: list[str] = []
    (tmp_path / "only.txt").write_text("text without pictures asks for no captions")
    list(documents(f"files:{tmp_path}", [], said.append))
    assert not any("captions" in line for line in said)
    for file in ("a.png", "b.png"):
        (tmp_path / file).write_bytes(encoded("PNG"))
    list(documents(f"files:{tmp_path}", [], said.append))
    told = [line for line in said if "captions" in line and "no captions are taken" in line]
    assert told == [f"files:{tmp_path}: no captions are taken from {tmp_path / 'captions.tsv'}: {why}"]


def test_imagefolder_layouts_give_captions_questions_and_labels(tmp_path: Path) -> None:
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "0.png").write_bytes(encoded("PNG"))
    row = {"file_name": "0.png", "text": "a\u2028cat", "question": "How many?", "answer": "one"}
    # JSON may hold other ends of lines as they are.
    (tmp_path / "listed" / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    (found,) = [parts_of(d) for d in documents(f"files:{tmp_path / 'listed'}", [])]
    assert found is not None and found.caption.split() == ["a", "cat"] and found.questions == [("How many?", "one")]
    for label in ("black_cat", "dog"):
        (tmp_path / "classes" / label).mkdir(parents=True)
        (tmp_path / "classes" / label / "0.png").write_bytes(encoded("PNG"))
    labels = [parts_of(d) for d in documents(f"files:{tmp_path / 'classes'}", [])]
    assert [p.caption for p in labels if p] == ["black cat", "dog"]


def test_a_list_that_is_nested_without_end_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(np.zeros((2, 2, 3), np.uint8)))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": ' + "[" * 100_000)
    skipped: list[Skipped] = []
    assert len(list(documents(f"files:{tmp_path}", skipped))) == 1
    assert "metadata.jsonl" in {s.path for s in skipped}


def test_pictures_are_scaled_down_in_their_proportions_and_never_up() -> None:
    large = np.zeros((60, 90, 3), np.uint8)
    assert fitted(large, 1024).shape[0] * fitted(large, 1024).shape[1] <= 1024 and fitted(large, 1024).shape == (26, 39, 3)
    assert fitted(np.zeros((3, 900, 3), np.uint8), 100).shape == (1, 100, 3)
    assert fitted(PIXELS, 54) is PIXELS
    assert (resized(PIXELS, 12, 18)[::2, ::2] == PIXELS).all()


def test_the_parts_of_a_captioned_picture_come_back_and_other_documents_have_none() -> None:
    parts = parts_of(captioned(PIXELS, "a cat", [("Where?", "here")], "x"))
    assert parts is not None and parts.caption == "a cat" and parts.questions == [("Where?", "here")]
    assert parts_of(Document.of_text("a cat")) is None
    assert parts_of(Document((Segment("image", PIXELS), Segment("text", "learned, so no question")))) is None


def test_digits_keep_the_test_pictures_back_and_lose_nothing() -> None:
    drawn = [parts_of(d) for d in documents("builtin:digits", [])]
    levels, labels = builtin.digit_arrays("test")
    assert len(drawn) == 1497 and len(levels) == 300
    kept_back = Counter(p.tobytes() for p in builtin.digit_pixels(levels))
    everything = Counter(p.signal.tobytes() for p in drawn if p)
    both = Counter(p.tobytes() for split in ("train", "test") for p in builtin.digit_pixels(builtin.digit_arrays(split)[0]))
    assert everything + kept_back == both and not set(everything) & set(kept_back)
    assert min(np.bincount(labels)) >= 28  # stratified
    assert all(p and builtin.NUMBERS.index(p.questions[0][1]) >= 0 and p.questions[0][1] in p.caption for p in drawn)
    assert len({value for p in drawn if p for value in p.signal.ravel().tolist()}) == builtin.GREY_LEVELS


def test_shapes_show_what_their_captions_say_and_never_a_pair_that_is_held_out() -> None:
    pairs = set()
    for document in documents("builtin:shapes?count=400", []):
        parts = parts_of(document)
        assert parts is not None and parts.signal.shape == (16, 16, 3)
        words = parts.caption.split()
        colours = {name for name, value in builtin.COLOURS.items() if (parts.signal == value).all(-1).any()}
        assert colours == {word for word in words if word in builtin.COLOURS}, parts.caption
        for colour, form in itertools.pairwise(words):
            if colour in builtin.COLOURS:
                pairs.add((colour, next(name for name in builtin.FORMS if form.startswith(name))))
    assert len(pairs) == 25 and not pairs & builtin.HELD_OUT
    held = [parts_of(d) for d in builtin.shapes(60, held_out=True)]
    assert {tuple(p.caption.split()[2:4]) for p in held if p} == builtin.HELD_OUT


def test_a_place_is_where_the_caption_says() -> None:
    for document in builtin.shapes(300):
        parts = parts_of(document)
        assert parts is not None
        ink = (parts.signal != 255).any(-1)
        y, x = (axis.mean() for axis in np.nonzero(ink))
        if "upper" in parts.caption:
            assert y < 7.5
        if "lower" in parts.caption:
            assert y > 7.5
        if " in the " in parts.caption and "left" in parts.caption:
            assert x < 7.5


def test_shapes_are_the_same_every_time() -> None:
    first, second = (list(builtin.shapes(30)) for _ in range(2))
    assert all(parts_of(a).signal.tobytes() == parts_of(b).signal.tobytes() for a, b in zip(first, second, strict=True))  # type: ignore[union-attr]
    assert {d.text for d in builtin.shapes(30, seed=1)} != {d.text for d in first}


def test_a_count_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="none of"):
        list(documents("builtin:shapes?count=many", []))


@pytest.mark.parametrize("turned", [False, True])
def test_a_thin_mask_is_still_there_where_one_side_grows_and_the_other_shrinks(turned: bool) -> None:
    picture = np.full((40, 8, 4), 255, np.uint8)
    mask = picture.copy()
    mask[11, :, 3] = 0
    size = (10, 16)
    if turned:
        picture, mask, size = picture.transpose(1, 0, 2), mask.transpose(1, 0, 2), (16, 10)
    pixels, drawn = hole(picture, mask, size, 1000)
    assert pixels.shape == (*size, 3) and drawn.shape == size
    assert (drawn.T if turned else drawn).all(1).tolist() == [row == 2 for row in range(10)]
