"""Paired comparisons over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST = 20
"""Seeds of which every dealing of signs is gone through."""


def flipped(differences: NDArray[np.float64]) -> float:
    """One-sided p-value of the paired permutation test: how often would signs dealt at random to the seeds' differences
    sum up to as little as these do? Every dealing is gone through, so the least p is 2 ** -seeds; those of seeds beyond
    `MOST` are drawn.

    Args:
        differences: (seeds,) ours minus theirs; less is better.
    """
    sums = np.zeros(1)
    for difference in differences[:MOST]:
        sums = np.concatenate([sums + difference, sums - difference])
    dealt = np.random.default_rng(0)
    for difference in differences[MOST:]:
        sums += difference * dealt.choice((-1, 1), sums.size)
    return float((sums <= differences.sum() + 1e-12).mean())


def holm(values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: all of them at most a together err with probability a at most."""
    order = np.argsort(values, kind="stable")
    adjusted, least = np.ones(len(values)), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = least
    return adjusted.tolist()
