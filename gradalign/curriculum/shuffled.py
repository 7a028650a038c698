"""A pool's places in a seeded order, on disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gradalign.problems.database import filling, temporary_database
from gradalign.problems.schema import uniform_hash

CACHE = 4096
"""Kilobytes of the database kept in memory, at most."""


class Shuffled:
    """The numbers 0 to n - 1 in the order of the hashes of n keys, equal ones in their own; read part by part.

    Args:
        keys: in the pool's order; read once.
        seed: parts of the hash before the key.

    Raises:
        GradAlignError: there is no room for the order on disk.
    """

    def __init__(self, keys: Iterable[str], seed: tuple[Any, ...]) -> None:
        self._database = temporary_database(CACHE)
        draws = ((uniform_hash(*seed, key), place) for place, key in enumerate(keys))
        with filling("the order of a pool"):
            self._database.execute("CREATE TABLE draws (draw REAL, place INTEGER)")
            self._database.executemany("INSERT INTO draws VALUES (?, ?)", draws)
            self._database.execute("CREATE TABLE places (at INTEGER PRIMARY KEY, place INTEGER)")
            self._database.execute("INSERT INTO places (place) SELECT place FROM draws ORDER BY draw, place")
            self._database.execute("DROP TABLE draws")

    def read(self, start: int, stop: int) -> list[int]:
        """Numbers ``start`` to ``stop`` - 1 of the order, fewer where it ends before."""
        query = "SELECT place FROM places WHERE at > ? AND at <= ? ORDER BY at"
        return [place for (place,) in self._database.execute(query, (start, stop))]
