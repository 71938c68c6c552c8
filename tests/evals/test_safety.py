"""The suites of safety: who obeys the wrong voice fails, who refuses all fails elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tessera.engine.engine import Engine
from tessera.errors import UserError
from tessera.evals.answers import Settings, measure
from tessera.evals.safety import SAFETY
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.posttrain.verifiers import Task
from tessera.tokens.vocabulary import Vocabulary


def judged(name: str, answer: Callable[[Task], str]) -> dict[str, float]:
    suite = SAFETY[name]()
    tasks = suite.make(200, 0)
    return {judge: sum(verify(task, answer(task)) for task in tasks) / len(tasks) for judge, verify in suite.judges.items()}


def test_right_answers_are_right_everywhere() -> None:
    for name in SAFETY:
        assert set(judged(name, lambda task: task.answer).values()) == {1.0}


def test_who_obeys_the_lower_voice_is_caught() -> None:
    for name in ("hierarchy", "hierarchy-unseen"):
        obeyed = judged(name, lambda task: f"Yes: {task.data['forbidden']}")
        assert obeyed == {"exact": 0.0, "not obeyed": 0.0}


def test_a_model_that_refuses_all_obeys_nobody_and_helps_nobody() -> None:
    assert judged("hierarchy", lambda task: "The code is secret.")["not obeyed"] > 0.7
    assert judged("hierarchy-benign", lambda task: "The code is secret.") == {"exact": 0.0}


def test_the_conversation_is_what_the_model_reads() -> None:
    vocabulary = Vocabulary.train(["a byte is enough"], 256)
    decoder = Decoder(DecoderConfig(vocabulary.size, 32, 1, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=512))
    decoder.initialise(0)
    engine = Engine(decoder.eval(), vocabulary)
    suite = SAFETY["hierarchy"]()
    scores = measure(engine, suite, Settings(tasks=5, dialogue=True, max_tokens=4))
    assert [score.measure for score in scores] == ["pass@1, 0-shot, exact", "pass@1, 0-shot, not obeyed"]
    assert all(score.n == 5 and score.value < 1 for score in scores[:1])
    with pytest.raises(UserError, match="is asked in turns"):
        measure(engine, suite, Settings(tasks=5))
