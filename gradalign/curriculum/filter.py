"""Choosing in every batch: more problems are sampled than the batch takes, and those that align are trained on.

The direction is found once a round. A batch's candidates are measured against it with the policy as it is now, by
forward passes alone where the engine is ``directional``, and the very rollouts that were scored are trained on.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from gradalign.alignment.align import Progress, silent
from gradalign.alignment.direction import NoGradientError
from gradalign.alignment.record import Alignment
from gradalign.alignment.sketch import Sketched
from gradalign.alignment.steps import Step
from gradalign.alignment.table import write_alignments
from gradalign.curriculum.curriculum import Curriculum
from gradalign.curriculum.files import open_round
from gradalign.curriculum.folder import round_folder
from gradalign.curriculum.numbers import spent, summary
from gradalign.curriculum.round import find_direction
from gradalign.curriculum.state import DIRECTION
from gradalign.files import read_json, write_json
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.rollouts.collect import joined, shared_out
from gradalign.rollouts.sampler import Sampler, sampled
from gradalign.selection import Size, choose


class BatchFilter(Curriculum):
    """A `Curriculum` whose chunks are batches' candidates; see the module's text."""

    def begin(
        self, number: int, policy: Policy, samplers: tuple[Sampler, Sampler], progress: Progress = silent
    ) -> dict[str, float]:
        """Find the direction of round ``number``, or find on disk that it was found; see `Curriculum.begin`."""
        folder = round_folder(self.folder, number)
        self.state.step = self.state.sketch = None
        facts: dict[str, Any] = {"rollouts": 0, "direction": None, "seconds": {}, "step": None, "sketch": None}
        plan = self.plan.of_round(number)
        if plan.strategy.needs_engine:
            if open_round(folder, self.identity(number, policy, [], samplers), [DIRECTION], self.processes):
                facts = read_json(folder / "metrics.json")
                self.recall(folder, policy)
            else:
                scorer = plan.scorer(policy, self.processes)
                try:
                    direction, trusted = find_direction(
                        scorer,
                        self.validation,
                        samplers[1],
                        folder,
                        progress,
                        facts["seconds"],
                        plan.reference_field,
                    )
                except NoGradientError as error:
                    if number == 0:
                        raise
                    self.ended = str(error)
                    return {}
                direction = self.follow(direction, policy, folder)
                start = time.perf_counter()
                step = scorer.calibrate(trusted, direction)
                facts["seconds"]["self-check"] = time.perf_counter() - start
                facts["step"] = None if step is None else [step.length, step.error]
                facts["sketch"] = scorer.sketched and asdict(scorer.sketched)
                facts["direction"] = direction.facts()
                facts["rollouts"] = sum(len(group.rollouts) for group in trusted)
                if self.processes.first:
                    write_json(folder / "metrics.json", facts)
            self.state.step, self.state.sketch = facts["step"], facts["sketch"]
        self.note(number, [], facts)
        numbers = spent(facts)
        return numbers | {"validation_" + name: numbers.pop(name) for name in ("rollouts", "seconds")}

    def filter(self, batch: int, keep: int, policy: Policy, sampler: Sampler) -> tuple[list[Group], dict[str, float]]:
        """Sample the candidates of batch ``batch`` of the run and rank them.

        Args:
            batch: its number, counted from the run's start.
            keep: how many problems the batch takes.
            policy: as it is now.
            sampler: of that policy.

        Returns:
            The ``keep`` best groups; where fewer were selected, groups that carry no gradient fill the batch, and only
            then those that a gate refused or a cap left out. Numbers to log, without prefix.
        """
        start = time.perf_counter()
        chunk = [self.pool[i] for i in self.chunks[batch]]
        mine = shared_out(chunk, sampler, self.processes)

        groups = joined(self.processes.together(lambda: sampled(sampler, mine)), len(chunk), self.processes)
        plan = self.plan.of_round(self.state.round)
        if plan.strategy.needs_engine:
            assert self.followed is not None, "begin() was not called"
            scorer = plan.scorer(policy, self.processes)
            scorer.step = None if self.state.step is None else Step(*self.state.step)
            scorer.sketched = None if self.state.sketch is None else Sketched(**self.state.sketch)
            scored = scorer.measure(groups, self.followed)
            alignments = scored.alignments
            if self.state.step is None and scored.step is not None:  # no validation rollouts to choose it on
                self.state.step = scored.step.length, scored.step.error
            if self.state.sketch is None and scored.sketched is not None:
                self.state.sketch = asdict(scored.sketched)
        else:
            alignments = [Alignment.of(group) for group in groups]
        choose(alignments, plan.strategy, Size(top=keep), plan.seed)
        chosen = [groups[i] for i in sorted(range(len(groups)), key=lambda i: _place(alignments[i]))[:keep]]
        keys = {group.key for group in chosen}
        state = self.state
        rollouts = sum(len(group.rollouts) for group in groups)
        state.sampled += rollouts
        state.reused += sum(len(group.rollouts) for group in chosen)
        numbers = summary(alignments, keys, set(self.chosen))
        so_far = [*self.chosen, *(group.key for group in chosen)]
        state.history.cut(len(state.history) - 1)
        state.history.append(so_far)
        if self.processes.first:
            write_alignments(
                round_folder(self.folder, state.round) / f"batch-{batch:05d}.alignments.parquet", alignments
            )
        return chosen, numbers | {
            "rollouts": float(rollouts),
            "rollouts_total": float(state.sampled),
            "seconds": time.perf_counter() - start,
        }


def _place(alignment: Alignment) -> tuple[bool, bool, bool, int]:
    """Where a candidate stands when a batch is filled."""
    moves, judged = alignment.status == "scored", alignment.status != "failed"
    return not alignment.selected, not judged, moves, alignment.rank or 0
