"""The checker of shapes is right about drawn pictures, also noisy ones, and sees each thing that a caption says wrongly."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tessera.data.builtin_pictures import COLOURS, FORMS, HELD_OUT, PLACES, RELATIONS, SIDE, SIZES, shapes
from tessera.data.pictures import parts_of
from tessera.evals import shapes as module
from tessera.evals.shapes import KINDS, agrees, kind_of, see


def examples(count: int, held_out: bool = False) -> list[tuple[np.ndarray, str]]:
    found = [parts_of(document) for document in shapes(count, held_out, seed=7)]
    return [(parts.signal, parts.caption) for parts in found if parts is not None]


@pytest.mark.parametrize("held_out", [False, True])
def test_it_is_right_about_drawn_pictures_and_noisy_ones(held_out: bool) -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    for picture, caption in examples(60, held_out):
        noisy = np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)
        assert agrees(picture, caption) == agrees(noisy, caption) == 1.0


def others(caption: str) -> list[str]:
    """The caption with one thing wrong, in every way."""
    found = []
    for words in (COLOURS, SIZES, FORMS, PLACES, ("two", "three", "four"), ("circles", "squares", "rings")):
        for match in re.finditer("|".join(rf"\b{word}\b" for word in words), caption):
            found += [caption[: match.start()] + word + caption[match.end() :] for word in words if word != match[0]]
    # What lies left of another may lie above it too, but not right of it.
    for relation, opposite in zip(RELATIONS, (RELATIONS[1], RELATIONS[0], RELATIONS[3], RELATIONS[2]), strict=True):
        found += [caption.replace(relation, opposite)] if f" {relation} " in caption else []
    return found


def test_whatever_is_said_wrongly_is_seen() -> None:
    some = examples(40)
    assert {kind_of(caption) for _, caption in some} == set(KINDS)
    for picture, caption in some:
        for wrong in others(caption):
            assert agrees(picture, wrong) == 0.0, (caption, wrong)


def test_more_than_is_said_is_not_what_was_said() -> None:
    picture, caption = next((p, c) for p, c in examples(40) if kind_of(c) == "place" and "upper left" in c)
    more = picture.copy()
    more[-5:, -5:] = COLOURS["green"]
    assert agrees(more, caption) == 0.0 and len(see(more) or ()) == 2
    blot = picture.copy()
    blot[-2:, -6:] = COLOURS["green"]
    assert see(blot) is None and agrees(blot, caption) == 0.0
    assert agrees(picture, "a dream") == agrees(picture, "") == agrees(picture[:8], caption) == 0.0


def test_the_suite_asks_for_pairs_that_no_source_yields_and_judges_by_the_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [pair for held_out in (False, True) for pair in module._examples(30, held_out, 0)]
    drawn = {caption: picture for picture, caption in pairs}
    asked: list[str] = []

    def draw(engine: Any, wishes: Any, params: Any) -> list[Any]:
        asked.extend(wish.caption for wish in wishes)
        assert all(wish.shape == (SIDE, SIDE) for wish in wishes)
        # Every third is left white.
        white = np.full((SIDE, SIDE, 3), 255, np.uint8)
        return [SimpleNamespace(pixels=drawn[w.caption] if n % 3 else white) for n, w in enumerate(wishes)]

    def look(engine: Any, pictures: Any, question: str, params: Any) -> list[Any]:
        by_bytes = {picture.tobytes(): caption for picture, caption in pairs}
        return [SimpleNamespace(text=f" {by_bytes[p.tobytes()]}\n") for p in pictures]

    monkeypatch.setattr(module, "draw", draw)
    monkeypatch.setattr(module, "look", look)
    scores = {score.measure: score for score in module.shapes(SimpleNamespace(), 30, 0)}
    assert scores["drawn, as the caption says"].value == pytest.approx(20 / 30)
    assert scores["drawn, pairs held out, as the caption says"].value == pytest.approx(20 / 30)
    assert scores["told, all as it is"].value == scores["told, pairs held out, all as it is"].value == 1.0
    assert sum(score.n for name, score in scores.items() if "among what is said" in name) == 30
    named = {(colour, form) for caption in asked[30:] for colour in COLOURS for form in FORMS if f"{colour} {form}" in caption}
    assert named and named <= HELD_OUT
