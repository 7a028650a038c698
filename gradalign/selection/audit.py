"""Which problems' rewards are suspect: two lists with a stated false-discovery rate each.

- *reversed*: the reward looks like a sound one turned upside down;
- *uninformative*: the reward looks as if it had been dealt to the responses at random.

How suspect a problem looks is the log-odds of `gradalign.selection.soundness`. Its p-value is conformal (Bates, Candès,
Lei, Romano and Sesia, 2023): (1 + sound validation problems that look as bad) / (1 + validation problems), each of them
judged by a direction and by weights that it had no part in. Benjamini and Hochberg's procedure turns the p-values of
all candidates into a list; conformal p-values that share their validation problems depend on one another positively
(theorem 2 there), which that procedure allows, so Benjamini and Yekutieli's correction is not needed.

What it assumes: sound candidates are like validation problems (same mixture of difficulty, sampled in the same way).
What it does not: that a sound problem's gradient goes along v. A good share of sound problems has a negative alignment,
significantly so by a permutation test, which is why that test is not taken: it would list them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

import numpy as np
from scipy.stats import false_discovery_control

from gradalign.alignment.record import Alignment, Evidence, Floats
from gradalign.errors import GradAlignError
from gradalign.problems.schema import uniform_hash
from gradalign.selection.soundness import Regression, Spoil, contradictions, cut, dealt, examples, signs, swapped

Verdict = Literal["reversed", "uninformative", "ok", "untestable"]
LISTS: dict[str, Spoil] = {"reversed": swapped, "uninformative": dealt}
"""List -> how rewards are spoilt that belong on it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is found of one problem.

    Attributes:
        verdict: ``untestable`` where rewards do not vary. A problem on both lists is what it looks more like, by the
            regression between the two kinds of spoilt copies.
        p: p-value by list; None where untestable.
        q: smallest false-discovery rate at which the list holds the problem, by list.
        contradictions: distinct responses that were paid differently at different times.
    """

    verdict: Verdict
    p: dict[str, float | None]
    q: dict[str, float | None]
    contradictions: int


@dataclass(frozen=True, slots=True)
class Audit:
    """Findings, and what they rest on.

    Attributes:
        findings: one a candidate, in order.
        fdr: expected share of sound problems on each list, at most.
        trusted: validation problems that candidates were compared with.
        rollouts: of each of those, at most, and so of the candidates that were compared with them.
        likelihood: whether log-probabilities were at hand for all of them.
    """

    findings: list[Finding]
    fdr: float
    trusted: int
    rollouts: int
    likelihood: bool

    @property
    def counts(self) -> dict[Verdict, int]:
        """Problems by verdict."""
        found = [finding.verdict for finding in self.findings]
        return {verdict: found.count(verdict) for verdict in get_args(Verdict)}

    @property
    def tested(self) -> int:
        """Candidates whose rewards vary."""
        return len(self.findings) - self.counts["untestable"]

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that a problem can get."""
        return 1 / (self.trusted + 1)

    @property
    def fewest(self) -> int:
        """Suspects that a list holds at the least, if it holds any: k with k fdr / tested >= the smallest p-value."""
        return ceil(self.smallest_p * self.tested / self.fdr - 1e-9)

    def needed(self, suspects: int) -> int:
        """Validation problems without which a list cannot hold as few as ``suspects``."""
        return max(1, ceil(self.tested / (suspects * self.fdr) - 1 - 1e-9))


def audit(candidates: Sequence[Alignment], folds: Sequence[Sequence[Alignment]], fdr: float, seed: int = 0) -> Audit:
    """Compare candidates with validation problems.

    With unequal numbers of rollouts, a candidate and the validation problems it is compared with are cut to the first
    rollouts that all of them have.

    Args:
        candidates: aligned, with single rollouts' movements.
        folds: cross-fitted alignments of the validation problems, see `gradalign.alignment.crossfit`.
        fdr: expected share of sound problems on each list, in (0, 1).
        seed: of the dealings.

    Raises:
        GradAlignError: no candidate can be tested; fewer than two folds.
    """
    varied = [a.evidence for a in candidates if a.status == "scored" and a.evidence is not None]
    trusted = [[a.evidence for a in fold if a.evidence is not None] for fold in folds]
    known = [evidence for fold in trusted for evidence in fold]
    if not varied:
        raise GradAlignError(
            f"candidates: none of the {len(candidates)} problems can be tested: within each, every rollout got the "
            "same reward; take problems that the policy solves sometimes, or more rollouts of each"
        )
    likelihood = all(evidence.logprobs is not None for evidence in [*varied, *known])
    shortest = min(len(evidence.rewards) for evidence in known)
    p: dict[str, list[float | None]] = {name: [None] * len(candidates) for name in LISTS}
    likelier: dict[int, bool] = {}  # whether a problem looks more like reversed than like dealt
    compared = 0
    for count in sorted({min(shortest, len(evidence.rewards)) for evidence in varied}):
        indices = [
            i for i, a in enumerate(candidates)
            if a.status == "scored" and a.evidence is not None and min(shortest, len(a.evidence.rewards)) == count
        ]  # fmt: skip
        cuts = {i: e for i in indices if (e := _cut(candidates[i], count, likelihood)) is not None}
        sound = [[e for own in fold if (e := cut(own, count, likelihood)) is not None] for fold in trusted]
        sound = [fold for fold in sound if fold]
        if len(sound) < 2:
            raise GradAlignError(
                f"validation: in the first {count} rollouts of each problem (as many as some candidates have), rewards "
                "vary in too few problems to compare with; give candidates more rollouts, or leave those out"
            )
        if cuts:
            compared = sum(map(len, sound))
            rows = np.stack([signs(evidence) for evidence in cuts.values()])
            copies = []
            for name, spoil in LISTS.items():
                random = np.random.default_rng(int(uniform_hash(name, seed, count) * 2**53))
                made = [[examples(evidence, spoil, random) for evidence in fold] for fold in sound]
                copies.append(np.concatenate([spoilt for fold in made for _, spoilt in fold]))
                for index, value in zip(cuts, _p_values(rows, made), strict=True):
                    p[name][index] = float(value)
            against, without = copies
            likelier |= dict(zip(cuts, (Regression(without, against).odds(rows) > 0).tolist(), strict=True))
    q = {name: _q_values(values) for name, values in p.items()}
    findings = []
    for i, alignment in enumerate(candidates):
        own_p, own_q = {name: p[name][i] for name in LISTS}, {name: q[name][i] for name in LISTS}
        on = [name for name, value in own_q.items() if value is not None and value <= fdr]
        count = 0 if alignment.evidence is None else contradictions(alignment.evidence)
        findings.append(Finding(_verdict(on, likelier.get(i)), own_p, own_q, count))
    return Audit(findings, fdr, compared, shortest, likelihood)


def _cut(alignment: Alignment, count: int, likelihood: bool) -> Evidence | None:
    return None if alignment.evidence is None else cut(alignment.evidence, count, likelihood)


Example = tuple[Floats, Floats]
"""What `examples` gives of a sound problem."""


def _p_values(rows: Floats, made: Sequence[Sequence[Example]]) -> Floats:
    """(candidates,) conformal p-values from the candidates' signs and each fold's examples; large log-odds are small
    p-values."""
    known: list[float] = []
    for fold in made:
        others = [example for other in made if other is not fold for example in other]
        known += _weighed(others).odds(np.stack([own for own, _ in fold])).tolist()
    everything = _weighed([example for fold in made for example in fold])
    return conformal(np.array(known), everything.odds(rows))


def _weighed(made: Sequence[Example]) -> Regression:
    return Regression(np.stack([own for own, _ in made]), np.concatenate([copies for _, copies in made]))


def conformal(known: Floats, values: Floats) -> Floats:
    """(values,) how often one of the ``known`` or the value itself is as large: (1 + how many are) / (1 + known)."""
    below = np.searchsorted(np.sort(known), values, side="left")
    return (1 + len(known) - below) / (1 + len(known))


def _q_values(p: Sequence[float | None]) -> list[float | None]:
    tested = np.array([value for value in p if value is not None])
    adjusted = iter(false_discovery_control(tested).tolist() if len(tested) else [])
    return [None if value is None else next(adjusted) for value in p]


def _verdict(on: Sequence[str], likelier_reversed: bool | None) -> Verdict:
    """Of a problem on the lists ``on``."""
    if likelier_reversed is None:
        return "untestable"
    if len(on) == len(LISTS):
        return "reversed" if likelier_reversed else "uninformative"
    return "reversed" if "reversed" in on else "uninformative" if on else "ok"
