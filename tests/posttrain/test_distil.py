"""`tessera posttrain distil`: guidance that a model has learned to do without, from one row instead of two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.engine.engine import Engine
from tessera.engine.pictures import Wish, draw
from tessera.engine.sampling import SamplingParams
from tessera.model import weights
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.posttrain.distil import Made, _batch
from tessera.tokens.palette import Palette
from tessera.tokens.pictures import GUIDED
from tessera.tokens.vocabulary import Vocabulary
from tessera.train.guided import guided_objective

CONTEXT = 96
ONE_THREAD = ("--set", "train.threads=1", "--set", "train.checkpoint_seconds=0.001")


@pytest.fixture(scope="module")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that draws 8 x 8 digits in 17 colours, whose captions matter to it."""
    folder = tmp_path_factory.mktemp("models") / "drawer"
    levels = np.arange(17, dtype=np.uint8)[:, None] * np.array([15, 15, 15], np.uint8)
    vocabulary = Vocabulary.train(["a byte is enough"], 256).add_media(Palette(levels, (4, 5)))
    config = DecoderConfig(vocabulary.size, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=48, context=CONTEXT)
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.3, generator=generator)
    weights.save(decoder, folder, special=weights.SpecialIds(end=(vocabulary.end_id,)), companions=vocabulary.save)
    return folder


def load(folder: Path) -> tuple[Decoder, Vocabulary]:
    decoder = weights.load(folder)
    return decoder, Vocabulary.load(folder, decoder.config.vocab_size)


def call(tessera: Callable[..., tuple[int, str]], model: Path, out: Path, *more: str) -> tuple[int, str]:
    words = ["posttrain", "distil", "--model", str(model), "--data", "builtin:digits", "--out", str(out), *ONE_THREAD, *more]
    return tessera(*words)


@pytest.mark.parametrize("sampled_end", [False, True])
def test_the_target_is_the_guided_distribution(drawer: Path, sampled_end: bool) -> None:
    """Over the ids of the medium, and over what ends a signal where that is sampled too, as it is of sounds."""
    decoder, vocabulary = load(drawer)
    block = vocabulary.block("image")
    dice = np.random.default_rng(0)
    rows = []
    for caption, size in (("a seven", 6), ("a four, say", 4)):
        ids = dice.integers(block.offset, block.offset + block.size, size).astype(np.int32)
        ids[-1] = end = vocabulary.control("<|/image|>")
        prompt = np.array([*vocabulary.encode_text(caption), vocabulary.control("<|image|>")], np.int32)
        rows.append(Made(prompt, prompt[-1:], ids, np.arange(size) < size - 1 + sampled_end))
    batch = _batch(rows, vocabulary.control(GUIDED), vocabulary.pad_id)
    ids = range(block.offset, block.offset + block.size)
    among = [*ids, *([end] if sampled_end else [])]
    module = guided_objective(decoder, 2.5, ids, end if sampled_end else None).build(decoder)
    extras = {name: torch.as_tensor(array) for name, array in batch.extras.items()}
    with torch.no_grad():
        found = module(torch.as_tensor(batch.ids), torch.as_tensor(batch.learn), None, **extras)[1]

        def after(*parts: list[int]) -> torch.Tensor:
            ids = [id for part in parts for id in part]
            return decoder.logits(decoder(torch.tensor([ids])))[0, -1].double()

        losses, divergences = [], []
        for row in rows:
            loss, divergence = [], []
            for at, (id, chosen) in enumerate(zip(row.ids.tolist(), row.chosen, strict=True)):
                made = row.ids[:at].tolist()
                student = after([vocabulary.control(GUIDED)], row.prompt.tolist(), made).log_softmax(-1)
                c, u = after(row.prompt.tolist(), made), after(row.bare.tolist(), made)
                p = (u + 2.5 * (c - u))[among].log_softmax(-1)
                q = student[among]
                loss.append(float(-(p.exp() * q).sum()) if chosen else float(-student[id]))
                if chosen:
                    divergence.append(float((p.exp() * (p - q)).sum()))
            losses.append(np.mean(loss))
            divergences.append(np.mean(divergence))
    assert found[0] == pytest.approx(sum(losses), rel=1e-4) and found[1] == pytest.approx(sum(divergences), rel=1e-4)


def test_one_row_comes_to_give_what_two_gave(tmp_path: Path, drawer: Path, tessera: Any) -> None:
    run = tmp_path / "run"
    code, said = call(
        tessera, drawer, run, "--count", "60", "--guidance", "2", "--epochs", "12", "--batch-size", "8", "--rate", "0.003"
    )
    assert code == 0 and "nats a token from the guided distribution before" in said, said
    exams = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"exam"' in line]
    assert min(exam["divergence"] for exam in exams) < 0.5 * exams[0]["divergence"]
    assert weights.read_special(run / "model").guided == {"image": 2.0}
    decoder, vocabulary = load(run / "model")
    engine = Engine(decoder, vocabulary)
    (drawing,) = draw(engine, [Wish("a seven", distilled=True)], SamplingParams(1, seed=1))
    assert drawing.completion.prompt_ids[0] == vocabulary.control(GUIDED) and drawing.pixels.shape == (4, 5, 3)
    # Without a caption there is nothing that it would have learned, and a variation is another task.
    (bare,) = draw(engine, [Wish(distilled=True)], SamplingParams(1, seed=1))
    assert bare.completion.prompt_ids[0] == vocabulary.control("<|image|>")
    (other,) = draw(engine, [Wish("a seven", source=drawing.pixels, distilled=True)], SamplingParams(1, seed=1))
    assert other.completion.prompt_ids[0] != vocabulary.control(GUIDED)


def test_the_command_guides_itself_unless_told_otherwise(tmp_path: Path, drawer: Path, tessera: Any) -> None:
    run = tmp_path / "run"
    assert call(tessera, drawer, run, "--count", "20", "--epochs", "1")[0] == 0
    seen = {}
    for name, more in (("itself", ()), ("told", ("--guidance", "3"))):
        out = str(tmp_path / f"{name}.png")
        code, said = tessera("generate", str(run), "a seven", "--out", out, "--seed", "1", "--json", *more)
        assert code == 0, said
        seen[name] = Path(out).read_bytes()
    assert seen["itself"] != seen["told"]


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, drawer: Path, tessera: Any) -> None:
    from tessera.posttrain import distil
    from tessera.run import RunFolder

    more = ("--count", "24", "--epochs", "3", "--batch-size", "4")
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert call(tessera, drawer, unbroken, *more)[0] == 0
    # As after a kill between preparing and the first step.
    wish = distil.Wish(str(drawer), "builtin:digits", count=24, epochs=3.0, batch_size=4, settings=ONE_THREAD[1::2])
    distil.prepare(wish, killed, lambda line: None)
    assert not RunFolder(killed).model.is_dir()
    code, said = call(tessera, drawer, killed, *more, "--resume")
    assert code == 0, said
    assert (killed / "model/model.safetensors").read_bytes() == (unbroken / "model/model.safetensors").read_bytes()
    assert call(tessera, drawer, killed, *more, "--resume")[0] == 0
    code, said = call(tessera, drawer, killed, "--count", "25", "--resume")
    assert code == 2 and "--count is 25 here and 24" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--guidance", "1"), "above 1"),
        (("--count", "3"), "at least 20"),
        (("--medium", "smell"), "one of image, video, audio"),
        (("--medium", "video"), "has learned no video"),
        (("--epochs", "0"), "positive"),
        (("--batch-size", "0"), "at least 1"),
        (("--data", "builtin:stdlib"), "no pictures with captions"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, drawer: Path, tessera: Any, more: tuple[str, ...], words: str) -> None:
    code, said = call(tessera, drawer, tmp_path / "run", *more)
    assert code == 2 and words in said and not (tmp_path / "run").exists(), said


def test_a_model_without_a_source_or_the_token_is_refused(tmp_path: Path, drawer: Path, model: Path, tessera: Any) -> None:
    code, said = tessera("posttrain", "distil", "--model", str(drawer), "--out", str(tmp_path / "a"))
    assert code == 2 and "give --data" in said
    code, said = tessera("posttrain", "distil", "--model", str(model), "--out", str(tmp_path / "a"))
    assert code == 2 and "has learned no pictures, films or sounds" in said
