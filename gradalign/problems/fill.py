"""Filling a pool: a reader's rows made problems, repeats left out and counted, rows that cannot be used reported."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from gradalign.errors import GradAlignError
from gradalign.problems.database import NoRoomError
from gradalign.problems.fields import FieldMap, to_problem
from gradalign.problems.near import NearIndex
from gradalign.problems.pool import Pool
from gradalign.problems.readers import open_reader
from gradalign.problems.reading import Reading
from gradalign.problems.schema import Problem
from gradalign.rows import Refuse, stop


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


def fill(pool: Pool, spec: str, how: Filter, near: NearIndex | None = None) -> None:
    """Append a reader's rows to a pool; what became of them is the last of the pool's ``readings``.

    Args:
        pool: what is filled.
        spec: a path, or ``scheme:NAME?setting=value``; see `gradalign.problems.readers`.
        how: what is done with the rows.
        near: the pool's prompts so far, by place, where near-duplicates are to be left out.

    Raises:
        GradAlignError: see `gradalign.problems.read.read_problems`.
    """
    reader = open_reader(spec)
    label, stem = reader.label, reader.stem
    reading, names = Reading(label), how.fields.over(reader.fields)
    refuse: Refuse = reading.refuse if how.skip else stop
    for number, row in reader.rows(refuse):
        where = f"{label}:{number}"
        try:
            problem = to_problem(row, names, where, stem)
            if how.source is not None:
                problem = dataclasses.replace(problem, source=how.source)
            _take(problem, number, where, pool, reading, near)
        except NoRoomError:
            raise
        except GradAlignError as error:
            refuse(error)
        except RecursionError:
            refuse(GradAlignError(f"{where}: a field is nested too deep; flatten it, or leave it out"))
    if not reading.rows:
        raise GradAlignError(f"{label}: holds no problem; write one problem a row")
    if reading.rows == reading.refused:
        raise GradAlignError(f"{label}: none of {reading.rows} rows can be used: row {reading.reasons[0]}")
    pool.readings.append(reading)
    reading.say()


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
