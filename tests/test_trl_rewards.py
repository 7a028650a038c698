"""Reward functions inside TRL: what identifies them, and coins over processes."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest

from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.countdown import countdown
from gradalign.trainers.trl.rewards import COIN, FIRST, RewardFunction, reward_identity


def scaled(completions: list[str], scale: float = 1.0, **_: Any) -> list[float]:
    return [scale * len(c) for c in completions]


class Scaled:
    """A reward with a setting, and a log."""

    def __init__(self, scale: float) -> None:
        self.scale, self.seen = scale, [object()]

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [self.scale * len(c) for c in completions]


def enclosed(scale: float) -> Any:
    def paid(completions: list[str], **_: Any) -> list[float]:
        return [scale * len(c) for c in completions]

    return paid


def test_arguments_of_a_partial_function_identify_it() -> None:
    partial = functools.partial
    assert reward_identity(partial(scaled, scale=1.0)) != reward_identity(partial(scaled, scale=-1.0))
    assert reward_identity(partial(partial(scaled, ["a"]), scale=1.0)) != reward_identity(partial(scaled, scale=1.0))
    assert reward_identity(partial(scaled, scale=2.0)) == reward_identity(partial(scaled, scale=2.0))


@pytest.mark.parametrize("make", [Scaled, enclosed, lambda scale: Scaled(scale).__call__])
def test_what_a_reward_holds_is_of_its_state(make: Any) -> None:
    one, other = make(1.0), make(-1.0)
    assert reward_identity(one) == reward_identity(other)
    assert reward_identity(one, state=True) != reward_identity(other, state=True)
    assert reward_identity(one, state=True) == reward_identity(make(1.0), state=True)


def test_what_cannot_be_told_is_left_out() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert reward_identity(functools.partial(scaled, loop)) == reward_identity(functools.partial(scaled, loop))
    assert reward_identity(len) == "len"


def test_a_problem_cut_over_processes_is_tossed_for_every_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paid = RewardFunction(Reward("countdown", countdown, coin=Coin(1.0, 3)))
    columns = {
        "answer": [""] * 32,
        "source": [""] * 32,
        COIN: [True] * 32,
        "trainer_state": SimpleNamespace(global_step=5),
    }

    def tossed(process: int, **more: Any) -> list[float]:
        state = SimpleNamespace(process_index=process)
        monkeypatch.setitem(vars(RewardFunction)["__call__"].__globals__, "PartialState", lambda: state)
        return paid(["p"] * 32, ["x"] * 32, [[0]] * 32, key=["k"] * 32, **columns, **more)

    assert tossed(0) != tossed(1)
    assert tossed(0, **{FIRST: [32] * 32}) == tossed(1, **{FIRST: [32] * 32}) == tossed(1)
