"""Recordings: files in and out, their rate and loudness, what is refused, captions and speakers, tasks, melodies."""

from __future__ import annotations

import io
import json
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from tessera import recipe
from tessera.data.builtin_sounds import INSTRUMENTS, NOTES, QUESTION_INSTRUMENT, TEMPI, melodies
from tessera.data.corpus import SPLITS, gather
from tessera.data.reasons import Skipped, Unreadable
from tessera.data.sound_tasks import held_out_sounds, least_sound_context, sound_documents, varied
from tessera.data.sounds import LOUDEST, cut_sound, fitted_sound, read_sound, resampled, sound_file, sound_parts
from tessera.data.sources import documents
from tessera.errors import UserError
from tessera.tokens.sounds import QUESTION, QUESTIONS, WHO

TIME = np.arange(4000) / 8000
TONE = (np.sin(2 * np.pi * 440 * TIME) * 12_000).astype(np.int16)


def main_tone(samples: np.ndarray, rate: float) -> float:
    """Hertz of the loudest frequency."""
    return float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * rate / len(samples))


def test_a_wav_holds_the_very_samples() -> None:
    samples, rate = read_sound(sound_file(TONE, 8000, "wav"))
    assert rate == 8000 and np.abs(samples * 32_767 - TONE).max() < 0.51


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_wav_files_of_any_kind_and_channels_are_mixed(tmp_path: Path, kind: type[np.generic]) -> None:
    scale: float = {np.uint8: 120, np.int16: 2**15 - 1, np.int32: 2**31 - 1, np.float32: 1}[kind]
    tone = np.sin(2 * np.pi * 440 * TIME)
    both = np.stack([tone, tone * 0.5], 1) * scale + (128 if kind is np.uint8 else 0)
    wavfile.write(tmp_path / "a.wav", 8000, both.astype(kind))
    samples, rate = read_sound(tmp_path / "a.wav")
    assert rate == 8000 and np.abs(samples - tone * 0.75).max() < 0.07


@pytest.mark.parametrize("ending", ["flac", "ogg", "mp3"])
def test_other_files_are_read_by_their_content(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("av", reason="needs PyAV (the extra [sound])")
    (tmp_path / "a.wav").write_bytes(sound_file(TONE, 8000, ending))
    samples, rate = read_sound(tmp_path / "a.wav")
    # Opus is always read at 48 kHz.
    assert rate == (48_000 if ending == "ogg" else 8000) and len(samples) / rate == pytest.approx(0.5, abs=0.15)
    assert main_tone(samples, rate) == pytest.approx(440, abs=3)
    if ending == "flac":
        assert np.abs(samples * 32_768 - TONE).max() < 1


@pytest.mark.parametrize("codec", ["pcm_mulaw", "pcm_alaw", "adpcm_ms", "adpcm_ima_wav"])
def test_compressed_wav_files_are_read(monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    av = pytest.importorskip("av", reason="needs PyAV (the extra [sound])")
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream(codec, rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(TONE[None], format="s16", layout="mono")
        frame.sample_rate = 8000
        for piece in (frame, None):
            container.mux(stream.encode(piece))
    data = file.getvalue()
    samples, rate = read_sound(data)
    assert rate == 8000 and np.abs(samples[: len(TONE)] * 32_768 - TONE)[200:].max() < 1500
    broken = data[:20] + b"\x77\x77" + data[22:]
    with pytest.raises(Unreadable, match="or compressed in a way that is not read"):
        read_sound(broken)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Unreadable, match=r"a WAV recording that is compressed; .*needs PyAV"):
        read_sound(data)


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\xf0\xff\x7f"])
def test_a_wav_that_was_piped_has_no_length_and_is_read_to_its_end(length: bytes) -> None:
    data = sound_file(TONE, 8000, "wav")
    piped = data[:4] + length + data[8:40] + length + data[44:]
    assert data[36:40] == b"data"
    samples, rate = read_sound(piped)
    assert rate == 8000 and (samples == read_sound(data)[0]).all()
    with pytest.raises(Unreadable, match="damaged WAV"):
        read_sound(data[:-1000])


@pytest.mark.parametrize("ending", ["flac", "mp3"])
def test_a_list_of_other_files_is_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    pytest.importorskip("av", reason="needs PyAV (the extra [sound])")
    (tmp_path / f"private.{ending}").write_bytes(sound_file(TONE, 8000, ending))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unreadable, match="not a WAV, FLAC, OGG or MP3 recording"):
        read_sound(f"ffconcat version 1.0\nfile private.{ending}\n".encode())


def test_a_tone_stays_itself_at_another_rate_and_what_the_rate_cannot_hold_goes() -> None:
    time = np.arange(44_100) / 44_100
    both = np.sin(2 * np.pi * 440 * time) + np.sin(2 * np.pi * 6000 * time)
    slow = resampled(both, 44_100, 8000)
    spectrum = np.abs(np.fft.rfft(slow))
    assert len(slow) == 8000 and spectrum.argmax() == 440
    # 6,000 Hz would come back as 2,000.
    assert spectrum[1990:2010].max() < spectrum[440] / 300
    assert abs(int(np.abs(fitted_sound(both, 44_100, 8000).astype(int)).max()) - LOUDEST * 32_767) < 2


def chunk(frames: bytes, declared: int, rate: int = 8000) -> bytes:
    head = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", declared)
    return b"RIFF" + struct.pack("<I", 4 + len(head) + declared) + b"WAVE" + head + frames


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a WAV"),
        (b"these are words", "not a WAV"),
        (chunk(b"\1\2" * 100, 4000), "damaged|without samples"),
        (chunk(b"", 0), "without samples|damaged"),
        (chunk(b"\1\2" * 100, 200, 1), "of 1 samples in a second"),
        (chunk(b"\1\2" * 100, 200, 2_000_000_000), "of 2,000,000,000 samples in a second"),
        (b"RIFF\0\0\0\0WAVE", "damaged"),
        (sound_file(np.zeros(800, np.int16), 8000, "wav"), "silent"),
        (b"fLaC" + b"\0" * 40, "damaged|pip install"),
        (b"OggS" + b"\0" * 40, "damaged|pip install"),
    ],
)
def test_what_is_no_recording_is_refused_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(Unreadable, match=words):
        read_sound(tmp_path / "a.wav")


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 8000, np.full(100, np.nan, np.float32))
    with pytest.raises(Unreadable, match="no numbers"):
        read_sound(tmp_path / "a.wav")


def test_without_its_library_wav_works_and_the_rest_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(read_sound(sound_file(TONE, 8000, "wav"))[0]) == len(TONE)
    with pytest.raises(Unreadable, match="pip install"):
        read_sound(b"fLaC" + b"\0" * 40)
    with pytest.raises(UserError, match=r"pip install.*ends in \.wav"):
        sound_file(TONE, 8000, "mp3")


def folder(tmp_path: Path, listed: str, rows: str) -> str:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(sound_file(TONE, 8000, "wav"))
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    (tmp_path / "d.wav").write_bytes(b"")
    (tmp_path / "e.wav").write_bytes(sound_file(np.zeros(800, np.int16), 8000, "wav"))
    (tmp_path / listed).write_text(rows)
    return f"files:{tmp_path}"


def test_captions_and_speakers_come_from_the_list_and_broken_files_are_listed(tmp_path: Path) -> None:
    uri = folder(tmp_path, "captions.tsv", "file_name\ttext\tspeaker\na.wav\tthree\tjackson\nb.wav\tone\t\n")
    skipped: list[Skipped] = []
    found = [sound_parts(d) for d in documents(uri, skipped, wanted=frozenset({"audio"}))]
    parts = [f[0] for f in found if f]
    assert [p.caption for p in parts] == ["three, spoken by jackson", "one"]
    assert parts[0].questions == [(QUESTION, "three"), (WHO, "jackson")] and found[0] and found[0][1] == 8000
    assert [s.path for s in skipped] == ["c.wav", "d.wav", "e.wav"]
    assert [s.reason for s in skipped[1:]] == ["empty", "a silent recording"] and "damaged WAV" in skipped[0].reason


def test_an_audiofolder_of_hugging_face_is_understood(tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"file_name": f"{n}.wav", "transcription": n * 3}) for n in "ab")
    found = [sound_parts(d) for d in documents(folder(tmp_path, "metadata.jsonl", rows), [], wanted=frozenset({"audio"}))]
    assert [f[0].caption for f in found if f] == ["aaa", "bbb"]


def test_a_folder_says_what_is_in_it_and_recordings_nobody_asked_for_are_named(tmp_path: Path) -> None:
    (tmp_path / "a_dog").mkdir()
    (tmp_path / "a_dog" / "1.wav").write_bytes(sound_file(TONE, 8000, "wav"))
    (found,) = documents(f"files:{tmp_path}", [], wanted=frozenset({"audio"}))
    parts = sound_parts(found)
    assert parts and parts[0].caption == "a dog" and parts[0].questions == [(QUESTION, "a dog")]
    with pytest.raises(UserError, match=r"yields no document.*data\.sounds"):
        gather(recipe.Data(sources=(recipe.Source(uri=f"files:{tmp_path}"),)), tmp_path / "cache", lambda line: None)


def test_recordings_are_brought_to_the_rate_and_long_ones_left_out(tmp_path: Path) -> None:
    for name, seconds in (("short", 1), ("other", 1.5), ("long", 3)):
        tone = np.sin(2 * np.pi * 440 * np.arange(round(16_000 * seconds)) / 16_000) * 0.2
        wavfile.write(tmp_path / f"{name}.wav", 16_000, tone.astype(np.float32))
    (tmp_path / "captions.tsv").write_text("file_name\ttext\nshort.wav\tbeep\nother.wav\tboop\nlong.wav\tbeeep\n")
    data = recipe.Data(sources=(recipe.Source(uri=f"files:{tmp_path}"),), sounds=recipe.Sounds(), validation_fraction=0.4)
    corpus = gather(data, tmp_path / "cache", lambda line: None)
    assert corpus.sounds == 2 and corpus.sources[0].skipped[0].reason.startswith("longer than 2 s")
    kept = [sound_parts(d) for split in SPLITS for d in corpus.documents(split, 0)]
    assert sorted(len(k[0].signal) for k in kept if k) == [8000, 12_000] and all(k and k[1] == 8000 for k in kept)
    assert [len(piece) for piece in cut_sound(np.zeros(50, np.int16), 20)] == [20, 20]


def test_a_source_whose_recordings_are_all_too_long_says_so(tmp_path: Path) -> None:
    (tmp_path / "said").mkdir()
    for name in ("one", "two"):
        (tmp_path / "said" / f"{name}.wav").write_bytes(sound_file(np.tile(TONE, 5 + len(name)), 8000, "wav"))
    data = recipe.Data(sources=(f"files:{tmp_path}/*/*.wav",), sounds=recipe.Sounds(per_second=8000))
    with pytest.raises(UserError, match=r"none of the 2 documents.*one\.wav: longer than 2 s \(data\.sounds\.most_seconds\)"):
        gather(data, tmp_path / "cache", lambda line: None)


def test_tasks_are_chosen_by_content_and_seed_alone() -> None:
    played = list(melodies(20))
    settings = recipe.Sounds(views=6)
    made = list(sound_documents(played, settings, seed=1))
    assert len(made) == 120 and {d.segments[0].kind for d in made} == {"text", "audio"}
    heard = [d for d in made if len(d.segments) == 3 and d.segments[0].kind == "audio"]
    assert all(not d.segments[0].learn and d.segments[2].learn for d in heard)
    assert {str(d.segments[1].content) for d in heard} > set(QUESTIONS)
    again = list(sound_documents(reversed(played), settings, seed=1))
    assert sorted(d.text for d in again) == sorted(d.text for d in made)
    held = list(held_out_sounds(played, settings))
    assert len(held) == 40 and str(held[1].segments[1].content) == QUESTION
    assert least_sound_context(played, settings) % 32 == 0


def test_a_varied_recording_is_the_same_words_at_another_speed() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    lengths = [len(varied(TONE, 8000, rng)) for _ in range(40)]
    assert min(lengths) > len(TONE) / 1.13 and max(lengths) < len(TONE) / 0.87 + 321 and len(set(lengths)) > 30


def test_melodies_are_what_their_words_say() -> None:
    said = set()
    for document in melodies(40):
        found = sound_parts(document)
        assert found
        parts, rate = found
        notes, *more = parts.caption.split(", ")
        said.add(len(more))
        asked = dict(parts.questions)
        assert asked[QUESTION] == notes and asked[QUESTION_INSTRUMENT] in INSTRUMENTS
        each = parts.signal.reshape(len(notes.split()), -1)
        assert each.shape[1] in [round(TEMPI[tempo] * rate) for tempo in more[1:] or TEMPI]
        assert not more or more[0] == f"played on a {asked[QUESTION_INSTRUMENT]}"
        for name, note in zip(notes.split(), each, strict=True):
            assert min(NOTES, key=lambda n: abs(np.log(NOTES[n] / main_tone(note, rate)))) == name
    assert said == {0, 1, 2}, "captions that say all, that leave the tempo out, and of the notes alone"


def test_the_written_wav_is_one_that_others_read() -> None:
    with wave.open(io.BytesIO(sound_file(TONE, 8000, "wav"))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 8000, 4000)
