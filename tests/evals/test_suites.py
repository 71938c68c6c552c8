"""Suites: the same tasks for the same seed, judges that know right from wrong, and numbers that are what they say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.commands.evaluate import NAMES, evaluate
from tessera.engine.engine import Engine
from tessera.errors import UserError
from tessera.evals import answers, likelihood, suites
from tessera.evals.answers import Settings
from tessera.model import weights
from tessera.model.decoder import Decoder, DecoderConfig, join_weights
from tessera.posttrain.verifiers import extract
from tessera.tokens.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["a byte is enough"], 256)


@pytest.fixture(scope="module")
def decoder(vocabulary: Vocabulary) -> Decoder:
    config = DecoderConfig(vocabulary.size, width=32, layers=1, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=96)
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.2, generator=generator)
    join_weights(decoder)
    return decoder.eval()


@pytest.fixture(scope="module")
def engine(decoder: Decoder, vocabulary: Vocabulary) -> Engine:
    return Engine(decoder, vocabulary)


@pytest.mark.parametrize("name", sorted(suites.GENERATED))
def test_generated_tasks_repeat_by_seed_differ_from_each_other_and_are_right(name: str) -> None:
    inside, beyond = suites.generated(name), suites.generated(name, beyond=True)
    tasks = inside.make(50, 3)
    assert tasks == inside.make(50, 3) != inside.make(50, 4)
    assert len({task.prompt for task in tasks}) == len(tasks) >= 40
    assert not {task.prompt for task in tasks} & {task.prompt for task in beyond.make(50, 3)}
    for task in tasks + beyond.make(50, 3):
        words = task.prompt.rstrip("=: ").split()
        right = {
            "arithmetic": lambda words=words: str(eval(words[0])),
            "reversing": lambda words=words: words[1][::-1],
            "sorting": lambda words=words: " ".join(sorted(words[1:], key=int)),
            "counting": lambda words=words: str(words[3].count(words[1])),
            "dial": lambda words=words: reduce(
                lambda d, move: str(eval(d + move))[-1], re.findall(r"[+*]\d", words[1]), words[1][0]
            ),
        }[name]()
        assert task.answer == right


def test_pass_vote_and_best_come_from_the_same_samples(engine: Engine) -> None:
    suite = suites.generated("counting", (2, 3))
    settings = Settings(tasks=6, samples=4, temperature=3.0, seed=1)
    scores = {score.measure: score for score in answers.measure(engine, suite, settings)}
    assert list(scores) == [
        "pass@1, 0-shot", "pass@2, 0-shot", "maj@2, 0-shot", "best@2 by mean log-probability, 0-shot",
        "pass@4, 0-shot", "maj@4, 0-shot", "best@4 by mean log-probability, 0-shot",
    ]  # fmt: skip
    score = scores["pass@4, 0-shot"]
    assert score.n == 6 and score.settings["seed"] == 1 and score.settings["samples"] == 4
    assert score.baseline is not None and score.baseline > 0 and "most frequent right answer" in score.baseline_is
    assert answers.measure(engine, suite, settings) == list(scores.values())


def test_who_may_guess_four_times_is_oftener_right_by_chance(engine: Engine) -> None:
    scores = answers.measure(engine, suites.generated("dial", (1, 2)), Settings(tasks=2, samples=4, max_tokens=2))
    chances = {score.measure.partition(",")[0]: score.chance for score in scores}
    assert chances == pytest.approx({
        "pass@1": 0.1, "pass@2": 0.19, "maj@2": 0.1, "best@2 by mean log-probability": 0.1,
        "pass@4": 0.3439, "maj@4": 0.1, "best@4 by mean log-probability": 0.1,
    })  # fmt: skip


def test_a_model_that_is_always_right_scores_one() -> None:
    suite = suites.generated("reversing")
    tasks = suite.make(5, 0)
    assert answers._judge(suite, tasks, [f" {task.answer}\n" for task in tasks], None) == {"exact": [True] * 5}
    assert answers._judge(suite, tasks, ["zzz"] * 5, None) == {"exact": [False] * 5}


def test_examples_stand_before_the_question_and_too_many_are_refused(engine: Engine, vocabulary: Vocabulary) -> None:
    suite = suites.generated("arithmetic", (1, 1))
    (examples,) = answers._examples(suite, suite.make(1, 0), Settings(shots=2))
    ids = answers._prompt(engine, examples, suite.make(1, 0)[0], Settings())
    shown = "".join(f"{e.prompt}{e.answer}\n" for e in examples) + suite.make(1, 0)[0].prompt
    assert ids == vocabulary.encode_text(shown)
    with pytest.raises(UserError, match="fewer --shots"):
        answers.measure(engine, suite, Settings(tasks=2, shots=40))
    with pytest.raises(UserError, match="would be equal"):
        answers.measure(engine, suite, Settings(tasks=2, samples=2, temperature=0))


def test_log_probabilities_in_batches_equal_one_by_one(decoder: Decoder, vocabulary: Vocabulary) -> None:
    pairs = [("The cat", " sat"), ("", "x"), ("A somewhat longer passage that", " ends here")]
    together = likelihood.text_logprobs(decoder, vocabulary, pairs)
    for (before, text), found in zip(pairs, together, strict=True):
        ids = [vocabulary.end_id, *vocabulary.encode_text(before + text)]
        count = len(vocabulary.encode_text(text))
        with torch.inference_mode():
            logprobs = decoder.logits(decoder(torch.tensor([ids[:-1]])))[0].log_softmax(-1)
        expected = sum(float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1 - count, len(ids) - 1))
        assert found == pytest.approx(expected, rel=1e-4)


def test_public_suites_judge_their_own_answers_right(shared_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(suites.DATA_VARIABLE, str(shared_data("text").parent))
    gsm8k = suites.PUBLIC["gsm8k"]()
    tasks = gsm8k.make(50, 0)
    assert all(judge(task, task.answer) == 1 for task in tasks for judge in gsm8k.judges.values())
    assert "<<" not in "".join(task.answer for task in tasks)
    strict, flexible = gsm8k.judges["strict"], gsm8k.judges["flexible"]
    said = f"So it is {extract(tasks[0].answer)} in all."
    assert (strict(tasks[0], said), flexible(tasks[0], said)) == (0, 1)
    assert len(suites.PUBLIC["ifeval"]().make(10**6, 0)) == 510
    assert len(suites.PUBLIC["mbpp"]().make(10**6, 0)) == 500
    assert len(suites.PUBLIC["humaneval"]().make(10**6, 0)) == 164


def test_reading_suites_report_chance_and_baseline(
    decoder: Decoder, vocabulary: Vocabulary, shared_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(suites.DATA_VARIABLE, str(shared_data("text").parent))
    scores = likelihood.blimp(decoder, vocabulary, 67, 0)
    assert [score.measure for score in scores] == ["all", "morphology", "semantics", "syntax", "syntax_semantics"]
    assert scores[0].n == 67 and scores[0].chance == 0.5 and scores[0].baseline is not None
    (score,) = likelihood.lambada(decoder, vocabulary, 5, 0)
    assert score.n == 5 and score.value > 1 and score.chance is not None and math.isfinite(score.standard_error)


def test_the_command_prints_every_number_with_its_settings(
    decoder: Decoder, vocabulary: Vocabulary, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    special = weights.SpecialIds(end=(vocabulary.end_id,), pad=vocabulary.pad_id)
    weights.save(decoder, folder, special=special, companions=vocabulary.save)
    evaluate(str(folder), as_json=True, names=["counting"], tasks=3, shots="0,1", lengths="2-3")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["measure"] for row in rows] == ["pass@1, 0-shot", "pass@1, 1-shot"]
    assert all({"n", "standard_error", "chance", "baseline", "settings", "seconds"} <= row.keys() for row in rows)
    monkeypatch.setenv(suites.DATA_VARIABLE, str(tmp_path))
    for asked, words in (
        ({"names": ["nothing"]}, "no suite 'nothing'; write one of bits, infill, digits"),
        ({"names": ["counting"], "shots": "x"}, "separated by commas"),
        ({"names": ["counting"], "lengths": "5-2"}, "lengths rise"),
        ({"names": ["counting"], "effort": "none,"}, "no effort ''"),
        ({"names": ["gsm8k"]}, "set TESSERA_DATA"),
        ({"names": ["blimp"]}, "set TESSERA_DATA"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(str(folder), **asked)  # type: ignore[arg-type]
    assert len(NAMES) == 30


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"names": ["counting"], "sources": ["files:x"]}, "--data is for bits, infill and moderation"),
        ({"shots": "0,1"}, "--shots is for suites that are answered; it would do nothing with bits: leave it out"),
        ({"names": ["tour", "digits"], "samples": 3}, "--samples is for suites .* nothing with tour, digits"),
        ({"names": ["bits", "blimp"], "samples": 3}, "--samples is for"),
        ({"names": ["gsm8k"], "lengths": "2-3"}, "--lengths is for suites of generated tasks"),
        ({"names": ["moderation"], "sources": ["x"], "tasks": 3}, "--tasks is for all suites but moderation"),
        ({"effort": "low"}, "--effort is for"),
        ({"names": ["infill"], "settings": Settings(temperature=0.5)}, "--temperature is for"),
        ({"names": ["infill"], "settings": Settings(top_p=0.5)}, "--top-p is for"),
        ({"names": ["infill"], "settings": Settings(max_tokens=5)}, "--max-tokens is for"),
        ({"samples": 3, "tasks": 5}, "--samples and --tasks both"),
    ],
)
def test_an_option_that_no_suite_uses_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate("nowhere", **asked)
    # Where one of the suites uses it, the next thing to be missing is the model.
    with pytest.raises(UserError, match="nowhere"):
        evaluate("nowhere", ["files:x"], names=["bits", "counting"], shots="1", lengths="2-3", samples=2, tasks=3)
