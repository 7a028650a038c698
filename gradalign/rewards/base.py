"""Rewards: functions with TRL's signature, found by name, run with a time limit, held to their contract."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradalign.errors import GradAlignError, nearest
from gradalign.problems.schema import Problem
from gradalign.rewards.coin import Coin
from gradalign.rewards.countdown import countdown
from gradalign.rewards.text import exact, number

RewardFunction = Callable[..., Sequence[float]]
"""``f(prompts=..., completions=..., completion_ids=..., **columns) -> rewards``, all lists with one item a response; a
column is a field of the problem (``answer``, metadata). As in TRL, a chat problem's completion is a list of messages,
any other problem's is a text. It may be a coroutine function."""

REWARDS: dict[str, RewardFunction] = {"exact": exact, "number": number, "countdown": countdown}
"""Reward name -> function."""


def find_reward(spec: str) -> RewardFunction:
    """A reward by name, or ``python:pkg.module:function``.

    Raises:
        GradAlignError: unknown name; the module or the function cannot be found.
    """
    if not spec.startswith("python:"):
        if spec not in REWARDS:
            raise GradAlignError(f"unknown reward {spec!r}{nearest(spec, [*REWARDS, 'python:pkg.module:function'])}")
        return REWARDS[spec]
    module_name, _, name = spec.removeprefix("python:").partition(":")
    if not module_name or not name:
        raise GradAlignError(f"reward {spec!r}: write python:pkg.module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise GradAlignError(f"reward {spec!r}: {module_name} cannot be imported ({_said(error)})") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise GradAlignError(f"reward {spec!r}: {module_name} has no function {name!r}{nearest(name, functions)}")
    return function


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward function at work.

    Attributes:
        name: how messages call it.
        function: see `RewardFunction`.
        timeout: seconds that one call may take.
        coin: pays some problems by coin instead, where given.
    """

    name: str
    function: RewardFunction
    timeout: float = 60.0
    coin: Coin | None = None

    def __call__(
        self, problem: Problem, completions: Sequence[str], completion_ids: Sequence[Sequence[int]]
    ) -> list[float]:
        """Rewards of one problem's responses.

        Raises:
            GradAlignError: the function raises, takes too long, returns the wrong length or something that is not a
                number.
        """
        count = len(completions)
        if self.coin is not None and self.coin.corrupts(problem.key):
            return [self.coin.toss(problem.key, index) for index in range(count)]
        chat = not isinstance(problem.prompt, str)
        columns = {**problem.metadata, "answer": problem.answer, "source": problem.source, "key": problem.key}
        talk = chat and self.function not in REWARDS.values()
        own = {
            "prompts": [problem.prompt] * count,
            "completions": [[{"role": "assistant", "content": text}] if talk else text for text in completions],
            "completion_ids": [list(ids) for ids in completion_ids],
        }
        returned = self._call(problem.key, {name: [value] * count for name, value in columns.items()} | own)
        where = f"reward {self.name!r} on problem {problem.key!r}"
        if not isinstance(returned, Sequence) and not hasattr(returned, "tolist"):
            raise GradAlignError(
                f"{where}: returned {type(returned).__name__}; return a list with one number a response"
            )
        values = list(returned.tolist() if hasattr(returned, "tolist") else returned)
        if len(values) != count:
            raise GradAlignError(f"{where}: returned {len(values)} values for {count} responses; return one for each")
        for value in values:
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise GradAlignError(f"{where}: returned {value!r}; return finite numbers")
        return [float(value) for value in values]

    def _call(self, key: str, columns: dict[str, Any]) -> Any:
        outcome: list[Any] = []

        def work() -> None:
            try:
                value: Any = self.function(**columns)
                if inspect.iscoroutine(value):
                    value = asyncio.run(value)
                outcome.extend((None, value))
            except BaseException as error:  # handed to the caller
                outcome.extend((error, None))

        thread = threading.Thread(target=work, daemon=True, name=f"reward {self.name}")
        thread.start()
        thread.join(self.timeout)
        where = f"reward {self.name!r} on problem {key!r}"
        if not outcome:
            raise GradAlignError(f"{where}: no answer within {self.timeout:g} s; mend it, or raise --reward-timeout")
        error, value = outcome
        if isinstance(error, GradAlignError):
            raise error
        if error is not None:
            raise GradAlignError(f"{where}: raised {type(error).__name__}: {_said(error)}") from error
        return value


def _said(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
