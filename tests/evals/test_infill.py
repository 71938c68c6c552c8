"""Gaps: cut from held-out texts as they stand, judged letter by letter, the same way from both sides and from the left."""

from __future__ import annotations

import pytest

from tessera.data.sources import documents
from tessera.engine.engine import Engine
from tessera.errors import UserError
from tessera.evals import infill
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.tokens.document import Document
from tessera.tokens.vocabulary import Vocabulary

TEXTS = [Document.of_text("".join(f"name_{i} = value_of(thing_{i * j}, {j})\n" for i in range(30)), f"{j}") for j in (2, 3)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    vocabulary = Vocabulary.train([document.text for document in TEXTS], 280)
    shape = DecoderConfig(vocabulary.size, width=16, layers=1, heads=1, kv_heads=1, head_size=16, mlp_width=16, context=64)
    decoder = Decoder(shape)
    decoder.initialise(0)
    return Engine(decoder.eval(), vocabulary)


def test_gaps_are_whole_words_inside_a_line_and_the_same_for_a_seed() -> None:
    found = infill.gaps(TEXTS, 40, 1)
    assert found == infill.gaps(TEXTS, 40, 1) != infill.gaps(TEXTS, 40, 2)
    assert len(found) == 40
    for gap in found:
        assert gap.prefix + gap.middle + gap.suffix in [document.text for document in TEXTS]
        assert infill.GAP[0] <= len(gap.middle) <= infill.GAP[1] and "\n" not in gap.middle
        # Never the first word of a line: it begins after something on it, and neither side is cut inside a word.
        assert gap.prefix.rpartition("\n")[2]
        assert not (gap.prefix[-1].isalnum() and gap.middle[0].isalnum())
        assert not (gap.suffix[0].isalnum() and gap.middle[-1].isalnum())


def test_an_answer_is_right_letter_by_letter_and_only_then(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = infill.gaps(TEXTS, 12, 0)
    made = [gap.middle + " and more" for gap in chosen[:6]] + [gap.middle[:-1] + "~" for gap in chosen[6:]]

    class Said:
        def __init__(self, text: str) -> None:
            self.text = text

    monkeypatch.setattr(engine, "generate", lambda prompts, params: [Said(text) for text in made])
    assert infill._right(engine, [], chosen) == [1.0] * 6 + [0.0] * 6


def test_both_sides_stand_against_the_left_side_alone(engine: Engine) -> None:
    exact, gain = infill.infill(engine, TEXTS, 10, 0)
    assert (exact.n, gain.n) == (10, 10) and exact.baseline is not None and "left side alone" in exact.baseline_is
    assert gain.value == pytest.approx(exact.value - exact.baseline)
    assert infill.infill(engine, TEXTS, 10, 0) == [exact, gain]
    with pytest.raises(UserError, match="no line"):
        infill.infill(engine, [Document.of_text("x\ny\n")], 10, 0)


def test_the_library_has_gaps() -> None:
    some = [document for document, _ in zip(documents("builtin:stdlib", []), range(3), strict=False)]
    assert len(infill.gaps(some, 30, 0)) >= 20
