"""Rewards by name: the project's own, those of installed packages, a function of one's own, one written for verl."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
from typing import Any

from gradalign.errors import GradAlignError, nearest
from gradalign.parts import Registry, find, parse
from gradalign.rewards.base import RewardFunction, said
from gradalign.rewards.choice import choice
from gradalign.rewards.countdown import countdown
from gradalign.rewards.gym import ReasoningGym
from gradalign.rewards.judge import Judge
from gradalign.rewards.mathematics import Math
from gradalign.rewards.text import exact, number
from gradalign.rewards.verl import verl_reward

REWARDS: Registry[Any] = Registry(
    "gradalign.rewards",
    {
        "exact": exact, "number": number, "countdown": countdown, "choice": choice, "math": Math,
        "reasoning-gym": ReasoningGym, "judge": Judge,
    },
    ("__call__",),
)  # fmt: skip
"""Reward name -> function, or frozen dataclass whose instances are called like one."""

_FORMS = ("python:pkg.module:function", "verl:path.py:compute_score")


def find_reward(spec: str) -> RewardFunction:
    """The reward that ``spec`` names: ``name``, ``name(parameter=value)``, or one of `_FORMS`.

    Raises:
        GradAlignError: unknown name or parameter; a file, module, function or package that cannot be found.
    """
    if spec.startswith("python:"):
        return _python(spec)
    if spec.startswith("verl:"):
        return verl_reward(spec)
    name = spec.partition("(")[0].strip()
    if name not in REWARDS:
        raise GradAlignError(f"unknown reward {name!r}{nearest(name, [*REWARDS, *_FORMS])}")
    found = find(name, REWARDS, "reward")
    if inspect.isclass(found) and dataclasses.is_dataclass(found):
        part: Any = parse(spec, {name: found}, "reward")
        return part
    if inspect.isclass(found):
        raise GradAlignError(f"reward {name!r}: is a class and no dataclass; make it one, its fields the parameters")
    if "(" in spec:
        raise GradAlignError(f"reward {name!r}: has no parameters; write {name}")
    return found


def _python(spec: str) -> RewardFunction:
    module_name, _, name = spec.removeprefix("python:").partition(":")
    if not module_name or not name:
        raise GradAlignError(f"reward {spec!r}: write python:pkg.module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise GradAlignError(f"reward {spec!r}: {module_name} cannot be imported ({said(error)})") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise GradAlignError(f"reward {spec!r}: {module_name} has no function {name!r}{nearest(name, functions)}")
    return function
