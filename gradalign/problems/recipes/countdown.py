"""Countdown-Tasks-3to4: reach a target from three or four numbers.

Fields: target (a whole number), nums (a list of them). Reward ``countdown`` takes a response that is the expression
alone, so the prompt asks for that; the numbers are metadata ``numbers``.
"""

from __future__ import annotations

from typing import Any

from gradalign.errors import GradAlignError
from gradalign.problems.recipes.base import Recipe, take
from gradalign.rows import Row


def _countdown(row: Row) -> Row:
    numbers, target = take(row, "nums"), take(row, "target")
    if not isinstance(numbers, list | tuple) or not numbers or not all(map(_whole, numbers)):
        raise GradAlignError(f"field 'nums' is {numbers!r:.40}, not a list of whole numbers")
    if not _whole(target):
        raise GradAlignError(f"field 'target' is {target!r:.40}, not a whole number")
    prompt = (
        f"Use each of the numbers {', '.join(map(str, numbers))} exactly once, with +, -, *, / and brackets, to make "
        f"{target}. Write the expression and nothing else."
    )
    return {"prompt": prompt, "answer": str(target), "numbers": list(numbers), **row}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


COUNTDOWN = Recipe("Jiayi-Pan/Countdown-Tasks-3to4", _countdown, "countdown")
