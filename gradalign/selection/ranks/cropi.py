"""``cropi(k=60)``: reciprocal-rank fusion of the cosines with the validation sets, each source being a set.

    score_i = sum_s 1 / (k + rank_s(i))

with rank_s(i) the place, 1 for the largest, of cos(g_i, v_s) among all candidates, v_s the mean gradient of source s's
validation problems; equal cosines share the mean of their places. CROPI (arXiv 2510.26491), with k = 60 as in Cormack,
Clarke and Büttcher (2009). A problem that helps one set much is preferred to one that helps every set a little; how
long a set's gradients are, or how alike its cosines, does not matter. With one source the order is that of its cosine.

As in the paper, gradients are compared by projections (engine ``sketch``; ``--projection coordinates:N`` is the paper's
first stage, without the dense one that follows it there), and rollouts may be stale: they were sampled once, by an
earlier policy, and what is differentiated is their likelihood under the policy as it is now, with ratio 1, as if it had
sampled them. That is biased, the more so the further the policy has moved. A curriculum by strategy ``cropi`` samples
the whole pool in its first round alone, and in later rounds scores those rollouts again; the validation set, which is
small, is sampled anew every round. `gradalign score` takes any rollouts, and warns that they are stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from gradalign.alignment.ranks import ranks
from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Cropi:
    """See the module's text.

    Attributes:
        k: the larger, the less the very first places count.
    """

    needs: ClassVar[Needs] = frozenset({"sources"})
    prefers: ClassVar[str] = "gradient along that of one validation source or another"

    k: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        found: list[float | None] = [None] * len(alignments)
        known = [(i, a.numbers.sources) for i, a in enumerate(alignments) if a.numbers.sources]
        if known:
            cosines = np.array([list(own.values()) for _, own in known], np.float64)
            fused = sum(1 / (self.k + ranks(-column)) for column in cosines.T)
            for (index, _), score in zip(known, np.asarray(fused), strict=True):
                found[index] = float(score)
        return found
