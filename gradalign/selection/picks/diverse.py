"""``diverse``: greedy choice of a set whose problems pull along, and do not all pull at the same place.

The worth of a set S is its summed score over the length of its summed gradient,

    F(S) = sum_{i in S} score_i / |sum_{i in S} g_i|,

with scores in units of dot the cosine of the whole set's gradient with v: GradAlign's score, of the set instead of one
problem. Problems are added one after the other, each the one that makes F largest. Of two near-duplicates the second
lengthens the sum as much as it adds to the score, and gains nothing; one whose gradient is different lengthens it less.
<g_i, g_j> are taken from a sketch's features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs
from gradalign.selection.picks.limits import Limits


@dataclass(frozen=True)
class Diverse(Limits):
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"features"})

    def order(self, alignments: Sequence[Alignment], count: int, seed: int) -> Iterable[int]:
        """See `Limits.order`."""
        features = np.stack([np.asarray(a.numbers.features, np.float64) for a in alignments])
        scores = np.array([a.score for a in alignments], np.float64)
        squares = (features**2).sum(1)
        total, length, worth = np.zeros(features.shape[1]), 0.0, 0.0
        left = np.ones(len(alignments), bool)
        order: list[int] = []
        for _ in range(min(count, len(alignments))):
            lengths = np.sqrt(np.maximum(length + 2 * features @ total + squares, 0))
            gains = np.where(left & (lengths > 0), (worth + scores) / np.maximum(lengths, 1e-300), -np.inf)
            best = int(gains.argmax()) if np.isfinite(gains).any() else int(left.argmax())
            order.append(best)
            left[best] = False
            total, worth = total + features[best], worth + scores[best]
            length = float(total @ total)
        return [*order, *np.flatnonzero(left).tolist()]
