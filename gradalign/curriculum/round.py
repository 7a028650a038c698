"""One round: a chunk of problems, their rollouts, their alignments, the choice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradalign.alignment.align import Scored, score
from gradalign.alignment.direction import require_gradient
from gradalign.alignment.record import Alignment, unscored
from gradalign.alignment.table import write_alignments
from gradalign.files import write_json
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.problems.schema import Problem, uniform_hash
from gradalign.problems.write import Target, write_chosen
from gradalign.rewards.base import Reward
from gradalign.rollouts.collect import collect
from gradalign.rollouts.sample import Sampling
from gradalign.selection import Size, Strategy, choose

Progress = Callable[[str, int], Callable[..., None]]
"""Called with a stage's name and size; gives a function to call with (or without) the number of items done."""


@dataclass(frozen=True)
class RoundPlan:
    """All that a round depends on besides its problems and policy."""

    strategy: Strategy
    size: Size
    objective: Objective
    engine: str
    contributions: bool
    unit: bool
    batch_tokens: int
    sampling: Sampling
    validation_sampling: Sampling
    seed: int


@dataclass
class Round:
    """What a round gives.

    Attributes:
        alignments: one a problem of the chunk, with score, rank and choice filled in.
        scored: direction, times and step; None for a strategy that needs no engine.
        groups: the chunk's groups; empty for a strategy that needs no rollouts.
        rollouts: how many were sampled, validation included.
        seconds: wall-clock time by stage.
    """

    alignments: list[Alignment]
    scored: Scored | None
    groups: list[Group]
    rollouts: int
    seconds: dict[str, float]

    def metrics(self) -> dict[str, Any]:
        """Numbers of the round for ``metrics.json``."""
        statuses = [a.status for a in self.alignments]
        return {
            "problems": len(self.alignments),
            "status": {status: statuses.count(status) for status in sorted(set(statuses))},
            "selected": sum(bool(a.selected) for a in self.alignments),
            "rollouts": self.rollouts,
            "direction": None if self.scored is None else self.scored.direction.facts(),
            "step": None if self.scored is None or self.scored.step is None else self.scored.step.length,
            "step_error": None if self.scored is None or self.scored.step is None else self.scored.step.error,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def take_chunk(pool: Sequence[Problem], size: int | None, seed: int) -> list[Problem]:
    """The round's candidates: ``size`` problems of the pool by seeded hash, in pool order; None takes all."""
    if size is None or size >= len(pool):
        return list(pool)
    taken = {p.key for p in sorted(pool, key=lambda p: uniform_hash("chunk", seed, p.key))[:size]}
    return [problem for problem in pool if problem.key in taken]


def run_round(
    policy: Policy,
    chunk: Sequence[Problem],
    validation: Sequence[Problem],
    rewards: tuple[Reward, Reward],
    plan: RoundPlan,
    folder: Path,
    progress: Progress,
) -> Round:
    """Sample what the strategy needs, score, choose; everything lands in ``folder``.

    Rollouts that an interrupted run left there are taken up, not sampled again.

    Args:
        policy: samples and is differentiated.
        chunk: the candidates.
        validation: the trusted set, disjoint from the chunk.
        rewards: of the chunk, of the validation set.
        plan: how.
        folder: of the round; gets ``candidates.parquet``, ``validation.parquet``, ``alignments.parquet``,
            ``metrics.json``.
        progress: see `Progress`.
    """
    seconds: dict[str, float] = {}
    groups: list[Group] = []
    trusted: list[Group] = []
    scored: Scored | None = None
    strategy = plan.strategy
    if strategy.needs_engine:
        start = time.perf_counter()
        tick = progress("validation rollouts", len(validation) * plan.validation_sampling.rollouts)
        place = folder / "validation.parquet"
        trusted = collect(policy, validation, rewards[1], plan.validation_sampling, place, tick)
        seconds["validation rollouts"] = time.perf_counter() - start
        require_gradient(trusted)  # before the candidates are sampled
    if strategy.needs != "nothing":
        start = time.perf_counter()
        tick = progress("candidate rollouts", len(chunk) * plan.sampling.rollouts)
        groups = collect(policy, chunk, rewards[0], plan.sampling, folder / "candidates.parquet", tick)
        seconds["candidate rollouts"] = time.perf_counter() - start
    if strategy.needs_engine:
        scored = score(
            policy, groups, trusted, plan.objective, plan.engine, plan.batch_tokens, plan.contributions, plan.unit,
            plan.seed, progress,
        )  # fmt: skip
        alignments = scored.alignments
        seconds |= scored.seconds
    elif groups:
        alignments = [Alignment.of(group) for group in groups]
    else:
        alignments = [unscored(problem.key, problem.source) for problem in chunk]
    choose(alignments, strategy, plan.size, plan.seed)
    rollouts = sum(len(group.rollouts) for group in [*groups, *trusted])
    result = Round(alignments, scored, groups, rollouts, seconds)
    write_alignments(folder / "alignments.parquet", alignments)
    write_json(folder / "metrics.json", result.metrics())
    return result


def write_choice(
    folder: Path, chunk: Sequence[Problem], alignments: Sequence[Alignment], targets: Sequence[Target]
) -> list[Path]:
    """Write the selected problems, best first, for each target; gives the files' paths."""
    by_key = {problem.key: problem for problem in chunk}
    best_first = sorted((a for a in alignments if a.selected), key=lambda a: a.rank or 0)
    chosen = [by_key[a.key] for a in best_first]
    return [write_chosen(folder, chosen, target) for target in targets]
