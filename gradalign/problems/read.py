"""Reading pools of any kind, and what two of them have in common."""

from __future__ import annotations

from collections.abc import Sequence

from gradalign.problems.fields import FieldMap
from gradalign.problems.fill import Filter, fill
from gradalign.problems.mixture import is_mixture, read_mixture
from gradalign.problems.near import NearIndex
from gradalign.problems.pool import Pool
from gradalign.problems.schema import Problem, normalised


def read_problems(spec: str, fields: FieldMap | None = None, skip: bool = False, near: float | None = None) -> Pool:
    """Read a pool, whatever its size, in constant memory.

    Rows with the same prompt up to white space are one problem: the first stands, the others are counted in a warning.

    Args:
        spec: a path, ``scheme:NAME?setting=value`` (see `gradalign.problems.readers`), or a mixture's .yaml file.
        fields: which fields to read where names are not common ones; in a mixture, where a part names none.
        skip: leave out rows that cannot be used, count them, and name the first in a warning, instead of stopping.
        near: leave out problems at least this similar to an earlier one, in (0, 1]; see `gradalign.problems.near`.

    Raises:
        GradAlignError: missing or unreadable file, missing or mis-typed field, one key with two prompts, no problem.
    """
    index = None if near is None else NearIndex(near)
    fields = fields or FieldMap()
    if is_mixture(spec):
        return read_mixture(spec, fields, skip, index)
    pool = Pool()
    fill(pool, spec, Filter(fields, skip), index)
    return pool


def overlap(pool: Sequence[Problem], held: Sequence[Problem], near: float | None = None) -> list[str]:
    """Keys of the pool's problems whose normalised prompt is also among those held, in pool order.

    Args:
        pool: problems, read once from first to last.
        held: others, few enough for memory.
        near: count also those at least this similar, in (0, 1]; see `gradalign.problems.near`.
    """
    texts = {normalised(problem.prompt) for problem in held}
    index = None if near is None else NearIndex(near)
    if index is not None:
        for problem in held:
            index.add(problem.key, problem.prompt)
    return [
        problem.key
        for problem in pool
        if normalised(problem.prompt) in texts or (index is not None and index.find(problem.prompt) is not None)
    ]
