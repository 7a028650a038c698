"""The objective of one group: GRPO's policy gradient as a weighted sum of token log-probabilities.

For rollouts k = 1..G with rewards r_k and response tokens y_kt,

    J = (1 / Z) sum_k A_k w_k sum_t log pi(y_kt | x, y_k<t),

so a group's gradient is linear in its token log-probabilities: every token of rollout k has the coefficient
``A_k w_k / Z``. The denominator Z belongs to the group, hence no number depends on how tokens are batched.
On-policy the importance ratio is 1 and clipping does nothing; a KL term is never part of the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradalign.policy.group import Group

Advantage = Literal["mean", "std", "loo"]
Aggregation = Literal["token_mean", "sequence_mean", "sum"]
Floats = NDArray[np.float64]

STD_EPS = 1e-4
"""Added to the standard deviation by advantage ``std``, as in TRL."""


def advantages(rewards: Floats, kind: Advantage) -> Floats:
    """Advantages of one group's rollouts.

    Args:
        rewards: (rollouts,) rewards.
        kind: ``mean``: r - mean (Dr. GRPO, arXiv 2503.20783); ``std``: that over (standard deviation + 1e-4), the
            standard deviation with n - 1 (GRPO, arXiv 2402.03300, as in TRL); ``loo``: r minus the mean of the
            other rollouts (RLOO, arXiv 2402.14740).

    Returns:
        (rollouts,) advantages; exactly zero when all rewards are equal.
    """
    count = len(rewards)
    if count < 2 or rewards.max() == rewards.min():
        return np.zeros(count)
    centred = rewards - rewards.mean()
    if kind == "std":
        return centred / (rewards.std(ddof=1) + STD_EPS)
    if kind == "loo":
        return centred * (count / (count - 1))
    return centred


@dataclass(frozen=True, slots=True)
class Objective:
    """What a gradient is the gradient of.

    Attributes:
        advantage: see `advantages`.
        aggregation: ``token_mean`` (w = 1, Z = the group's response tokens; DAPO within a group),
            ``sequence_mean`` (w_k = 1 / |y_k|, Z = G; GRPO) or ``sum`` (w = 1, Z = G).
        temperature: log-probabilities are of softmax(logits / temperature).
        mask_truncated: tokens of rollouts that ended by their length count nowhere (TRL's
            ``mask_truncated_completions``); their rewards still do.
    """

    advantage: Advantage = "mean"
    aggregation: Aggregation = "token_mean"
    temperature: float = 1.0
    mask_truncated: bool = False

    def weights(self, group: Group) -> tuple[Floats, float]:
        """(w_k, Z): the (rollouts,) weights of the rollouts' summed log-probabilities, and the denominator."""
        count = len(group.rollouts)
        lengths = np.array([rollout.n_tokens for rollout in group.rollouts], np.float64)
        counted = np.ones(count)
        if self.mask_truncated:
            counted = np.array([rollout.finish_reason != "length" for rollout in group.rollouts], np.float64)
        if self.aggregation == "token_mean":
            return counted, float((lengths * counted).sum()) or 1.0
        if self.aggregation == "sequence_mean":
            return counted / lengths, float(count)
        return counted, float(count)

    def marked(self, groups: Sequence[Group]) -> list[Group]:
        """The groups; ``no_tokens`` is said of those whose rollouts were all truncated, where such count nowhere."""
        return [
            replace(group, invalid="no_tokens")
            if self.mask_truncated and group.status == "scored" and not self.weights(group)[0].any()
            else group
            for group in groups
        ]

    def coefficients(self, group: Group) -> Floats:
        """(rollouts,) the coefficient A_k w_k / Z of every counted token of rollout k."""
        weights, denominator = self.weights(group)
        return advantages(group.rewards, self.advantage) * weights / denominator


@dataclass(frozen=True, slots=True)
class Likelihood(Objective):
    """The mean log-probability of a group's response tokens, all of them trusted: A = 1 whatever the rewards are."""

    def coefficients(self, group: Group) -> Floats:
        """(rollouts,) the coefficient w_k / Z of every counted token of rollout k."""
        weights, denominator = self.weights(group)
        return weights / denominator
