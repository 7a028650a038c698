"""Sampling and paying by workers: batches as they are finished, the same ones that one process would make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradalign.executors.base import Executor
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.problems.schema import Problem
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.find import find_reward
from gradalign.rewards.several import together
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import Asked, PolicySampler


@dataclass(frozen=True)
class Sampled:
    """The `gradalign.executors.base.Job` of sampling; items are problems with their prompts.

    Attributes:
        terms: name, time limit and coin of each reward that pays the responses; workers find its function by the name.
        weights: of the rewards.
        sampling: how responses are sampled.
    """

    terms: tuple[tuple[str, float, Coin | None], ...]
    weights: tuple[float, ...]
    sampling: Sampling

    def begin(self, policy: Policy, cut: int) -> Callable[[Sequence[Asked]], list[Group]]:
        """See `Job`. A problem's responses are decoded together however often that has failed.

        Raises:
            GradAlignError: a reward cannot be found on the worker's machine.
        """
        rewards = [Reward(name, find_reward(name), timeout, coin) for name, timeout, coin in self.terms]
        sampler = PolicySampler(policy, together(rewards, self.weights), self.sampling)
        return lambda asked: sampler.sample([problem for problem, _ in asked], [prompt for _, prompt in asked])

    def name(self, item: Asked) -> str:
        """See `Job`."""
        return f"problem {item[0].key!r}"


@dataclass
class SpreadSampler(PolicySampler):
    """A `PolicySampler` whose batches are sampled and paid by workers.

    Attributes:
        executor: the workers, whose replicas are of the same weights as ``policy``; that one gives the prompts.
    """

    executor: Executor = field(kw_only=True)

    def each(self, batches: Sequence[Sequence[Asked]]) -> Iterator[tuple[int, list[Group]]]:
        """See `gradalign.rollouts.sampler.Spreading`."""
        terms = tuple((term.name, term.timeout, term.coin) for term in self.reward.terms)
        job = Sampled(terms, self.reward.weights, self.sampling)
        for number, groups in self.executor.each(job, batches):
            yield (
                number,
                [
                    self._failed(*asked) if group is None else group
                    for asked, group in zip(batches[number], groups, strict=True)
                ],
            )

    def _failed(self, problem: Problem, prompt: np.ndarray) -> Group:
        """The group of a problem that cost its workers."""
        none = [Rollout(np.zeros(0, np.int64), math.nan) for _ in range(self.rollouts)]
        return Group(problem.key, prompt, none, problem.source, self.policy.fingerprint, "failed")
