"""The alignment table: one row a problem, as Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.alignment.record import Alignment, Evidence, Numbers
from gradalign.errors import GradAlignError
from gradalign.files import replacing
from gradalign.rows import read_rows

NUMBERS = ("dot", "norm", "cosine", "se", "t", "corr", "learnalign")
EVIDENCE = ("rewards", "responses", "logprobs", "moves")

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("pass_rate", pa.float64()),
        pa.field("n_rollouts", pa.int64()),
        pa.field("n_tokens", pa.int64()),
        *(pa.field(name, pa.float64()) for name in (*NUMBERS, "score")),
        pa.field("rank", pa.int64()),
        pa.field("selected", pa.bool_()),
        pa.field("gate", pa.string()),
        *(pa.field(name, pa.list_(pa.int64() if name == "responses" else pa.float64())) for name in EVIDENCE),
    ]
)
"""Columns of the table. ``pass_rate`` is the mean reward; numbers of rows that were not scored are null. ``gate`` is
the gate that refused a problem, null where none has. The last four are lists with one item a rollout, see
`gradalign.alignment.record.Evidence`."""


def to_table(alignments: Sequence[Alignment]) -> pa.Table:
    """The table, rows in the order of ``alignments``."""
    owners = dict.fromkeys(NUMBERS, "numbers") | dict.fromkeys(EVIDENCE, "evidence")
    rows = [
        {name: getattr(getattr(a, owners[name]) if name in owners else a, name, None) for name in SCHEMA.names}
        for a in alignments
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_alignments(path: Path, alignments: Sequence[Alignment]) -> None:
    """Write the table; the same alignments give the same bytes.

    Raises:
        GradAlignError: the place cannot be written to.
    """
    with replacing(path) as part:
        pq.write_table(to_table(alignments), part)


def is_alignments(path: Path) -> bool:
    """Whether the file is a table that `write_alignments` wrote."""
    try:
        return pq.read_schema(path).names == SCHEMA.names
    except (OSError, pa.ArrowException):
        return False


def read_alignments(path: Path) -> list[Alignment]:
    """Read a table that `write_alignments` wrote.

    Raises:
        GradAlignError: it is missing, unreadable, or lacks a column.
    """
    alignments = []
    for number, row in read_rows(path):
        missing = [name for name in SCHEMA.names if name not in row]
        if missing:
            raise GradAlignError(f"{path}:{number}: no column {missing[0]!r}; name an alignment table")
        numbers = Numbers(**{name: row.pop(name) for name in NUMBERS})
        lists = {name: row.pop(name) for name in EVIDENCE}
        evidence = None
        if lists["rewards"] is not None:
            arrays: Any = {name: None if value is None else np.array(value) for name, value in lists.items()}
            evidence = Evidence(**arrays)
            numbers.moves = evidence.moves
        own = {name: row[name] for name in SCHEMA.names if name in row}
        alignments.append(Alignment(numbers=numbers, evidence=evidence, **own))
    return alignments
