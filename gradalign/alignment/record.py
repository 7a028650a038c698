"""The alignment of one group: what scoring says of it, and the statistics of its rollouts' contributions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Status
from gradalign.policy.objective import Objective, advantages

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Numbers:
    """What an engine measured of one group; None where the engine cannot see it.

    Attributes:
        dot: <g, v/|v|>.
        norm: |g|.
        cosine: dot / norm.
        se: standard error of dot over rollouts.
        t: dot / se.
        corr: Pearson correlation over rollouts of the reward with the weighted directional derivative.
        learnalign: LearnAlign's score among all groups that were measured; see `gradalign.alignment.learnalign`.
        sources: validation source -> cosine of g with the mean gradient of its problems, where they were asked for.
        near: (validation problems,) cosines of g with each one's gradient, where they were asked for.
        moves: (rollouts,) the weighted directional derivatives w_k c_k.
        features: (numbers,) of the group's gradient, from a sketch that was asked to keep them.
    """

    dot: float | None = None
    norm: float | None = None
    cosine: float | None = None
    se: float | None = None
    t: float | None = None
    corr: float | None = None
    learnalign: float | None = None
    sources: dict[str, float] | None = None
    near: Floats | None = field(default=None, compare=False, repr=False)
    moves: Floats | None = field(default=None, compare=False, repr=False)
    features: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    def require_finite(self, group: Group) -> None:
        """Refuse NaN and infinity.

        Raises:
            GradAlignError: a number that was measured is not finite; names the group's problem.
        """
        values = [self.dot, self.norm, self.cosine, self.se, self.t, self.corr, self.learnalign]
        values += [*(self.sources or {}).values(), *(() if self.near is None else self.near.tolist())]
        if not all(value is None or math.isfinite(value) for value in values):
            raise GradAlignError(
                f"candidates: problem {group.key!r}: its alignment is not finite (NaN or infinity in the model's "
                "outputs or gradient); check the weights, or score in float32"
            )


@dataclass(slots=True)
class Evidence:
    """What a problem's single rollouts say; for statistics over them.

    Attributes:
        rewards: (rollouts,) their rewards.
        responses: (rollouts,) which of the group's distinct responses each is.
        logprobs: (rollouts,) log-probabilities of the responses under the policy that sampled them, where known.
        moves: (rollouts,) w_k c_k, how far moving along v makes each likelier, where the engine saw it.
    """

    rewards: Floats
    responses: NDArray[np.int64]
    logprobs: Floats | None = None
    moves: Floats | None = None

    @classmethod
    def of(cls, group: Group, moves: Floats | None = None) -> Evidence:
        """Of a group that bad rows have not marked."""
        known = [None if r.logprobs is None else float(r.logprobs[r.mask].sum()) for r in group.rollouts]
        sums = np.array([math.nan if value is None else value for value in known], np.float64)
        return cls(group.rewards, group.distinct()[1], sums if np.isfinite(sums).all() else None, moves)


@dataclass(slots=True)
class Alignment:
    """One row of the alignment table; ``score``, ``gate``, ``rank`` and ``selected`` are filled in by a strategy."""

    key: str
    source: str
    status: Status
    pass_rate: float | None
    n_rollouts: int
    n_tokens: int
    numbers: Numbers
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    score: float | None = None
    gate: str | None = None
    rank: int | None = None
    selected: bool | None = None

    @classmethod
    def of(cls, group: Group, numbers: Numbers | None = None) -> Alignment:
        """The row of ``group``; without numbers where it was not scored."""
        count, numbers = len(group.rollouts), numbers or Numbers()
        if group.invalid is not None:
            return cls(group.key, group.source, group.status, None, count, group.n_tokens, numbers)
        mean, evidence = float(group.rewards.mean()), Evidence.of(group, numbers.moves)
        return cls(group.key, group.source, group.status, mean, count, group.n_tokens, numbers, evidence)


def unscored(key: str, source: str) -> Alignment:
    """The row of a problem that nobody sampled or scored, for strategies that look at nothing: eligible as it is."""
    return Alignment(key, source, "scored", None, 0, 0, Numbers())


def from_contributions(group: Group, objective: Objective, derivatives: Floats) -> Numbers:
    """Statistics of a group from its rollouts' directional derivatives.

    With c_k = <grad log pi(y_k), v/|v|> and x_k = (G / Z) A_k w_k c_k: dot = mean of the x_k; se = their standard
    deviation (n - 1) / sqrt(G); t = dot / se; corr = Pearson correlation of r_k with w_k c_k.

    Args:
        group: the group.
        objective: gives A, w and Z.
        derivatives: (rollouts,) the c_k.

    Returns:
        Numbers with dot, se, t, corr and moves; t is None where se is zero, corr where all w_k c_k are equal.
    """
    rewards, count = group.rewards, len(group.rollouts)
    weights, denominator = objective.weights(group)
    moved = weights * derivatives
    contributions = count / denominator * advantages(rewards, objective.advantage) * moved
    dot = float(contributions.mean())
    se = float(contributions.std(ddof=1) / math.sqrt(count))
    corr = None
    if np.ptp(moved) > 0:
        centred_rewards, centred_moves = rewards - rewards.mean(), moved - moved.mean()
        scale = math.sqrt(float((centred_rewards**2).sum() * (centred_moves**2).sum()))
        if scale > 0:
            corr = min(1.0, max(-1.0, float((centred_rewards * centred_moves).sum()) / scale))
    return Numbers(dot=dot, se=se, t=dot / se if se > 0 else None, corr=corr, moves=moved)
