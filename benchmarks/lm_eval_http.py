"""lm-evaluation-harness in process and through `local-completions` against `tessera serve`: are the scores the same?

Three small tasks are made on the spot from Python's standard library, so that no network is needed: the line that follows out
of four (acc), pieces of files (bits per byte), the end of a line (exact match). Every answer is compared, not only the means.

    python benchmarks/lm_eval_http.py --model runs/quickstart [--count 40] [--out F]
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import common
import lm_eval
from lm_eval.tasks import TaskManager
from served import ServerProcess

from tessera.commands.generate import open_engine
from tessera.evals.harness import Harness
from tessera.model.weights import home, resolve_model

MODULES = ("argparse", "bisect", "calendar", "csv", "fractions", "heapq", "json.decoder", "shlex", "statistics", "textwrap")
TASKS: dict[str, dict[str, Any]] = {
    "next_line": {
        "output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "{{choices}}", "doc_to_target": 0,
        "target_delimiter": "", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "whole_text": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "line_end": {
        "output_type": "generate_until", "doc_to_text": "{{context}}", "doc_to_target": "{{rest}}", "target_delimiter": "",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 24}, "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


def write_tasks(folder: Path, count: int) -> None:
    """Three tasks of `count` documents each, as lm-evaluation-harness reads them."""
    draw = random.Random(0)
    sources = {name: inspect.getsource(__import__(name, fromlist=["_"])) for name in MODULES}
    lines = {name: [line for line in text.splitlines(True) if line.strip()] for name, text in sources.items()}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TASKS}
    for _ in range(count):
        name = draw.choice(MODULES)
        at = draw.randrange(6, len(lines[name]) - 1)
        context, line = "".join(lines[name][at - 6 : at]), lines[name][at]
        others = [draw.choice(lines[draw.choice(MODULES)]) for _ in range(3)]
        rows["next_line"].append({"context": context, "choices": [line, *others]})
        rows["whole_text"].append({"text": "".join(lines[name][at : at + 40])})
        rows["line_end"].append({"context": context + line[: len(line) // 2], "rest": line[len(line) // 2 :].rstrip("\n")})
    for name, task in TASKS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
        files = {"data_files": {"test": str(folder / f"{name}.jsonl")}}
        page = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **task}
        (folder / f"{name}.yaml").write_text(json.dumps(page), encoding="utf-8")  # JSON is YAML


def measure(model: Any, folder: Path, **settings: Any) -> dict[str, Any]:
    """Scores and every sample's answers."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, **settings)
    answers = {name: [sample["filtered_resps"] for sample in samples] for name, samples in found["samples"].items()}
    return {"scores": found["results"], "answers": answers}


def numbers_of(answer: Any) -> list[Any]:
    """The leaves of an answer."""
    return [leaf for one in answer for leaf in numbers_of(one)] if isinstance(answer, list | tuple) else [answer]


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Of each task: both scores, answers that differ, and by how much the log-probabilities do."""
    rows = {}
    for name in TASKS:
        pairs = [
            pair
            for one, other in zip(ours["answers"][name], theirs["answers"][name], strict=True)
            for pair in zip(numbers_of(one), numbers_of(other), strict=True)
        ]
        apart = [abs(float(a) - float(b)) for a, b in pairs if isinstance(a, float)]
        numbers = {key: value for key, value in ours["scores"][name].items() if isinstance(value, float)}
        rows[name] = {
            "in process": numbers,
            "over HTTP": {key: theirs["scores"][name][key] for key in numbers},
            "other answers": sum(a != b for a, b in pairs if not isinstance(a, float)),
            "largest difference of a log-probability": max(apart, default=0.0),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/quickstart")
    parser.add_argument("--count", type=int, default=40, help="documents a task")
    parser.add_argument("--out", default=None, help="where the result goes; default: results/DATE-lm-eval-http.json")
    options = parser.parse_args()
    folder = resolve_model(options.model)
    with tempfile.TemporaryDirectory() as scratch:
        write_tasks(Path(scratch), options.count)
        engine = open_engine(options.model)
        context = engine.decoder.config.context
        ours = measure(Harness(engine), Path(scratch))
        with ServerProcess(Path(options.model), Path(scratch) / "data", ("--no-compile",)) as server:
            arguments = {
                "model": home(folder).resolve().name, "base_url": f"http://{server.host}:{server.port}/v1/completions",
                "tokenizer": str(folder), "max_length": context, "tokenizer_backend": "huggingface", "num_concurrent": 1,
            }  # fmt: skip
            theirs = measure("local-completions", Path(scratch), model_args=arguments)
    rows = compare(ours, theirs)
    print(json.dumps(rows, indent=1))
    result = {"documents": options.count, "lm_eval": version("lm_eval"), "tasks": rows}
    common.store(Path(options.out) if options.out else common.result_path("lm-eval-http"), common.facts() | result)


if __name__ == "__main__":
    main()
