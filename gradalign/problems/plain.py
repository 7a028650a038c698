"""Plain values: what JSON can write, which is what a problem's metadata may hold."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from gradalign.errors import warn


class NotPlainError(TypeError):
    """A value that no text, number, list or mapping can stand for; the message is what it is."""


def plain(value: Any) -> Any:
    """The value as JSON can write it: times (ISO form), decimals and names of fields as texts, tuples as lists.

    Raises:
        NotPlainError: it holds bytes, an image, or any other thing.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    raise NotPlainError(type(value).__name__)


class PlainFields:
    """Rows with plain values only; fields that hold others are left out, counted, and named in one warning.

    Args:
        where: the pool or file, for the warning.
        so: what happens to such fields, for the warning.
    """

    def __init__(self, where: str, so: str) -> None:
        self._where, self._so = where, so
        self._left: dict[str, tuple[str, int]] = {}

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row's plain fields."""
        kept: dict[str, Any] = {}
        for name, value in row.items():
            try:
                kept[str(name)] = plain(value)
            except NotPlainError as error:
                self._left[name] = (str(error), self._left.get(name, ("", 0))[1] + 1)
        return kept

    def say(self) -> None:
        """Warn of what was left out."""
        if self._left:
            named = [f"{name!r} ({kind} in {count} rows)" for name, (kind, count) in self._left.items()]
            warn(f"{self._where}: {', '.join(named)}: neither texts nor numbers, {self._so}")
