"""Films on the command line: a quantizer and a model trained, films made, begun, gone on with, told; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tessera.data.builtin_films import scene
from tessera.data.films import film_file, read_film
from tessera.data.pictures import png
from tessera.provenance import read_mark
from tessera.train.quantizer import in_words

DRAWN = scene(np.random.Generator(np.random.PCG64(1))).film()


@pytest.fixture(scope="module")
def quantizer(corner) -> Path:  # type: ignore[no-untyped-def]
    out = corner.folder / "quantizer"
    sets = ("steps=6", "batch=2", "width=8", "stride=8", "time_stride=4", "levels=[5,4]", "decoder_layers=1")
    code, said = corner.call(
        "tokenizer", "train", "builtin:films?count=24", "--of", "films", "--out", str(out),
        *(word for s in sets for word in ("--set", s)),
    )  # fmt: skip
    assert code == 0 and "psnr" in said, said
    return Path(out)


@pytest.fixture(scope="module")
def run(corner, quantizer: Path) -> Path:  # type: ignore[no-untyped-def]
    out = corner.folder / "films"
    settings = (
        'data.sources=["builtin:films?count=24"]', f"data.films.trained={quantizer}", "data.films.views=1",
        "tokenizer.vocabulary_size=288", "model.width=32", "model.layers=1", "train.batch_rows=4", "train.threads=1",
        "train.workers=1", "train.compile=false", "train.final_tokens=512", "train.evaluate_tokens=512",
    )  # fmt: skip
    code, said = corner.call(
        "train", "film", "--out", str(out), "--budget", "8ktok", "--no-forecast", *(w for s in settings for w in ("--set", s))
    )
    assert code == 0 and "24 films" in said, said
    return Path(out)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / f"{name}.gif" for name in ("clip", "short", "broken")}
    found["clip"].write_bytes(film_file(np.concatenate([DRAWN, DRAWN[-3:]]), 8.0, "gif"))
    found["short"].write_bytes(film_file(DRAWN[:2], 8.0, "gif"))
    found["broken"].write_bytes(b"no film")
    found["first"] = tmp_path / "first.png"
    found["first"].write_bytes(png(DRAWN[0].repeat(2, 0).repeat(2, 1)))
    return {**found, "tmp": tmp_path}


def test_a_quantizer_of_clips_none_of_which_is_held_out_says_so(corner, files: dict[str, Path]) -> None:  # type: ignore[no-untyped-def]
    clips = files["tmp"] / "clips"
    clips.mkdir()
    (clips / "a.gif").write_bytes(files["clip"].read_bytes())
    for number in range(6):  # at least one document is held out, and it is one of these
        (clips / f"{number}.txt").write_text(f"words beside it, {number}")
    sets = ("steps=2", "batch=1", "width=8", "stride=8", "time_stride=4", "levels=[5,4]", "decoder_layers=1")
    code, said = corner.call(
        "tokenizer", "train", f"files:{clips}/", "--of", "films", "--out", str(files["tmp"] / "own"),
        *(word for s in sets for word in ("--set", s)),
    )  # fmt: skip
    assert code == 0, said
    exam = json.loads((files["tmp"] / "own" / "metrics.jsonl").read_text().splitlines()[-1])
    assert exam["event"] == "exam" and exam["held_out"] == 0 and "since none are held out" in in_words(exam)


def test_the_quantizer_lies_in_the_model_with_the_hash_it_was_trained_to(  # type: ignore[no-untyped-def]
    run: Path, quantizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessera.commands.tokenizer import inspect

    assert (run / "model" / "video_tokenizer.json").read_bytes() == (quantizer / "video_tokenizer.json").read_bytes()
    inspect(str(quantizer), None, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["ids"] == 20 and facts["ids_of_that_shape"] == 48 and facts["time_stride"] == 4
    blocks = json.loads((run / "model" / "vocabulary.json").read_text())["blocks"]
    assert [b["fingerprint"] for b in blocks] == [facts["hash"]]


def test_a_film_is_a_file_and_the_same_for_a_seed(corner, run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name, more in (("a", ()), ("b", ()), ("long", ("--frames", "12", "--size", "16x24", "--guidance", "1"))):
        out = str(tmp_path / f"{name}.gif")
        code, said = corner.call("generate", str(run), "a red ball moves up", "--out", out, "--seed", "3", *more)
        assert code == 0, said
    assert (read_film(tmp_path / "a.gif")[0] == read_film(tmp_path / "b.gif")[0]).all()
    assert read_mark((tmp_path / "a.gif").read_bytes()).model == run.name
    assert read_film(tmp_path / "a.gif")[0].shape == (9, 32, 32, 3)
    assert read_film(tmp_path / "long.gif")[0].shape == (12, 16, 24, 3)


def test_what_is_given_stays_as_it_was(corner, run: Path, files: dict[str, Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    begun, longer = tmp_path / "begun.gif", tmp_path / "longer.gif"
    code, said = corner.call("generate", str(run), "", "--image", str(files["first"]), "--out", str(begun))
    assert code == 0, said
    frames = read_film(begun)[0]
    assert len(frames) == 9 and (frames[0] == DRAWN[0]).all()
    code, said = corner.call("generate", str(run), "", "--video", str(files["clip"]), "--out", str(longer), "--frames", "7")
    assert code == 0, said
    frames = read_film(longer)[0]
    assert len(frames) == 19 and (frames[:9] == DRAWN).all()


def test_a_loop_is_a_part_of_what_was_made(corner, run: Path, files: dict[str, Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "loop.gif"
    code, said = corner.call("generate", str(run), "a red ball", "--out", str(out), "--loop", "--frames", "14", "--seed", "1")
    assert code == 0, said
    assert 4 <= len(read_film(out)[0]) <= 12
    code, said = corner.call(
        "generate", str(run), "", "--video", str(files["clip"]), "--out", str(out), "--loop", "--frames", "8"
    )
    frames = read_film(out)[0]
    assert code == 0 and len(frames) >= 9 and (frames[:9] == DRAWN).all(), said


def test_a_film_is_told(corner, run: Path, files: dict[str, Path]) -> None:  # type: ignore[no-untyped-def]
    code, said = corner.call("generate", str(run), "", "--video", str(files["clip"]))
    assert code == 0, said


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--frames", "9"), "give --out FILE.gif"),
        (("--out", "{tmp}/a.avi", "--frames", "9"), ".gif, .mp4, .webm"),
        (("--out", "{tmp}/a.gif", "--frames", "0"), "at least 1"),
        (("--out", "{tmp}/a.gif", "--frames", "9", "--loop"), "too few to find a loop in"),
        (("--loop",), "give --out FILE.gif"),
        (("--video", "{clip}", "--frames", "3"), "--frames is for what is made"),
        (("--loop", "--out", "{tmp}/a.png"), ".gif, .mp4, .webm"),
        (("--out", "{tmp}/a.gif", "--guidance-interval", "0.6-0.5"), "write BEGIN-END"),
        (("--out", "{tmp}/a.gif", "--size", "30x32"), "multiples of 8"),
        (("--out", "{tmp}/a.gif", "--size", "320x320"), "give fewer --frames or a smaller --size"),
        (("--out", "{tmp}/a.gif", "--image", "{first}", "--video", "{clip}"), "give one of them"),
        (("--out", "{tmp}/a.gif", "--variation", "--image", "{first}"), "not for films"),
        (("--out", "{tmp}/a.gif", "--video", "{tmp}/none.gif"), "there is no film"),
        (("--video", "{broken}"), "not a GIF"),
        (("--out", "{tmp}/a.png"), "has no ids for image"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(  # type: ignore[no-untyped-def]
    corner, run: Path, files: dict[str, Path], more: tuple[str, ...], sentence: str
) -> None:
    code, said = corner.call("generate", str(run), "a red ball", *(word.format(**files) for word in more))
    assert code == 2 and sentence in said and said.count("\n") == 1, said


def test_settings_that_are_none_are_named(corner, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("tokenizer", "train", "builtin:films?count=9", "--out", str(tmp_path / "q"))
    for more, sentence in (
        (("--of", "films", "--set", "wdth=8"), "known here: quantizer"),
        (("--of", "smells"), "none of text, pictures, films and sounds"),
        (("--set", "steps=8"), "--of films"),
        (("--of", "films", "--set", "levels=[1]"), "2 to 64 levels"),
    ):
        code, said = corner.call(*words, *more)
        assert code == 2 and sentence in said and said.count("\n") == 1, said
