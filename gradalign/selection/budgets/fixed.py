"""``fixed``: the same number of rollouts for every candidate, all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradalign.selection.budgets.race import Counts, Standing
from gradalign.selection.strategy import Strategy


@dataclass(frozen=True)
class Fixed:
    """See the module's text."""

    staged: ClassVar[bool] = False

    def check(self, most: int, strategy: Strategy) -> None:
        """See `gradalign.selection.budgets.race.Budget`; nothing is refused."""

    def wanted(self, standing: Standing) -> Counts | None:
        """See `gradalign.selection.budgets.race.Budget`."""
        return None if standing.alignments else np.full_like(standing.counts, standing.most)
