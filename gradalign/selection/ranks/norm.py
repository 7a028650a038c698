"""``norm``: |g_i|, how far training on the problem moves the policy, in whatever direction.

The mode of that name in the paper's code (arXiv 2602.21492). With few rollouts mostly the size of the noise. Needs an
engine that gives norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Norm:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"norm"})
    prefers: ClassVar[str] = "large gradient, wherever it points"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [a.numbers.norm for a in alignments]
