"""What a reader is: rows of a pool, numbered, and how they are to be understood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from gradalign.problems.fields import FieldMap
from gradalign.rows import Refuse, Row


class Reader(Protocol):
    """A frozen dataclass: its field ``name`` is what follows the scheme in ``scheme:NAME?setting=value``, its other
    fields are the settings, given as texts and validated by their types."""

    @property
    def label(self) -> str:
        """How messages call the pool."""
        ...

    @property
    def stem(self) -> str:
        """Source of problems that bring none of their own."""
        ...

    @property
    def fields(self) -> FieldMap:
        """Fields that the rows are known to have; those that a user names go before."""
        ...

    def rows(self, refuse: Refuse) -> Iterator[tuple[int, Row]]:
        """(number, row) in order, numbers counting from 1; one at a time, so that a pool may be larger than memory.

        Raises:
            GradAlignError: the pool is not there, or cannot be read at all.
        """
        ...
