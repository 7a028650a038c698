"""``lcb``: lower confidence bound of dot, dot - q se, q Student's one-sided quantile with n - 1 degrees of freedom.

The gain that is there with probability ``level``: large gains that are sure. Between ``dot`` (level 0.5) and
``tscore``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from scipy import stats

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class LowerBound:
    """See the module's text.

    Attributes:
        level: one-sided confidence, in [0.5, 1).
    """

    needs: ClassVar[Needs] = frozenset({"dot", "se"})
    prefers: ClassVar[str] = "gain along it that is there most likely"

    level: Annotated[float, Field(ge=0.5, lt=1)] = 0.9

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [
            None if a.numbers.dot is None or a.numbers.se is None
            else a.numbers.dot - float(stats.t.ppf(self.level, max(a.n_rollouts - 1, 1))) * a.numbers.se
            for a in alignments
        ]  # fmt: skip

    def errors(self, alignments: Sequence[Alignment]) -> list[float | None]:
        """See `gradalign.selection.parts.Unsure`."""
        return [a.numbers.se for a in alignments]
