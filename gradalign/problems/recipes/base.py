"""What a recipe is, and what recipes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.rows import Row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class LeftOutError(Exception):
    """Raised by a recipe for a row that is sound but cannot be asked as text; the message says why, in a few words."""


@dataclass(frozen=True)
class Recipe:
    """How the rows of a data set become problems.

    Attributes:
        hub: the data set's name on the Hugging Face Hub.
        make: gives of a row (a copy, whose fields it may take away) one with ``prompt`` and ``answer``; raises
            `GradAlignError` (without the row's number) for a field that is missing or holds what it cannot,
            `LeftOutError` for a row that is left out and counted.
        reward: the reward that fits.
        config: the data set's configuration.
        split: the split that is read unless another is named.
        part: whether a row is of this recipe at all, where a data set holds more than one.
        licence: of the data, as their card states it; None where it states none or was not seen.
        seen: whether the recipe was run on real rows; else its fields are those of the card and of published code.
    """

    hub: str
    make: Callable[[Row], Row]
    reward: str
    config: str | None = None
    split: str = "train"
    part: Callable[[Row], bool] = lambda row: True
    licence: str | None = None
    seen: bool = False


def take(row: Row, *names: str) -> Any:
    """Take the first of the fields that the row has away from it.

    Raises:
        GradAlignError: it has none of them, or null there.
    """
    for name in names:
        if row.get(name) is not None:
            return row.pop(name)
    raise GradAlignError(f"no field {' or '.join(map(repr, names))} (the row has {', '.join(row) or 'none'})")


def take_text(row: Row, *names: str) -> str:
    """As `take`, of a text.

    Raises:
        GradAlignError: it is none.
    """
    value = take(row, *names)
    if not isinstance(value, str):
        raise GradAlignError(f"field {names[0]!r} is {type(value).__name__} {value!r:.40}, not a text")
    return value


def boxed(text: str) -> str | None:
    r"""What is in the last ``\boxed{...}`` (or ``\fbox{...}``, or ``\boxed 5``) of a LaTeX text; None without one."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    inner = text[start:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip()
    if not inner.startswith("{"):
        return inner.split("$")[0].split()[0] if inner.split("$")[0].split() else None
    depth = 0
    for index, character in enumerate(inner):
        escaped = index > 0 and inner[index - 1] == "\\"
        depth += 0 if escaped else {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return inner[1:index].strip() or None
    return None


def take_boxed(row: Row, name: str) -> str:
    """The boxed answer in field ``name``, which stays in the row.

    Raises:
        GradAlignError: there is no such field, or nothing boxed in it.
    """
    solution = take_text(dict(row), name)
    answer = boxed(solution)
    if answer is None:
        raise GradAlignError(f"field {name!r} has no \\boxed{{...}}")
    return answer


def lettered(question: str, options: Any) -> str:
    """A question and its options, each on a line of its own behind ``A.``, ``B.``, and so on.

    Raises:
        GradAlignError: the options are no list of 2 to 26 texts.
    """
    if not isinstance(options, list | tuple) or not 2 <= len(options) <= len(LETTERS):
        raise GradAlignError(f"field 'options' is {options!r:.40}, not a list of 2 to {len(LETTERS)} texts")
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question.rstrip(), "", *lines])


def letter_of(row: Row, name: str, options: list[Any]) -> str:
    """The right option's letter, taken from field ``name``.

    Raises:
        GradAlignError: it is none of the options' letters.
    """
    letter = take_text(row, name).strip()
    if letter not in LETTERS[: len(options)] or len(letter) != 1:
        raise GradAlignError(f"field {name!r} is {letter!r:.40}, not the letter of one of {len(options)} options")
    return letter
