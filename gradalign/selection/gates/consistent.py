"""``consistent``: equal responses were paid equally.

A reward that is a function of the response cannot pay the same tokens twice differently. One that does is tossed, or
judged by something that does not agree with itself. Needs no gradient, and is the cheapest evidence there is where
responses repeat (short answers); where no two are equal it refuses nothing. Not for rewards that are random on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.selection.evidence import unequal_pay
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Consistent:
    """No two equal responses of a group were paid differently.

    Attributes:
        tolerance: difference of rewards that is let pass.
    """

    needs: ClassVar[Needs] = frozenset({"responses"})
    final: ClassVar[bool] = True

    tolerance: float = 0.0

    def passes(self, alignments: Sequence[Alignment], seed: int) -> list[bool]:
        """See `gradalign.selection.parts.Gate`."""
        return [spread_of_equals(a) <= self.tolerance for a in alignments]


def spread_of_equals(alignment: Alignment) -> float:
    """Largest difference of the rewards of equal responses."""
    return 0.0 if alignment.evidence is None else float(unequal_pay(alignment.evidence).max())
