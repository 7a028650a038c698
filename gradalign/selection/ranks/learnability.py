"""``learnability``: p (1 - p), the variance of a reward of 0 or 1; needs rollouts alone.

Largest where the policy solves a problem half of the time (arXiv 2502.12272). A fair coin as reward looks perfect to
it: put a gate before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Learnability:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"pass_rate"})
    prefers: ClassVar[str] = "reward that varies (p (1 - p))"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [None if a.pass_rate is None else a.pass_rate * (1 - a.pass_rate) for a in alignments]
