"""Preferences: a reward model that dress does not fool, and a model that learned from pairs, judged by another reward model.

A model of fresh weights reads `builtin:wordings`; supervised tuning on `builtin:answers`, half of them wrong, makes the start.
Two reward models learn from different pairs of `builtin:preferences`, in which right and wrong answers are dressed and as long
alike; DPO learns from the first one's pairs. The second reward model, which nothing was optimised against, compares what DPO and
the start say to new questions; a verifier says how much of it is right.

    python benchmarks/preference.py [--seeds 1] [--base runs/words]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import children_seconds, facts, result_path, store, tessera_command, train
from sklearn.linear_model import LogisticRegression
from zero_shot import BUDGET, SETTINGS

from tessera.commands.generate import open_engine
from tessera.data.builtin_preferences import pairs, undressed
from tessera.device import detect, prepare_process
from tessera.engine.sampling import SamplingParams
from tessera.engine.scheduler import Limits
from tessera.posttrain.pairs import PROBES, Question, read_questions
from tessera.posttrain.preference import RewardModel, fooled
from tessera.posttrain.verifiers.measures import mean_and_error

BARS = {"reward": 0.8, "dress": 0.55, "wins": 0.65}
TEMPERATURE, TOKENS = 0.8, 32


def main() -> None:
    """Trains, measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--base", help="a run on builtin:wordings to begin with, instead of training one")
    parser.add_argument("--examples", type=int, default=6000, help="of the supervised start")
    parser.add_argument("--pairs", type=int, default=3000, help="of each reward model")
    parser.add_argument("--epochs", type=float, default=2.0, help="of reward models and DPO")
    parser.add_argument("--reward-rate", type=float, default=1e-3)
    parser.add_argument("--dpo-rate", type=float, default=3e-4)
    parser.add_argument("--anchor", type=float, default=1.0, help="of DPO: weight of the chosen answer's own loss")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--folder", help="keep the runs here")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    asked = parser.parse_args()
    prepare_process()
    result: dict[str, Any] = {**facts(), "options": vars(asked), "bars": BARS, "seeds": []}
    with tempfile.TemporaryDirectory(prefix="preference-") as scratch:
        for seed in range(asked.seeds):
            found = one(Path(asked.folder or scratch) / f"seed-{seed}", seed, asked)
            print(f"seed {seed}, {found['process_seconds']:.0f} s of one core to train", words(found), sep="\n", flush=True)
            result["seeds"].append(found)
    store(result_path("preference"), result)
    if asked.json:
        print(json.dumps(result))


def one(folder: Path, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """All models of a seed, by the command line, and all numbers."""
    begin = children_seconds()
    base = Path(asked.base) if asked.base else train("text", folder / "base", seed, BUDGET, SETTINGS)
    answers = f"builtin:answers?count={asked.examples}&seed={seed}"
    start = tuned("sft", base, answers, folder / "start", seed, "--epochs", "1", "--rate-multiplier", "2")
    # Pairs, order and initial score of the judge are others.
    mine, others = (f"builtin:preferences?count={asked.pairs}&seed={number}" for number in (1000 + seed, 2000 + seed))
    epochs = ("--epochs", f"{asked.epochs:g}")
    reward = tuned("reward", start, mine, folder / "reward", seed, *epochs, "--rate", f"{asked.reward_rate:g}")
    judge = tuned("reward", start, others, folder / "judge", seed + 1, *epochs, "--rate", f"{asked.reward_rate:g}")
    anchored = (*epochs, "--rate", f"{asked.dpo_rate:g}", "--anchor", f"{asked.anchor:g}")
    dpo = tuned("dpo", start, mine, folder / "dpo", seed, *anchored)
    spent = children_seconds() - begin
    machine = detect("float32", 1)
    return {
        "seed": seed,
        "process_seconds": spent,
        "reward": told(RewardModel(reward, machine), reward),
        "judge": told(RewardModel(judge, machine), judge),
        "against": against(RewardModel(judge, machine), start, dpo, unmet(folder, asked.questions, seed), seed),
    }


def tuned(stage: str, model: Path, data: str, out: Path, seed: int, *options: str) -> Path:
    """One stage by the command line, on one thread."""
    words = [*tessera_command(), "posttrain", stage, "--model", str(model), "--data", data, "--out", str(out)]
    subprocess.run([*words, "--seed", str(seed), "--set", "train.threads=1", *options], check=True)
    return out


def told(model: RewardModel, run: Path) -> dict[str, Any]:
    """Of a reward model: the share of held-out pairs in the right order, what dress alone gets there, and the probes."""
    held_out, known = (read_questions(run / f"{name}.jsonl", model.vocabulary) for name in ("held_out", "train"))
    right = []
    for question in held_out:
        scores = model.score([question.encode(answer, model.vocabulary) for answer in question.answers])
        right += [float(scores[first] > scores[second]) for first, second in question.better]
    value, error = mean_and_error(right)
    return {
        "right": value, "standard_error": error, "pairs": len(right), "length": by_dress(known, held_out, length),
        "format": by_dress(known, held_out, dress), "probes": fooled(model, held_out),
    }  # fmt: skip


def length(text: str) -> list[float]:
    return [len(text), len(text) == 0]


def dress(text: str) -> list[float]:
    """All that can be seen of an answer without reading it."""
    kinds = (str.isupper, str.islower, str.isdigit, str.isspace)
    return [len(text), text.count(" "), *(text.count(mark) for mark in '".:'), *(sum(map(kind, text)) for kind in kinds)]


def by_dress(known: Sequence[Question], held_out: Sequence[Question], look: Any) -> float:
    """Share of held-out pairs that a logistic regression on what is looked at puts in the right order; ties count half."""

    def differences(questions: Sequence[Question]) -> np.ndarray:
        found = [(q.answers[a], q.answers[b]) for q in questions for a, b in q.better]
        return np.array([np.subtract(look(str(chosen)), look(str(rejected))) for chosen, rejected in found], float)

    x = differences(known)
    # Without an intercept, and each pair both ways round: it may know nothing but the differences.
    fitted = LogisticRegression(fit_intercept=False, max_iter=1000).fit(np.concatenate([x, -x]), [1] * len(x) + [0] * len(x))
    margins = differences(held_out) @ fitted.coef_[0]
    return float(np.mean((margins > 0) + 0.5 * (margins == 0)))


def unmet(folder: Path, count: int, seed: int) -> list[dict[str, str]]:
    """Questions that stand in no line that was learned from or held out."""
    met = set()
    for run in ("reward", "judge", "dpo"):
        for name in ("train", "held_out"):
            met |= {
                json.loads(line)["prompt"] for line in (folder / run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            }
    found = {row["prompt"]: row for row in pairs(20 * count, 3000 + seed) if row["prompt"] not in met}
    return list(found.values())[:count]


def against(judge: RewardModel, start: Path, dpo: Path, rows: list[dict[str, str]], seed: int) -> dict[str, Any]:
    """How often the judge prefers what DPO says to what the start says, and how much of either is right."""
    said: dict[str, list[str]] = {}
    for name, run in (("start", start), ("dpo", dpo)):
        engine = open_engine(str(run), "float32", Limits(rows=32, step_tokens=1024))
        prompts = [engine.vocabulary.encode_text(row["prompt"]) for row in rows]
        params = [SamplingParams(TOKENS, TEMPERATURE, seed=1_000_000 * seed + number) for number in range(len(rows))]
        said[name] = [made.text for made in engine.generate(prompts, params)]
    scores = {
        name: judge.score([Question(row["prompt"]).encode(text, judge.vocabulary) for row, text in zip(rows, texts, strict=True)])
        for name, texts in said.items()
    }
    wins, error = mean_and_error(((scores["dpo"] > scores["start"]) + 0.5 * (scores["dpo"] == scores["start"])).tolist())
    found: dict[str, Any] = {"wins": wins, "standard_error": error, "questions": len(rows)}
    for name, texts in said.items():
        right = [float(undressed(text) == undressed(row["chosen"])) for row, text in zip(rows, texts, strict=True)]
        value, right_error = mean_and_error(right)
        found[name] = {"right": value, "standard_error": right_error, "characters": float(np.mean([len(text) for text in texts]))}
    found["some"] = [[row["prompt"], said["start"][at], said["dpo"][at]] for at, row in enumerate(rows[:8])]
    return found


def words(found: dict[str, Any]) -> str:
    """The numbers with their errors and the verdicts."""

    def verdict(held: bool) -> str:
        return "reached" if held else "MISSED"

    lines = []
    for name in ("reward", "judge"):
        row = found[name]
        lines.append(
            f"  {name}: {row['right']:.1%} +- {row['standard_error']:.1%} of {row['pairs']} held-out pairs (chance 50 %), bar "
            f"{BARS['reward']:.0%}: {verdict(row['right'] >= BARS['reward'])}; length alone {row['length']:.1%}, format alone "
            f"{row['format']:.1%}, at most {BARS['dress']:.0%}: {verdict(max(row['length'], row['format']) <= BARS['dress'])}"
        )
        probes = ", ".join(f"{kind} {row['probes'][kind][0]} of {row['probes'][kind][1]}" for kind in PROBES)
        fools = any(beaten for beaten, _ in row["probes"].values())
        lines.append(f"    probes that beat the chosen answer: {probes}: {verdict(not fools)}")
    row = found["against"]
    lines.append(
        f"  DPO against its start, by the second reward model: {row['wins']:.1%} +- {row['standard_error']:.1%} of "
        f"{row['questions']} won (chance 50 %), bar {BARS['wins']:.0%}: {verdict(row['wins'] >= BARS['wins'])}"
    )
    each = (
        f"{n} {row[n]['right']:.1%} +- {row[n]['standard_error']:.1%}, {row[n]['characters']:.0f} characters"
        for n in ("start", "dpo")
    )
    lines.append(f"    right: {'; '.join(each)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
