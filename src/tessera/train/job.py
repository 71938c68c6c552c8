"""A prepared run's folder -> the job that trains it: decoder, batches, held-out rows, checkpoint writer.

Everything comes from the folder and the recipe in it, so that a fresh run, a resumed one, each process under `torchrun` and each
rung of a ladder are built alike. Nothing is measured and no setting is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tessera.data.loader import Loader, validation_batches
from tessera.data.shards import Shards
from tessera.device import Machine
from tessera.engine.engine import Engine
from tessera.engine.sampling import SamplingParams
from tessera.model import weights
from tessera.model.decoder import Decoder, DecoderConfig
from tessera.recipe import Recipe
from tessera.run import RunFolder
from tessera.tokens.beside import Coder
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import checkpoint
from tessera.train.growing import grow
from tessera.train.loop import Job, Observer
from tessera.train.parallel import World


def shape_of(recipe: Recipe, vocabulary_size: int) -> DecoderConfig:
    """The decoder that a resolved recipe describes, for a vocabulary of that many ids."""
    model = recipe.model
    assert (
        model.width
        and model.layers
        and model.heads
        and model.kv_heads
        and model.head_size
        and model.mlp_width
        and model.tied is not None
        and model.rope_theta
        and recipe.train.context
    )
    return DecoderConfig(
        vocab_size=vocabulary_size,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_size=model.head_size,
        mlp_width=model.mlp_width,
        tied=model.tied,
        context=recipe.train.context,
        rope_theta=model.rope_theta,
    )


def assemble(
    folder: RunFolder,
    machine: Machine,
    vocabulary: Vocabulary,
    shards: Shards,
    world: World | None = None,
    observers: Sequence[Observer] = (),
    resumed: bool = False,
) -> Job:
    """The job that a prepared folder describes, with the weights that a run starts from.

    Args:
        folder: `recipe.yaml` has nothing left open, `run.json` holds `init` and `machine`.
        machine: as detected with the dtype and threads of `run.json`.
        vocabulary, shards: of the run.
        world: this process among several.
        observers: told every event.
        resumed: a checkpoint's weights will take the place of those, so that a folder to go on from need not be there any more,
            but where adapters are learned: they stand beside its weights.
    """
    world = world or World()
    recipe, info = folder.recipe, folder.info
    settings = recipe.train
    assert settings.context and settings.batch_rows and settings.evaluate_tokens and settings.final_tokens
    decoder = _decoder(recipe, info, vocabulary, machine, resumed)
    rows = min(8, settings.batch_rows)

    context, data = settings.context, recipe.data

    def held_out(tokens: int) -> list[Any]:
        # Documents that know nothing of each other are not worth much without their beginning.
        return validation_batches(shards, context, rows, tokens, data.document_mask, whole=data.document_mask)

    return Job(
        recipe=recipe,
        decoder=decoder,
        loader=Loader(shards, data, context, settings.batch_rows, settings.seed, world.rank, world.size),
        held_out=held_out(settings.evaluate_tokens),
        final_held_out=held_out(settings.final_tokens),
        token_bytes=_padded(vocabulary.token_bytes, decoder.config.vocab_size),
        machine=machine,
        matmul_peak=info["machine"]["matmul_peak_gflops"] * 1e9,
        identity={"recipe": recipe.fingerprint(), "tokenizer": vocabulary.hash, "data": shards.hash},
        writer=checkpoint.Writer(folder.checkpoints) if world.first else None,
        world=world,
        observers=observers,
        sample=_sampler(decoder, vocabulary) if settings.sample_prompts else None,
        pixels=vocabulary.ids_of("image"),
        pixels_each=vocabulary.media_tokenizer("image").stride ** 2 if "image" in vocabulary.media else 1,
        token_seconds=_seconds(vocabulary, decoder.config.vocab_size),
    )  # fmt: skip


def _seconds(vocabulary: Vocabulary, size: int) -> np.ndarray | None:
    """(V,) float64: how much of a film of the usual size, or of a sound, each id stands for; None where there are none such."""
    found = np.zeros(size)
    for kind in ("video", "audio"):
        if kind in vocabulary.media:
            quantizer = vocabulary.media_tokenizer(kind)
            assert isinstance(quantizer, Coder)
            ids = vocabulary.ids_of(kind)
            seconds = quantizer.shape[0] / quantizer.per_second
            found[ids.start : ids.stop] = seconds / math.prod(quantizer.grid(quantizer.shape))
    return found if found.any() else None


def _decoder(recipe: Recipe, info: dict[str, Any], vocabulary: Vocabulary, machine: Machine, resumed: bool) -> Decoder:
    """With the weights that a run starts from; `resumed`: with any, but where adapters are learned."""
    if info["init"] is not None:
        dtype, any_do = machine.torch_dtype, resumed and recipe.train.lora is None
        decoder = Decoder(DecoderConfig(**info["init_shape"]), dtype) if any_do else weights.load(info["init"], dtype)
        # It goes on reading what it could read before, also where the rows are shorter now.
        assert recipe.train.context
        decoder.config = replace(decoder.config, context=max(decoder.config.context, recipe.train.context))
        return grow(decoder.to(machine.torch_device), vocabulary, recipe.train.seed)
    decoder = Decoder(shape_of(recipe, vocabulary.size), machine.torch_dtype)
    decoder.initialise(recipe.train.seed)
    return decoder.to(machine.torch_device)


def _sampler(decoder: Decoder, vocabulary: Vocabulary) -> Callable[[str], str]:
    """Completes a prompt greedily with the present weights."""

    def sample(prompt: str) -> str:
        params = SamplingParams(max_tokens=48, temperature=0.0)
        ids = vocabulary.encode_text(prompt) or [vocabulary.end_id]
        return Engine(decoder, vocabulary).generate([ids], params)[0].text

    return sample


def _padded(token_bytes: np.ndarray, size: int) -> np.ndarray:
    """One entry per row of the embedding, which imported models have more of than tokens."""
    return np.pad(token_bytes, (0, size - len(token_bytes)))
