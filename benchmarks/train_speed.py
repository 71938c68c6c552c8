"""Training speed with the same model, batch and AdamW: tessera, transformers' Qwen3, litgpt and a plain GPT-2-style loop.

    python benchmarks/train_speed.py [--shapes 4x256,6x256] [--threads 1] [--rounds 15] [--no-compile] [--gpu]

Every setting of every peer is first tried for a few steps; then the fastest of each peer and the settings that tessera chooses by
itself take their steps in turn. With one thread the clock is process time, with more it is wall time. The last lines are the
ratio tessera / transformers at its fastest, step by step, and tessera's share of the matmul peak measured in its own process.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from common import SHAPES, Setting, Worker, WorkerFailed, facts, in_turn, result_path, spread, store

NOMINAL_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 with float32 accumulation, of NVIDIA's data sheets (SXM where there are two)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes", default="", help="comma-separated; by default both of the bar, or with --gpu all four of a GPU"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="steps that count, per setting")
    parser.add_argument("--tries", type=int, default=3, help="steps per setting in the first look")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled settings out")
    parser.add_argument("--gpu", action="store_true", help="on the first GPU, bf16, wall time")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()

    default = "124M-1024,124M-2048,350M-1024,350M-2048" if options.gpu else "4x256,6x256"
    result: dict[str, Any] = {**facts(), "threads": options.threads, "clock": clock_of(options), "notes": [], "shapes": {}}
    for name in (options.shapes or default).split(","):
        result["shapes"][name] = measure(name, options, result["notes"])
    for note in result["notes"]:
        print(f"note: {note}")
    suffix = "-gpu" if options.gpu else f"-{options.threads}-threads" if options.threads > 1 else ""
    store(result_path(f"train-speed{suffix}") if options.out is None else result_path("x").with_name(options.out), result)
    if options.json:
        print(json.dumps(result))


def clock_of(options: argparse.Namespace) -> str:
    """Process time is fair on a shared machine, and means something only for one thread of a CPU."""
    return "cpu" if options.threads == 1 and not options.gpu else "wall"


def measure(name: str, options: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    """All settings of one shape: a first look at all, then the fastest in turn."""
    shape, clock = SHAPES[name], clock_of(options)
    own = tessera_choice(name, options)
    settings = [own, *(s for s in candidates(name, options, notes) if s != own)]
    print(f"{name}: {shape.layers} layers, width {shape.width}, T {shape.context}, B {shape.rows}, {len(settings)} settings")
    first: dict[Setting, list[float]] = {}
    losses: dict[str, list[float]] = {}
    for setting in settings:
        # One at a time here: two dozen processes would disturb each other more than the order of the steps does.
        try:
            worker = Worker(setting)
            answers = [worker.ask() for _ in range(options.tries + 1)]
            worker.close()
        except WorkerFailed as error:
            notes.append(f"not run: {error}")
            continue
        first[setting] = [a[clock] for a in answers[1:]]
        losses[str(setting)] = [a["loss"] for a in answers]
        print(f"  {setting!s:<58} {shape.tokens / statistics.median(first[setting]):>10,.0f} tokens/s at first look", flush=True)

    best = {}
    for setting, times in first.items():
        group = (
            setting.peer,
            setting.optimizer,
            setting.precision == "bfloat16" and setting.peer != "tessera",
            setting.allocator,
        )
        if group not in best or statistics.median(times) < statistics.median(first[best[group]]):
            best[group] = setting
    finalists = list(dict.fromkeys([own, *best.values()]))
    workers = [Worker(setting) for setting in finalists]
    for worker in workers:
        for _ in range(2):
            worker.ask()
    samples = in_turn(workers, options.rounds, clock)
    peak = max(workers[0].ask("peak")["flops"] for _ in range(2))
    for worker in workers:
        worker.close()
    return report(name, own, finalists, samples, peak, clock, first, losses)


def report(
    name: str, own: Setting, finalists: list[Setting], samples: dict[str, list[dict[str, Any]]], peak: float, clock: str,
    first: dict[Setting, list[float]], losses: dict[str, list[float]],
) -> dict[str, Any]:  # fmt: skip
    """Prints the table of one shape and returns what is stored of it."""
    from peers import decoder_config

    shape = SHAPES[name]
    flops = decoder_config(shape).flops_per_token(shape.context) * shape.tokens
    times = {s: [a[clock] for a in samples[str(s)]] for s in finalists}

    def fastest(peer: str) -> Setting | None:
        found = [s for s in finalists if s.peer == peer and s.precision != "bfloat16" and s.optimizer == "adamw"]
        return min(found, key=lambda s: statistics.median(times[s]), default=None)

    ratios = {}
    for peer in ("transformers", "litgpt", "plain"):
        rival = fastest(peer)
        if rival is not None:
            ratios[peer] = {"setting": str(rival), **spread([b / a for a, b in zip(times[own], times[rival], strict=True)])}
    bare = [s for s in finalists if s.peer == "transformers" and not s.allocator and s.precision != "bfloat16"]
    if bare and str(bare[0]) != ratios["transformers"]["setting"]:
        pairs = zip(times[own], times[bare[0]], strict=True)
        ratios["transformers without the allocator's settings"] = {"setting": str(bare[0]), **spread([b / a for a, b in pairs])}

    print(f"\n{name}, {len(times[own])} rounds, tokens per {clock} second: median (quartiles)")
    for setting in finalists:
        speeds = spread([shape.tokens / t for t in times[setting]])
        share = (
            f"{flops / statistics.median(times[setting]) / peak:6.1%} of peak"
            if setting.peer in {"tessera", "transformers"}
            else ""
        )
        mark = "*" if setting == own else " "
        print(f" {mark}{setting!s:<58} {speeds['median']:>9,.0f} ({speeds['q1']:,.0f}..{speeds['q3']:,.0f}) {share}")
    print("  * what tessera's rules choose")
    for peer, ratio in ratios.items():
        quartiles, all_of_them = f"{ratio['q1']:.3f}..{ratio['q3']:.3f}", f"{ratio['min']:.3f}..{ratio['max']:.3f}"
        print(f"  tessera / {peer}: {ratio['median']:.3f} (quartiles {quartiles}, all {all_of_them})")
    rate = flops / statistics.median(times[own])
    share = rate / peak
    print(f"  share of the matmul peak measured here ({peak / 1e9:,.1f} GFLOP/s): {share:.1%}")
    nominal = next((f for card, f in NOMINAL_FLOPS.items() if own.gpu and card in machine_name()), None)
    print(f"  MFU against the data sheet's {nominal / 1e12:,.0f} TFLOP/s: {rate / nominal:.1%}\n" if nominal else "", flush=True)
    return {
        "chosen": str(own),
        "ratios": ratios,
        "peak_flops": peak,
        "flops_per_step": flops,
        "share_of_peak": share,
        "mfu": rate / nominal if nominal else None,
        "seconds": {str(s): t for s, t in times.items()},
        "first_look_seconds": {str(s): t for s, t in first.items()},
        "first_losses": losses,
    }


def candidates(name: str, options: argparse.Namespace, notes: list[str]) -> list[Setting]:
    """Every setting that is looked at."""
    shape = SHAPES[name]
    base = {"shape": name, "threads": options.threads, "gpu": options.gpu}
    compiled = [False] if options.no_compile else [False, True]
    low = options.gpu or has_bfloat16()
    if not low:
        notes.append("bf16 left out: no bf16 instructions on this CPU")
    if options.gpu:
        micros: list[int | None] = [None, shape.rows // 2, shape.rows // 4]
        allocators = [True]
    else:
        micros = [None, *sorted({max(1, n // shape.context) for n in (1024, 2048)} & set(range(1, shape.rows)))]
        allocators = [False, True]
    low_precisions = ["autocast", "bfloat16"] if low else []
    precisions = low_precisions if options.gpu else ["float32", *low_precisions]
    ours = "bfloat16" if low else "float32"

    found = [Setting("tessera", compiled=c, micro_rows=m, allocator=True, precision=ours, **base)
             for c in compiled for m in (micros if options.gpu else (2, 4, 8)) if m is None or m <= shape.rows]  # fmt: skip
    found += [Setting("transformers", compiled=c, micro_rows=m, allocator=a, precision=p, **base)
              for c in compiled for m in micros for a in allocators for p in precisions]  # fmt: skip
    for peer in ("litgpt", "plain"):
        found += [Setting(peer, compiled=c, micro_rows=m, allocator=True, precision="autocast" if low else "float32", **base)
                  for c in compiled for m in (None, micros[-1])]  # fmt: skip
    chosen = tessera_choice(name, options)
    # What the allocator's settings alone give, and what Muon costs: the same step without the one, with the other.
    return [*found, *([] if options.gpu else [altered(chosen, allocator=False)]), altered(chosen, optimizer="muon")]


def tessera_choice(name: str, options: argparse.Namespace) -> Setting:
    """The micro-batch, compilation and precision that the rules and the command would choose."""
    from peers import decoder_config, fixed_recipe

    from tessera.scaling import rules

    shape = SHAPES[name]
    kind = "cuda" if options.gpu else "cpu"
    recipe = fixed_recipe(shape, 1)
    asked = recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_rows": None})})
    known = rules.Facts(None, 1e12, shape=decoder_config(shape), kind=kind)
    micro = rules.resolve(asked, known).recipe.train.micro_rows
    precision = "bfloat16" if options.gpu or has_bfloat16() else "float32"
    compiled = rules.COMPILE_GAIN[kind] > 0 and not options.no_compile
    return Setting("tessera", name, compiled, micro, True, precision, threads=options.threads, gpu=options.gpu)


def machine_name() -> str:
    from tessera.device import detect

    return detect().name


def altered(setting: Setting, **changes: Any) -> Setting:
    return Setting(**{**setting.__dict__, **changes})


def has_bfloat16() -> bool:
    """Whether tessera would compute in bf16 on this CPU."""
    from tessera.device import detect

    return detect().dtype == "bfloat16"


if __name__ == "__main__":
    main()
