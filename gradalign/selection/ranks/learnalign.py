"""``learnalign``: the mean over the candidates j of V_i V_j cos(g_i, g_j), with V = p (1 - p).

arXiv 2506.11480. Prefers problems that are neither solved nor hopeless and whose gradients go with those of the others
like them; the validation set's direction plays no part. Needs an engine that compares candidates with each other
(``sketch``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class LearnAlign:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"learnalign"})
    prefers: ClassVar[str] = "learnable, and along the others like it"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [a.numbers.learnalign for a in alignments]
