"""This package's rewards as TRL calls reward functions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState

from gradalign.errors import GradAlignError
from gradalign.problems.schema import Problem
from gradalign.rewards.base import Reward

COIN = "coin"
"""Column that is true where a problem is paid by coin."""
FIRST = "first_rollout"
"""Column of the number of the first of a problem's responses, where they are scored."""
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
                # A batch in training is cut over the processes, perhaps within a problem: no two toss alike.
                number = columns[FIRST][first] if FIRST in columns else PartialState().process_index * len(keys)
                rewards += [coin.toss(keys[first], i - first + number) for i in own]
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


def reward_identity(function: Any, state: bool = False) -> str:
    """What a reward function's rewards depend on, as far as can be told.

    Args:
        function: a function, a partial one, an object that can be called, or a reward model.
        state: tell of an object's attributes, and of the variables that a function has from around it, too: rewards
            that are kept depend on them, but a run may go on where some of them (counters, logs) have changed.

    Returns:
        Its own ``identity`` where it has one, a model's name, or its name with a hash of its source and arguments.
    """
    own = getattr(function, "identity", None)
    if isinstance(own, str):
        return own
    if isinstance(function, torch.nn.Module):
        return str(getattr(getattr(function, "config", None), "_name_or_path", type(function).__name__))
    held: list[Any] = []
    while isinstance(function, functools.partial):
        held.append([function.args, function.keywords])
        function = function.func
    name = str(getattr(function, "__name__", type(function).__name__))
    if state:
        owner = getattr(function, "__self__", None if hasattr(function, "__name__") else function)
        held += [getattr(owner, "__dict__", {}), _enclosed(function)]
    try:
        told = inspect.getsource(function if hasattr(function, "__name__") else type(function))
    except (OSError, TypeError):
        told = ""
    with contextlib.suppress(TypeError, ValueError):  # values that refer to themselves
        told += json.dumps(held, default=_kind) if any(held) else ""
    return f"{name} {hashlib.sha256(told.encode()).hexdigest()[:16]}" if told else name


def _enclosed(function: Any) -> list[Any]:
    """Values of the variables that a function has from around it."""
    found: list[Any] = []
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            found.append(cell.cell_contents)
    return found


def _kind(value: Any) -> str:
    """A value that JSON cannot say, by its name or its type's."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))
