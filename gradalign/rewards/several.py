"""Several rewards at once: their weighted sum, as TRL's ``reward_funcs`` and ``reward_weights``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradalign.errors import GradAlignError
from gradalign.problems.schema import Problem
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """r = sum_i w_i r_i over its terms; NaN where a term could not judge the response.

    A coin, which all terms share, pays the sum of the weights for heads.

    Attributes:
        terms: the rewards.
        weights: one for each.
    """

    terms: tuple[Reward, ...]
    weights: tuple[float, ...]

    def __call__(
        self, problem: Problem, completions: Sequence[str], completion_ids: Sequence[Sequence[int]], first: int = 0
    ) -> list[float]:
        """See `gradalign.rewards.base.Reward`."""
        return self.total([term(problem, completions, completion_ids, first) for term in self.terms])

    def total(self, rewards: Sequence[Sequence[float]]) -> list[float]:
        """(responses,) the weighted sum of (terms, responses) ``rewards``."""
        return [
            sum(weight * value for weight, value in zip(self.weights, own, strict=True))
            for own in zip(*rewards, strict=True)
        ]

    @property
    def name(self) -> str:
        """All names with their weights."""
        return " + ".join(f"{weight:g} {term.name}" for weight, term in zip(self.weights, self.terms, strict=True))

    @property
    def identity(self) -> str:
        """All identities with their weights."""
        return " + ".join(f"{w!r} {term.identity}" for w, term in zip(self.weights, self.terms, strict=True))

    @property
    def coin(self) -> Coin | None:
        """The coin that all terms share."""
        return self.terms[0].coin


AnyReward = Reward | WeightedSum
"""One reward, or several with weights."""


def together(terms: Sequence[Reward], weights: Sequence[float]) -> AnyReward:
    """The terms' sum under ``weights``, all 1 where none are given; a single term of weight 1 is itself.

    Raises:
        GradAlignError: not one weight for each term; one reward named twice.
    """
    if weights and len(weights) != len(terms):
        raise GradAlignError(
            f"option --reward-weights: has {len(weights)} weights for {len(terms)} rewards "
            f"({', '.join(term.title for term in terms)}); give one for each, in the same order"
        )
    names = [term.name for term in terms]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise GradAlignError(f"option --reward: names {twice[0]!r} twice; name it once, with its weight")
    weights = tuple(weights) or (1.0,) * len(terms)
    return terms[0] if weights == (1.0,) else WeightedSum(tuple(terms), weights)
