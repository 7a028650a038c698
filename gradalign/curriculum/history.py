"""What every round chose, on disk: a long run's choices are many, and only the last is needed all the time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from gradalign.errors import GradAlignError
from gradalign.files import replacing
from gradalign.problems.database import filling, temporary_database

CACHE = 1024
"""Kilobytes of the database kept in memory, at most."""


class History(Sequence[list[str]]):
    """Keys chosen, round after round, best first; a round that chose what the one before did takes no room.

    Args:
        rounds: to begin with.

    Raises:
        GradAlignError: there is no room on disk.
    """

    def __init__(self, rounds: Iterable[list[str]] = ()) -> None:
        self._database = temporary_database(CACHE)
        self._database.execute("CREATE TABLE rounds (number INTEGER PRIMARY KEY, keys TEXT)")
        self._count = 0
        self.last: list[str] = []
        """The last round's; empty before the first."""
        for keys in rounds:
            self.append(keys)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> list[str]: ...
    @overload
    def __getitem__(self, number: slice) -> list[list[str]]: ...
    def __getitem__(self, number: int | slice) -> list[str] | list[list[str]]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(self._count))]
        wanted = range(self._count)[number]
        if wanted == self._count - 1:
            return self.last
        query = "SELECT keys FROM rounds WHERE number <= ? AND keys IS NOT NULL ORDER BY number DESC LIMIT 1"
        found: list[str] = json.loads(self._database.execute(query, (wanted,)).fetchone()[0])
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def append(self, keys: list[str]) -> None:
        """Add a round."""
        same = self._count > 0 and keys == self.last
        with filling("the history of a run"):
            self._database.execute(
                "INSERT INTO rounds VALUES (?, ?)", (self._count, None if same else json.dumps(keys))
            )
        self.last = keys
        self._count += 1

    def cut(self, count: int) -> None:
        """Forget all rounds but the first ``count``."""
        if count < self._count:
            last = self[count - 1] if count else []
            self._database.execute("DELETE FROM rounds WHERE number >= ?", (count,))
            self._count, self.last = count, last

    def save(self, path: Path) -> None:
        """Write it, a line a round: its keys as JSON, ``null`` where they are those of the round before.

        Raises:
            GradAlignError: the place cannot be written to.
        """
        with replacing(path) as part, part.open("w", encoding="utf-8") as file:
            for (keys,) in self._database.execute("SELECT keys FROM rounds ORDER BY number"):
                file.write(f"{keys or 'null'}\n")


def saved_history(path: Path) -> Iterator[list[str]]:
    """The rounds of a file that `History.save` wrote, one at a time.

    Raises:
        GradAlignError: it cannot be read, or is not such a file.
    """
    last: list[str] | None = None
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                keys = json.loads(line)
                last = last if keys is None else keys
                if not isinstance(last, list) or not all(isinstance(key, str) for key in last):
                    raise GradAlignError(f"{path}:{number}: is no list of keys; name an earlier checkpoint")
                yield last
    except OSError as error:
        raise GradAlignError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise GradAlignError(f"{path}: not JSON ({error}); name an earlier checkpoint") from error
