"""``gradalign pool``: what is in a pool, before anything is spent on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gradalign.cli.options import distinct
from gradalign.cli.problem_options import FieldOptions
from gradalign.config import parse
from gradalign.errors import GradAlignError
from gradalign.files import check_writable
from gradalign.problems.pool import Pool
from gradalign.problems.read import overlap
from gradalign.problems.schema import prompt_text
from gradalign.problems.write import write_pool
from gradalign.report.console import Cell, show, table

WIDTH = 200
"""Characters of a prompt that are shown."""


class PoolOptions(FieldOptions):
    """Read a pool and tell what is in it; with --out also write it as one JSONL file that every command reads."""

    pool: Annotated[str, Field(min_length=1)]
    """What is read: a .jsonl, .parquet, .csv or .tsv file, a mixture's .yaml, or scheme:NAME?setting=value
    (embedded:mixed?size=256&seed=0, hf:OWNER/NAME?split=train, recipe:gsm8k, reasoning-gym:countdown?size=500)."""
    validation: Annotated[str, Field(min_length=1)] | None = None
    """Another one, in the same forms; problems that it has too are counted, and left out of --out."""
    examples: Annotated[int, Field(ge=0)] = 3
    """Problems to show, from all over the pool."""
    out: Path | None = None
    """JSONL file to write: prompt, answer, key, source and every other field."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(PoolOptions, "pool", arguments)
    if options.out is not None:
        if options.out.suffix != ".jsonl":
            raise GradAlignError(f"option --out: {options.out}: name a .jsonl file")
        distinct("out", options.out, options.pool, options.validation or "")
        check_writable(options.out)
    pool = options.read_plain(options.pool)
    shared = [] if options.validation is None else _shared(pool, options)
    for reading in pool.readings:
        for reason in reading.reasons:
            show(f"{reading.label}: left out: row {reason}")
    show(table("rows", ["read from", "rows", "problems", "repeats", "nearly", "unusable"], _rows(pool)))
    left = pool.without(shared)
    show(table("problems", ["source", "problems", "mean characters"], _sources(left)))
    for place in _spread(len(left), options.examples):
        problem = left[place]
        text = " ".join(prompt_text(problem.prompt).split())
        show(
            f"{problem.key} ({problem.source}): {text[:WIDTH]}{'...' if len(text) > WIDTH else ''} -> {problem.answer}"
        )
    if options.validation is not None:
        show(f"{len(shared)} of {len(pool)} problems are also in {options.validation}")
    if options.out is not None:
        write_pool(options.out, left)
        show(f"wrote {len(left)} problems to {options.out}")


def _shared(pool: Pool, options: PoolOptions) -> list[str]:
    assert options.validation is not None
    return overlap(pool, options.read_plain(options.validation), options.near_duplicates)


def _rows(pool: Pool) -> list[list[Cell]]:
    rows: list[list[Cell]] = [[r.label, r.rows, r.problems, r.repeats, r.near, r.refused] for r in pool.readings]
    taken = sum(reading.problems for reading in pool.readings)
    if taken != len(pool):
        rows.append([f"taken by {len(pool.readings)} parts' weights and limits", taken, len(pool), 0, 0, 0])
    return rows


def _sources(pool: Pool) -> list[list[Cell]]:
    lengths = Counter[str]()
    for problem in pool:
        lengths[problem.source] += len(prompt_text(problem.prompt))
    return [[source, count, lengths[source] / count] for source, count in pool.sources.most_common()]


def _spread(count: int, wanted: int) -> list[int]:
    """``wanted`` places from all over ``count``, fewer where there are not so many."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]
