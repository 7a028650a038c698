"""``learnalign``: the mean over the candidates j of V_i V_j cos(g_i, g_j), with V = p (1 - p).

arXiv 2506.11480. Prefers problems that are neither solved nor hopeless and whose gradients go with those of the others
like them; the validation set's direction plays no part. Needs an engine that compares candidates with each other
(``sketch``).

The paper estimates gradients after a short warm-up: a curriculum by strategy ``learnalign`` trains its first round on
problems drawn at random, and asks from the second on (every round; the paper chooses once). ``steps_per_round`` is the
warm-up's length; ``strategy: gradalign`` with ``rank: learnalign`` does without one. `gradalign select` and `score`
train nothing: give them a policy that is warm already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class LearnAlign:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"learnalign"})
    prefers: ClassVar[str] = "learnable, and along the others like it"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [a.numbers.learnalign for a in alignments]
