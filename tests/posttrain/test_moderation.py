"""`tessera posttrain moderation`: files of labelled texts, what is learned from them, what is not covered, and calibration."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.device import Machine
from tessera.engine.moderation import CATEGORIES, Category, probabilities, read_head, windows
from tessera.evals.moderation import measure_moderation
from tessera.model import weights
from tessera.posttrain.labelled import Labelled, read_labelled, write_labelled
from tessera.posttrain.moderation import Moderator, best_threshold, calibrated
from tessera.run import RunFolder
from tessera.tokens.vocabulary import CONTROLS, Vocabulary

from .conftest import CONTEXT

MACHINE = Machine("test", "cpu", 0, "float32", 1, "test")
ONE_THREAD = ("--set", "train.threads=1", "--set", "train.checkpoint_seconds=0.001")
HATE = CATEGORIES.index("hate")


def row(number: int) -> dict[str, Any]:
    """Every third is hateful; of violence too little is said to learn it."""
    bad = number % 3 == 0
    labels: dict[str, Any] = {"hate": int(bad), "sexual": False}
    if number < 4:
        labels["violence"] = 1
    return {"text": f"{number}: {'zap' if bad else 'mild'} words", "labels": labels}


ROWS = [row(number) for number in range(120)]


@pytest.fixture
def train(model: Path, tessera: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    def call(data: str, out: Path, *more: str) -> tuple[int, str]:
        words = ["posttrain", "moderation", "--model", str(model), "--data", data, "--out", str(out), *ONE_THREAD, *more]
        return tessera(*words)

    return call


@pytest.fixture(scope="module")
def logit_texts() -> tuple[np.ndarray, list[Labelled]]:
    """Logits of one category that are right, but for noise, above 2; and the texts."""
    dice = np.random.default_rng(0)
    truth = dice.random(400) < 0.3
    logits = 2.0 + np.where(truth, 2.0, -2.0) + dice.normal(size=400)
    texts = []
    for number, inside in enumerate(truth):
        labels = [float("nan")] * len(CATEGORIES)
        labels[HATE] = float(inside)
        texts.append(Labelled(str(number), tuple(labels)))
    return logits[:, None], texts


def test_both_forms_of_a_line_are_read_and_what_is_not_named_is_not_known(tmp_path: Path, write: Callable[..., str]) -> None:
    public = {"prompt": "b", "H": 1, "S3": 0}
    first, second = read_labelled(
        Path(write([{"text": "a", "labels": {"hate": True}}, public, {"text": "a", "labels": {"sexual": 0}}]))
    )
    assert first.labels[HATE] == 1 and first.labels[CATEGORIES.index("sexual")] == 0 and not first.known("violence")
    assert second.labels[HATE] == 1 and second.labels[CATEGORIES.index("sexual/minors")] == 0 and not second.known("sexual")
    write_labelled(tmp_path / "again.jsonl", [first, second])
    again = read_labelled(tmp_path / "again.jsonl")
    assert [one.text for one in again] == ["a", "b"]
    assert np.array_equal([one.labels for one in again], [first.labels, second.labels], equal_nan=True)


def test_of_labels_that_contradict_each_other_nothing_is_known(write: Callable[..., str]) -> None:
    said: list[str] = []
    rows = [{"text": "a", "labels": {"hate": value, "sexual": 1}} for value in (1, 0, 0)]
    (found,) = read_labelled(Path(write(rows)), said.append)
    assert not found.known("hate") and found.known("sexual") and len(said) == 1 and said[0].startswith("1 labels")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ({"text": "a"}, "a labelled text is"),
        ({"text": 3, "labels": {"hate": 1}}, "a labelled text is"),
        ({"text": " ", "labels": {"hate": 1}}, "the text is empty"),
        ({"text": "a", "labels": {}}, "no label"),
        ({"text": "a", "labels": {"rudeness": 1}}, "no category 'rudeness'"),
        ({"text": "a", "labels": {"hate": 0.5}}, "write 1 or true"),
        ({"text": "a", "labels": {"hate": "yes"}}, "write 1 or true"),
    ],
)
def test_a_line_that_is_no_labelled_text_is_named(
    tmp_path: Path, write: Callable[..., str], train: Any, line: Any, words: str
) -> None:
    code, said = train(write([*ROWS[:2], line]), tmp_path / "run")
    assert code == 2 and "line 3" in said and words in said and len(said.strip().splitlines()) == 1, said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--epochs", "1", "--budget", "1m"), "either says how long"),
        (("--validation-share", "0.7"), "below 0.5"),
        (("--batch-size", "0"), "at least 1"),
        (("--epochs", "0"), "positive"),
        (("--rate", "-1"), "0 or more"),
        (("--validation", "nowhere.jsonl"), "cannot be read"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, write: Callable[..., str], train: Any, more: Any, words: str) -> None:
    code, said = train(write(ROWS), tmp_path / "run", *more)
    assert code == 2 and words in said and not (tmp_path / "run").exists(), said


def test_too_few_of_every_category_are_refused(tmp_path: Path, write: Callable[..., str], train: Any) -> None:
    rows = [{"text": str(n), "labels": {"hate": int(n < 4)}} for n in range(50)]
    code, said = train(write(rows), tmp_path / "run")
    assert code == 2 and "no category with 5 texts in it" in said


def test_it_learns_is_calibrated_and_says_nothing_of_what_it_does_not_cover(
    tmp_path: Path, write: Callable[..., str], train: Any, tessera: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code, said = train(write(ROWS), run, "--epochs", "12", "--batch-size", "8", "--rate", "0.004", "--validation-share", "0.25")
    assert code == 0 and "not covered" in said and "AUPRC hate: 1.000" in said, said
    moderator = Moderator(run, MACHINE)
    # sexual is never there and violence always, or unknown.
    assert list(moderator.head) == ["hate"] and moderator.head["hate"].calibrated
    texts = ["500: zap words", "501: mild words", "mild words, " * 60 + "zap"]
    bad, mild, long = probabilities(moderator.head, moderator.logits(texts))["hate"]
    threshold = moderator.head["hate"].threshold
    assert bad > threshold > mild and long > mild
    # A model like any other, whose ids for categories are spare ones.
    assert weights.load(run / "model", MACHINE.torch_dtype).config.context == CONTEXT
    vocabulary = Vocabulary.load(run / "model")
    assert CONTROLS[vocabulary.controls["<|spare_0|>"] - vocabulary.controls[CONTROLS[0]]] == "<|spare_0|>"
    assert moderator.head["hate"].id == vocabulary.controls[CONTROLS[-1]]
    data = write([row(number) for number in range(200, 260)], "other.jsonl")
    assert tessera("eval", str(run), "--suite", "moderation", "--data", data, "--json")[0] == 0


def test_eval_measures_a_moderation_model_and_refuses_any_other(
    tmp_path: Path, model: Path, write: Callable[..., str], train: Any, tessera: Any
) -> None:
    data = write(ROWS)
    code, said = tessera("eval", str(model), "--suite", "moderation", "--data", data)
    assert code == 2 and "is no moderation model" in said
    code, said = tessera("eval", str(model), "--suite", "moderation")
    assert code == 2 and "needs one --data" in said
    assert train(data, tmp_path / "run", "--epochs", "1")[0] == 0
    moderator = Moderator(tmp_path / "run", MACHINE)
    scores = {score.measure: score for score in measure_moderation(moderator, read_labelled(Path(data)), data)}
    area = scores["AUPRC hate"]
    assert area.n == 120 and area.chance == pytest.approx(1 / 3) and area.standard_error > 0
    assert area.value == scores["AUPRC mean"].value and 0 <= scores["recall hate"].value <= 1


def test_a_stopped_run_goes_on_to_the_bit(
    tmp_path: Path, write: Callable[..., str], train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, unbroken, killed = write(ROWS), tmp_path / "unbroken", tmp_path / "killed"
    assert train(data, unbroken, "--epochs", "2", "--batch-size", "8")[0] == 0
    real, steps = RunFolder.record, 0

    def stop_at_the_fifth(folder: RunFolder, event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["event"] == "step"
        real(folder, event)
        if steps == 5 and event["event"] == "step":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", stop_at_the_fifth)
        code, said = train(data, killed, "--epochs", "2", "--batch-size", "8")
    assert code == 143 and "after step 5" in said, said
    os.unlink(data)
    code, said = train(data, killed, "--epochs", "2", "--batch-size", "8", "--resume")
    assert code == 0 and "resumed from" in said, said
    for name in ("model.safetensors", "moderation.json"):
        assert (killed / "model" / name).read_bytes() == (unbroken / "model" / name).read_bytes()
    # Whoever was killed between the last step and the calibration has it made up for.
    head = json.loads((killed / "model" / "moderation.json").read_text())
    (killed / "model" / "moderation.json").write_text(json.dumps({"hate": {"id": head["hate"]["id"]}}))
    assert train(data, killed, "--epochs", "2", "--batch-size", "8", "--resume")[0] == 0
    assert json.loads((killed / "model" / "moderation.json").read_text()) == head


def test_probabilities_are_those_of_what_was_held_out(logit_texts: tuple[np.ndarray, list[Labelled]]) -> None:
    logits, texts = logit_texts
    head = calibrated({"hate": Category(7)}, logits, texts)
    found = probabilities(head, logits)["hate"]
    truth = np.array([one.labels[HATE] for one in texts])
    assert head["hate"].id == 7 and head["hate"].calibrated and found.mean() == pytest.approx(truth.mean(), abs=0.01)
    # Those said to be about as likely as that are.
    middle = (found > 0.1) & (found < 0.9)
    assert truth[middle].mean() == pytest.approx(found[middle].mean(), abs=0.12)
    flagged = found >= head["hate"].threshold
    assert (truth[flagged] == 1).mean() > 0.9 and flagged[truth == 1].mean() > 0.9
    # Logits that fall where they should rise say nothing.
    backwards = probabilities(calibrated({"hate": Category(7)}, -logits, texts), -logits)["hate"]
    assert np.allclose(backwards, truth.mean())
    few = calibrated({"hate": Category(7)}, logits[:6], texts[:6])
    assert few == {"hate": Category(7)} and not few["hate"].calibrated


def test_the_threshold_is_where_f1_is_highest() -> None:
    assert best_threshold(np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, True, False, False])) == pytest.approx(0.75)
    # Equal ones are never parted.
    assert best_threshold(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])) == pytest.approx(0.3)


def test_windows_of_a_long_text_share_half_and_leave_nothing_out(model: Path) -> None:
    vocabulary = Vocabulary.load(model)
    text = "".join(chr(97 + n % 26) for n in range(300))
    parts = windows(text, vocabulary, 101)
    assert all(len(part) == 101 and part[-1] == vocabulary.end_id for part in parts)
    assert len(parts) == 5 and parts[0][50:100] == parts[1][:50]
    joined = vocabulary.decode_text(parts[-1][:-1])
    assert text.endswith(joined) and windows("abc", vocabulary, 101)[0][:-1] == vocabulary.encode_text("abc")
    assert read_head(model) is None
