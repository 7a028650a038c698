"""``random``: uniformly from the same chunk, by a seeded hash of the key; the baseline every strategy must beat.

`select` samples and scores nothing for it. Where a table was scored anyway, what was not scored still ranks last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.problems.schema import uniform_hash
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Random:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset()
    prefers: ClassVar[str] = "nothing"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [uniform_hash("random", seed, a.key) for a in alignments]
