"""A quantizer is trained by the one loop: it gets better, always in the same way, and says how near things come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tessera import recipe
from tessera.data.builtin_films import scene
from tessera.data.picture_tasks import config_of
from tessera.device import detect
from tessera.tokens.quantizer import Quantizer
from tessera.train import quantizer
from tessera.train.quantizer import ssim, train_quantizer

RNG = np.random.Generator(np.random.PCG64(8))
FILMS = [scene(RNG).film(5) for _ in range(12)]
SETTINGS = recipe.Quantizer(width=16, decoder_layers=1, steps=30, batch=4)


def trained(signals: list[np.ndarray], seed: int = 0) -> tuple[Quantizer, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    kind = "video" if signals[0].ndim == 4 else "image"
    made = train_quantizer(
        config_of(kind, SETTINGS), SETTINGS, signals[2:], signals[:2], detect("float32", 1), seed, 8.0, (events.append,)
    )
    return made, events


def test_it_gets_better_and_comes_out_the_same_for_a_seed() -> None:
    made, events = trained(FILMS)
    marks = [event for event in events if event["event"] == "exam"]
    assert marks[-1]["psnr"] > marks[0]["psnr"] + 3 and 0 < marks[-1]["usage"] <= 1 and marks[-1]["perplexity"] >= 1
    assert made.shape == (5, 32, 32) and made.per_second == 8
    again, _ = trained(FILMS)
    other, _ = trained(FILMS, seed=1)
    assert again.fingerprint == made.fingerprint != other.fingerprint


def test_pictures_of_several_sizes_are_learned_together() -> None:
    pictures = [film[0] for film in FILMS[:8]] + [film[0][:16, :24] for film in FILMS[8:]]
    made, _ = trained(pictures)
    assert made.kind == "image" and made.shape == (32, 32) and made.encode(pictures[-1]).shape == (4, 6)


def test_ssim_is_one_for_the_same_and_falls_with_noise_and_blur() -> None:
    picture = RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    noisy = [np.clip(picture + RNG.normal(0, s, picture.shape), 0, 255).astype(np.uint8) for s in (10, 60)]
    assert ssim(picture, picture) == pytest.approx(1)
    assert 1 > ssim(picture, noisy[0]) > ssim(picture, noisy[1]) > 0
    assert ssim(picture, np.full_like(picture, 128)) < 0.1


def test_as_many_updates_are_made_as_fit_into_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "LEAST_STEPS", 30)
    events: list[dict[str, Any]] = []

    def make(seconds: float | None) -> Quantizer:
        asked = SETTINGS.model_copy(update={"steps": None, "seconds": seconds})
        return train_quantizer(
            config_of("video", asked), asked, FILMS[2:], FILMS[:2], detect("float32", 1), 0, 8.0, (events.append,)
        )

    # What was tried out on the way to the number of updates leaves no trace.
    assert make(1e-3).fingerprint == trained(FILMS)[0].fingerprint
    assert {event["steps"] for event in events if event["event"] == "exam"} == {30}
    for name in ("STEPS", "MOST_STEPS"):
        monkeypatch.setattr(quantizer, name, 10)
        events.clear()
        make(None if name == "STEPS" else 1e9)
        assert {event["steps"] for event in events if event["event"] == "exam"} == {10}
