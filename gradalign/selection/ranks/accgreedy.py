"""``accgreedy``: -|p - 1/2|, pass rate nearest one half; needs rollouts alone.

The scalar filter that the paper holds against: a fair coin as reward looks perfect to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class AccGreedy:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"pass_rate"})
    prefers: ClassVar[str] = "pass rate near 1/2"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [None if a.pass_rate is None else -abs(a.pass_rate - 0.5) for a in alignments]
