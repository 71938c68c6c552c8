"""Tuning by the command line: it learns what it is shown and only that, and what a signal stops goes on to the bit."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tessera.commands.generate import open_engine
from tessera.data import sources
from tessera.data.loader import Loader
from tessera.data.pictures import png
from tessera.data.shards import open_shards
from tessera.engine.sampling import SamplingParams
from tessera.engine.thinking import speaks_dialogue
from tessera.errors import UserError
from tessera.posttrain.replay import first_run
from tessera.run import RunFolder
from tessera.tokens import chat
from tessera.tokens.vocabulary import Vocabulary

from .conftest import CONTEXT, EXAMPLES

Write = Callable[..., str]
ONE_THREAD = ("--set", "train.threads=1", "--set", "train.checkpoint_seconds=0.05")


@pytest.fixture
def sft(model: Path, tessera: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """Calls the command: its exit code and what it says."""

    def call(data: str, out: Path, *more: str) -> tuple[int, str]:
        words = ["posttrain", "sft", "--model", str(model), "--data", data, "--out", str(out), *ONE_THREAD, *more]
        return tessera(*words)

    return call


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in RunFolder(run).events() if event["event"] == "step"]


def weights_of(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_a_tuned_model_answers_like_its_examples_and_ends_its_turn(tmp_path: Path, write: Write, sft: Any) -> None:
    few = EXAMPLES[:4]
    code, said = sft(write(few), tmp_path / "run", "--epochs", "60", "--validation-share", "0", "--rate-multiplier", "4")
    assert code == 0 and "4 examples" in said and "0 held out" in said, said
    engine = open_engine(str(tmp_path / "run"), "float32")
    assert speaks_dialogue(str(tmp_path / "run"), engine.vocabulary)
    question = chat.render(chat.read(few[0]["messages"][:1]), add_generation_prompt=True)
    answer = engine.generate([engine.vocabulary.encode(question).ids.tolist()], SamplingParams(max_tokens=40, temperature=0.0))[0]
    assert answer.text == few[0]["messages"][1]["content"] and answer.finish_reason == "stop"
    assert not any(event["event"] == "evaluation" for event in RunFolder(tmp_path / "run").events())


def test_what_is_held_out_is_measured_and_never_trained_on(tmp_path: Path, write: Write, sft: Any, model: Path) -> None:
    code, said = sft(write(EXAMPLES + EXAMPLES[:5]), tmp_path / "run", "--epochs", "1", "--validation-share", "0.2")
    assert code == 0 and "% of" in said and "tokens right" in said, said
    source, vocabulary = open_shards(tmp_path / "run" / "tokens").sources[0], Vocabulary.load(model)
    train, held_out = (
        {vocabulary.decode(split.ids[a:b]).text for a, b in zip(split.offsets, split.offsets[1:], strict=False)}
        for split in (source.train, source.validation)
    )
    assert len(held_out) == 5 and len(train) == 20 and not train & held_out


def test_every_row_learns_the_answers_alone_and_each_example_as_often_as_there_are_epochs(
    tmp_path: Path, write: Write, sft: Any, model: Path
) -> None:
    run = tmp_path / "run"
    code, said = sft(write(EXAMPLES), run, "--epochs", "2", "--validation-share", "0", "--set", f"train.context={CONTEXT}")
    assert code == 0, said
    recipe, vocabulary = RunFolder(run).recipe, Vocabulary.load(model)
    loader = Loader(open_shards(run / "tokens"), recipe.data, CONTEXT, recipe.train.batch_rows or 1, recipe.train.seed)
    learned = []
    for _ in losses(run):
        batch = loader.next()
        assert batch.documents is not None
        for ids, learn, documents in zip(batch.ids, batch.learn, batch.documents, strict=True):
            learned += [vocabulary.decode(ids[1:][learn & (documents == d)]).text for d in np.unique(documents[learn])]
    assert sorted(learned) == sorted(row["messages"][1]["content"] for row in EXAMPLES * 2)
    with pytest.raises(UserError):
        loader.next()


@pytest.mark.parametrize("more", [(), ("--lora", "4")], ids=["all weights", "adapters"])
def test_a_killed_run_goes_on_to_the_bit(
    tmp_path: Path, write: Write, sft: Any, tessera: Any, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    data, unbroken, killed = write(EXAMPLES), tmp_path / "unbroken", tmp_path / "killed"
    assert sft(data, unbroken, "--epochs", "3", *more)[0] == 0
    steps, real = 0, RunFolder.record

    def stop_at_the_seventh(folder: RunFolder, event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["event"] == "step"
        real(folder, event)
        if steps == 7 and event["event"] == "step":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", stop_at_the_seventh)
        code, said = sft(data, killed, "--epochs", "3", *more)
    assert code == 143 and "after step 7" in said and "--resume" in said, said
    code, said = sft(data, killed, "--epochs", "4", *more, "--resume")
    assert code == 2 and "--epochs is 4.0 here and 3.0" in said
    os.unlink(data)  # what is trained on stands in the run's folder
    code, said = sft(data, killed, "--epochs", "3", *more, "--resume")
    assert code == 0 and "resumed from" in said, said
    assert losses(killed) == losses(unbroken) and weights_of(killed) == weights_of(unbroken)
    code, said = sft(data, killed, *more, "--resume")
    assert code == 0 and "is finished" in said, said
    for recipe in (str(killed / "recipe.yaml"), "text"):
        code, said = tessera("train", recipe, "--out", str(killed), "--resume")
        assert code == 2 and "is a run of tessera posttrain; go on by" in said, said


def test_a_batch_holds_the_examples_that_were_asked_for(tmp_path: Path, write: Write, sft: Any) -> None:
    code, said = sft(write(EXAMPLES), tmp_path / "one", "--epochs", "1", "--batch-size", "1", "--validation-share", "0")
    assert code == 0 and len(losses(tmp_path / "one")) == len(EXAMPLES), said
    code, said = sft(write(EXAMPLES), tmp_path / "ten", "--epochs", "1", "--batch-size", "10", "--validation-share", "0")
    assert code == 0 and len(losses(tmp_path / "ten")) in (2, 3), said


def test_examples_that_do_not_fit_are_left_out_counted_and_named(tmp_path: Path, write: Write, sft: Any) -> None:
    long = {"messages": [{"role": "user", "content": "x" * CONTEXT}, {"role": "assistant", "content": "no"}]}
    code, said = sft(write([*EXAMPLES[:6], long]), tmp_path / "run", "--epochs", "1", "--validation-share", "0")
    assert code == 0 and f"1 of 7 examples are longer than {CONTEXT + 1} tokens and are left out" in said, said
    (row,) = map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    assert row["path"].endswith("line 7")
    code, said = sft(write([long]), tmp_path / "none")
    assert code == 2 and "every example" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--budget", "1ktok", "--epochs", "1"), "--budget or --epochs"),
        (("--budget", "soon"), "is not a time"),
        (("--budget", "$3"), "price_per_hour"),
        (("--epochs", "-1"), "--epochs"),
        (("--batch-size", "0"), "--batch-size"),
        (("--validation-share", "0.7"), "--validation-share"),
        (("--set", "train.rows=1"), "train.rows"),
        (("--data", "nowhere.jsonl"), "cannot be read"),
        (("--model", "nowhere"), "nowhere is not a folder"),
        (("--validation", "nowhere.jsonl"), "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, write: Write, sft: Any, more: tuple[str, ...], words: str
) -> None:
    code, said = sft(write(EXAMPLES[:2]), tmp_path / "run", *more)
    assert code == 2 and words in said and len(said.strip().splitlines()) == 1, said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", ["3ktok", "1e9", "1s"])
def test_a_budget_is_kept(tmp_path: Path, write: Write, sft: Any, budget: str) -> None:
    code, said = sft(write(EXAMPLES), tmp_path / "run", "--budget", budget)
    assert code == 0 and losses(tmp_path / "run"), said


def test_adapters_learn_the_same_and_leave_all_else(
    tmp_path: Path, write: Callable[..., str], model: Path, tessera: Callable[..., tuple[int, str]]
) -> None:
    data, run = write(EXAMPLES), tmp_path / "run"
    words = ["posttrain", "sft", "--model", str(model), "--data", data, "--out", str(run), "--set", "train.threads=1"]
    code, said = tessera(*words, "--lora", "4", "--epochs", "25", "--batch-size", "8")
    assert code == 0, said
    losses = [event["loss"] for event in RunFolder(run).events() if event["event"] == "step"]
    assert losses[-1] < 0.8 * losses[0]
    before, after = (load_file(folder / "model.safetensors") for folder in (model, run / "model"))
    learned = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert learned and all(".layers." in name and name.endswith("proj.weight") for name in learned)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {tuple(t.shape)[0 if "lora_A" in name else 1] for name, t in adapter.items()} == {4}
    assert len(adapter) == 2 * len(learned)
    for name in learned:
        a, b = (adapter[f"base_model.model.{name.removesuffix('.weight')}.lora_{factor}.weight"] for factor in "AB")
        assert torch.allclose(after[name], before[name] + 2 * b @ a, atol=1e-5)
    code, said = tessera("posttrain", "reward", "--model", str(model), "--data", data, "--set", "train.lora=4")
    assert code == 2 and "learns rows of its head" in said


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of pre-training on sums and digits."""
    out = tmp_path_factory.mktemp("begun") / "run"
    named = '[{"uri": "builtin:sums?below=12", "weight": 1.0}, {"uri": "builtin:digits", "weight": 3.0}]'
    fields = (
        f"data.sources={named}", "data.pictures.views=1", "model.width=32", "model.layers=1", "model.head_size=16",
        "tokenizer.vocabulary_size=300", "train.context=128", "train.threads=1",
    )  # fmt: skip
    settings = [part for field in fields for part in ("--set", field)]
    words = ["train", "omni", "--budget", "4ktok", "--no-forecast", "--out", str(out), *settings]
    done = subprocess.run([sys.executable, "-m", "tessera", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_a_share_of_the_rows_is_what_the_model_learned_first(tmp_path: Path, write: Write, tessera: Any, begun: Path) -> None:
    words = ("--data", write(EXAMPLES), "--replay", "0.5", "--epochs", "4", "--batch-size", "4", *ONE_THREAD)
    code, said = tessera("posttrain", "sft", "--model", str(begun), "--out", str(tmp_path / "run"), *words)
    assert code == 0 and "50% of the rows from" in said and str(begun) in said, said
    run = RunFolder(tmp_path / "run")
    shards, recipe = open_shards(tmp_path / "run" / "tokens"), run.recipe
    assert [source.weight for source in recipe.data.sources] == [0.5, 0.5]
    vocabulary = Vocabulary.load(tmp_path / "run" / "model")
    again = shards.sources[1].train
    texts = [vocabulary.decode(again.ids[a:b].tolist()).text for a, b in itertools.pairwise(again.offsets)]
    known = {document.text for document in sources.documents("builtin:sums?below=12", [])}
    sums = [text for text in texts if text.startswith("What is") and "plus" in text]
    drawn = [a for a in again.offsets[:-1] if vocabulary.control("<|image|>") in again.ids[a : a + 40]]
    assert sums and set(sums) <= known, "what is replayed stood in the training data, whole"
    lengths = np.diff(again.offsets)
    of_digits = sum(int(n) for a, n in zip(again.offsets[:-1], lengths, strict=True) if a in drawn)
    assert 0.65 < of_digits / lengths.sum() < 0.85 and len(drawn) < len(texts), "three quarters of the tokens, as in the recipe"
    rows = Loader(shards, recipe.data, recipe.train.context or 0, 8, 0).next()
    learned = [row[1:][learn].tolist() for row, learn in zip(rows.ids, rows.learn, strict=True)]
    turns = vocabulary.control("<|user|>")
    assert sum(turns in row.tolist() for row in rows.ids) == 4 and all(learned)
    # A model that was tuned remembers where it began.
    assert first_run(tmp_path / "run").path == begun


def test_what_a_foreign_model_learned_cannot_be_replayed(tmp_path: Path, write: Write, sft: Any) -> None:
    code, said = sft(write(EXAMPLES), tmp_path / "run", "--replay", "0.5")
    assert code == 2 and "leave --replay out" in said and not (tmp_path / "run").exists()


def test_pictures_in_turns_are_read_as_the_server_reads_them(
    tmp_path: Path, write: Write, tessera: Any, sft: Any, begun: Path
) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, shown]}
    rows = [{"messages": [asked, {"role": "assistant", "content": f"black {n}"}]} for n in range(8)]
    words = ("--data", write(rows), "--epochs", "1", "--validation-share", "0", *ONE_THREAD)
    code, said = tessera("posttrain", "sft", "--model", str(begun), "--out", str(tmp_path / "run"), *words)
    assert code == 0, said
    split = open_shards(tmp_path / "run" / "tokens").sources[0].train
    vocabulary = Vocabulary.load(tmp_path / "run" / "model")
    document = chat.render(
        [chat.Message("user", "What is it?", pictures=(pixels[:8, :8],)), chat.Message("assistant", "black 0")]
    )
    record = vocabulary.encode(document)
    assert split.ids[: split.offsets[1]].tolist() == record.ids.tolist(), "scaled down to what the model knows, before the words"
    assert split.learn is not None and split.learn[: split.offsets[1]].tolist() == record.learn.tolist()
    blind, said = sft(write(rows), tmp_path / "blind")
    assert blind == 2 and "line 1" in said and "not learned to see" in said
