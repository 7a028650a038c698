"""Rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """1..N by rising value; equal values share the mean of their ranks."""
    _, owner, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[owner]


def spearman(some: Sequence[float], others: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where one of the lists does not vary."""
    a, b = ranks(some), ranks(others)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 0 else None
