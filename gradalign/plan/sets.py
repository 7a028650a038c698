"""How large a pool is and how long its prompts are, from as little of it as need be."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pyarrow.parquet as pq

from gradalign.errors import GradAlignError
from gradalign.problems.fields import FieldMap, to_problem
from gradalign.problems.mixture import is_mixture
from gradalign.problems.read import read_problems
from gradalign.problems.readers import open_reader
from gradalign.problems.readers.files import DELIMITERS, File
from gradalign.problems.schema import Problem
from gradalign.rows import Refuse, stop

SAMPLE = 64
"""Problems whose prompts are looked at."""


@dataclass(frozen=True)
class Sized:
    """A pool's rows (problems, where all had to be read) and the first of its problems."""

    size: int
    some: list[Problem]


def sized(spec: str, fields: FieldMap, skip: bool) -> Sized:
    """Of a file its rows are counted, and the first ones read; anything else is read whole.

    Raises:
        GradAlignError: see `gradalign.problems.read.read_problems`.
    """
    reader = None if is_mixture(spec) else open_reader(spec)
    if not isinstance(reader, File):
        pool = read_problems(spec, fields, skip)
        return Sized(len(pool), pool[:SAMPLE])
    names, some = fields.over(reader.fields), []
    refuse = _pass_over if skip else stop
    for number, row in itertools.islice(reader.rows(refuse), SAMPLE):
        try:
            some.append(to_problem(row, names, f"{reader.label}:{number}", reader.stem))
        except GradAlignError:
            if not skip:
                raise
    if not some:
        raise GradAlignError(f"{reader.label}: holds no problem; write one problem a row")
    return Sized(_rows(reader, refuse), some)


def _pass_over(error: GradAlignError) -> None:
    """A row that cannot be used, where such rows are left out."""


def _rows(reader: File, refuse: Refuse) -> int:
    """Rows of a file: Parquet tells them, tables of text are read (a row may have several lines), and of other files
    lines are counted that are not empty."""
    path = reader.path
    if path.suffix == ".parquet":
        return int(pq.ParquetFile(path).metadata.num_rows)
    if path.suffix in DELIMITERS:
        return sum(1 for _ in reader.rows(refuse))
    with path.open("rb") as file:
        return sum(bool(line.strip()) for line in file)
