"""Paired comparisons over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def flipped(differences: NDArray[np.float64]) -> float:
    """One-sided p-value of the paired permutation test: how often would signs dealt at random to the seeds' differences
    sum up to as little as these do? Every dealing is gone through, so the least p is 2 ** -seeds.

    Args:
        differences: (seeds,) ours minus theirs; less is better.
    """
    count = len(differences)
    signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    return float(((signs * differences).sum(1) <= differences.sum() + 1e-12).mean())


def holm(values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: all of them at most a together err with probability a at most."""
    order = np.argsort(values, kind="stable")
    adjusted, least = np.ones(len(values)), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = least
    return adjusted.tolist()
