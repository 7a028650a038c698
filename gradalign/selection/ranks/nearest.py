"""``nearest(k=5)``: mean of the k largest cosines of g_i with the gradients of single validation problems.

    score_i = mean of the k largest of cos(g_i, v_j), j = 1..V

The mean direction, which the paper's cosine follows, keeps what all validation problems have in common; where they pull
at different places, a problem that goes with a few of them closely lies far from their mean, and loses to one that goes
with what is common to any problem at all. Needs an engine that compares candidates with single validation problems
(``sketch``). A reward that is dealt at random is not seen: put a gate before it, as strategy ``nearest`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Nearest:
    """See the module's text.

    Attributes:
        k: validation problems that count; all of them where there are fewer.
    """

    needs: ClassVar[Needs] = frozenset({"near"})
    prefers: ClassVar[str] = "gradient along those of single validation problems"

    k: Annotated[int, Field(ge=1)] = 5

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        found = [a.numbers.near for a in alignments]
        return [None if near is None else float(np.sort(near)[-self.k :].mean()) for near in found]
