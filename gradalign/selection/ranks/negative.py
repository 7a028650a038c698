"""``negative``: -cos(g_i, v), the problems whose gradient goes against the validation set's.

A negative control, the mode ``negsim`` of the paper's code (arXiv 2602.21492): if training on what it chooses does as
well as training on what ``cosine`` chooses, alignment says nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.selection.ranks.cosine import Cosine


@dataclass(frozen=True)
class Negative(Cosine):
    """See the module's text."""

    prefers: ClassVar[str] = "gradient against it (a negative control)"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [None if cosine is None else -cosine for cosine in super().scores(alignments, seed)]
