"""Rollouts: tokens per second of 64 samples with the policy's own lengths, new weights before each round, against transformers.

    python benchmarks/rollouts.py [--rounds 8] [--threads 1] [--shape 1M]

The policy is a fresh model that is tuned for a minute on sums with their working (`posttrain.worked`), so that its answers end
where it ends them. Before each round all weights change a little and are handed over: to the engine as reinforcement does it, to
transformers in place. Then 8 tasks are thought about and answered 8 times each, at temperature 1 from the whole distribution,
float32 on both sides, in one process and in turn; both times count the handing over. Tokens are those up to the end of an answer.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import facts, result_path, spread, store

SHAPES = {"1M": (4, 128, 2, 1, 384), "5M": (6, 256, 4, 2, 768)}
"""Layers, width, heads, key heads, width of the feed-forward."""
TASKS, EACH, MOST = 8, 8, 64
BAR = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", default="1M", choices=SHAPES)
    parser.add_argument("--examples", type=int, default=4000, help="that the policy is tuned on")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    from tessera.device import prepare_process

    prepare_process()
    with tempfile.TemporaryDirectory() as scratch:
        result: dict[str, Any] = {**facts(), "options": vars(options), "bar": BAR, **measure(Path(scratch), options)}
    ratio = result["ratio"]
    for side in ("tessera", "transformers"):
        rate = spread([r["tokens"] / r["seconds"] for r in result[side]])
        print(f"{side:<14} {rate['median']:>8,.0f} tokens/s ({rate['min']:,.0f} to {rate['max']:,.0f})")
    verdict = "held" if ratio["median"] >= BAR else "MISSED"
    print(f"ratio {ratio['median']:.2f} (quartiles {ratio['q1']:.2f} to {ratio['q3']:.2f}), bar {BAR}: {verdict}")
    store(result_path("rollouts"), result)
    if options.json:
        print(json.dumps(result))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds in turn, in process time with one thread and wall time with more."""
    import torch
    from transformers import AutoModelForCausalLM

    from tessera.engine.thinking import budgets_of
    from tessera.model import weights
    from tessera.posttrain.curriculum import open_pool
    from tessera.posttrain.rollouts import EFFORT, Player, prompt_ids
    from tessera.tokens.vocabulary import Vocabulary

    model = policy(folder, options)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    decoder = weights.load(model)
    vocabulary = Vocabulary.load(model, decoder.config.vocab_size)
    budgets = budgets_of(str(model))
    player, most = Player(decoder, vocabulary, True, torch.device("cpu"), torch.float32, budgets), MOST + budgets["high"]
    peer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    theirs = dict(peer.named_parameters())
    pool, dice = open_pool("arithmetic", 1, 0), random.Random(0)
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {"tessera": [], "transformers": []}
    for turn in range(options.rounds + 1):
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=1e-6)
        drawn = [pool.draw(len(pool.levels) - 1, 1, dice)[0] for _ in range(TASKS)]
        tasks = [replace(task, data={**task.data, EFFORT: "high"}) for task in drawn]
        prompts = [prompt_ids(task, vocabulary, True) for task in tasks for _ in range(EACH)]

        def ours() -> int:
            made = player.play(tasks, EACH, MOST, f"{turn}")  # noqa: B023
            return sum(len(completion.ids) for group in made for completion in group)

        def other() -> int:
            with torch.no_grad():
                for name, parameter in decoder.named_parameters():
                    theirs[name].copy_(parameter)
            width = max(map(len, prompts))  # noqa: B023
            ids = torch.full((len(prompts), width), vocabulary.pad_id)  # noqa: B023
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(prompts):  # noqa: B023
                ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.tensor(prompt), 1
            torch.manual_seed(turn)  # noqa: B023
            made = peer.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=most,
                eos_token_id=[vocabulary.end_turn_id, vocabulary.end_id], pad_token_id=vocabulary.pad_id,
            )[:, width:]  # fmt: skip
            return sum(_length(row.tolist(), vocabulary) for row in made)

        sides = [("tessera", ours), ("transformers", other)]
        for name, play in sides if turn % 2 else sides[::-1]:
            begin = clock()
            tokens = play()
            # The first round warms up.
            if turn:
                found[name].append({"tokens": tokens, "seconds": clock() - begin})
    rates = {name: [r["tokens"] / r["seconds"] for r in found[name]] for name in ("tessera", "transformers")}
    found["ratio"] = spread([a / b for a, b in zip(rates["tessera"], rates["transformers"], strict=True)])
    found["mean_length"] = {name: sum(r["tokens"] for r in found[name]) / (options.rounds * TASKS * EACH) for name in rates}
    found["parameters"] = decoder.config.parameters
    return found


def _length(ids: list[int], vocabulary: Any) -> int:
    """Up to the end of an answer, the token that ends it counted in."""
    ends = [place for place, id in enumerate(ids) if id in (vocabulary.end_turn_id, vocabulary.end_id)]
    return ends[0] + 1 if ends else len(ids)


def policy(folder: Path, options: argparse.Namespace) -> Path:
    """The Hugging Face folder of a fresh model, tuned a little."""
    from tessera.commands.posttrain import supervised
    from tessera.model import weights
    from tessera.model.decoder import Decoder, DecoderConfig
    from tessera.posttrain import worked
    from tessera.posttrain.curriculum import open_pool
    from tessera.tokens.vocabulary import Vocabulary

    layers, width, heads, kv_heads, mlp = SHAPES[options.shape]
    vocabulary = Vocabulary.train(["0123456789+-= a sum"], 1024)
    shape = DecoderConfig(vocabulary.size, width, layers, heads, kv_heads, 64, mlp, context=256, rope_theta=1000.0)
    decoder = Decoder(shape)
    decoder.initialise(0)
    special = weights.SpecialIds(end=(vocabulary.end_id,), pad=vocabulary.pad_id)
    weights.save(decoder, folder / "fresh", special=special, companions=vocabulary.save)
    examples = worked.generate("arithmetic", open_pool("arithmetic", 1, 0), options.examples, 0)
    worked.write_examples(folder / "examples.jsonl", examples)
    wanted = {
        "model": str(folder / "fresh"), "data": str(folder / "examples.jsonl"), "epochs": 1.0, "rate_multiplier": 2.5,
        "settings": (f"train.threads={options.threads}",),
    }  # fmt: skip
    return supervised(wanted, str(folder / "run"), False) / "model"


if __name__ == "__main__":
    main()
