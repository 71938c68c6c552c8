"""The reader of melodies names the notes of real recordings, also noisy ones and such that are a step too long or too short."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tessera.data.builtin_sounds import PER_SECOND, Melody, melody
from tessera.errors import UserError
from tessera.evals import melodies as module
from tessera.evals.melodies import heard


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_it_is_right_about_real_recordings(noise: float) -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    for _ in range(40):
        played = melody(rng)
        sound = played.sound(rng)
        assert heard(sound + rng.normal(0, noise * 32_767, len(sound)), PER_SECOND) == played.notes


@pytest.mark.parametrize("tempo", ["slowly", "quickly"])
@pytest.mark.parametrize("step", [-320, 0, 320])
def test_a_step_more_or_less_changes_no_note(tempo: str, step: int) -> None:
    rng = np.random.Generator(np.random.PCG64(4))
    for instrument in ("flute", "organ", "bell", "string"):
        sound = Melody(("C", "E", "G"), instrument, tempo).sound(rng)
        longer = np.concatenate([sound, np.zeros(max(step, 0))])[: len(sound) + step]
        assert heard(longer, PER_SECOND) == ("C", "E", "G")


def test_a_tone_between_two_notes_silence_and_what_lasts_too_long_are_no_melody() -> None:
    time = np.arange(round(0.16 * PER_SECOND)) / PER_SECOND
    assert heard(np.sin(2 * np.pi * 622.25 * time), PER_SECOND) == ("?",)
    assert heard(np.zeros(round(0.48 * PER_SECOND)), PER_SECOND) == ("?", "?", "?")
    assert heard(np.zeros(0), PER_SECOND) == heard(np.ones(3 * PER_SECOND), PER_SECOND) == ()


def test_what_is_played_by_captions_is_scored_by_its_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.Generator(np.random.PCG64([78, 3]))
    wanted = [melody(rng) for _ in range(6)]

    def make(engine: Any, wishes: Any, params: Any) -> list[SimpleNamespace]:
        assert [wish.caption for wish in wishes] == [m.caption for m in wanted]
        other = Melody(("D",) if wanted[0].notes == ("C",) else ("C",), wanted[0].instrument, wanted[0].tempo)
        played = [other, *wanted[1:]]
        return [SimpleNamespace(samples=m.sound(np.random.default_rng(0))) for m in played]

    def listen(engine: Any, sounds: Any, question: str, params: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(text=f" {m.words}" if n < 3 else "C C C C C") for n, m in enumerate(wanted)]

    monkeypatch.setattr(module, "sound_quantizer_of", lambda engine: SimpleNamespace(per_second=8000.0))
    monkeypatch.setattr(module, "make_sounds", make)
    monkeypatch.setattr(module, "listen", listen)
    played, written = module.melodies(None, 6, 3)  # type: ignore[arg-type]
    assert played.value == pytest.approx(5 / 6) and written.value == 0.5 and played.n == 6
    assert played.chance is not None and 0 < played.chance < 1 / 28
    monkeypatch.setattr(module, "sound_quantizer_of", lambda engine: SimpleNamespace(per_second=16000.0))
    with pytest.raises(UserError, match="16000 samples a second"):
        module.melodies(None, 6, 3)  # type: ignore[arg-type]
