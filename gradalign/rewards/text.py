"""Rewards that read the response's text: ``exact`` and ``number``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from gradalign.errors import GradAlignError

_NUMBER = re.compile(r"[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-\u2212]?\.\d+")


def exact(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """1.0 where the response, stripped of white space at its ends, is the answer; else 0.0."""
    return [float(text.strip() == gold.strip()) for text, gold in zip(completions, answer, strict=True)]


def number(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """1.0 where the last number in the response equals the answer; else 0.0.

    Thousands separators are read (``1,234``), and a sign where no digit or bracket stands before it (``5-3`` ends in
    3). Decimal arithmetic: ``18``, ``18.0`` and ``18.00`` are equal.

    Raises:
        GradAlignError: an answer is not a number.
    """
    gold = [_decimal(text) for text in answer]
    for text, value in zip(answer, gold, strict=True):
        if value is None:
            raise GradAlignError(
                f"reward 'number': the answer {text!r} is not a number; mend it, or use reward 'exact'"
            )
    return [float(last_number(text) == value) for text, value in zip(completions, gold, strict=True)]


def last_number(text: str) -> Decimal | None:
    """The last number in a text, or None."""
    found = None
    for match in _NUMBER.finditer(text):
        found = match
    if found is None:
        return None
    token = found.group()
    before = text[: found.start()].rstrip()[-1:]
    if token[0] in "-\u2212" and (before.isdigit() or before in tuple(")]")):
        token = token[1:]
    return _decimal(token)


def _decimal(text: str) -> Decimal | None:
    try:
        value = Decimal(text.strip().replace(",", "").replace("\u2212", "-").removeprefix("$").removesuffix("%"))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
