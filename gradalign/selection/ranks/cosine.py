"""``cosine``: cos(g_i, v), the paper's score: problems whose policy gradient points where the validation's does.

arXiv 2602.21492. Needs an engine that gives cosine (``exact``, ``sketch``, ``reference``). With few rollouts it is
mostly noise: every problem's norm is that of its noise, so that sure and unsure alignments look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Cosine:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"cosine"})
    prefers: ClassVar[str] = "gradient along the validation's (cosine)"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [a.numbers.cosine for a in alignments]

    def errors(self, alignments: Sequence[Alignment]) -> list[float | None]:
        """See `gradalign.selection.parts.Unsure`: that of dot, over the norm."""
        known = [(a.numbers.se, a.numbers.norm) for a in alignments]
        return [se / norm if se is not None and norm else None for se, norm in known]
