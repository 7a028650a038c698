"""Test beds of the audit: rewards that are spoilt in known ways, made out of rollouts whose rewards are sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from gradalign.bench.corruptions import reached_wrong_gold
from gradalign.policy.group import Group
from gradalign.problems.schema import uniform_hash
from gradalign.rewards.coin import Coin


def _coins(group: Group) -> list[float]:
    return [Coin(1.0).toss(group.key, index) for index in range(len(group.rollouts))]


def _swapped(group: Group) -> list[float]:
    return [1.0 - rollout.reward for rollout in group.rollouts]


def _wrong_reached(group: Group) -> list[float]:
    return reached_wrong_gold(group).tolist()


def _wrong_unreached(group: Group) -> list[float]:
    return [0.0] * len(group.rollouts)


BEDS: dict[str, tuple[str, Callable[[Group], list[float]]]] = {
    "clean": ("nothing is spoilt", lambda group: [rollout.reward for rollout in group.rollouts]),
    "coins": ("a fair coin per response", _coins),
    "swapped": ("right and wrong change places", _swapped),
    "wrong-reached": ("the gold answer is the most frequent wrong one", _wrong_reached),
    "wrong-unreached": ("the gold answer is one that no rollout reaches", _wrong_unreached),
}
"""Bed -> what it is, and a group's rewards in it; rewards are 0 or 1 and responses are texts."""


def spoil(groups: Sequence[Group], bed: str, share: float, seed: int) -> tuple[list[Group], list[bool]]:
    """Spoil the rewards of some groups.

    Args:
        groups: with sound rewards.
        bed: a name in `BEDS`.
        share: of the groups that are spoilt; which ones depends on the seed and their keys alone.
        seed: of that.

    Returns:
        The groups, others in the spoilt ones' place; of each group, whether it was spoilt.
    """
    count = 0 if bed == "clean" else round(share * len(groups))
    chosen = {g.key for g in sorted(groups, key=lambda group: uniform_hash("spoilt", seed, group.key))[:count]}
    return [_paid(g, BEDS[bed][1](g)) if g.key in chosen else g for g in groups], [g.key in chosen for g in groups]


def _paid(group: Group, rewards: Sequence[float]) -> Group:
    rollouts = [dataclasses.replace(r, reward=reward) for r, reward in zip(group.rollouts, rewards, strict=True)]
    return dataclasses.replace(group, rollouts=rollouts)
