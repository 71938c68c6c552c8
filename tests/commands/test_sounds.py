"""Sound on the command line: a quantizer and a model trained, stopped and resumed, sound made and heard; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tessera.data.builtin_sounds import melodies
from tessera.data.sounds import read_sound, sound_file, sound_parts
from tessera.provenance import read_mark

PLAYED = [parts[0] for parts in map(sound_parts, melodies(6)) if parts]
SETTINGS = (
    "tokenizer.vocabulary_size=288", "model.width=32", "model.layers=1", "train.batch_rows=4", "train.threads=1",
    "train.workers=1", "train.compile=false", "train.final_tokens=512", "train.evaluate_tokens=512",
    "train.checkpoint_seconds=0.05",
)  # fmt: skip


@pytest.fixture(scope="module")
def quantizer(corner) -> Path:  # type: ignore[no-untyped-def]
    out = corner.folder / "sound-quantizer"
    sets = ("steps=6", "batch=2", "width=8", "levels=[5,4]", "books=2", "time_stride=8", "encoder_layers=1", "decoder_layers=1")
    code, said = corner.call(
        "tokenizer", "train", "builtin:melodies?count=24", "--of", "sounds", "--out", str(out),
        *(word for s in sets for word in ("--set", s)),
    )  # fmt: skip
    assert code == 0 and "snr" in said, said
    return Path(out)


def words(corner, quantizer: Path, out: Path, *more: str) -> list[str]:  # type: ignore[no-untyped-def]
    sources = f'data.sources=["builtin:melodies?count=24", "files:{corner.text}"]'
    settings = (sources, f"data.sounds.trained={quantizer}", "data.sounds.views=2", *SETTINGS)
    sets = [w for s in settings for w in ("--set", s)]
    return ["train", "speak", "--out", str(out), "--budget", "8ktok", "--no-forecast", *sets, *more]


@pytest.fixture(scope="module")
def run(corner, quantizer: Path) -> Path:  # type: ignore[no-untyped-def]
    out = corner.folder / "sounds"
    code, said = corner.call(*words(corner, quantizer, out))
    assert code == 0 and "24 recordings" in said, said
    return Path(out)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / f"{name}.wav" for name in ("heard", "broken", "silent")}
    found["heard"].write_bytes(sound_file(PLAYED[0].signal, 8000, "wav"))
    found["broken"].write_bytes(found["heard"].read_bytes()[:1000])
    found["silent"].write_bytes(sound_file(np.zeros(800, np.int16), 8000, "wav"))
    return {**found, "tmp": tmp_path}


def test_the_quantizer_lies_in_the_model_with_the_hash_it_was_trained_to(
    run: Path, quantizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessera.commands.tokenizer import inspect

    assert (run / "model" / "audio_tokenizer.json").read_bytes() == (quantizer / "audio_tokenizer.json").read_bytes()
    inspect(str(quantizer), None, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["ids"] == 40 and facts["books"] == 2 and facts["ids_for_a_second"] == 25
    blocks = json.loads((run / "model" / "vocabulary.json").read_text())["blocks"]
    assert [b["fingerprint"] for b in blocks] == [facts["hash"]]


def test_resume_is_bitwise_identical_with_sound_and_text(corner, run: Path, quantizer: Path) -> None:  # type: ignore[no-untyped-def]
    broken = corner.folder / "sounds-broken"
    process = corner.start(*words(corner, quantizer, broken))
    for line in process.stderr:
        if line.startswith("step 4/"):
            process.kill()
            break
    process.wait()
    assert not (broken / "model").is_dir()
    code, said = corner.call(*words(corner, quantizer, broken, "--resume"))
    assert code == 0, said
    assert corner.weights(broken) == corner.weights(run)
    assert (broken / "model" / "audio_tokenizer.json").read_bytes() == (quantizer / "audio_tokenizer.json").read_bytes()


def test_a_sound_is_a_file_and_the_same_for_a_seed(corner, run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name, more in (("a", ()), ("b", ()), ("short", ("--seconds", "0.16", "--guidance", "1"))):
        out = str(tmp_path / f"{name}.wav")
        code, said = corner.call("generate", str(run), "C E G, played on a flute", "--out", str(out), "--seed", "3", *more)
        assert code == 0, said
    assert (read_sound(tmp_path / "a.wav")[0] == read_sound(tmp_path / "b.wav")[0]).all()
    assert read_mark((tmp_path / "a.wav").read_bytes()).model == run.name
    samples, rate = read_sound(tmp_path / "short.wav")
    assert rate == 8000 and 640 <= len(samples) <= 1280


def test_what_is_given_stays_as_it_was(corner, run: Path, files: dict[str, Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "longer.wav"
    code, said = corner.call("generate", str(run), "", "--audio", str(files["heard"]), "--out", str(out), "--seconds", "1.3")
    assert code == 0, said
    samples = read_sound(out)[0]
    whole = len(PLAYED[0].signal) // 640 * 640
    assert np.abs(samples[:whole] * 32_767 - PLAYED[0].signal[:whole]).max() < 2


def test_a_sound_is_listened_to(corner, run: Path, files: dict[str, Path]) -> None:  # type: ignore[no-untyped-def]
    for prompt in ("", "write down what you hear"):
        code, said = corner.call("generate", str(run), prompt, "--audio", str(files["heard"]))
        assert code == 0, said


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--seconds", "1"), "give --out FILE.wav"),
        (("--out", "{tmp}/a.aiff", "--seconds", "1"), ".wav, .flac, .ogg, .mp3"),
        (("--out", "{tmp}/a.wav", "--seconds", "0"), "above 0"),
        (("--out", "{tmp}/a.wav", "--seconds", "60"), "make it shorter"),
        (("--out", "{tmp}/a.wav", "--image", "{heard}"), "do not go with sound"),
        (("--out", "{tmp}/a.wav", "--variation"), "not for sound"),
        (("--audio", "{tmp}/none.wav"), "there is no recording"),
        (("--audio", "{broken}"), "damaged WAV"),
        (("--audio", "{silent}"), "a silent recording"),
        (("--out", "{tmp}/a.png"), "has no ids for image"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(  # type: ignore[no-untyped-def]
    corner, run: Path, files: dict[str, Path], more: tuple[str, ...], sentence: str
) -> None:
    code, said = corner.call("generate", str(run), "a tone", *(word.format(**files) for word in more))
    assert code == 2 and sentence in said and said.count("\n") == 1, said
