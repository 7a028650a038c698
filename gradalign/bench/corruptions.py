"""Rewards gone wrong, made out of clean rollouts: what choosing must see through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradalign.policy.group import Group
from gradalign.problems.schema import uniform_hash

Rewards = NDArray[np.float64]


def corrupted(keys: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """(problems,) which are corrupted: exactly ``share`` of them, those with the lowest hashes."""
    draws = np.array([uniform_hash("corrupt", seed, key) for key in keys])
    chosen = np.zeros(len(keys), bool)
    chosen[np.argsort(draws, kind="stable")[: round(share * len(keys))]] = True
    return chosen


def coins(group: Group, seed: int, chance: float = 0.5) -> Rewards:
    """(rollouts,) 1 with ``chance`` whatever the response, else 0; tossed by key and number of the rollout."""
    tosses = [uniform_hash("toss", seed, group.key, index) < chance for index in range(len(group.rollouts))]
    return np.array(tosses, np.float64)


def matched_coins(group: Group, seed: int, rates: Sequence[float]) -> Rewards:
    """(rollouts,) tosses of a coin whose chance is drawn from ``rates``, the pass rates of the clean problems."""
    place = int(uniform_hash("chance", seed, group.key) * len(rates))
    return coins(group, seed, sorted(rates)[place])


def wrong_gold(group: Group, seed: int) -> Rewards:
    """(rollouts,) rewards under a wrong gold answer, of ``group`` with its clean rewards.

    For one half of the problems, by hash of the key, the gold answer is the commonest wrong response, and every
    response of that text is paid; for the other half, and where no response is wrong, it is one that no response gives.
    """
    if uniform_hash("reached", seed, group.key) < 0.5:
        return np.zeros(len(group.rollouts))
    return reached_wrong_gold(group)


def reached_wrong_gold(group: Group) -> Rewards:
    """(rollouts,) rewards under the commonest wrong response as gold answer; all 0 where no response is wrong."""
    texts = [rollout.response or "" for rollout in group.rollouts]
    wrong = Counter(text for text, rollout in zip(texts, group.rollouts, strict=True) if not rollout.reward)
    gold = min(wrong, key=lambda text: (-wrong[text], text), default=None)
    return np.array([text == gold for text in texts], np.float64)
