"""The peers: from a setting to an endless row of training steps.

Every step is forward, backward, clipping of the gradient to norm 1 and AdamW, on the same batch of random ids. Tessera is not
taken apart: its own `train.loop` runs, and waits for its turn in an observer. torch is imported inside the functions, after the
worker has prepared its process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from common import SHAPES, Setting, Shape

if TYPE_CHECKING:
    import numpy as np
    import torch
    from worker import Turn

    from tessera.device import Machine
    from tessera.model.decoder import DecoderConfig
    from tessera.recipe import Recipe
    from tessera.train.loop import Job

RATE, BETAS, DECAY, EPSILON, CLIP = 1e-3, (0.9, 0.95), 0.1, 1e-10, 1.0


def decoder_config(shape: Shape) -> DecoderConfig:
    from tessera.model.decoder import DecoderConfig

    return DecoderConfig(
        vocab_size=shape.vocabulary, width=shape.width, layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads,
        head_size=64, mlp_width=shape.mlp_width, tied=True, context=shape.context,
    )  # fmt: skip


def random_ids(vocabulary: int, rows: int, context: int) -> np.ndarray:
    """(rows, context + 1) int64, the same for every peer."""
    import numpy as np

    return np.random.default_rng(0).integers(0, vocabulary, (rows, context + 1))


def fixed_recipe(shape: Shape, micro_rows: int, **train: Any) -> Recipe:
    """A resolved recipe of a benchmark: AdamW at a constant rate, no evaluations, more steps than are ever taken."""
    from tessera.recipe import Recipe

    settings = {
        "tokens": 10**7 * shape.tokens, "context": shape.context, "short_context": shape.context,
        "batch_rows": shape.rows, "micro_rows": micro_rows,
        "optimizer": "adamw", "matrix_rate": RATE, "adam_rate": RATE, "adam_betas": BETAS, "weight_decay": DECAY,
        "warmup_steps": 0, "cooldown_steps": 0, "z_loss": 0.0, "clip": CLIP,
        "evaluate_every": 10**9, "evaluate_tokens": 1, "final_tokens": 1, "checkpoint_seconds": 1e9,
    }  # fmt: skip
    return Recipe.model_validate(
        {"name": "benchmark", "summary": "", "data": {"sources": ["builtin:stdlib"]}, "train": {**settings, **train}}
    )


def fixed_recipe_of(recipe: Recipe, optimizer: str, workers: int = 1, compiled: bool = False) -> Recipe:
    """A resolved recipe with no end and no evaluations, with that optimizer."""
    endless = {"tokens": 10**12, "cooldown_steps": 0, "evaluate_every": 10**9, "checkpoint_seconds": 1e9}
    endless |= {"workers": workers, "compile": compiled}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={**endless, "optimizer": optimizer})})


def fixed_job(
    recipe: Recipe,
    shape: DecoderConfig,
    machine: Machine,
    observer: Callable[[dict[str, Any]], None],
    fresh: bool = False,
    **more: Any,
) -> Job:
    """The real loop over one batch of random ids, again and again, or with `fresh` over new ones each time."""
    import numpy as np

    from tessera.data.loader import Batch
    from tessera.model.decoder import Decoder
    from tessera.train.loop import Job

    train = recipe.train
    assert train.batch_rows

    class Repeat:
        """A loader of batches without end."""

        def __init__(self) -> None:
            self.dice = np.random.default_rng(0)
            ids = random_ids(shape.vocab_size, train.batch_rows or 0, train.context)
            self.batch = Batch(ids, np.ones((len(ids), train.context), np.bool_), None, len(ids) * train.context)

        def next(self) -> Batch:
            if not fresh:
                return self.batch
            ids = self.dice.integers(0, shape.vocab_size, self.batch.ids.shape, self.batch.ids.dtype)
            return replace(self.batch, ids=ids)

        def state(self) -> dict[str, Any]:
            return {}

    decoder = Decoder(shape, machine.torch_dtype).to(machine.torch_device)
    decoder.initialise(seed=0)
    bytes_ = np.ones(shape.vocab_size, np.int32)
    return Job(recipe, decoder, Repeat(), [], [], bytes_, machine, 1e12, {}, observers=(observer,), **more)  # type: ignore[arg-type]


def run_tessera(setting: Setting, turn: Turn) -> None:
    from tessera.device import detect
    from tessera.train.loop import train

    shape = SHAPES[setting.shape]
    machine = detect(setting.precision, setting.threads)
    plain = fixed_recipe(shape, setting.micro_rows or shape.rows, optimizer=setting.optimizer, recompute=setting.recomputed)
    # On a CPU the rules give each thread micro-batches of its own.
    workers = 1 if setting.gpu else min(setting.threads, shape.rows // (setting.micro_rows or shape.rows))
    recipe = fixed_recipe_of(plain, setting.optimizer, max(1, workers), setting.compiled)

    def observer(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            turn(event["loss"])

    job = fixed_job(recipe, decoder_config(shape), machine, observer)
    turn.first(sum(p.numel() for p in job.decoder.parameters()))
    train(job)


def build_peer(setting: Setting) -> tuple[torch.nn.Module, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """A peer's model, and its way from ids and targets (B, T) to the mean loss."""
    import torch

    shape = SHAPES[setting.shape]
    torch.manual_seed(0)
    if setting.peer == "transformers":
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(
            vocab_size=shape.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=64, intermediate_size=shape.mlp_width,
            max_position_embeddings=shape.context, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True, use_cache=False, attn_implementation="sdpa",
        )  # fmt: skip
        hugging = Qwen3ForCausalLM(config).train()
        if setting.same_weights:
            from tessera.model.decoder import Decoder

            ours = Decoder(decoder_config(shape))
            ours.initialise(seed=0)
            missing = hugging.load_state_dict(ours.state_dict(), strict=False)
            assert missing.missing_keys == ["lm_head.weight"] and not missing.unexpected_keys, missing
        if setting.recomputed:
            hugging.activation_checkpointing_enable()
        model = torch.compile(hugging) if setting.compiled else hugging
        return hugging, lambda ids, targets: model(input_ids=ids, labels=targets, shift_labels=targets).loss
    if setting.peer == "litgpt":
        from litgpt.config import Config
        from litgpt.model import GPT

        lit = GPT(Config(
            block_size=shape.context, vocab_size=shape.vocabulary, padded_vocab_size=shape.vocabulary,
            n_layer=shape.layers, n_head=shape.heads, n_embd=shape.width, n_query_groups=shape.kv_heads, head_size=64,
            rotary_percentage=1.0, rope_base=10_000, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
            norm_eps=1e-6, mlp_class_name="LLaMAMLP", intermediate_size=shape.mlp_width, norm_qk=True,
        ))  # fmt: skip
        lit.apply(lit._init_weights)
        # litgpt has no tied head of its own; tied, its parameters are the ones that the others have.
        lit.lm_head.weight = lit.transformer.wte.weight
        model = torch.compile(lit) if setting.compiled else lit
        return lit, lambda ids, targets: torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    from plain_gpt import PlainGPT

    plain = PlainGPT(shape.vocabulary, shape.width, shape.layers, shape.heads, shape.context)
    model = torch.compile(plain) if setting.compiled else plain
    return plain, lambda ids, targets: model(ids, targets)


def run_peer(setting: Setting, turn: Turn) -> None:
    import torch

    shape = SHAPES[setting.shape]
    torch.set_num_threads(setting.threads)
    device = torch.device("cuda" if setting.gpu else "cpu")
    module, loss_of = build_peer(setting)
    module.to(device, torch.bfloat16 if setting.precision == "bfloat16" else torch.float32)
    matrices = [p for n, p in module.named_parameters() if p.ndim == 2 and (".layers." in n or ".h." in n or "blocks." in n)]
    chosen = set(map(id, matrices))
    others = [p for p in module.parameters() if id(p) not in chosen]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": matrices, "weight_decay": DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON, fused=True)
    batch = torch.from_numpy(random_ids(shape.vocabulary, shape.rows, shape.context)).to(device)
    micro_rows = setting.micro_rows or shape.rows
    turn.first(sum(p.numel() for p in module.parameters()))
    while True:
        total = torch.zeros((), device=device)
        for rows in batch.split(micro_rows):
            with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "autocast"):
                loss = loss_of(rows[:, :-1], rows[:, 1:].contiguous()) * (len(rows) / shape.rows)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turn(float(total))
