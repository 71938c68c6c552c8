"""`tessera posttrain dpo` and `reward`: files of preferences, what is learned from them, and what cannot fool it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.commands.evaluate import documents_of
from tessera.device import Machine
from tessera.errors import UserError
from tessera.posttrain.labelled import Labelled
from tessera.posttrain.pairs import PROBES, read_questions
from tessera.posttrain.preference import RewardModel
from tessera.run import RunFolder
from tessera.tokens.document import TokenRecord
from tessera.tokens.vocabulary import Vocabulary

from .conftest import WORDS

MACHINE = Machine("test", "cpu", 0, "float32", 1, "test")
ONE_THREAD = ("--set", "train.threads=1", "--set", "train.checkpoint_seconds=0.001")


def row(first: str, second: str) -> dict[str, Any]:
    """Which of two words is preferred: the one that was asked for."""
    return {
        "prompt": [{"role": "user", "content": f"Say {first}"}],
        "chosen": [{"role": "assistant", "content": first}],
        "rejected": [{"role": "assistant", "content": second}],
    }


ROWS = [row(a, b) for a in WORDS for b in WORDS if a != b]
TEXTS = [{"prompt": f"{n}: ", "chosen": "yes", "rejected": "no, no"} for n in range(30)]


@pytest.fixture
def posttrain(model: Path, tessera: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """Calls the command: its exit code and what it says."""

    def call(kind: str, data: str, out: Path, *more: str) -> tuple[int, str]:
        words = ["posttrain", kind, "--model", str(model), "--data", data, "--out", str(out), *ONE_THREAD, *more]
        return tessera(*words)

    return call


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in RunFolder(run).events() if event["event"] == kind]


def test_half_of_a_surrogate_pair_has_a_place_too(model: Path, write: Callable[..., str]) -> None:
    (question,) = read_questions(Path(write([{"prompt": "cut \ud83d", "chosen": "a", "rejected": "b"}])), Vocabulary.load(model))
    assert 0 <= question.digest < 2**64
    assert 0 <= Labelled("\ud83d", (0.0,)).digest < 2**64


def weights_of(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_pairs_of_one_prompt_belong_together_and_only_answers_are_learned(write: Callable[..., str], model: Path) -> None:
    vocabulary = Vocabulary.load(model)
    theirs = {"input": {"messages": ROWS[1]["prompt"]}, "preferred_output": ROWS[1]["chosen"]}
    rows = [ROWS[0], theirs | {"non_preferred_output": [{"role": "assistant", "content": "never"}]}, TEXTS[0]]
    talk, text = read_questions(Path(write(rows)), vocabulary)
    assert len(talk.answers) == 3 and talk.better == [(0, 1), (0, 2)] and talk.best() == [0] and talk.lines == [1, 2]
    encoded = talk.encode(talk.answers[0], vocabulary)
    assert vocabulary.decode(encoded.ids[encoded.learn]).text == "red" and encoded.ids[-1] == vocabulary.end_turn_id
    encoded = text.encode(text.answers[1], vocabulary)
    assert vocabulary.decode(encoded.ids[encoded.learn]).text == "no, no" and encoded.ids[-1] == vocabulary.end_id
    history = {"role": "assistant", "content": "Hello"}
    longer = ROWS[0] | {"prompt": [{"role": "user", "content": "Hi"}, history, *ROWS[0]["prompt"]]}
    (question,) = read_questions(Path(write([longer])), vocabulary)
    encoded = question.encode(question.answers[0], vocabulary)
    # What the assistant said before is not preferred to anything.
    assert vocabulary.decode(encoded.ids[encoded.learn]).text == "red"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ({"prompt": "a", "chosen": "b"}, "a preference is"),
        ({"prompt": "a", "chosen": "b", "rejected": ["c"]}, "all texts, or all lists"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "the prompt is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same answer"),
        (ROWS[0] | {"chosen": [{"role": "user", "content": "x"}]}, "assistant's messages"),
        (ROWS[0] | {"chosen": [{"role": "robot", "content": "x"}]}, "assistant's messages"),
    ],
)
def test_a_line_that_is_no_preference_is_named(
    tmp_path: Path, write: Callable[..., str], posttrain: Any, line: Any, words: str
) -> None:
    code, said = posttrain("dpo", write([*TEXTS[:2], line]), tmp_path / "run")
    assert code == 2 and "line 3" in said and words in said and len(said.strip().splitlines()) == 1, said
    assert not (tmp_path / "run").exists()


def test_dpo_learns_what_was_preferred_and_a_stopped_run_goes_on_to_the_bit(
    tmp_path: Path, write: Callable[..., str], posttrain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, unbroken, killed = write(TEXTS), tmp_path / "unbroken", tmp_path / "killed"
    more = ("--epochs", "3", "--batch-size", "8", "--rate", "0.003", "--anchor", "0.2")
    code, said = posttrain("dpo", data, unbroken, *more)
    assert code == 0 and "the longer one was chosen in 0%" in said, said
    exams = events(unbroken, "exam")
    assert exams[0]["step"] == 0 and exams[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert exams[-1]["accuracy"] == 1 and exams[-1]["margin"] > 0.1 and exams[-1]["chosen_loss"] < exams[0]["chosen_loss"]
    real, steps = RunFolder.record, 0

    def stop_at_the_fifth(folder: RunFolder, event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["event"] == "step"
        real(folder, event)
        if steps == 5 and event["event"] == "step":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", stop_at_the_fifth)
        code, said = posttrain("dpo", data, killed, *more)
    assert code == 143 and "after step 5" in said, said
    os.unlink(data)
    assert posttrain("dpo", data, killed, *more, "--beta", "0.5", "--resume")[0] == 2
    code, said = posttrain("dpo", data, killed, *more, "--resume")
    assert code == 0 and "resumed from" in said, said
    assert [e["loss"] for e in events(killed, "step")] == [e["loss"] for e in events(unbroken, "step")]
    assert weights_of(killed) == weights_of(unbroken)
    # What it was tuned on is no document to measure it on.
    with pytest.raises(UserError, match="was tuned on what is no document; give --data"):
        documents_of(str(unbroken), (), pictures=False)


def test_a_reward_model_orders_what_it_has_not_seen_and_is_not_fooled(
    tmp_path: Path, write: Callable[..., str], posttrain: Any
) -> None:
    rows = [{"prompt": f"{n}: ", "chosen": "yes", "rejected": "no"} for n in range(40)]
    rows += [{"prompt": f"{n}: ", "chosen": "yes", "rejected": "ye"} for n in range(40)]
    run = tmp_path / "run"
    code, said = posttrain("reward", write(rows), run, "--epochs", "25", "--batch-size", "8", "--rate", "0.004")
    assert code == 0 and abs(events(run, "exam")[0]["score"]) < 1, said
    probes = json.loads((run / "probes.json").read_text())
    assert list(probes) == list(PROBES) and all(probes[kind]["of"] > 0 for kind in PROBES)
    assert all(f"probe {kind}" in said for kind in PROBES)
    judge = RewardModel(run, MACHINE)
    questions = read_questions(run / "held_out.jsonl", judge.vocabulary)
    scores = [judge.score([q.encode(answer, judge.vocabulary) for answer in q.answers]) for q in questions]
    right = np.mean([scores[at][a] > scores[at][b] for at, q in enumerate(questions) for a, b in q.better])
    assert right == 1 and sum(p["beaten"] for p in probes.values()) == 0, (right, probes)


def test_a_score_does_not_depend_on_what_stands_beside_it(
    tmp_path: Path, write: Callable[..., str], posttrain: Any, model: Path
) -> None:
    run = tmp_path / "run"
    more = ("--plain", "--rate", "0.003", "--epochs", "6", "--batch-size", "8")
    code, said = posttrain("reward", write(TEXTS), run, *more)
    assert code == 0, said
    judge = RewardModel(run, MACHINE)
    (question, *_) = read_questions(run / "train.jsonl", judge.vocabulary)
    records = [question.encode(answer, judge.vocabulary) for answer in question.answers]
    alone = judge.score(records[:1])[0]
    assert judge.score(records)[0] == pytest.approx(alone, abs=1e-6)
    cut = TokenRecord(records[0].ids[:-1], records[0].learn[:-1])
    assert judge.score([cut])[0] != pytest.approx(alone, abs=1e-6)
    with pytest.raises(UserError, match="no reward model"):
        RewardModel(model, MACHINE)
