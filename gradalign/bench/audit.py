"""``gradalign bench audit``: what share of the audit's lists is sound, and what share of the spoilt problems they hold.

Small problems of the embedded policy, whose rewards are sound; in each bed of `gradalign.bench.audit_beds` some of the
candidates' are spoilt. The audit sees them

- with ``all`` its evidence;
- as ``distinct``: as though no two responses of a problem were equal, which is so of long ones;
- by ``movements`` along the validation direction alone;

and ``permutation`` is what a list by the one-sided permutation test of a negative alignment would be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from gradalign.alignment.align import Progress, Scorer, silent
from gradalign.alignment.crossfit import crossfit
from gradalign.alignment.record import Alignment, Evidence, Floats, Numbers
from gradalign.bench.audit_beds import BEDS, spoil
from gradalign.bench.results import Results
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.problems.embedded import make_pool
from gradalign.rewards.base import Reward
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler, sampled
from gradalign.selection.audit import LISTS, audit
from gradalign.selection.evidence import p_values

See = Callable[[Evidence], Evidence]
EVIDENCE: dict[str, See] = {
    "all": lambda e: e,
    "distinct": lambda e: dataclasses.replace(e, responses=np.arange(len(e.rewards))),
    "movements": lambda e: dataclasses.replace(e, responses=np.arange(len(e.rewards)), logprobs=None),
}
"""What the audit sees -> an alignment's evidence as it sees it."""


@dataclass(frozen=True)
class AuditPlan:
    """What is measured.

    Attributes:
        seeds: of problems, rollouts and spoiling, one measurement each.
        problems: candidates.
        validation: validation problems.
        rollouts: of each problem, one measurement each; the first of the largest number.
        spoilt: share of the candidates.
        fdr: nominal.
        batch_tokens: tokens in one pass, at most.
    """

    seeds: Sequence[int]
    problems: int
    validation: int
    rollouts: Sequence[int]
    spoilt: float
    fdr: float
    batch_tokens: int


def measure_audit(policy: Policy, plan: AuditPlan, results: Results, progress: Progress = silent) -> None:
    """Measure the seeds that ``results`` lacks.

    Raises:
        GradAlignError: no direction.
    """
    seeds = results.measured.setdefault("seeds", {})
    done = progress("seeds", len(plan.seeds))
    for seed in plan.seeds:
        if str(seed) not in seeds:
            groups = _sampled(policy, plan, seed)
            seeds[str(seed)] = {str(n): _measured(policy, plan, seed, groups, n) for n in plan.rollouts}
            results.save()
        done()
    results.save()


def _sampled(policy: Policy, plan: AuditPlan, seed: int) -> list[Group]:
    """Candidates, then validation groups."""
    made = make_pool("mixed", plan.problems + plan.validation, seed)
    sampling = Sampling(max(plan.rollouts), max_new_tokens=16, seed=seed, batch_rollouts=4096)
    return sampled(PolicySampler(policy, Reward("countdown", countdown), sampling), made)


def _measured(policy: Policy, plan: AuditPlan, seed: int, groups: Sequence[Group], count: int) -> dict[str, Any]:
    """Evidence -> bed -> list -> what `_judged` gives."""
    groups = [dataclasses.replace(group, rollouts=group.rollouts[:count]) for group in groups]
    candidates, validation = groups[: plan.problems], groups[plan.problems :]
    scorer = Scorer(policy, Objective(), "directional", plan.batch_tokens, seed=seed)
    direction = scorer.direction(validation)
    # movements depend on the responses alone, so one measurement serves every bed
    moves = [a.numbers.moves for a in scorer.measure([_varied(g) for g in candidates], direction).alignments]
    folds = crossfit(scorer, validation)
    found: dict[str, Any] = {"direction": direction.facts(), "trusted": sum(map(len, folds))}
    for bed in BEDS:
        spoilt, which = spoil(candidates, bed, plan.spoilt, seed)
        aligned = [Alignment.of(group, Numbers(moves=own)) for group, own in zip(spoilt, moves, strict=True)]
        for name, see in EVIDENCE.items():
            made = audit(_seen(aligned, see), [_seen(fold, see) for fold in folds], plan.fdr, seed)
            judged: dict[str, Any] = {}
            for of in LISTS:
                judged[of] = _judged([f.q[of] for f in made.findings], which, plan.fdr)
            suspects = [None if f.verdict == "untestable" else float(f.verdict == "ok") for f in made.findings]
            judged["either"] = _judged(suspects, which, plan.fdr)
            found.setdefault(name, {})[bed] = judged
        found.setdefault("permutation", {})[bed] = {
            "reversed": _judged(_by_permutation(aligned, seed), which, plan.fdr)
        }
    return found


def _varied(group: Group) -> Group:
    """The group with rewards that vary, so that it is measured whatever its own are."""
    return dataclasses.replace(
        group, rollouts=[dataclasses.replace(r, reward=float(i % 2)) for i, r in enumerate(group.rollouts)]
    )


def _seen(alignments: Sequence[Alignment], see: See) -> list[Alignment]:
    return [a if a.evidence is None else dataclasses.replace(a, evidence=see(a.evidence)) for a in alignments]


def _by_permutation(alignments: Sequence[Alignment], seed: int) -> list[float | None]:
    """q-values of Benjamini and Hochberg, None where rewards or movements do not vary."""
    p = p_values(alignments, seed, upper=False)
    tested: Floats = np.array([value for value in p if value is not None])
    adjusted = iter(false_discovery_control(tested).tolist() if len(tested) else [])
    return [None if value is None else next(adjusted) for value in p]


def _judged(q: Sequence[float | None], spoilt: Sequence[bool], fdr: float) -> dict[str, int]:
    """Problems listed, sound ones among them, spoilt ones that could be tested."""
    listed = [own for value, own in zip(q, spoilt, strict=True) if value is not None and value <= fdr]
    testable = sum(own for value, own in zip(q, spoilt, strict=True) if value is not None)
    return {"listed": len(listed), "sound": len(listed) - sum(listed), "spoilt": testable}
