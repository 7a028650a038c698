"""``sound(fdr=0.1)``: the reward goes with moving along the validation direction, at a stated false-discovery rate.

Of each problem a one-sided permutation p-value says how often rewards dealt at random to its own responses would go
with the movement along v as well as they do. Benjamini and Hochberg's procedure (1995) over all problems lets pass
those that are significant: among them the expected share of problems whose reward ignores the response is at most
``fdr``. For when the share of bad problems must be kept low whatever that leaves; with few rollouts it leaves little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from scipy.stats import false_discovery_control

from gradalign.alignment.record import Alignment
from gradalign.selection.evidence import p_values
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Sound:
    """Significant by Benjamini and Hochberg.

    Attributes:
        fdr: expected share of problems with rewards that ignore the response, among those let pass; in (0, 1).
        draws: random dealings of the rewards for each problem.
    """

    needs: ClassVar[Needs] = frozenset({"moves"})
    final: ClassVar[bool] = False

    fdr: Annotated[float, Field(gt=0, lt=1)] = 0.1
    draws: Annotated[int, Field(ge=99)] = 999

    def passes(self, alignments: Sequence[Alignment], seed: int) -> list[bool]:
        """See `gradalign.selection.parts.Gate`."""
        if not alignments:
            return []
        found = np.array([1.0 if p is None else p for p in p_values(alignments, seed, self.draws)])
        return (false_discovery_control(found) <= self.fdr).tolist()
