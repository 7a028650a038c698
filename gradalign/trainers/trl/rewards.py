"""This package's rewards as TRL calls reward functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.problems.schema import Problem
from gradalign.rewards.base import Reward

COIN = "coin"
"""Column that is true where a problem is paid by coin."""
FIRST = "first_rollout"
"""Column of the number of the first of a problem's responses; 0 where there is none."""
_NOT_METADATA = ("key", "answer", "source", COIN, FIRST, "trainer_state", "log_extra", "log_metric")


class RewardFunction:
    """A `gradalign.rewards.base.Reward` with TRL's signature: with its time limit, its checks and, where asked, coins.

    The coins of a problem are tossed anew at every optimiser step.

    Args:
        reward: pays.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = dataclasses.replace(reward, coin=None)
        self.coin = reward.coin
        self.__name__ = reward.title.rsplit(":", 1)[-1]

    @property
    def identity(self) -> str:
        """What the rewards depend on."""
        return f"{self.reward.identity} {self.coin}"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[list[int]], **columns: Any
    ) -> list[float]:
        """Rewards of responses, those of one problem side by side.

        Raises:
            GradAlignError: the reward fails, or could not judge a response: training has no place for such a one, and
                TRL would pay it 0.
        """
        keys = columns["key"]
        rewards: list[float] = []
        while len(rewards) < len(keys):
            first = len(rewards)
            last = next((i for i in range(first, len(keys)) if keys[i] != keys[first]), len(keys))
            own = range(first, last)
            if self.coin is not None and columns.get(COIN, [False] * len(keys))[first]:
                coin = dataclasses.replace(self.coin, salt=columns["trainer_state"].global_step)
                number = columns.get(FIRST, [0] * len(keys))[first] - first
                rewards += [coin.toss(keys[first], i + number) for i in own]
                continue
            metadata = {name: values[first] for name, values in columns.items() if name not in _NOT_METADATA}
            problem = Problem(keys[first], prompts[first], columns["answer"][first], columns["source"][first], metadata)
            texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions[first:last]]
            paid = self.reward(problem, texts, completion_ids[first:last])
            if any(map(math.isnan, paid)):
                raise GradAlignError(
                    f"reward {self.reward.title!r} on problem {keys[first]!r}: a response could not be judged, and "
                    "training cannot leave it out; see to the judge and go on from the last checkpoint"
                )
            rewards += paid
        return rewards
