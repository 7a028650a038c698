"""``top``: the highest scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradalign.alignment.record import Alignment
from gradalign.selection.picks.limits import Limits


@dataclass(frozen=True)
class Top(Limits):
    """See the module's text."""

    def order(self, alignments: Sequence[Alignment], count: int, seed: int) -> Iterable[int]:
        """See `Limits.order`."""
        return range(len(alignments))
