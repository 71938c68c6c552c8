"""The tour is judged by what came back: right things pass, similar ones do not, and what a model cannot do is said."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tessera.data.builtin_films import Scene
from tessera.data.builtin_pictures import digit_arrays, digit_pixels
from tessera.data.builtin_sounds import Melody
from tessera.engine.engine import Engine
from tessera.evals.tour import CHANCE, Model, assertions, judged, measure_tour
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.sandbox.box import Sandbox, open_sandbox
from tessera.tokens.palette import Palette
from tessera.tokens.quantizer import Autoencoder, Quantizer, QuantizerConfig
from tessera.tokens.vocabulary import Vocabulary
from tessera.tour import STEPS, Asking, askings

by_name = {step.name: step for step in STEPS}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = open_sandbox()
    yield box
    box.close()


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        (
            "complete",
            ["    return sum([x * x for x in values if x % 2 == 0])\n"],
            [
                "    return sum([x * x for x in values])\n",
                "    return sum([x for x in values if x % 2 == 0])\n",
                "",
                "    pass\n",
            ],
        ),
        (
            "fill",
            ["            found.append(2 * x)\n"],
            ["            found.append(x)\n", "            found.append(x * x)\n", ""],
        ),
    ],
)
def test_functions_are_run(name: str, right: list[str], wrong: list[str], sandbox: Sandbox) -> None:
    made = [*right, *wrong]
    assert judged(by_name[name], [Asking("")] * len(made), made, sandbox) == [True] * len(right) + [False] * len(wrong)


@pytest.mark.parametrize(
    ("name", "asking", "right", "wrong"),
    [
        ("sum-low", Asking(""), ["95", "95.", "37 + 58 = 95."], ["", "85", "95 + 58", "ninety-five"]),
        ("look", Asking("", "seven"), ["a seven", "seven.", "The digit seven"], ["a", "a one", "a seven or a one"]),
        ("judge", Asking("", "A"), ["A", "A.", " A\n"], ["B", "AB", "A is better than B", ""]),
    ],
)
def test_words_are_right_or_wrong(name: str, asking: Asking, right: list[str], wrong: list[str], sandbox: Sandbox) -> None:
    made = [*right, *wrong]
    assert judged(by_name[name], [asking] * len(made), made, sandbox) == [True] * len(right) + [False] * len(wrong)


def test_media_are_looked_at_and_heard(sandbox: Sandbox) -> None:
    levels, labels = digit_arrays("test")
    shown = [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]
    named = judged(by_name["draw"], [Asking("")] * 11, [*digit_pixels(levels[shown]), np.zeros((16, 16, 3), np.uint8)], sandbox)
    assert named == [digit == 7 for digit in range(11)]
    scenes = [
        Scene("red", "ball", "bounces to the left", "", 18, 0),
        Scene("red", "ball", "bounces to the right", "", 2, 0),
        Scene("red", "ball", "bounces to the left", "at night", 18, 0),
        Scene("blue", "ball", "bounces to the left", "", 18, 0),
        Scene("red", "square", "bounces to the left", "", 18, 0),
        Scene("red", "ball", "moves to the left", "", 18, 0),
    ]
    assert judged(by_name["film"], [Asking("")] * 6, [scene.film() for scene in scenes], sandbox) == [True] + [False] * 5
    rng = np.random.Generator(np.random.PCG64(0))
    played = [Melody(tuple(notes.split()), "organ", "slowly").sound(rng) for notes in ("C E G", "C E F", "C E", "G E C")]
    assert judged(by_name["play"], [Asking("")] * 4, played, sandbox) == [True, False, False, False]


@pytest.mark.parametrize("name", ["complete", "fill"])
def test_a_function_is_tested_with_lists_that_tell_its_parts(name: str) -> None:
    lines = assertions(by_name[name]).splitlines()
    assert len(lines) > 8 and "assert answer([]) == 0" in lines and len({line.rpartition(" ")[2] for line in lines}) > 4


def model(*media: Palette | Quantizer, dialogue: bool = False, budgets: dict[str, int] | None = None) -> Model:
    vocabulary = Vocabulary.train(["a byte is enough"], 256)
    for tokenizer in media:
        vocabulary = vocabulary.add_media(tokenizer)
    shape = DecoderConfig(vocabulary.size, width=16, layers=1, heads=1, kv_heads=1, head_size=16, mlp_width=16, context=640)
    decoder = Decoder(shape)
    decoder.initialise(0)
    return Model(Engine(decoder.eval(), vocabulary), dialogue, budgets or {})


def quantizer(config: QuantizerConfig, shape: tuple[int, ...], per_second: float) -> Quantizer:
    network = Autoencoder(config)
    network.initialise(0)
    return Quantizer(network.eval(), shape, per_second)


def test_what_a_model_cannot_do_is_left_out_with_its_reason(sandbox: Sandbox) -> None:
    with torch.inference_mode():
        scores, left_out = measure_tour(model(), 2, sandbox)
    assert [score.measure for score in scores] == ["Complete this function", "Fill in this gap"]
    reasons = {one.step.name: one.reason for one in left_out}
    assert list(reasons) == ["sum-low", "sum-high", "draw", "look", "film", "play", "judge"]
    assert "knows no dialogue" in reasons["sum-low"] and "knows no dialogue" in reasons["judge"]
    assert all(reasons.values())


def test_a_model_of_all_media_is_asked_everything(sandbox: Sandbox) -> None:
    media: list[Palette | Quantizer] = [
        Palette(np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[:, None], 3, 1), (8, 8)),
        quantizer(QuantizerConfig("video", (4, 3), 4, 2, 8, 1, 1), (5, 32, 32), 8.0),
        quantizer(QuantizerConfig("audio", (5, 4), 80, 4, 8, 1, 1, books=2), (1600,), 8000.0),
    ]
    with torch.inference_mode():
        scores, left_out = measure_tour(model(*media, dialogue=True, budgets={"low": 4, "high": 8}), 2, sandbox, first=5)
    assert left_out == [] and [score.measure for score in scores] == [step.title for step in STEPS]
    for step, score in zip(STEPS, scores, strict=True):
        assert (score.suite, score.n, score.chance, score.settings["seed"]) == ("tour", 2, CHANCE[step.kind], 5)
    assert len(askings(by_name["judge"], 5)) == 2


def test_films_of_another_size_are_left_out_not_counted_wrong(sandbox: Sandbox) -> None:
    small = quantizer(QuantizerConfig("video", (4, 3), 4, 2, 8, 1, 1), (5, 8, 8), 8.0)
    with torch.inference_mode():
        scores, left_out = measure_tour(model(small), 2, sandbox, steps=[by_name["film"]])
    assert scores == [] and "8 x 8" in left_out[0].reason
