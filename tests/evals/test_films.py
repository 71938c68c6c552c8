"""The checker of films reads what drawn films show, also when they are a little noisy, and does not see what is not there."""

from __future__ import annotations

import numpy as np

from tessera.data.builtin_films import scene
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
