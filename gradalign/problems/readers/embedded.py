"""``embedded:NAME?size=256&seed=0``: problems of the embedded default, made on the spot.

NAME is ``arithmetic``, ``countdown`` or ``mixed``; see `gradalign.problems.embedded`. Needs no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from gradalign.errors import GradAlignError, nearest
from gradalign.problems.embedded import POOLS, make_pool
from gradalign.problems.fields import FieldMap
from gradalign.rows import Refuse, Row


@dataclass(frozen=True)
class Embedded:
    """See the module's text.

    Attributes:
        name: which pool.
        size: problems.
        seed: of all draws.
    """

    name: str
    size: Annotated[int, Field(ge=1)] = 256
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def label(self) -> str:
        """See `gradalign.problems.readers.base.Reader`."""
        return f"embedded:{self.name}"

    @property
    def stem(self) -> str:
        """See `gradalign.problems.readers.base.Reader`."""
        return self.name

    @property
    def fields(self) -> FieldMap:
        """See `gradalign.problems.readers.base.Reader`."""
        return FieldMap()

    def rows(self, refuse: Refuse) -> Iterator[tuple[int, Row]]:
        """See `gradalign.problems.readers.base.Reader`."""
        if self.name not in POOLS:
            raise GradAlignError(f"{self.label}: unknown embedded pool {self.name!r}{nearest(self.name, POOLS)}")
        try:
            problems = make_pool(self.name, self.size, self.seed)
        except ValueError as error:
            raise GradAlignError(f"{self.label}: {error}") from error
        for number, problem in enumerate(problems, 1):
            row = {"prompt": problem.prompt, "answer": problem.answer, "source": problem.source}
            yield number, {**row, **problem.metadata}
