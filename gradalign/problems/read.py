"""Reading pools: any reader's rows made problems, repeats left out and counted, rows that cannot be used reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gradalign.errors import GradAlignError, warn
from gradalign.problems.fields import FieldMap, to_problem
from gradalign.problems.pool import Pool
from gradalign.problems.readers import open_reader
from gradalign.problems.schema import Problem, normalised
from gradalign.rows import Refuse, stop

SHOWN = 3
"""Rows that cannot be used named in a warning."""


@dataclass(slots=True)
class Reading:
    """What became of a pool's rows; ``rows`` is the sum of ``problems``, ``repeats`` and ``refused``.

    Attributes:
        label: how messages call the pool.
        rows: that were there.
        problems: that they made.
        repeats: rows whose prompt an earlier row has.
        conflicts: repeats with another answer.
        refused: rows that cannot be used.
        reasons: why, of the first `SHOWN`.
    """

    label: str
    rows: int = 0
    problems: int = 0
    repeats: int = 0
    conflicts: int = 0
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    first: Counter[str] = field(default_factory=Counter)

    def refuse(self, error: GradAlignError) -> None:
        """Count a row that cannot be used."""
        self.rows += 1
        self.refused += 1
        if len(self.reasons) < SHOWN:
            self.reasons.append(str(error).removeprefix(f"{self.label}:"))

    def say(self) -> None:
        """Warn of what was left out."""
        if self.repeats:
            differ = f", {self.conflicts} of them with another answer (row {self.first['conflict']})"
            warn(
                f"{self.label}: {self.repeats} of {self.rows} rows repeat an earlier prompt and are left out (first: "
                f"row {self.first['repeat']}){differ if self.conflicts else ''}"
            )
        if self.refused:
            more = f"; and {self.refused - SHOWN} more" if self.refused > SHOWN else ""
            warn(
                f"{self.label}: {self.refused} of {self.rows} rows cannot be used and are left out: row "
                f"{'; row '.join(self.reasons)}{more}"
            )


def read_problems(spec: str, fields: FieldMap = FieldMap(), skip: bool = False) -> Pool:
    """Read a pool, whatever its size, in constant memory.

    Rows with the same prompt up to white space are one problem: the first stands, the others are counted in a warning.

    Args:
        spec: a path, or ``scheme:NAME?setting=value``; see `gradalign.problems.readers`.
        fields: which fields to read where names are not common ones.
        skip: leave out rows that cannot be used, count them, and name the first in a warning, instead of stopping.

    Raises:
        GradAlignError: missing or unreadable file, missing or mis-typed field, one key with two prompts, no problem.
    """
    reader = open_reader(spec)
    pool, reading, names = Pool(), Reading(reader.label), fields.over(reader.fields)
    refuse: Refuse = reading.refuse if skip else stop
    for number, row in reader.rows(refuse):
        where = f"{reader.label}:{number}"
        try:
            _take(to_problem(row, names, where, reader.stem), number, where, pool, reading)
        except GradAlignError as error:
            refuse(error)
    if not pool:
        if reading.refused:
            raise GradAlignError(f"{reader.label}: none of {reading.rows} rows can be used: row {reading.reasons[0]}")
        raise GradAlignError(f"{reader.label}: holds no problem; write one problem a row")
    reading.say()
    return pool


def _take(problem: Problem, number: int, where: str, pool: Pool, reading: Reading) -> None:
    earlier = pool.add(problem, number)
    if earlier is None:
        reading.problems += 1
    elif not earlier.same_prompt:
        raise GradAlignError(
            f"{where}: key {problem.key!r} already names another prompt (row {earlier.number}); "
            "give each problem a key of its own, or leave the field out"
        )
    else:
        reading.repeats += 1
        reading.first.setdefault("repeat", number)
        if earlier.answer != problem.answer:
            reading.conflicts += 1
            reading.first.setdefault("conflict", number)
    reading.rows += 1


def overlap(pool: Sequence[Problem], validation: Sequence[Problem]) -> list[str]:
    """Keys of the pool's problems whose normalised prompt is also in the validation set, in pool order."""
    held = {normalised(problem.prompt) for problem in validation}
    return [problem.key for problem in pool if normalised(problem.prompt) in held]
