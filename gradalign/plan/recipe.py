"""What of a recipe its cost depends on, whichever command it is for; and the recipes that it is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from gradalign.alignment.sketch import USUAL, Sketching
from gradalign.errors import GradAlignError
from gradalign.selection import Strategy, find_budget
from gradalign.selection.budgets.racing import Racing

ENGINES = (("exact", False), ("exact", True), ("directional", False), ("sketch", False))
"""Engines that are put side by side, and whether each makes the pass for contributions."""


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        steps: optimiser steps in a round.
        passes: forward and backward passes in a step, on each device.
        rows: rollouts in one pass.
        generations: rollouts of a problem.
        batch: problems in one generation batch, over all devices.
        batches: generation batches in a round.
        recycle: the first of them takes rollouts that were sampled for scoring.
        references: forward passes beside each pass (of the policy as it sampled, of a reference policy).
        checkpointing: activations are computed twice instead of being kept.
        served: vLLM samples.
        tests: test problems; 0 evaluates nothing.
        test_generations: rollouts of each.
        test_rows: rollouts decoded side by side in an evaluation.
        evaluations: in the whole run.
    """

    steps: int
    passes: int
    rows: int
    generations: int
    batch: int
    batches: int
    recycle: bool
    references: int
    checkpointing: bool
    served: bool
    tests: int = 0
    test_generations: int = 1
    test_rows: int = 1
    evaluations: int = 0


@dataclass(frozen=True)
class Recipe:
    """See the module's text.

    Attributes:
        strategy: says what has to be sampled and scored.
        engine: see `gradalign.alignment.engines.ENGINES`.
        contributions: a further forward-only pass.
        difference: how forward passes are differenced; None leaves it to the weights' type.
        sketching: of engine sketch.
        budget: ``fixed`` or ``racing(...)``.
        mode: ``round`` or ``batch``.
        candidates: problems looked at together.
        validation: validation problems.
        rollouts: that a candidate has, at most.
        validation_rollouts: of a validation problem.
        max_new_tokens: of a response.
        stop: texts that end one.
        batch_rollouts: responses decoded side by side.
        batch_tokens: tokens in one pass of scoring.
        rounds: of the run.
        half: whether it computes in half precision.
        width: bytes of a weight.
        offload: the direction is kept in a file.
        training: None chooses only.
        oversample: mode ``batch``: problems sampled for each that is trained on.
        pool: problems in all.
    """

    strategy: Strategy
    engine: str
    contributions: bool
    difference: str | None
    sketching: Sketching
    budget: str
    mode: str
    candidates: int
    validation: int
    rollouts: int
    validation_rollouts: int
    max_new_tokens: int
    stop: tuple[str, ...]
    batch_rollouts: int
    batch_tokens: int
    rounds: int
    half: bool
    width: int
    offload: bool
    training: Training | None
    oversample: int
    pool: int

    @property
    def followed(self) -> int:
        """Rounds in which candidates are scored; all but a warm-up's, or one."""
        if not self.strategy.needs_engine:
            return 0
        return 1 if self.strategy.once else max(0, self.rounds - self.strategy.warmup)

    @property
    def sampled(self) -> int:
        """Rounds in which candidates are sampled."""
        if not self.strategy.needs:
            return 0
        once = self.strategy.once or self.strategy.stale
        return 1 if once else max(0, self.rounds - self.strategy.warmup)

    @property
    def looked(self) -> int:
        """Problems looked at in a round, or for a batch."""
        return self.pool if self.strategy.once or self.strategy.stale else min(self.candidates, self.pool)

    @property
    def forward(self) -> str:
        """How forward-only scores are taken: ``central``, ``one-sided`` or ``forward-mode``."""
        return self.difference or ("forward-mode" if self.width < 4 else "central")

    @property
    def label(self) -> tuple[str, str, str]:
        """Engine, budget, mode, for a table's line."""
        return self.engine + (" + contributions" if self.contributions else ""), self.budget, self.mode

    def stages(self) -> list[list[tuple[int, int, int]]]:
        """(candidates, rollouts before, rollouts after) of each stage of sampling, all that is spent.

        A race is taken to spend what it may, always on candidates that it has brought furthest already.
        """
        budget = find_budget(self.budget, self.rollouts, self.strategy) if self.strategy.needs else None
        if not isinstance(budget, Racing):
            return [[(self.looked, 0, self.rollouts)]]
        left, held = int(budget.mean * self.looked) - budget.screen * self.looked, budget.screen
        found = [[(self.looked, 0, held)]]
        targets = budget.targets(self.rollouts)
        for number, target in enumerate(targets):
            share = left // (len(targets) - number)
            some = min(share // (target - held), found[-1][0][0])
            if some:
                found.append([(some, held, target)])
                left -= some * (target - held)
                held = target
        return found


def alternatives(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe with another engine, another budget, another mode; whether its strategy can go by what the engine
    gives is not asked, since another strategy costs the same."""
    if not recipe.strategy.needs_engine:
        return
    for engine, contributions in ENGINES:
        own = USUAL if engine == "sketch" else recipe.sketching
        other = dataclasses.replace(
            recipe, engine=engine, contributions=contributions, sketching=own, difference=None,
        )  # fmt: skip
        if (engine, contributions) != (recipe.engine, recipe.contributions):
            yield other
    if recipe.mode == "round":
        for budget in ("fixed", "racing"):
            if budget != recipe.budget.partition("(")[0]:
                other = dataclasses.replace(recipe, budget=budget)
                try:
                    other.stages()
                except GradAlignError:  # fewer rollouts than a race begins with
                    continue
                yield other
    if recipe.training is None:
        return
    if recipe.mode == "batch":
        places = recipe.training.batch * recipe.training.batches
        yield dataclasses.replace(recipe, mode="round", candidates=8 * places, engine="exact", contributions=False)
    else:
        batch = recipe.training.batch * recipe.oversample
        yield dataclasses.replace(
            recipe, mode="batch", candidates=batch, engine="directional", contributions=False, budget="fixed",
            rollouts=recipe.training.generations,
        )  # fmt: skip
