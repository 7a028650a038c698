"""What a budget is, and the race it runs: rollouts stage by stage, each stage decided by what the ones before gave.

No input or output happens here: whoever races says how candidates are measured, by sampling and scoring them or by
taking the first of rollouts that exist (`race` is the same for a round and for a simulation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from gradalign.alignment.record import Alignment
from gradalign.selection.budgets.prior import Prior
from gradalign.selection.strategy import Size, Strategy, choose

Counts = NDArray[np.int64]
"""(candidates,) rollouts of each."""
Measure = Callable[[Counts], Sequence[Alignment]]
"""Alignments of all candidates, in their order, once each has the rollouts that ``counts`` says."""


@dataclass(frozen=True)
class Standing:
    """How the race stands when a budget is asked.

    Attributes:
        counts: (candidates,) rollouts that each has; all zero before the first stage.
        strategy: what chooses.
        size: how many are chosen.
        most: rollouts that any candidate may have.
        prior: pass rates of earlier rounds.
        alignments: one a candidate, score, gate, rank and choice filled in; empty before the first stage.
        stage: stages that were raced.
    """

    counts: Counts
    strategy: Strategy
    size: Size
    most: int
    prior: Prior
    alignments: Sequence[Alignment] = ()
    stage: int = 0


class Budget(Protocol):
    """Says how many rollouts each candidate gets."""

    staged: ClassVar[bool]
    """Whether there may be more stages than one."""

    def check(self, most: int, strategy: Strategy) -> None:
        """Refuse what cannot be raced.

        Raises:
            GradAlignError: ``most`` rollouts a candidate leave nothing to decide, or the strategy needs no rollouts.
        """
        ...

    def wanted(self, standing: Standing) -> Counts | None:
        """(candidates,) rollouts that each should have next, none fewer than it has; None where the race is over."""
        ...


@dataclass(frozen=True)
class Raced:
    """What a race gives.

    Attributes:
        alignments: one a candidate, chosen from.
        stages: after each stage, the rollouts that each candidate had.
    """

    alignments: Sequence[Alignment] = ()
    stages: list[Counts] = field(default_factory=list)

    @property
    def spent(self) -> list[int]:
        """Rollouts of each stage, over all candidates."""
        totals = [int(counts.sum()) for counts in self.stages]
        return [after - before for before, after in zip([0, *totals], totals, strict=False)]

    @property
    def reached(self) -> Mapping[int, int]:
        """Rollouts -> how many candidates ended with so many."""
        values, numbers = np.unique(self.stages[-1], return_counts=True)
        return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def race(
    budget: Budget,
    strategy: Strategy,
    size: Size,
    candidates: int,
    most: int,
    measure: Measure,
    seed: int = 0,
    prior: Prior | None = None,
) -> Raced:
    """Measure candidates as the budget wants, and choose after every stage.

    Args:
        budget: says how many rollouts.
        strategy: chooses.
        size: how many are chosen.
        candidates: how many there are.
        most: rollouts that any may have.
        measure: called once a stage, see `Measure`.
        seed: of the choice.
        prior: pass rates of earlier rounds, see `gradalign.selection.budgets.prior`.
    """
    raced, counts = Raced(), np.zeros(candidates, np.int64)
    while True:
        wanted = budget.wanted(Standing(counts, strategy, size, most, prior or {}, raced.alignments, len(raced.stages)))
        if wanted is None or bool((wanted == counts).all()):
            return raced
        assert bool(((counts <= wanted) & (wanted <= most)).all()), "a budget takes nothing back"
        counts = wanted
        alignments = measure(counts)
        choose(alignments, strategy, size, seed)
        raced = Raced(alignments, [*raced.stages, counts])
