"""`tessera train`: what it refuses, several processes, going on from other weights, documents kept apart."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tessera.commands.live import HeartWatch
from tessera.data.loader import Loader
from tessera.data.shards import open_shards
from tessera.model import weights
from tessera.run import RunFolder
from tessera.tokens.vocabulary import Vocabulary
from tessera.train.objectives import evaluate


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def recipe_file(tmp_path: Path, text: str) -> str:
    (tmp_path / "page.yaml").write_text(text, encoding="utf-8")
    return str(tmp_path / "page.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--set", "train.contxt=64"], "contxt: is not a known key; known here: tokens, context"),
        (["--set", "train.context=long"], "train.context: input should be a valid integer"),
        (["--set", "train.context"], "is not key=value"),
        (["--set", "train.precision=float16"], "train.precision: input should be"),
        (["--set", "data.sources=[]"], "data.sources"),
        (["--set", "data.seed=-1"], "data.seed: input should be greater than or equal to 0"),
        (["--set", "train.seed=9223372036854775808"], "train.seed: input should be less than"),
        (["--set", "model.head_size=9"], "model.head_size: input should be a multiple of 2"),
        (["--set", "train.adam_betas=[0.9, 2]"], "train.adam_betas.1: input should be less than 1"),
        (["--set", "train.matrix_rate=.inf"], "train.matrix_rate: input should be a finite number"),
        (["--set", "data.sources=[{{uri: 'files:{folder}/text', epochs: 0.1}}]"], "data.sources.epochs allow"),
        (["--budget", ""], "budget '' is not a time"),
        (["--budget", "0s"], "budget '0s' is nothing"),
        (["--budget", "soon"], "budget 'soon' is not a time"),
        (["--budget", "it's"], "is not a time"),
        (["--budget", "$20"], "needs price_per_hour"),
        (["--budget", "1s"], "a budget of 1s is spent before training begins"),
        (["--budget", "100tok"], "too few to train anything"),
        (["--set", "train.warmup_steps=100000"], "do not fit into the run's"),
        (["--set", "data.sources=['files:{folder}/nowhere']"], "nowhere"),
        (["--set", "data.sources=['files:{folder}/empty']"], "empty"),
        (["--set", "data.sources=['carrier:pigeon']"], "pigeon"),
        (["--set", "model.heads=3", "--set", "model.kv_heads=2"], "model.heads=3 is not a multiple of model.kv_heads=2"),
        (["--init", "{folder}/empty"], "empty has no config.json"),
        (["--set", "train.track=trackio"], "train.track=trackio needs the package trackio"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(
    corner: Any, change: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    (corner.folder / "empty").mkdir(exist_ok=True)
    out = corner.folder / "refused"
    code, said = corner.call(*corner.words(out), *(c.format(folder=corner.folder) for c in change))
    errors = [line for line in said.splitlines() if line.startswith("tessera: ")]
    assert code == 2 and len(errors) == 1 and sentence.lower() in errors[0].lower(), said
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "is not a file"),
        ("name: x\nsummary: y\ndata: {sources: [builtin:stdlib]}\ncolour: red\n", "colour: is not a known key"),
        ("name: x\nsummary: y\n", "data: is missing"),
        ("- a\n- b\n", "is not a page of key: value"),
        ("name: [", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_bad_page_is_refused(corner: Any, tmp_path: Path, text: str | None, sentence: str) -> None:
    page = recipe_file(tmp_path, text) if text is not None else str(tmp_path / "none.yaml")
    code, said = corner.call("train", page, "--out", str(tmp_path / "run"))
    assert code == 2 and sentence in said and len(said.strip().splitlines()) == 1, said


def test_a_page_that_is_no_text_is_refused(corner: Any, tmp_path: Path) -> None:
    (tmp_path / "page.yaml").write_bytes(b"\xff\xfe\x00")
    code, said = corner.call("train", str(tmp_path / "page.yaml"))
    assert code == 2 and "is not YAML" in said and len(said.strip().splitlines()) == 1, said


def test_an_occupied_folder_stays_as_it_is(corner: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    before = everything(tmp_path)
    for out in (tmp_path / "mine", tmp_path / "mine" / "letter.txt"):
        code, said = corner.call(*corner.words(out))
        assert code == 2 and "exists already" in said
    before_run = everything(corner.unbroken)
    code, said = corner.call(*corner.words(corner.unbroken))
    assert code == 2 and "--resume" in said
    assert everything(tmp_path) == before and everything(corner.unbroken) == before_run


def test_resume_refuses_what_is_not_there_and_what_differs(corner: Any) -> None:
    code, said = corner.call(*corner.words(corner.folder / "nowhere", "--resume"))
    assert code == 2 and "holds no run" in said and not (corner.folder / "nowhere").exists()
    run = corner.copy("other-settings", corner.prepared)
    before = everything(run)
    for words, sentence in (
        (corner.words(run, "--resume", "train.seed=9"), "train.seed is 9 here and 0 in the run"),
        (corner.words(run, "--resume", budget="9ktok"), "budget is 9ktok here and 10ktok in the run"),
        ([*corner.words(run, "--resume"), "--init", str(corner.unbroken)], "did not start from --init"),
    ):
        code, said = corner.call(*words)
        assert code == 2 and sentence in said and len(said.strip().splitlines()) == 1, said
    assert everything(run) == before
    code, said = corner.call("train", "text", "--out", str(run), "--resume", "--budget", "10ktok")
    assert code == 0 and corner.same(run), said


def test_a_checkpoint_is_not_resumed_with_another_tokenizer(corner: Any) -> None:
    run = corner.copy("other-tokenizer", corner.unbroken)
    (run / "model" / "config.json").unlink()
    (run / "model").rename(run / "old-model")
    text = "".join(p.read_text() for p in sorted(corner.text.iterdir()))[::-1]
    Vocabulary.train([text], 288).save(run / "tokenizer")
    before = everything(run / "checkpoints")
    code, said = corner.call(*corner.words(run, "--resume"))
    assert code == 2 and "was written with another tokenizer" in said.splitlines()[-1], said
    assert everything(run / "checkpoints") == before and not (run / "model").exists()


def two_processes(corner: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors of both processes of a group that trains."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in ("0", "1"):
        # What torchrun sets; its own start would take as long as the test.
        for name, value in {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }.items():
            monkeypatch.setenv(name, value)
        started.append(corner.start(*words))
    said = [process.communicate()[1] for process in started]
    return [process.returncode for process in started], said


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_two_processes_give_the_losses_of_one(corner: Any, monkeypatch: pytest.MonkeyPatch, recompute: str) -> None:
    one, two = corner.folder / f"one-{recompute}", corner.folder / f"two-{recompute}"
    settings = ("train.checkpoint_seconds=60", "train.evaluate_every=20", f"train.recompute={recompute}")
    assert corner.call(*corner.words(one, *settings, budget="5ktok"))[0] == 0
    corner.copy(two.name, one)
    for made in ("checkpoints", "model"):
        shutil.rmtree(two / made)
    codes, said = two_processes(corner, monkeypatch, *corner.words(two, "--resume", *settings, budget="5ktok"))
    assert codes == [0, 0], said
    assert "held-out loss" in said[0] and not said[1]
    ours, theirs = ([e["loss"] for e in corner.events(run, "step")] for run in (two, one))
    assert len(ours) == 20
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_what_is_wrong_is_said_once_by_two_processes(corner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, said = two_processes(corner, monkeypatch, *corner.words(corner.unbroken))
    assert codes == [2, 2] and "exists already" in said[0] and "Traceback" not in said[0] and not said[1], said


def test_two_processes_find_a_run_finished_or_in_use_as_one_does(corner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = corner.copy("found", corner.unbroken)
    codes, said = two_processes(corner, monkeypatch, *corner.words(run, "--resume"))
    assert codes == [0, 0] and "is finished" in said[0] and not said[1], said
    owner = RunFolder(run)
    owner.lock()
    codes, said = two_processes(corner, monkeypatch, *corner.words(run, "--resume"))
    owner.unlock()
    assert codes == [2, 2] and "another process is training" in said[0] and not said[1], said


def first_loss(run: Path) -> tuple[float, float]:
    """The loss recorded at the first step, and that of the weights the run started from on the same rows."""
    folder = RunFolder(run)
    recipe, info = folder.recipe, folder.info
    decoder = weights.load(info["init"])
    shards = open_shards(Path(info["shards"]))
    batch = Loader(shards, recipe.data, recipe.train.context, recipe.train.batch_rows or 1, recipe.train.seed).next()
    found = evaluate(decoder, [batch], np.zeros(decoder.config.vocab_size, np.int32), torch.device("cpu"))
    recorded = next(e["loss"] for e in folder.events() if e["event"] == "step")
    return recorded, found.loss


def words_from(corner: Any, out: Path, init: Path) -> list[str]:
    """`tessera train --init`: shape and vocabulary are the model's; in float32, so that losses can be compared closely."""
    head, settings = (words := corner.words(out, budget="2ktok"))[:6], [w for w in words[6:] if w != "--set"]
    return [
        *head,
        "--init",
        str(init),
        *(x for s in settings if not s.startswith(("model.", "tokenizer.")) for x in ("--set", s)),
        "--set",
        "train.precision=float32",
    ]


def test_a_resumed_run_needs_its_beginning_no_more(corner: Any) -> None:
    init, run = corner.copy("init", corner.unbroken), corner.folder / "from-gone"
    words = words_from(corner, run, init)
    assert corner.call(*words)[0] == 0
    steps = sorted(run.glob("checkpoints/step-*"), key=lambda path: int(path.name[5:]))
    assert len(steps) > 1
    expected = (run / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(steps[-1])
    shutil.rmtree(run / "model")
    shutil.rmtree(init)
    code, said = corner.call(*words[:2], "--out", str(run), "--resume")
    assert code == 0 and "resumed from" in said, said
    assert (run / "model" / "model.safetensors").read_bytes() == expected


def test_a_run_goes_on_from_an_own_model(corner: Any) -> None:
    run = corner.folder / "from-own"
    # An empty prompt is one that begins a document.
    code, said = corner.call(*words_from(corner, run, corner.unbroken), "--set", "train.sample_prompts=['']")
    assert code == 0, said
    recorded, expected = first_loss(run)
    assert recorded == pytest.approx(expected, rel=1e-5) and recorded < 3.7
    assert RunFolder(run).recipe.model == RunFolder(corner.unbroken).recipe.model
    assert corner.events(run, "sample")


@pytest.fixture(scope="module")
def llama(corner: Any) -> Iterator[Path]:
    """A Llama-shaped folder that other tools wrote, with a tokenizer of its own and more rows than tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([p.read_text() for p in sorted(corner.text.iterdir())], trainer)
    folder = corner.folder / "llama"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=[1, 2],
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    yield folder


def test_a_run_goes_on_from_a_model_that_others_trained(corner: Any, llama: Path) -> None:
    run = corner.folder / "from-llama"
    code, said = corner.call(*words_from(corner, run, llama))
    assert code == 0, said
    recorded, expected = first_loss(run)
    assert recorded == pytest.approx(expected, rel=1e-5)
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["vocab_size"] == 320
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, [1, 2])
    assert RunFolder(run).recipe.train.context == 64 and config["max_position_embeddings"] == 128
    assert json.loads((run / "model" / "tokenizer_config.json").read_text())["model_max_length"] == 128
    batch_ids = torch.arange(2, 40)[None]
    theirs, ours = LlamaForCausalLM.from_pretrained(run / "model"), weights.load(run / "model")
    with torch.no_grad():
        torch.testing.assert_close(theirs(batch_ids).logits, ours(batch_ids) @ ours.head_weight.T, rtol=1e-4, atol=1e-4)
    assert not torch.equal(ours.head_weight, weights.load(llama).head_weight)


def test_documents_can_be_kept_apart(corner: Any) -> None:
    run = corner.folder / "masked"
    code, said = corner.call(*corner.words(run, "data.document_mask=true", budget="2ktok"))
    assert code == 0, said
    losses = [e["loss"] for e in corner.events(run, "step")]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert losses[4:] != [e["loss"] for e in corner.events(corner.unbroken, "step")][4:8]


def test_a_run_that_learns_its_examples_by_heart_says_so(corner: Any, tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    for number in range(20):
        # Nothing in one document says what another holds.
        text = "".join(map(chr, dice.integers(97, 123, 300)))
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    run = corner.folder / "heart"
    code, said = corner.call(*corner.words(run, f"data.sources=['files:{tmp_path}']", "train.evaluate_every=20", budget="60ktok"))
    assert code == 0, said
    [note] = [e["text"] for e in corner.events(run, "note")]
    assert "has risen by" in note and "by heart" in note and note in said and note in (run / "report.html").read_text()
    assert not list(corner.events(corner.unbroken, "note"))


@pytest.mark.parametrize("last", [float("nan"), None])
def test_a_held_out_loss_that_is_no_number_tells_nothing_of_examples_learned_by_heart(last: float | None) -> None:
    watch = HeartWatch(40)
    for step, loss in ((10, 2.0), (20, 2.01), (30, last)):
        assert watch.note({"event": "evaluation", "step": step, "loss": loss, "final": False}) is None
    assert watch.note({"event": "evaluation", "step": 40, "loss": 2.0, "final": True}) is None
