"""Pictures on the command line: trained, stopped and resumed, drawn, edited, varied, looked at, measured; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tessera.commands.evaluate import evaluate
from tessera.commands.generate import generate
from tessera.commands.pictures import Asked
from tessera.data.builtin_pictures import digit_arrays, digit_pixels
from tessera.data.pictures import png, read_picture
from tessera.errors import UserError
from tessera.evals.digits import DRAWN, NAMED
from tessera.model import weights
from tessera.provenance import read_mark
from tessera.run import RunFolder
from tessera.tokens.vocabulary import Vocabulary
from tessera.train.growing import grow

SETTINGS = (
    'data.sources=["builtin:digits","files:{text}"]', "data.pictures.views=1", "data.pictures.colours=17",
    "tokenizer.vocabulary_size=288", "model.width=32", "model.layers=1", "train.batch_rows=4", "train.micro_rows=2",
    "train.threads=1", "train.workers=1", "train.compile=false", "train.checkpoint_seconds=0.05", "train.final_tokens=1024",
    "train.evaluate_tokens=1024",
)  # fmt: skip
DIGIT = digit_pixels(digit_arrays("test")[0])[0]


def words(corner, out: Path, *flags: str) -> list[str]:  # type: ignore[no-untyped-def]
    sets = [word for s in SETTINGS for word in ("--set", s.format(text=corner.text))]
    return ["train", "draw", "--out", str(out), "--budget", "12ktok", "--no-forecast", *flags, *sets]


@pytest.fixture(scope="module")
def run(corner) -> Path:  # type: ignore[no-untyped-def]
    out = corner.folder / "draws"
    code, said = corner.call(*words(corner, out))
    assert code == 0, said
    assert "bits per pixel" in said
    return Path(out)


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    path.write_bytes(png(DIGIT))
    return path


def test_a_run_with_pictures_and_text_that_was_killed_ends_with_the_same_bits(corner, run: Path) -> None:  # type: ignore[no-untyped-def]
    broken = corner.folder / "draws-broken"
    process = corner.start(*words(corner, broken))
    for line in process.stderr:
        if line.startswith("step 4/"):
            process.kill()
            break
    process.wait()
    assert not (broken / "model").is_dir()
    code, said = corner.call(*words(corner, broken, "--resume"))
    assert code == 0, said
    assert corner.weights(broken) == corner.weights(run)
    assert (broken / "model" / "image_tokenizer.json").read_bytes() == (run / "model" / "image_tokenizer.json").read_bytes()


def test_metrics_and_report_count_by_pixels(corner, run: Path) -> None:  # type: ignore[no-untyped-def]
    last = corner.events(run, "evaluation")[-1]
    assert 0 < last["bits_per_pixel"] < 5 and last["bits_per_byte"] > 0
    assert "bits per pixel, held out" in (run / "report.html").read_text(encoding="utf-8")


def test_a_drawn_picture_is_a_file_of_its_size_and_the_same_for_a_seed(corner, run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name, more in (("a", ()), ("b", ()), ("wide", ("--size", "4x6", "--guidance", "1", "--best-of", "2"))):
        code, said = corner.call("generate", str(run), "a seven", "--out", str(tmp_path / f"{name}.png"), "--seed", "3", *more)
        assert code == 0, said
    assert (read_picture(tmp_path / "a.png") == read_picture(tmp_path / "b.png")).all()
    assert read_mark((tmp_path / "a.png").read_bytes()).model == run.name
    assert read_picture(tmp_path / "a.png").shape == (8, 8, 3) and read_picture(tmp_path / "wide.png").shape == (4, 6, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "wide.png"]


def test_an_edit_keeps_every_pixel_that_the_mask_does_not_name(corner, run: Path, digit: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    photo = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)  # no colour of it is in the palette
    digit.write_bytes(png(photo))
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[4:, :3] = 255
    (tmp_path / "mask.png").write_bytes(png(mask))
    code, said = corner.call(
        "generate", str(run), "a seven", "--image", str(digit), "--mask", str(tmp_path / "mask.png"),
        "--out", str(tmp_path / "edited.png"), "--best-of", "2",
    )  # fmt: skip
    assert code == 0, said
    edited, hidden = read_picture(tmp_path / "edited.png"), mask[..., 0] > 0
    assert (edited[~hidden] == photo[~hidden]).all() and (edited[hidden] != photo[hidden]).any()


def test_a_variation_and_an_answer_come_of_a_picture(  # type: ignore[no-untyped-def]
    corner, run: Path, digit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "other.png"
    code, said = corner.call("generate", str(run), "", "--image", str(digit), "--variation", "--out", str(out))
    assert code == 0, said
    assert read_picture(out).shape == (8, 8, 3)
    code, said = corner.call("generate", str(run), "", "--image", str(digit))
    assert code == 0, said
    generate(str(run), "", max_tokens=1, as_json=True, pictures=Asked(image=str(digit)))
    assert len(json.loads(capsys.readouterr().out)["ids"]) == 1


def test_eval_gives_bits_per_pixel_with_n_and_error(  # type: ignore[no-untyped-def]
    corner, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(str(run), (), 10, as_json=True)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["pictures"] == 10 and found["pixels"] == 640 and found["standard_error"] > 0
    assert 0 < found["bits_per_pixel"] < 5 and found["psnr"] is None


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--size", "8x8"), "give --out FILE.png to draw one"),
        (("--out", "{tmp}/a.jpg"), "ends in .png"),
        (("--out", "{tmp}/a.png", "--size", "8"), "not HEIGHTxWIDTH"),
        (("--out", "{tmp}/a.png", "--size", "90x90"), "give a smaller size"),
        (("--out", "{tmp}/a.png", "--mask", "{digit}"), "give --image FILE"),
        (("--out", "{tmp}/a.png", "--image", "{digit}"), "nothing is to be drawn"),
        (("--out", "{tmp}/a.png", "--image", "{digit}", "--mask", "{digit}", "--variation"), "give one of them"),
        (("--out", "{tmp}/a.png", "--image", "{digit}", "--mask", "{large}"), "a mask has the size of its picture"),
        (("--out", "{tmp}/none/a.png"), "cannot be written: there is no folder"),
        (("--out", "{tmp}/a.png", "--guidance", "-1"), "guidance must be 0 or more"),
        (("--out", "{tmp}/a.png", "--best-of", "0"), "at least 1"),
        (("--image", "{tmp}/none.png"), "there is no picture"),
        (("--image", "{digit}", "--best-of", "4"), "--best-of is for what is made"),
        (("--image", "{digit}", "--guidance", "2"), "--guidance is for what is made"),
        (("--image", "{broken}"), "not a PNG, JPEG, WebP or GIF"),
        (("--image", "{cut}"), "damaged"),
        (("--image", "{digit}", "--variation"), "give --out FILE.png"),
        (("--image", "{digit}", "--suffix", "x"), "does not go with pictures"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(  # type: ignore[no-untyped-def]
    corner, run: Path, digit: Path, tmp_path: Path, more: tuple[str, ...], sentence: str
) -> None:
    files = {"digit": digit, "tmp": tmp_path, "broken": tmp_path / "broken.png", "cut": tmp_path / "cut.png"}
    files["large"] = tmp_path / "large.png"
    files["broken"].write_text("no picture")
    files["large"].write_bytes(png(np.zeros((9, 9, 3), np.uint8)))
    files["cut"].write_bytes(png(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))[:9000])
    code, said = corner.call("generate", str(run), "a seven", *(word.format(**files) for word in more))
    assert code == 2 and sentence in said and said.count("\n") == 1, said


def test_a_model_of_text_alone_says_that_it_knows_no_pictures(corner, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, said = corner.call("generate", str(corner.unbroken), "a seven", "--out", str(tmp_path / "a.png"))
    assert code == 2 and "not learned that medium" in said


def test_a_model_of_text_learns_pictures_and_keeps_its_old_ids(corner, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sets = [word for s in SETTINGS if s.startswith(("data.pictures", "train")) for word in ("--set", s)]
    code, said = corner.call(
        "train",
        "draw",
        "--init",
        str(corner.unbroken),
        "--out",
        str(tmp_path / "r"),
        "--budget",
        "12ktok",
        "--no-forecast",
        *sets,
    )
    assert code == 0, said
    assert "17 new ids" in said
    old, info = weights.load(corner.unbroken / "model"), RunFolder.open(tmp_path / "r").info
    vocabulary = Vocabulary.load(tmp_path / "r" / "tokenizer")
    begun = grow(weights.load(info["init"]), vocabulary, seed=0)
    assert begun.config.vocab_size == vocabulary.size == old.config.vocab_size + 17
    text = next(iter(corner.text.glob("*.txt"))).read_text()
    ids = torch.tensor([vocabulary.encode_text(text)[: old.config.context]])
    with torch.no_grad():
        before, after = old.logits(old(ids)[0]), begun.logits(begun(ids)[0])
        assert torch.equal(after[:, : old.config.vocab_size], before)
        loss, grown_loss = (F.cross_entropy(logits[:-1], ids[0, 1:]) for logits in (before, after))
    assert float(loss) <= float(grown_loss) <= 1.005 * float(loss)
    code, said = corner.call("generate", str(tmp_path / "r"), "a seven", "--out", str(tmp_path / "a.png"))
    assert code == 0 and Image.open(tmp_path / "a.png").size == (8, 8), said


def test_drawn_and_named_digits_are_counted_with_n_error_and_chance(
    corner: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(str(run), names=("digits",), tasks=13, as_json=True)
    drawn, named = map(json.loads, capsys.readouterr().out.splitlines())
    for row, measure in ((drawn, DRAWN), (named, NAMED)):
        assert row["measure"] == measure and row["n"] == 13 and row["chance"] == 0.1
        assert 0 <= row["value"] <= 1 and row["standard_error"] is not None
    with pytest.raises(UserError, match="not learned that medium"):
        evaluate(str(corner.unbroken), names=("digits",))
