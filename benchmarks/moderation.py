"""Moderation: a model tuned on labelled texts of elsewhere, against TF-IDF with logistic regression, on OpenAI's public prompts.

    python benchmarks/moderation.py [--seeds 3] [--budget 6m]

Labels come from tweets that people judged (Davidson et al. 2017): what most of them called hate is `hate`, and all else is not;
what most called offensive is `harassment`, what most called neither is not, and of hate it is not known. The base is a text model
that read these tweets, what red teams talked about with an assistant (Bai et al. 2022), and books. Both sides learn from the same
texts and are measured on the 1,680 prompts of arXiv 2208.03274, which nobody has learned from: the area under precision over
recall in each category that is covered, and the mean. The six of the eight categories that no label here speaks of are named as
not covered.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import children_seconds, data_folder, facts, result_path, store, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", default="6m", help="of the base model")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of the base model")
    parser.add_argument("--base", help="a text model that is there already")
    parser.add_argument("--folder", help="keep the runs here")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    from tessera.device import prepare_process

    prepare_process()
    result: dict[str, Any] = {**facts(), "options": vars(options), "seeds": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(options.seeds):
            found = one(folder, seed, options)
            result["seeds"].append(found)
            print(f"seed {seed}: {words(found)}", flush=True)
    means = {side: statistics.fmean(found[side]["mean"] for found in result["seeds"]) for side in ("model", "tfidf")}
    result["mean"] = means
    print(f"mean area of the covered categories {means['model']:.3f}, TF-IDF {means['tfidf']:.3f}")
    store(result_path("moderation"), result)
    if options.json:
        print(json.dumps(result))


def one(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains both sides and measures them."""
    from tessera.commands.posttrain import moderated
    from tessera.device import detect
    from tessera.evals.moderation import measure_moderation
    from tessera.posttrain.labelled import CATEGORIES, read_labelled
    from tessera.posttrain.moderation import Moderator

    rows = tweets()
    (folder / "tweets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    public = data_folder() / "text/safety/openai_moderation/samples-1680.jsonl"
    prompts = read_labelled(public)
    begin = children_seconds(), time.process_time()
    base = Path(options.base) if options.base else folder / f"base-{seed}"
    if not base.exists():
        (folder / "said").mkdir(exist_ok=True)
        (folder / "said/tweets.txt").write_text("\n\n".join(row["text"] for row in rows), encoding="utf-8")
        (folder / "said/talks.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in talks()), encoding="utf-8")
        books = data_folder() / "text/lm/gutenberg_books"
        sources = [
            {"uri": f"files:{folder / 'said/tweets.txt'}", "weight": 0.35},
            {"uri": f"files:{folder / 'said/talks.jsonl'}", "weight": 0.35},
            {"uri": f"files:{books}", "weight": 0.3},
        ]
        train("text", base, seed, options.budget, (f"data.sources={json.dumps(sources)}", *options.settings))
    wanted = {
        "model": str(base), "data": str(folder / "tweets.jsonl"), "epochs": options.epochs, "seed": seed,
        "settings": ("train.threads=1",),
    }  # fmt: skip
    run = moderated(wanted, str(folder / f"moderation-{seed}"), False)
    seconds = children_seconds() - begin[0] + time.process_time() - begin[1]
    moderator = Moderator(run, detect("float32"))
    scores = measure_moderation(moderator, prompts, public.name)
    kept = ("value", "standard_error", "n", "chance")
    measured = {score.measure: {key: getattr(score, key) for key in kept} for score in scores}
    theirs = tfidf(rows, prompts, list(moderator.head), CATEGORIES)
    return {
        "seed": seed, "process_seconds": seconds,
        "model": {"scores": measured, "mean": measured["AUPRC mean"]["value"]},
        "tfidf": {"areas": theirs, "mean": statistics.fmean(theirs.values())},
        "not_covered": [name for name in CATEGORIES if name not in moderator.head and any(one.known(name) for one in prompts)],
    }  # fmt: skip


def tweets() -> list[dict[str, Any]]:
    """Labelled texts."""
    file = data_folder() / "text/safety/hate_offensive/labeled_data.csv.gz"
    rows = []
    with gzip.open(file, "rb") as opened:
        for row in csv.DictReader(io.TextIOWrapper(opened, "utf-8")):
            judged = int(row["class"])
            labels = {"hate": int(judged == 0)}
            if judged != 0:
                labels["harassment"] = int(judged == 1)
            rows.append({"text": row["tweet"], "labels": labels})
    once = {row["text"]: row for row in rows if row["text"].strip()}
    return list(once.values())


def talks() -> list[str]:
    """Conversations with an assistant, of which nobody says anything but that one answer was preferred."""
    file = data_folder() / "text/safety/hh_rlhf/harmless-base-test.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["rejected"] for line in lines]


def tfidf(
    rows: Sequence[dict[str, Any]], prompts: Sequence[Any], names: Sequence[str], categories: Sequence[str]
) -> dict[str, float]:
    """The area of the usual baseline in each category: words and pairs of words, logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score

    found = {}
    for name in names:
        known = [row for row in rows if name in row["labels"]]
        truth = np.array([one.labels[categories.index(name)] for one in prompts])
        there = ~np.isnan(truth)
        counts = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        features = counts.fit_transform(row["text"] for row in known)
        fitted = LogisticRegression(max_iter=1000, C=10).fit(features, [row["labels"][name] for row in known])
        said = fitted.predict_proba(counts.transform(one.text for one in prompts))[:, 1]
        found[name] = float(average_precision_score(truth[there] > 0, said[there]))
    return found


def words(found: dict[str, Any]) -> str:
    """One line for a person."""
    parts = []
    for name, theirs in found["tfidf"]["areas"].items():
        ours = found["model"]["scores"][f"AUPRC {name}"]
        parts.append(
            f"{name} {ours['value']:.3f} +- {ours['standard_error']:.3f} (TF-IDF {theirs:.3f}, chance {ours['chance']:.3f})"
        )
    return f"{', '.join(parts)}; not covered {', '.join(found['not_covered'])}; {found['process_seconds']:.0f} s of a core"


if __name__ == "__main__":
    main()
