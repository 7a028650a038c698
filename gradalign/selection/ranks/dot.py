"""``dot``: <g_i, v/|v|>, the first-order gain of a unit step along the problem's gradient; keeps the magnitude.

Unbiased at any number of rollouts; large by luck as easily as by merit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Dot:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"dot"})
    prefers: ClassVar[str] = "large gain along it (inner product)"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [a.numbers.dot for a in alignments]

    def errors(self, alignments: Sequence[Alignment]) -> list[float | None]:
        """See `gradalign.selection.parts.Unsure`."""
        return [a.numbers.se for a in alignments]
