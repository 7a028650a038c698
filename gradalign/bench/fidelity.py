"""``gradalign bench fidelity``: few rollouts and other engines against `exact` with many rollouts.

Half of each problem's rollouts are the truth; the others are cut into disjoint draws of every size asked for
(`gradalign.bench.draws`). Every arm scores every draw against one direction, from all validation rollouts. Then

- a draw's statistics are compared with the truth's dot and cosine;
- the floor compares two draws with one another: how far a statistic agrees with itself on fresh rollouts;
- an arm is compared with `exact` on the same rollouts, which leaves the engine's own error alone;
- an arm that draws at random is compared with itself under another seed, on the same rollouts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradalign.alignment.align import Progress, Scorer, silent
from gradalign.alignment.direction import warn_of_noise
from gradalign.alignment.record import Numbers
from gradalign.bench.agreement import agreement
from gradalign.bench.draws import Draws, Part, Store, cut
from gradalign.bench.fidelity_arms import ARMS, TRUTH, Arm, Setup
from gradalign.bench.results import Results
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective

CHECKED, CHECKED_ROLLOUTS = 4, 8
"""Validation problems, and rollouts of each, on which the direction is also computed by the reference engine."""


@dataclass(frozen=True)
class FidelityPlan:
    """What is measured.

    Attributes:
        arms: names in `ARMS`.
        rollouts: sizes of the draws.
        fraction: share of the problems that counts as the top.
        batch_tokens: tokens in one pass, at most.
        seed: of the validation halves and of arms that draw at random (which get the next one too).
    """

    arms: Sequence[str]
    rollouts: Sequence[int]
    fraction: float
    batch_tokens: int
    seed: int


def measure_fidelity(
    policy: Policy,
    candidates: Sequence[Group],
    validation: Sequence[Group],
    plan: FidelityPlan,
    results: Results,
    progress: Progress = silent,
) -> None:
    """Measure what ``results`` lacks; the numbers themselves are kept beside it, in a .numbers.parquet.

    Args:
        policy: the policy, with float32 weights.
        candidates: the problems with many rollouts each.
        validation: the validation problems with theirs.
        plan: what is measured.
        results: where it is written.
        progress: told of every arm.

    Raises:
        GradAlignError: too few rollouts; no direction; numbers of another run in the way.
    """
    truth, draws = cut(candidates, plan.rollouts)
    keys = [group.key for group in candidates]
    store = Store(results.path.with_suffix(".numbers.parquet"), keys, results.identity)
    objective = Objective()
    scorer = Scorer(policy, objective, TRUTH, plan.batch_tokens, seed=plan.seed)
    direction = scorer.direction(validation, progress)
    warn_of_noise(direction)
    measured = results.measured
    measured["problems"] = len(candidates)
    measured["truth_rollouts"] = [min(len(g.rollouts) for g in truth), max(len(g.rollouts) for g in truth)]
    measured["direction"] = direction.facts()
    measured["cross_check"] = cross_check(scorer, validation)
    setup = Setup(policy, objective, plan.batch_tokens, direction)
    seconds = measured.setdefault("seconds", {})

    whole = Part("truth", plan.seed, measured["truth_rollouts"][0])
    if whole not in store.parts:
        store.add(whole, _draws(setup, ARMS[TRUTH], plan.seed, [truth], progress("truth", 1)))
    reference = store.parts[whole][0]
    measured["truth_scored"] = sum(numbers is not None for numbers in reference)
    arms = [TRUTH, *(arm for arm in plan.arms if arm != TRUTH)]  # the others are compared with it
    for arm in arms:
        done = progress(arm, sum(len(draws[n]) for n in plan.rollouts) * (1 + ARMS[arm].seeded))
        for seed in (plan.seed, plan.seed + 1)[: 1 + ARMS[arm].seeded]:
            for n in plan.rollouts:
                part = Part(arm, seed, n)
                if part not in store.parts:
                    start = time.perf_counter()
                    store.add(part, _draws(setup, ARMS[arm], seed, draws[n], done))
                    seconds.setdefault(arm, {})[f"{n} rollouts, seed {seed}"] = time.perf_counter() - start
                else:
                    done(len(draws[n]))
                measured["arms"] = _agreements(store, plan, arms, reference)
                results.save()


def cross_check(scorer: Scorer, validation: Sequence[Group]) -> float | None:
    """Cosine between the directions that the scorer's engine and `reference` give of a few rollouts of a few problems.

    None where no problem's first rollouts differ in reward.
    """
    some = [
        Group(g.key, g.prompt_ids, g.rollouts[:CHECKED_ROLLOUTS]) for g in validation if g.invalid is None
    ]  # fmt: skip
    some = [group for group in some if group.status == "scored"][:CHECKED]
    if not some:
        return None
    own = scorer.direction(some).unit
    other = Scorer(scorer.policy, scorer.objective, "reference", seed=scorer.seed).direction(some).unit
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(own, other, strict=True))


def _draws(setup: Setup, arm: Arm, seed: int, draws: Sequence[Sequence[Group]], done: Callable[[int], None]) -> Draws:
    """An arm's numbers of some draws, all scored at one go."""
    scored = [group for draw in draws for group in draw if group.status == "scored"]
    found = iter(arm.score(setup, scored, seed))
    kept: Draws = [[next(found) if group.status == "scored" else None for group in draw] for draw in draws]
    done(len(draws))
    return kept


def _agreements(store: Store, plan: FidelityPlan, arms: Sequence[str], truth: list[Numbers | None]) -> dict[str, Any]:
    """What is told of every arm and size that is measured."""
    found: dict[str, Any] = {}
    for arm in arms:
        for n in plan.rollouts:
            own = store.parts.get(Part(arm, plan.seed, n))
            if own is not None:
                exact = None if arm == TRUTH else store.parts[Part(TRUTH, plan.seed, n)]
                other = store.parts.get(Part(arm, plan.seed + 1, n))
                found.setdefault(arm, {})[str(n)] = agreement(own, truth, exact, other, plan.fraction)
    return found
