"""``simacc``: 4 p (1 - p) cos(g_i, v), alignment and accuracy together.

The paper's code has a mode of this name that joins cosine and accuracy; how, is not published (arXiv 2602.21492 does
not mention it), so the formula here is this project's own. 4 p (1 - p) is the variance of a reward of 0 or 1 over its
maximum: 1 where half of the rollouts are right, 0 where all or none are. It takes down the cosines that one lucky
rollout among many decides, and keeps the cosine's sign: what goes against the validation set never ranks before what
goes along with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.errors import GradAlignError
from gradalign.selection.parts import Needs
from gradalign.selection.ranks.cosine import Cosine


@dataclass(frozen=True)
class SimAcc:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"cosine", "pass_rate"})
    prefers: ClassVar[str] = "gradient along it, pass rate near 1/2"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`.

        Raises:
            GradAlignError: a mean reward is no pass rate.
        """
        return [_weighed(a, a.numbers.cosine) for a in alignments]

    def errors(self, alignments: Sequence[Alignment]) -> list[float | None]:
        """See `gradalign.selection.parts.Unsure`: that of the cosine, weighed likewise."""
        return [_weighed(a, error) for a, error in zip(alignments, Cosine().errors(alignments), strict=True)]


def _weighed(alignment: Alignment, value: float | None) -> float | None:
    rate = alignment.pass_rate
    if value is None or rate is None:
        return None
    if not 0 <= rate <= 1:
        raise GradAlignError(
            f"simacc: the mean reward of problem {alignment.key!r} is {rate:g}, which is no pass rate; give rewards "
            "between 0 and 1, or take another strategy"
        )
    return 4 * rate * (1 - rate) * value
