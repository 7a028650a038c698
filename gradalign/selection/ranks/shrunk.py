"""``shrunk``: empirical Bayes estimate of dot: each pulled towards the mean of all, the more the larger its error.

Posterior mean of dot_i ~ N(true_i, se_i^2), true_i ~ N(m, tau^2) with m and tau from the problems at hand (Efron and
Morris, 1975). For problems with unequally many rollouts, or errors that differ much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradalign.alignment.record import Alignment
from gradalign.selection.evidence import shrunk
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Shrunk:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"dot", "se"})
    prefers: ClassVar[str] = "gain along it, unsure ones doubted"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        known = [i for i, a in enumerate(alignments) if a.numbers.dot is not None and a.numbers.se is not None]
        numbers = [alignments[i].numbers for i in known]
        found: list[float | None] = [None] * len(alignments)
        if known:
            dots, errors = np.array([[n.dot, n.se] for n in numbers], np.float64).T
            for index, value in zip(known, shrunk(dots, errors), strict=True):
                found[index] = float(value)
        return found

    def errors(self, alignments: Sequence[Alignment]) -> list[float | None]:
        """See `gradalign.selection.parts.Unsure`."""
        return [a.numbers.se for a in alignments]
