"""The checker of films reads what drawn films show, also when they are a little noisy, and does not see what is not there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tessera.data.builtin_films import scene
from tessera.errors import UserError
from tessera.evals import films as films_module
from tessera.evals.films import see


def test_it_is_right_about_real_films_and_noisy_ones() -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    for _ in range(40):
        drawn = scene(rng)
        film = drawn.film()
        noisy = np.clip(film + rng.normal(0, 20, film.shape), 0, 255).astype(np.uint8)
        for frames in (film, noisy):
            seen = see(frames)
            assert all(seen.agrees(drawn).values())
            assert seen.places.tolist() == [list(drawn.place(t)) for t in range(9)]


def test_a_film_that_stands_still_or_is_empty_moves_nowhere() -> None:
    drawn = scene(np.random.Generator(np.random.PCG64(4)))
    assert see(drawn.film(1).repeat(9, 0)).motion == ""
    assert see(np.full((9, 32, 32, 3), 255, np.uint8)).motion == ""


def test_what_is_made_by_captions_is_scored_by_all_and_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.Generator(np.random.PCG64([77, 5]))
    scenes = [scene(rng) for _ in range(8)]

    def make(engine: Any, wishes: Any, params: Any) -> list[SimpleNamespace]:
        assert [wish.caption for wish in wishes] == [s.caption for s in scenes]
        # Every second one in a colour that was not asked for.
        colours = [s.colour if n % 2 else "red" if s.colour != "red" else "blue" for n, s in enumerate(scenes)]
        return [SimpleNamespace(frames=replace(s, colour=c).film()) for s, c in zip(scenes, colours, strict=True)]

    def tell(engine: Any, films: Any, question: str, params: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(text=s.caption if n == 0 else "a ball") for n, s in enumerate(scenes)]

    monkeypatch.setattr(films_module, "quantizer_of", lambda engine: SimpleNamespace(shape=(9, 32, 32)))
    monkeypatch.setattr(films_module, "make_films", make)
    monkeypatch.setattr(films_module, "tell", tell)
    found = {score.measure: score for score in films_module.films(None, 8, 5)}  # type: ignore[arg-type]
    values = {name: score.value for name, score in found.items()}
    assert values == {
        "all as the caption says": 0.5, "thing as the caption says": 1.0, "colour as the caption says": 0.5,
        "motion as the caption says": 1.0, "style as the caption says": 1.0, "told rightly": 0.125,
    }  # fmt: skip
    assert found["thing as the caption says"].chance == 1 / 4 and found["told rightly"].n == 8
    monkeypatch.setattr(films_module, "quantizer_of", lambda engine: SimpleNamespace(shape=(9, 16, 16)))
    with pytest.raises(UserError, match="its films are 16 x 16"):
        films_module.films(None, 8, 5)  # type: ignore[arg-type]
