"""``band(low=0.2, high=0.8)``: the pass rate lies in a band; problems that the policy solves now and then.

The accuracy filter in wide use (mode ``acc`` of the paper's code, arXiv 2602.21492). Strategy ``accband`` draws among
the problems in the band uniformly; with ``--rank accgreedy`` those nearest one half come first. A fair coin as reward
looks perfect to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gradalign.alignment.record import Alignment
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Band:
    """low <= mean reward <= high.

    Attributes:
        low: of the band, in the reward's units.
        high: of the band.
    """

    needs: ClassVar[Needs] = frozenset({"pass_rate"})
    final: ClassVar[bool] = False

    low: float = 0.2
    high: float = 0.8

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; no pass rate lies between them")

    def passes(self, alignments: Sequence[Alignment], seed: int) -> list[bool]:
        """See `gradalign.selection.parts.Gate`."""
        return [a.pass_rate is not None and self.low <= a.pass_rate <= self.high for a in alignments]
