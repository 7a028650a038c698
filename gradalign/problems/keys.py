"""The keys of a pool in its order, and where each is: on disk, whatever their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from gradalign.problems.database import filling, temporary_database

CACHE = 16384
"""Kilobytes of the database kept in memory, at most."""


class RepeatedKeyError(ValueError):
    """Two places have one key.

    Attributes:
        first, last: places of the first key that comes again, its first and its last one.
        key: theirs.
    """

    def __init__(self, first: int, last: int, key: str) -> None:
        super().__init__(f"places {first} and {last} have one key, {key!r}")
        self.first, self.last, self.key = first, last, key


class Keys(Sequence[str]):
    """Keys as a sequence that finds the place of one (`index`) without a search from its start.

    Args:
        keys: all of them, in order; read once.

    Raises:
        RepeatedKeyError: two are the same.
        GradAlignError: there is no room for them on disk.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._database = temporary_database(CACHE)
        with filling("the keys of a pool"):
            self._database.execute("CREATE TABLE keys (place INTEGER PRIMARY KEY, key TEXT)")
            self._database.executemany("INSERT INTO keys VALUES (?, ?)", enumerate(keys))
            self._database.execute("CREATE INDEX by_key ON keys (key, place)")
        self._count = int(self._database.execute("SELECT count(*) FROM keys").fetchone()[0])
        repeated = self._database.execute(
            "SELECT min(place), max(place), key FROM keys GROUP BY key HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
        ).fetchone()
        if repeated is not None:
            raise RepeatedKeyError(*repeated)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self._count))]
        wanted = range(self._count)[place]
        return str(self._database.execute("SELECT key FROM keys WHERE place = ?", (wanted,)).fetchone()[0])

    def __iter__(self) -> Iterator[str]:
        for (key,) in self._database.execute("SELECT key FROM keys ORDER BY place"):
            yield key

    def __contains__(self, key: object) -> bool:
        return self._place(key) is not None

    def index(self, key: str, start: int = 0, stop: int | None = None) -> int:
        """The place of a key.

        Raises:
            ValueError: no key between ``start`` and ``stop`` is this one.
        """
        place = self._place(key)
        if place is None or place not in range(self._count)[start:stop]:
            raise ValueError(f"{key!r} is not among these keys")
        return place

    def _place(self, key: object) -> int | None:
        found = self._database.execute("SELECT place FROM keys WHERE key = ?", (key,)).fetchone()
        return None if found is None else int(found[0])
