"""A round's candidates, sampled and scored stage by stage as a budget wants.

Rollouts that exist are never sampled again. Each stage's land in tables of their own, which are taken up where a run
was interrupted; ``candidates.parquet`` holds all of them at the end. What the budget answered is kept too, so that a
run that goes on decides nothing anew.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from gradalign.alignment.align import Progress, Scorer
from gradalign.alignment.direction import Direction
from gradalign.alignment.record import Alignment
from gradalign.alignment.scored import Scored
from gradalign.files import read_json, write_json
from gradalign.policy.group import Group
from gradalign.problems.schema import Problem
from gradalign.processes import Processes
from gradalign.rollouts.collect import collect_shared
from gradalign.rollouts.sampler import Sampler
from gradalign.rollouts.table import write_rollouts
from gradalign.selection import Budget, Strategy
from gradalign.selection.budgets.race import Counts, Standing

TABLE = "candidates.parquet"
STAGES = "stages.json"
"""What the budget answered after each stage: lists of the rollouts that each candidate should have next."""


@dataclass
class Candidates:
    """The candidates of a round.

    Attributes:
        chunk: the problems.
        sampler: of the most rollouts that any of them may have.
        scorer: computes alignments where there is a direction.
        direction: to align with; None where rollouts are all that the strategy needs.
        folder: of the round.
        progress: see `gradalign.alignment.align.Progress`.
        seconds: gets the times of sampling and scoring.
        groups: one a problem, with the rollouts it has; those that exist already may be given.
        alignments: theirs.
        stage: how many stages there were.
    """

    chunk: Sequence[Problem]
    sampler: Sampler
    scorer: Scorer
    direction: Direction | None
    folder: Path
    progress: Progress
    seconds: dict[str, float]
    groups: list[Group] = field(default_factory=list)
    alignments: list[Alignment] = field(default_factory=list)
    stage: int = 0

    def measure(self, counts: Counts) -> list[Alignment]:
        """See `gradalign.selection.budgets.race.Measure`: sample what is missing, score what has changed.

        Raises:
            GradAlignError: sampling or scoring fails.
        """
        held = np.array([len(group.rollouts) for group in self.groups] or [0] * len(self.chunk), np.int64)
        start = time.perf_counter()
        if not self.groups and bool((counts == self.sampler.rollouts).all()):
            self.groups = self._sampled(self.chunk, self.sampler, self.folder / TABLE, "candidate rollouts")
        else:
            self._add(held, counts)
        self._count("candidate rollouts", time.perf_counter() - start)
        self.stage += 1
        changed = np.flatnonzero(counts > held).tolist()
        if not self.alignments or "learnalign" in self.scorer.wanted:  # which compares all with all
            changed = list(range(len(self.chunk)))
        made = self._aligned([self.groups[index] for index in changed])
        self.alignments = self.alignments or made
        for index, alignment in zip(changed, made, strict=True):
            self.alignments[index] = alignment
        return self.alignments

    def close(self) -> None:
        """Write the table of all rollouts, where they came in more stages than one."""
        processes = self.scorer.processes
        processes.together(lambda: write_rollouts(self.folder / TABLE, self.groups) if processes.first else None)

    def scored(self) -> Scored | None:
        """What scoring gave over all stages; None without a direction."""
        if self.direction is None:
            return None
        return Scored(self.direction, self.alignments, self.seconds, self.scorer.step, self.scorer.sketched)

    def _add(self, held: Counts, counts: Counts) -> None:
        """Sample rollouts number ``held`` to ``counts`` - 1 of each candidate, those alike in both in one table."""
        groups: list[Group | None] = [*self.groups] or [None] * len(self.chunk)
        for first, last in sorted({(a, b) for a, b in zip(held.tolist(), counts.tolist(), strict=True) if a < b}):
            indices = np.flatnonzero((held == first) & (counts == last)).tolist()
            table = self.folder / f"candidates.stage-{self.stage}.{first}-{last}.parquet"
            name = f"candidate rollouts, stage {self.stage}"
            some = [self.chunk[index] for index in indices]
            for index, more in zip(
                indices, self._sampled(some, self.sampler.part(first, last - first), table, name), strict=True
            ):
                groups[index] = joined(groups[index], more)
        self.groups = [group for group in groups if group is not None]

    def _sampled(self, problems: Sequence[Problem], sampler: Sampler, table: Path, name: str) -> list[Group]:
        tick = self.progress(name, len(problems) * sampler.rollouts)
        return collect_shared(sampler, problems, table, tick, self.scorer.processes)

    def _aligned(self, groups: Sequence[Group]) -> list[Alignment]:
        if self.direction is None:
            return [Alignment.of(group) for group in groups]
        scored = self.scorer.measure(groups, self.direction, self.progress)
        for name, seconds in scored.seconds.items():
            self._count(name, seconds)
        return scored.alignments

    def _count(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def joined(group: Group | None, more: Group) -> Group:
    """A problem's group with further rollouts of it."""
    if group is None:
        return more
    rollouts = [*group.rollouts, *more.rollouts]
    return dataclasses.replace(group, rollouts=rollouts, invalid=group.invalid or more.invalid)


@dataclass(frozen=True)
class Remembered:
    """A `Budget` that is asked once: what it answered after each stage is kept, and the same in all processes.

    Attributes:
        budget: is asked.
        folder: gets `STAGES`.
        processes: the first one asks and writes.
    """

    staged: ClassVar[bool] = True

    budget: Budget
    folder: Path
    processes: Processes

    def check(self, most: int, strategy: Strategy) -> None:
        """See `gradalign.selection.budgets.race.Budget`."""
        self.budget.check(most, strategy)

    def wanted(self, standing: Standing) -> Counts | None:
        """See `gradalign.selection.budgets.race.Budget`."""
        if not standing.alignments:  # depends on nothing that was sampled
            return self.budget.wanted(standing)
        return self.processes.together(lambda: self._asked(standing) if self.processes.first else None)[0]

    def _asked(self, standing: Standing) -> Counts | None:
        path = self.folder / STAGES
        answers: list[list[int] | None] = read_json(path) if path.exists() else []
        if len(answers) < standing.stage:
            wanted = self.budget.wanted(standing)
            answers.append(None if wanted is None else wanted.tolist())
            write_json(path, answers)
        answer = answers[standing.stage - 1]
        return None if answer is None else np.array(answer, np.int64)
