"""A published codec on the command line: a model trained on its ids, sound made and heard; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tessera.commands.tokenizer import inspect
from tessera.data.sounds import read_sound, sound_file
from tessera.tokens.beside import find_tokenizer
from tessera.tokens.vocabulary import Vocabulary

SETTINGS = (
    'data.sources=["builtin:melodies?count=24"]', "data.sounds.views=2", "tokenizer.vocabulary_size=288", "model.width=32",
    "model.layers=1", "train.batch_rows=4", "train.threads=1", "train.workers=1", "train.compile=false", "train.final_tokens=512",
    "train.evaluate_tokens=512",
)  # fmt: skip


def words(spec: str, out: Path, *more: str) -> list[str]:
    settings = (f"data.sounds.trained={spec}", *SETTINGS, *more)
    return [
        "train",
        "speak",
        "--out",
        str(out),
        "--budget",
        "8ktok",
        "--no-forecast",
        *(w for s in settings for w in ("--set", s)),
    ]


@pytest.fixture(scope="module")
def run(corner, codecs: dict[str, Path]) -> Path:  # type: ignore[no-untyped-def]
    """Trained with a codec whose folder is gone afterwards."""
    own, out = corner.folder / "mimi", corner.folder / "published"
    shutil.copytree(codecs["mimi"], own)
    (own / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    code, said = corner.call(*words(f"published:mimi:{own}?books=2", out))
    assert code == 0 and "2 books of 16 ids, 50 ids for a second; its weights are under cc-by-nc-4.0, which is not" in said, said
    shutil.rmtree(own)
    return Path(out)


def test_the_codec_lies_in_the_model_and_its_hash_in_every_checkpoint(run: Path) -> None:
    page = json.loads((run / "model" / "audio_tokenizer.json").read_text())
    assert page["name"] == "published" and page["family"] == "mimi" and page["licence"] == "cc-by-nc-4.0"
    assert page["layout"]["per_second"] == 4000 and (run / "model" / "audio_tokenizer.safetensors").is_file()
    assert "per_second: 4000" in (run / "recipe.yaml").read_text()
    blocks = json.loads((run / "model" / "vocabulary.json").read_text())["blocks"]
    assert [block["fingerprint"] for block in blocks] == [find_tokenizer(run, "audio").fingerprint]
    checkpoint = max((run / "checkpoints").glob("step-*"))
    assert Vocabulary.load(run / "tokenizer").hash in (checkpoint / "state.json").read_text()


def test_sound_is_made_gone_on_with_and_heard_by_the_model_alone(corner, run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    heard, out = tmp_path / "heard.wav", tmp_path / "out.wav"
    heard.write_bytes(sound_file((np.sin(np.arange(8000) / 5) * 9000).astype(np.int16), 8000, "wav"))
    code, said = corner.call("generate", str(run), "C E G, played on a flute", "--out", str(out), "--seconds", "0.4")
    assert code == 0, said
    samples, rate = read_sound(out)
    assert rate == 4000 and len(samples) % 160 == 0 and len(samples) <= 1600
    for more in (("--out", str(tmp_path / "longer.wav"), "--seconds", "1.2"), ()):
        code, said = corner.call("generate", str(run), "", "--audio", str(heard), *more)
        assert code == 0, said
    assert 4000 < len(read_sound(tmp_path / "longer.wav")[0]) <= 4800


def test_a_finished_run_is_resumed_though_the_folder_of_the_codec_is_gone(corner, run: Path) -> None:  # type: ignore[no-untyped-def]
    code, said = corner.call(*words(f"published:mimi:{corner.folder / 'mimi'}?books=2", run), "--resume")
    assert code == 0 and "the run is finished" in said, said


@pytest.mark.parametrize(
    ("spec", "more", "sentence"),
    [
        (
            "published:mimi:{mimi}",
            ("data.sounds.per_second=8000",),
            "takes 4000 samples in a second; set it to that or leave it out",
        ),
        ("published:mimi:{mimi}/none", (), "there is no folder"),
        ("published:dac:{mimi}", (), "holds a model of the type mimi, not dac"),
        ("published:lyra:{mimi}", (), "FAMILY is one of"),
    ],
)
def test_wrong_names_end_in_one_sentence(  # type: ignore[no-untyped-def]
    corner, codecs: dict[str, Path], tmp_path: Path, spec: str, more: tuple[str, ...], sentence: str
) -> None:
    code, said = corner.call(*words(spec.format(**codecs), tmp_path / "run", *more))
    assert code == 2 and sentence in said and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()


def test_inspecting_says_what_it_is_made_of(codecs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    inspect(f"published:dac:{codecs['dac']}", None, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["ids"] == 48 and facts["books"] == 3 and facts["ids_for_a_second"] == 150 and facts["licence"] == "cc-by-4.0"
    inspect(f"published:dac:{codecs['dac']}", None, as_json=False)
    assert "licence of its weights: cc-by-4.0" in capsys.readouterr().out
