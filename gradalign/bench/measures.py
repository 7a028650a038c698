"""How far two lists of scores of the same problems agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def overlap(some: Sequence[float], others: Sequence[float], fraction: float) -> float:
    """Share of the highest ``fraction`` of one list (rounded down, at least one) that is among the other's highest."""
    count = max(1, int(fraction * len(some) + 1e-9))
    best = [
        set(np.argsort(-np.asarray(values, np.float64), kind="stable")[:count].tolist()) for values in (some, others)
    ]
    return len(best[0] & best[1]) / count


def sign_agreement(some: Sequence[float], others: Sequence[float]) -> float:
    """Share of problems on whose sign the lists agree."""
    return float((np.sign(some) == np.sign(others)).mean())


def relative_rms_error(some: Sequence[float], truth: Sequence[float]) -> float | None:
    """Root mean square difference over the truth's root mean square; None where that is zero."""
    a, b = np.asarray(some, np.float64), np.asarray(truth, np.float64)
    scale = float(np.sqrt((b**2).mean()))
    return float(np.sqrt(((a - b) ** 2).mean())) / scale if scale > 0 else None


def largest_error(some: Sequence[float], truth: Sequence[float]) -> float:
    """Largest difference."""
    return float(np.abs(np.asarray(some, np.float64) - np.asarray(truth, np.float64)).max())
