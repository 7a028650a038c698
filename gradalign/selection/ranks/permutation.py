"""``permutation``: the normal deviate of the permutation mid-p-value of a problem's reward-movement correlation.

How surprising is the correlation among all dealings of these very rewards to these very responses? Unlike ``corr`` and
``tscore`` it leans on no distribution: one rewarded response out of eight that moves most is worth p = 1/16, not t = 4.
For few rollouts, rewards that are mostly equal, and movements with outliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from scipy import stats

from gradalign.alignment.record import Alignment
from gradalign.selection.evidence import p_values
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Permutation:
    """See the module's text.

    Attributes:
        draws: random dealings of the rewards for each problem.
    """

    needs: ClassVar[Needs] = frozenset({"moves"})
    prefers: ClassVar[str] = "reward and movement that do not meet by chance"

    draws: Annotated[int, Field(ge=99)] = 999

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        upper = p_values(alignments, seed, self.draws, middle=True)
        against = [a for a, p in zip(alignments, upper, strict=True) if p is not None and p > 0.5]
        lower = iter(p_values(against, seed, self.draws, upper=False, middle=True))
        return [None if p is None else _deviate(p) if p <= 0.5 else -_deviate(next(lower) or 0.0) for p in upper]

    def errors(self, alignments: Sequence[Alignment]) -> list[float | None]:
        """See `gradalign.selection.parts.Unsure`; scores are on the normal scale."""
        return [1.0] * len(alignments)


def _deviate(p: float) -> float:
    """The normal deviate that is exceeded with a probability of at most one half, finite for one of 0 too."""
    return float(stats.norm.isf(max(p, 1e-300)))
