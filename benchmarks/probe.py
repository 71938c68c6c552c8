"""Image GPT's probe: what a model that learned to draw knows of what it sees (Chen et al. 2020).

    python benchmarks/probe.py [--seeds 0 1 2] [--budget 6m]

A run of `pixels` on handwritten digits without any words. The means of its hidden states over each row of pixels, side by side,
are what a logistic regression classifies by, with 100 labels, ten of each digit; beside it the same regression on the raw pixels,
with the same labels. (One mean over all pixels, as Image GPT has it at 1,500 dimensions, says too little at 50: docs/LOG.md,
2026-11-30.) Strength of the regularisation: by cross-validation within the 100 labels, on either side. Twenty draws of them; the
300 test digits are measured on, which neither has seen. The middle layer is what counts; the others are told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import about, facts, result_path, store, train

LABELS_EACH = 10
DRAWS = 20
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", help="instead of the recipe's")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run", help="measure this run of `pixels` instead of training one")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    from tessera.device import prepare_process

    prepare_process()
    result: dict[str, Any] = {**facts(), "options": vars(options), "seeds": []}
    with tempfile.TemporaryDirectory(prefix="probe-") as scratch:
        for seed in options.seeds:
            run = Path(options.run or train("pixels", Path(scratch) / str(seed), seed, options.budget, options.settings))
            found = {"seed": seed, **about(run), **measure(run, seed)}
            result["seeds"].append(found)
            layers = ", ".join(f"{value:.3f}" for value in found["layers"])
            middle, raw = found["layers"][found["middle"]], found["raw"]
            print(
                f"seed {seed}: behind layer {found['middle']} {middle:.3f}, raw pixels {raw:.3f}; layers 0 to the last: {layers}"
            )
    result["middle"] = statistics.fmean(found["layers"][found["middle"]] for found in result["seeds"])
    result["raw"] = statistics.fmean(found["raw"] for found in result["seeds"])
    verdict = "held" if result["middle"] > result["raw"] else "MISSED"
    print(f"middle layer {result['middle']:.3f}, raw pixels {result['raw']:.3f}: {verdict}")
    store(result_path("probe"), result)
    if options.json:
        print(json.dumps(result))


def measure(run: Path, seed: int) -> dict[str, Any]:
    """Accuracy of the probes of one run."""
    from tessera.commands.generate import open_engine
    from tessera.data.builtin_pictures import digit_arrays, digit_pixels

    engine = open_engine(str(run), "float32")
    (known, names), (unseen, truth) = digit_arrays("train"), digit_arrays("test")
    seen, tested = (features(engine, digit_pixels(levels)) for levels in (known, unseen))
    raw_seen, raw_tested = known.reshape(len(known), -1) / 16.0, unseen.reshape(len(unseen), -1) / 16.0
    dice = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"raw": []}
    for _ in range(DRAWS):
        chosen = np.concatenate([dice.choice(np.flatnonzero(names == digit), LABELS_EACH, False) for digit in range(10)])
        found["raw"].append(probe(raw_seen[chosen], names[chosen], raw_tested, truth))
        for layer in range(seen.shape[1]):
            accuracy = probe(seen[chosen, layer], names[chosen], tested[:, layer], truth)
            found.setdefault(f"{layer}", []).append(accuracy)
    layers = [statistics.fmean(found[f"{layer}"]) for layer in range(seen.shape[1])]
    middle = (seen.shape[1] - 1) // 2
    pairs = np.array(found[f"{middle}"]) - np.array(found["raw"])
    return {
        "layers": layers, "middle": middle, "raw": statistics.fmean(found["raw"]),
        "gain": float(pairs.mean()), "gain_error": float(pairs.std(ddof=1) / len(pairs) ** 0.5), "draws": found,
    }  # fmt: skip


@torch.inference_mode()
def features(engine: Any, pictures: np.ndarray) -> np.ndarray:
    """(n, layers + 1, H D): means over each of the H rows of pixels of what goes into the first layer and comes out of each."""
    from tessera.tokens.document import Document
    from tessera.tokens.pictures import to_draw

    ids_NT = torch.tensor(np.stack([engine.vocabulary.encode(Document(to_draw("", p))).ids for p in pictures]), dtype=torch.long)
    block = engine.vocabulary.block("image")
    pixels_T = (ids_NT[0] >= block.offset) & (ids_NT[0] < block.offset + block.size)
    layers = engine.decoder.model.layers
    states: list[torch.Tensor] = []
    height = len(pictures[0])

    def keep(state_BTD: torch.Tensor) -> None:
        states.append(state_BTD[:, pixels_T].unflatten(1, (height, -1)).mean(2).flatten(1))

    hooks = [layers[0].register_forward_pre_hook(lambda _, given: keep(given[0]))]
    hooks += [layer.register_forward_hook(lambda _, __, made: keep(made)) for layer in layers]
    parts = []
    for ids in ids_NT.split(100):
        states.clear()
        engine.decoder(ids)
        parts.append(torch.stack(states, 1))
    for hook in hooks:
        hook.remove()
    return torch.cat(parts).numpy().astype(np.float64)


def probe(seen: np.ndarray, names: np.ndarray, tested: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy of a logistic regression on standardised features, its strength chosen within what it learns from."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chain = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=list(STRENGTHS), cv=5, max_iter=500))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float((chain.fit(seen, names).predict(tested) == truth).mean())


if __name__ == "__main__":
    main()
