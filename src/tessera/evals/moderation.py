"""How well a moderation model finds what people found harmful: each category by itself, and none of which it knows nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import average_precision_score

from tessera.engine.moderation import CATEGORIES, probabilities
from tessera.evals.score import Score
from tessera.posttrain.labelled import Labelled
from tessera.posttrain.moderation import Moderator

RESAMPLES = 200
"""Of the texts, from which the standard error comes."""


def measure_moderation(moderator: Moderator, texts: Sequence[Labelled], on: str) -> list[Score]:
    """For each covered category that some of the texts are in and some are not: the area under the curve of precision over recall
    (average precision, whose chance is the share of texts in the category), precision and recall at its threshold; then the mean
    area of these categories.

    Args:
        texts: labelled by people.
        on: where they come from.
    """
    found = probabilities(moderator.head, moderator.logits([one.text for one in texts]))
    scores, areas = [], []
    for name, probability in found.items():
        labels = np.array([one.labels[CATEGORIES.index(name)] for one in texts])
        known = ~np.isnan(labels)
        truth, probability = labels[known] > 0, probability[known]
        if not 0 < truth.sum() < len(truth):
            continue
        category = moderator.head[name]
        settings = {
            "on": on,
            "inside": int(truth.sum()),
            "threshold": round(category.threshold, 4),
            "calibrated": category.calibrated,
        }
        area, chance = float(average_precision_score(truth, probability)), float(truth.mean())
        areas.append(area)
        scores.append(_score(f"AUPRC {name}", area, _error(truth, probability), len(truth), chance, settings))
        flagged = probability >= category.threshold
        right = int((flagged & truth).sum())
        for measure, of in (("precision", int(flagged.sum())), ("recall", int(truth.sum()))):
            if of:
                share = right / of
                scores.append(_score(f"{measure} {name}", share, (share * (1 - share) / of) ** 0.5, of, None, settings))
    if areas:
        scores.append(
            _score("AUPRC mean", float(np.mean(areas)), float("nan"), len(texts), None, {"on": on, "categories": len(areas)})
        )
    return scores


def _score(measure: str, value: float, error: float, n: int, chance: float | None, settings: dict[str, object]) -> Score:
    return Score("moderation", measure, value, error, n, chance, None, "", settings)


def _error(truth: np.ndarray, probability: np.ndarray) -> float:
    """Standard error of the area, over texts drawn again with replacement."""
    dice = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        drawn = dice.integers(0, len(truth), len(truth))
        if 0 < truth[drawn].sum() < len(drawn):
            found.append(average_precision_score(truth[drawn], probability[drawn]))
    return float(np.std(found)) if found else float("nan")
