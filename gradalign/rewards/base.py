"""Rewards: functions with TRL's signature, found by name, run with a time limit, held to their contract."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import importlib
import inspect
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    except (Exception, SystemExit) as error:
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
        self, problem: Problem, completions: Sequence[str], completion_ids: Sequence[Sequence[int]], first: int = 0
    ) -> list[float]:
        """Rewards of one problem's responses, of which ``first`` is the first one's number.

        Raises:
            GradAlignError: the function raises, takes too long, returns the wrong length or something that is not a
                number.
        """
        count = len(completions)
        if self.coin is not None and self.coin.corrupts(problem.key):
            return [self.coin.toss(problem.key, index) for index in range(first, first + count)]
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
        values = returned.tolist() if hasattr(returned, "tolist") else returned
        if not isinstance(values, list | tuple):
            raise GradAlignError(f"{where}: returned {type(returned).__name__}; return a list of numbers")
        if len(values) != count:
            raise GradAlignError(f"{where}: returned {len(values)} values for {count} responses; return one for each")
        return [_finite(value, where) for value in values]

    @property
    def identity(self) -> str:
        """The name and, for a user's function, a hash of its module's source: what rewards depend on."""
        if self.function in REWARDS.values():
            return self.name
        try:
            source = Path(inspect.getsourcefile(self.function) or "").read_bytes()
        except (OSError, TypeError):
            return self.name
        return f"{self.name} {hashlib.sha256(source).hexdigest()[:16]}"

    def _call(self, key: str, columns: dict[str, Any]) -> Any:
        where = f"reward {self.name!r} on problem {key!r}"
        try:
            with _time_limit(self.timeout):
                value: Any = self.function(**columns)
                return asyncio.run(value) if inspect.iscoroutine(value) else value
        except _OutOfTimeError as error:
            raise GradAlignError(
                f"{where}: no answer within {self.timeout:g} s; mend it, or raise --reward-timeout"
            ) from error
        except GradAlignError:
            raise
        except (Exception, SystemExit) as error:
            hint = "; take **columns" if isinstance(error, TypeError) and "keyword argument" in str(error) else ""
            raise GradAlignError(f"{where}: raised {type(error).__name__}: {_said(error)}{hint}") from error


class _OutOfTimeError(BaseException):
    """Not an Exception, so that a reward's own ``except Exception`` does not swallow it."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after ``seconds``: by a signal in the main thread, elsewhere by an asynchronous exception.

    The signal also stops regular expressions and sleeps; the exception waits for the next line of Python.
    """

    def out_of_time(*_: Any) -> None:
        raise _OutOfTimeError

    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        before = signal.signal(signal.SIGALRM, out_of_time)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    else:
        thread = ctypes.c_ulong(threading.get_ident())
        interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc
        timer = threading.Timer(seconds, interrupt, (thread, ctypes.py_object(_OutOfTimeError)))
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _finite(value: Any, where: str) -> float:
    plain = value.item() if hasattr(value, "item") else value
    try:
        if isinstance(plain, int | float) and math.isfinite(plain):
            return float(plain)
    except OverflowError:
        pass
    raise GradAlignError(f"{where}: returned {value!r:.40}; return finite numbers")


def _said(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
