"""Reward of Countdown and of the embedded problems: sums by their value, Countdown by the expression."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from gradalign.errors import GradAlignError

_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_EXPRESSION = re.compile(r"[0-9+\-*/() ]{1,256}")


def _value(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, used), _value(node.right, used))
    raise ValueError("not an expression over + - * / and whole numbers")


def _reaches(text: str, target: str, numbers: Sequence[int]) -> bool:
    if not _EXPRESSION.fullmatch(text) or "**" in text:
        return False
    used: list[int] = []
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return value == int(target) and sorted(used) == sorted(numbers)


def countdown(
    completions: Sequence[str],
    answer: Sequence[str],
    numbers: Sequence[Sequence[int] | None] | None = None,
    **_: Any,
) -> list[float]:
    """1.0 for a correct response, else 0.0.

    A problem that brings ``numbers`` is Countdown: the response must be an expression over ``+ - * /`` and brackets
    that uses each number exactly once and equals the answer, divisions exact. Any other response must be the answer's
    own text. reasoning-gym's verdict is the same but for what it evaluates beyond these operators (signs, powers,
    factorials).

    Raises:
        GradAlignError: ``numbers`` is no list of whole numbers.
    """
    pools = numbers if numbers is not None else [None] * len(completions)
    return [
        float(_reaches(text, gold, _whole(pool)) if pool is not None else text.strip() == gold.strip())
        for text, gold, pool in zip(completions, answer, pools, strict=True)
    ]


def _whole(numbers: Any) -> list[int]:
    """The numbers that are to be used.

    Raises:
        GradAlignError: they are no whole numbers.
    """
    listed: list[Any] = list(numbers) if isinstance(numbers, Sequence) and not isinstance(numbers, str) else [None]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and n == int(n) for n in listed):
        raise GradAlignError(f"field 'numbers' is {numbers!r:.40}; write a list of whole numbers")
    return [int(n) for n in listed]
