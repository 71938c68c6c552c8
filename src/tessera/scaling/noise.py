"""The noise between seeds: how far one loss may lie off because of its seed, and how much less a small run's says.

In go the losses of repeated runs, out come the noise of one run at the largest compute and the weight of each mean in its unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tessera.scaling.law import MEASURABLE, Array

_MOST = 0.05
"""Seeds that are further apart count as diverged, and are left out before."""
_TOP = np.geomspace(MEASURABLE, _MOST, 24)
_GROWTH = np.concatenate([[0.0], np.geomspace(MEASURABLE, _MOST, 23)])


def between_seeds(losses: Sequence[Array], C: Array) -> tuple[float | None, Array]:
    """The noise at the top, and how heavy each mean is.

    Small runs differ more between seeds: of code by 1 % at 5e11 FLOPs and by 0.1 % at 1.4e13 (docs/LOG.md, "Noise by size"). A
    loss d decades below the largest has the variance s^2 + (h d)^2; s and h are weighed by the likelihood of what the seeds
    differ by, every order of magnitude being as likely beforehand.

    Args:
        losses: of the seeds of each run, one array a run, of one value where it was not repeated.
        C: FLOPs of each run.

    Returns:
        The relative standard deviation of one loss at the largest compute, None where nothing was repeated, and (n) weights:
        the precision of each mean over that of such a loss.
    """
    count = np.array([len(one) for one in losses], np.float64)
    if count.max() < 2:
        return None, count
    squares = np.array([float(((np.log(one) - np.log(one).mean()) ** 2).sum()) for one in losses])
    decades = np.log10(C.max() / C)
    variance = _TOP[:, None, None] ** 2 + (_GROWTH[None, :, None] * decades) ** 2
    likely = -((count - 1) * np.log(variance) + squares / variance).sum(-1) / 2
    odds = np.exp(likely - likely.max())
    odds /= odds.sum()
    top = float((odds.sum(1) * np.log(_TOP)).sum())
    each = (odds[:, :, None] * np.log(variance)).sum((0, 1))
    return float(np.exp(top)), count * np.exp(2 * top - each)
