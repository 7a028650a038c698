"""``corr``: Pearson correlation, over a problem's rollouts, of the reward with the weighted directional derivative.

Does a better reward go with moving along v? Zero in expectation when the reward ignores the response, whatever its pass
rate. Small-sample correction: the score is the normal deviate of the correlation's t-value, r sqrt((n - 2) / (1 - r^2))
with n - 2 degrees of freedom, so that 0.9 over four rollouts does not rank before 0.6 over sixty; among problems with
equally many rollouts the order is that of r. For choosing what is surely sound; says nothing of how much is gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradalign.alignment.record import Alignment
from gradalign.selection.evidence import deviate
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Corr:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"corr"})
    prefers: ClassVar[str] = "reward that goes with moving along it"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        corr = np.array([np.nan if a.numbers.corr is None else a.numbers.corr for a in alignments], np.float64)
        deviates = deviate(corr, np.array([a.n_rollouts for a in alignments], np.float64))
        return [None if np.isnan(r) else float(z) for r, z in zip(corr, deviates, strict=True)]

    def errors(self, alignments: Sequence[Alignment]) -> list[float | None]:
        """See `gradalign.selection.parts.Unsure`; scores are on the normal scale."""
        return [1.0] * len(alignments)
