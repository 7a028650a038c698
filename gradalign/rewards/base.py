"""Rewards: functions with TRL's signature, run with a time limit, held to their contract."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.problems.schema import Problem
from gradalign.rewards.coin import Coin
from gradalign.rewards.limit import OutOfTimeError, within

RewardFunction = Callable[..., Sequence[float]]
"""``f(prompts=..., completions=..., completion_ids=..., **columns) -> rewards``, all lists with one item a response; a
column is a field of the problem (``answer``, metadata). As in TRL, a chat problem's completion is a list of messages,
any other problem's is a text. It may be a coroutine function.

A function, or a frozen dataclass with ``__call__`` whose fields are its parameters, may say more of itself:
``limits_itself``, true where it keeps to a time limit of its own; ``marks_failures``, true where NaN stands for a
response that could not be judged; ``takes_text``, true where it wants a chat problem's completion as text too;
``identity``, what its rewards depend on."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward function at work.

    Attributes:
        name: how configurations name it.
        function: see `RewardFunction`.
        timeout: seconds that one call may take, where the function does not limit itself.
        coin: pays some problems by coin instead, where given.
    """

    name: str
    function: RewardFunction
    timeout: float = 60.0
    coin: Coin | None = None

    def __call__(
        self, problem: Problem, completions: Sequence[str], completion_ids: Sequence[Sequence[int]], first: int = 0
    ) -> list[float]:
        """Rewards of one problem's responses, of which ``first`` is the first one's number.

        Returns:
            Finite numbers, and NaN for a response that a function with ``marks_failures`` could not judge.

        Raises:
            GradAlignError: the function raises, takes too long, returns the wrong length or something that is not a
                number.
        """
        count = len(completions)
        if self.coin is not None and self.coin.corrupts(problem.key):
            return [self.coin.toss(problem.key, index) for index in range(first, first + count)]
        talk = not isinstance(problem.prompt, str) and not (self._own or getattr(self.function, "takes_text", False))
        columns = {**problem.metadata, "answer": problem.answer, "source": problem.source, "key": problem.key}
        own = {
            "prompts": [problem.prompt] * count,
            "completions": [[{"role": "assistant", "content": text}] if talk else text for text in completions],
            "completion_ids": [list(ids) for ids in completion_ids],
        }
        where = f"reward {self.title!r} on problem {problem.key!r}"
        returned = self._call(where, {name: [value] * count for name, value in columns.items()} | own)
        values = returned.tolist() if hasattr(returned, "tolist") else returned
        if not isinstance(values, list | tuple):
            raise GradAlignError(f"{where}: returned {type(returned).__name__}; return a list of numbers")
        if len(values) != count:
            raise GradAlignError(f"{where}: returned {len(values)} values for {count} responses; return one for each")
        marks = getattr(self.function, "marks_failures", False)
        return [math.nan if marks and value != value else _finite(value, where) for value in values]

    @property
    def title(self) -> str:
        """How messages call it: its name without parameters."""
        return self.name.partition("(")[0]

    @property
    def terms(self) -> tuple[Reward, ...]:
        """The reward functions that pay: this one; see `gradalign.rewards.several.WeightedSum`."""
        return (self,)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each term."""
        return (1.0,)

    @property
    def identity(self) -> str:
        """The name and, for a user's function, a hash of its module's source: what rewards depend on."""
        told = getattr(self.function, "identity", None)
        if isinstance(told, str):
            return told
        if self._own:
            return self.name
        function: Any = self.function
        told = b""
        while isinstance(function, functools.partial):
            told += repr((function.args, sorted(function.keywords.items()))).encode()
            function = function.func
        for own in {id(f): f for f in (function, inspect.unwrap(function))}.values():  # decorated, and what is
            with contextlib.suppress(OSError, TypeError):
                told += Path(inspect.getsourcefile(own if inspect.isroutine(own) else type(own)) or "").read_bytes()
        return f"{self.name} {hashlib.sha256(told).hexdigest()[:16]}" if told else self.name

    @property
    def _own(self) -> bool:
        return str(getattr(self.function, "__module__", "")).startswith(f"{__package__}.")

    def _call(self, where: str, columns: dict[str, Any]) -> Any:
        def work() -> Any:
            value: Any = self.function(**columns)
            return asyncio.run(value) if inspect.iscoroutine(value) else value

        try:
            return work() if getattr(self.function, "limits_itself", False) else within(self.timeout, work)
        except OutOfTimeError as error:
            raise GradAlignError(
                f"{where}: no answer within {self.timeout:g} s; mend it, or raise --reward-timeout"
            ) from error
        except GradAlignError:
            raise
        except (Exception, SystemExit) as error:
            hint = "; take **columns" if isinstance(error, TypeError) and "keyword argument" in str(error) else ""
            raise GradAlignError(f"{where}: raised {type(error).__name__}: {said(error)}{hint}") from error


def said(error: BaseException) -> str:
    """The first line of what an exception says, else its type."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _finite(value: Any, where: str) -> float:
    try:
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, int | float) and math.isfinite(plain):
            return float(plain)
    except (OverflowError, ValueError, RuntimeError):  # too large; an array or a tensor of several
        pass
    raise GradAlignError(f"{where}: returned {value!r:.40}; return finite numbers")
