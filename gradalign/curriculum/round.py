"""One round: a chunk of problems, their rollouts, their alignments, the choice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gradalign.alignment.align import Progress, Scorer, silent
from gradalign.alignment.combined import REFERENCE_WEIGHT
from gradalign.alignment.direction import Direction
from gradalign.alignment.record import Alignment, unscored
from gradalign.alignment.scored import Scored
from gradalign.alignment.sketch import USUAL, Sketching
from gradalign.alignment.table import EVIDENCE, to_table, write_alignments
from gradalign.curriculum.stages import Candidates, Remembered
from gradalign.files import write_json
from gradalign.parts import spec
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.problems.schema import Problem
from gradalign.problems.write import Target, write_chosen, write_scored
from gradalign.processes import ALONE, Processes
from gradalign.rollouts.collect import collect_shared
from gradalign.rollouts.references import reference_groups
from gradalign.rollouts.sampler import Sampler
from gradalign.selection import BUDGETS, STRATEGIES, Budget, Size, Strategy, choose
from gradalign.selection.budgets.fixed import Fixed
from gradalign.selection.budgets.prior import Prior
from gradalign.selection.budgets.race import Raced, race


@dataclass(frozen=True)
class RoundPlan:
    """All that a round depends on besides its problems, its samplers and its policy.

    Attributes:
        strategy: ranks the problems.
        size: how many are chosen.
        objective: what is differentiated.
        engine: see `gradalign.alignment.engines.ENGINES`.
        contributions: with ``exact``, a further forward-only pass gives se, t and corr.
        unit: each validation problem's gradient is divided by its norm before averaging.
        batch_tokens: tokens in one forward or backward pass, at most.
        seed: of ties and of the validation set's halving.
        difference: how forward-only scores differentiate; see `gradalign.alignment.directional`.
        offload: the direction is kept in a file.
        sketching: layers, projection and store of engine ``sketch``.
        budget: how many rollouts each candidate gets.
        targets: validation source -> weight; empty takes all validation problems together.
        reference_field: of the validation problems, with trusted responses to follow as well.
        reference_weight: share of these in the direction, in (0, 1]; at 1 no validation rollouts are sampled.
    """

    strategy: Strategy
    size: Size
    objective: Objective = field(default_factory=Objective)
    engine: str = "exact"
    contributions: bool = False
    unit: bool = False
    batch_tokens: int = 4096
    seed: int = 0
    difference: str | None = None
    offload: bool = False
    sketching: Sketching = USUAL
    budget: Budget = field(default_factory=Fixed)
    targets: dict[str, float] = field(default_factory=dict)
    reference_field: str | None = None
    reference_weight: float = REFERENCE_WEIGHT

    @property
    def forward_only(self) -> bool:
        """Whether forward passes are differenced."""
        return self.strategy.needs_engine and (self.engine == "directional" or self.contributions)

    @property
    def identity(self) -> dict[str, Any]:
        """All that a round's files depend on of its plan, as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "strategy": self.strategy.recipe,
            "size": asdict(self.size),
            "objective": asdict(self.objective),
            "sketching": [self.sketching.layers, self.sketching.projection],
            "budget": spec(self.budget, BUDGETS),
        }

    def of_round(self, number: int) -> RoundPlan:
        """The plan of a curriculum's round: one of the warm-up draws at random, as many problems as the others choose,
        or from its whole chunk where a threshold says which."""
        if number >= self.strategy.warmup:
            return self
        size = self.size if self.size.threshold is None else Size(fraction=1.0)
        return replace(self, strategy=STRATEGIES["random"], size=size)

    def scorer(self, policy: Policy, processes: Processes = ALONE, make: Callable[..., Scorer] = Scorer) -> Scorer:
        """Who computes alignments."""
        return make(
            policy, self.objective, self.engine, self.batch_tokens, self.contributions, self.unit, self.seed, processes,
            self.difference, self.offload, sketching=self.sketching, wanted=self.strategy.needs,
            targets=self.targets, reference_weight=self.reference_weight,
        )  # fmt: skip


@dataclass
class Round:
    """What a round gives.

    Attributes:
        alignments: one a problem of the chunk, with score, rank and choice filled in.
        scored: direction, times and step; None for a strategy that needs no engine.
        groups: the chunk's groups; empty for a strategy that needs no rollouts.
        rollouts: how many were sampled, validation included.
        seconds: wall-clock time by stage.
        raced: the stages in which candidates were sampled, for a budget that has some.
    """

    alignments: list[Alignment]
    scored: Scored | None
    groups: list[Group]
    rollouts: int
    seconds: dict[str, float]
    raced: Raced | None = None

    def metrics(self) -> dict[str, Any]:
        """Numbers of the round for ``metrics.json``."""
        statuses = [a.status for a in self.alignments]
        raced: dict[str, Any] = {}
        if self.raced is not None:
            reached = {str(count): number for count, number in self.raced.reached.items()}
            raced = {"rollouts_by_stage": self.raced.spent, "candidates_by_rollouts": reached}
        return {
            "problems": len(self.alignments),
            "status": {status: statuses.count(status) for status in sorted(set(statuses))},
            "selected": sum(bool(a.selected) for a in self.alignments),
            "rollouts": self.rollouts,
            "direction": None if self.scored is None else self.scored.direction.facts(),
            "step": None if self.scored is None or self.scored.step is None else self.scored.step.length,
            "step_error": None if self.scored is None or self.scored.step is None else self.scored.step.error,
            "sketch": None if self.scored is None else self.scored.sketched and asdict(self.scored.sketched),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        } | raced


def find_direction(
    scorer: Scorer,
    validation: Sequence[Problem],
    sampler: Sampler,
    folder: Path,
    progress: Progress,
    seconds: dict[str, float],
    reference_field: str | None = None,
) -> tuple[Direction, list[Group]]:
    """Sample the validation problems into ``folder``/validation.parquet and differentiate them.

    Where trusted responses are all that is followed, nothing is sampled.

    Returns:
        The direction, and the validation groups; ``seconds`` gets the times of both stages.

    Raises:
        GradAlignError: no validation problem carries a gradient; see `reference_groups`.
    """
    groups: list[Group] = []
    references: list[Group] = []
    if reference_field is not None:
        references = reference_groups(scorer.policy, validation, sampler.prompts(validation), reference_field)
    if not references or scorer.reference_weight < 1:
        start = time.perf_counter()
        tick = progress("validation rollouts", len(validation) * sampler.rollouts)
        groups = collect_shared(sampler, validation, folder / "validation.parquet", tick, scorer.processes)
        seconds["validation rollouts"] = time.perf_counter() - start
    start = time.perf_counter()
    direction = scorer.direction(groups, progress, references)
    seconds["direction"] = time.perf_counter() - start
    return direction, groups


def run_round(
    policy: Policy,
    chunk: Sequence[Problem],
    validation: Sequence[Problem],
    samplers: tuple[Sampler, Sampler],
    plan: RoundPlan,
    folder: Path,
    progress: Progress = silent,
    processes: Processes = ALONE,
    average: Callable[[Direction], Direction] = lambda direction: direction,
    prior: Prior | None = None,
    collected: Sequence[Group] = (),
    make: Callable[..., Scorer] = Scorer,
) -> Round:
    """Sample what the strategy needs, score, choose; everything lands in ``folder``.

    Rollouts that an interrupted run left there are taken up, not sampled again.

    Args:
        policy: is differentiated.
        chunk: the candidates.
        validation: the trusted set, disjoint from the chunk.
        samplers: of the chunk, with the most rollouts that any problem may have; of the validation set.
        plan: how.
        folder: of the round; gets ``validation.parquet``, ``candidates.parquet``, ``alignments.parquet`` and, last of
            all, ``metrics.json``; what a budget's stages leave, see `gradalign.curriculum.stages`.
        progress: see `gradalign.alignment.align.Progress`.
        processes: share the work; the first one writes.
        average: gives the direction to follow from the round's own.
        prior: pass rates of earlier rounds, for a budget that asks.
        collected: the chunk's groups with rollouts that exist, in its order; they are scored, and nothing is sampled.
            The round's groups are empty then: to train on these rollouts would be off-policy.
        make: makes who scores.
    """
    seconds: dict[str, float] = {}
    trusted: list[Group] = []
    direction: Direction | None = None
    strategy, scorer = plan.strategy, plan.scorer(policy, processes, make)
    if strategy.needs_engine:  # the direction first: without one no candidate need be sampled
        direction, trusted = find_direction(
            scorer, validation, samplers[1], folder, progress, seconds, plan.reference_field
        )
        direction = average(direction)
    candidates = Candidates(chunk, samplers[0], scorer, direction, folder, progress, seconds, [*collected])
    raced: Raced | None = None
    if strategy.needs:
        staged, most = plan.budget.staged, samplers[0].rollouts
        budget = Remembered(plan.budget, folder, processes) if staged else plan.budget
        raced = race(budget, strategy, plan.size, len(chunk), most, candidates.measure, plan.seed, prior)
        if staged:
            candidates.close()
        alignments = candidates.alignments
    else:
        alignments = [unscored(problem.key, problem.source) for problem in chunk]
        choose(alignments, strategy, plan.size, plan.seed)
    groups = [] if collected else candidates.groups
    rollouts = sum(len(group.rollouts) for group in [*groups, *trusted])
    raced = raced if plan.budget.staged else None
    result = Round(alignments, candidates.scored(), groups, rollouts, seconds, raced)
    if processes.first:
        write_alignments(folder / "alignments.parquet", alignments)
        write_json(folder / "metrics.json", result.metrics())
    return result


def write_choice(
    folder: Path, chunk: Sequence[Problem], alignments: Sequence[Alignment], targets: Sequence[Target]
) -> list[Path]:
    """Write the selected problems, best first, for each target; gives the files' paths.

    Target ``scored`` is all of the chunk, best first, with every column of the alignment table but the evidence's.
    """
    by_key = {problem.key: problem for problem in chunk}
    best_first = sorted(alignments, key=lambda a: a.rank or 0)
    ranked, chosen = ([by_key[a.key] for a in best_first if every or a.selected] for every in (True, False))
    scores = {row.pop("key"): row for row in to_table(alignments).drop_columns(["source", *EVIDENCE]).to_pylist()}
    return [
        write_scored(folder, ranked, scores) if target == "scored" else write_chosen(folder, chosen, target)
        for target in targets
    ]
