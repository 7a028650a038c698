"""Filling a pool: a reader's rows made problems, repeats left out and counted, rows that cannot be used reported."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from gradalign.errors import GradAlignError, warn
from gradalign.problems.fields import FieldMap, to_problem
from gradalign.problems.near import NearIndex
from gradalign.problems.pool import Pool
from gradalign.problems.readers import open_reader
from gradalign.problems.schema import Problem
from gradalign.rows import Refuse, stop

SHOWN = 3
"""Rows that cannot be used named in a warning."""


@dataclass(slots=True)
class Reading:
    """What became of a pool's rows; ``rows`` is the sum of ``problems``, ``repeats``, ``near`` and ``refused``.

    Attributes:
        label: how messages call the pool.
        rows: that were there.
        problems: that they made.
        repeats: rows whose prompt an earlier row has.
        conflicts: repeats with another answer.
        near: rows whose prompt is nearly that of an earlier one.
        refused: rows that cannot be used.
        reasons: why, of the first `SHOWN`.
        first: ``repeat``, ``conflict`` or ``near`` -> number of the first such row.
        like: the place of the row that the first ``near`` one is like.
    """

    label: str
    rows: int = 0
    problems: int = 0
    repeats: int = 0
    conflicts: int = 0
    near: int = 0
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    first: dict[str, int] = field(default_factory=dict)
    like: str = ""

    def refuse(self, error: GradAlignError) -> None:
        """Count a row that cannot be used."""
        self.rows += 1
        self.refused += 1
        if len(self.reasons) < SHOWN:
            self.reasons.append(str(error).removeprefix(f"{self.label}:"))

    def say(self) -> None:
        """Warn of what was left out."""
        if self.repeats:
            differ = f", {self.conflicts} of them with another answer (row {self.first.get('conflict')})"
            warn(
                f"{self.label}: {self.repeats} of {self.rows} rows repeat an earlier prompt and are left out (first: "
                f"row {self.first['repeat']}){differ if self.conflicts else ''}"
            )
        if self.near:
            warn(
                f"{self.label}: {self.near} of {self.rows} rows nearly repeat an earlier prompt and are left out "
                f"(first: row {self.first['near']}, like {self.like})"
            )
        if self.refused:
            more = f"; and {self.refused - SHOWN} more" if self.refused > SHOWN else ""
            warn(
                f"{self.label}: {self.refused} of {self.rows} rows cannot be used and are left out: row "
                f"{'; row '.join(self.reasons)}{more}"
            )


@dataclass(frozen=True, slots=True)
class Filter:
    """What is done with rows.

    Attributes:
        fields: which to read where names are not common ones.
        skip: leave out rows that cannot be used and count them, instead of stopping.
        source: of every problem; None for each its own.
    """

    fields: FieldMap = field(default_factory=FieldMap)
    skip: bool = False
    source: str | None = None


def fill(pool: Pool, spec: str, how: Filter, near: NearIndex | None = None) -> Reading:
    """Append a reader's rows to a pool; says what became of them.

    Args:
        pool: what is filled.
        spec: a path, or ``scheme:NAME?setting=value``; see `gradalign.problems.readers`.
        how: what is done with the rows.
        near: the pool's prompts so far, by place, where near-duplicates are to be left out.

    Raises:
        GradAlignError: see `gradalign.problems.read.read_problems`.
    """
    reader = open_reader(spec)
    reading, names = Reading(reader.label), how.fields.over(reader.fields)
    refuse: Refuse = reading.refuse if how.skip else stop
    for number, row in reader.rows(refuse):
        where = f"{reader.label}:{number}"
        try:
            problem = to_problem(row, names, where, reader.stem)
            if how.source is not None:
                problem = dataclasses.replace(problem, source=how.source)
            _take(problem, number, where, pool, reading, near)
        except GradAlignError as error:
            refuse(error)
    if not reading.rows:
        raise GradAlignError(f"{reader.label}: holds no problem; write one problem a row")
    if reading.rows == reading.refused:
        raise GradAlignError(f"{reader.label}: none of {reading.rows} rows can be used: row {reading.reasons[0]}")
    reading.say()
    return reading


def _take(problem: Problem, number: int, where: str, pool: Pool, reading: Reading, near: NearIndex | None) -> None:
    like = None if near is None else near.find(problem.prompt)
    if like is not None and pool.find(problem) is None:
        reading.near += 1
        reading.first.setdefault("near", number)
        reading.like = reading.like or like
        reading.rows += 1
        return
    earlier = pool.add(problem, where)
    if earlier is None:
        reading.problems += 1
        if near is not None:
            near.add(where, problem.prompt)
    elif not earlier.same_prompt:
        raise GradAlignError(
            f"{where}: key {problem.key!r} already names another prompt ({earlier.place}); "
            "give each problem a key of its own, or leave the field out"
        )
    else:
        reading.repeats += 1
        reading.first.setdefault("repeat", number)
        if earlier.answer != problem.answer:
            reading.conflicts += 1
            reading.first.setdefault("conflict", number)
    reading.rows += 1
