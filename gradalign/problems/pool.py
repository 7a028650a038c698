"""A pool on disk: problems are held in a temporary database, so that a pool may be larger than memory.

The database is private to the process and gone with it. What stays in memory is its page cache (`CACHE`) and,
for a pool of which some problems were left out, 8 bytes a problem.
"""

from __future__ import annotations

import hashlib
import pickle
import sqlite3
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from gradalign.problems.reading import Reading
from gradalign.problems.schema import Problem, identity, uniform_hash

CACHE = 65536
"""Kilobytes of the database kept in memory, at most."""
BLOCK = 512
"""Problems read at a time."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What of a pool has a problem's key or prompt: its place, its answer, and whether the prompts are the same."""

    place: str
    answer: str
    same_prompt: bool


class Pool(Sequence[Problem]):
    """Problems in order, no two with one key or one prompt (up to `gradalign.problems.schema.identity`).

    Filled by `add` and then read as any sequence is; `without`, `drawn` and `mapped` give pools on the same database.

    Attributes:
        readings: what became of the rows that it was filled from.
    """

    def __init__(self) -> None:
        # The empty name is a temporary file that is deleted when it is closed.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in (f"cache_size = -{CACHE}", "journal_mode = OFF", "synchronous = OFF", "temp_store = FILE"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute(
            "CREATE TABLE problems (number INTEGER PRIMARY KEY, place TEXT, key TEXT UNIQUE, prompt BLOB UNIQUE, "
            "source TEXT, problem BLOB)"
        )
        self._database.create_function("uniform_hash", 2, lambda seed, key: uniform_hash("draw", seed, key))
        self._database.execute("BEGIN")
        self.readings: list[Reading] = []
        self._numbers: range | array[int] = range(1, 1)
        self._asked: Callable[[Problem], Problem] | None = None

    def add(self, problem: Problem, place: str) -> Earlier | None:
        """Append a problem; where one of its key or its prompt is there already, that one, and nothing is appended.

        Args:
            problem: the problem.
            place: where it is from, for messages.
        """
        number = len(self._numbers) + 1
        # Python's own serialisation: the database never leaves the process.
        values = (number, place, problem.key, _digest(problem), problem.source, pickle.dumps(problem))
        try:
            self._database.execute("INSERT INTO problems VALUES (?, ?, ?, ?, ?, ?)", values)
        except sqlite3.IntegrityError:
            return self.find(problem)
        self._numbers = range(1, number + 1)
        return None

    def find(self, problem: Problem) -> Earlier | None:
        """What was added with the problem's key or, failing that, its prompt; None where nothing was."""
        digest = _digest(problem)
        found = self._database.execute(
            "SELECT place, key, prompt, problem FROM problems WHERE key = ? OR prompt = ? ORDER BY key != ?",
            (problem.key, digest, problem.key),
        ).fetchone()
        return None if found is None else Earlier(found[0], pickle.loads(found[3]).answer, found[2] == digest)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._read([self._numbers[index]])[0]

    def __iter__(self) -> Iterator[Problem]:
        for start in range(0, len(self._numbers), BLOCK):
            yield from self._read(self._numbers[start : start + BLOCK])

    @property
    def places(self) -> Iterator[int]:
        """Places of the problems in the pool that this one was made from, counting from 0."""
        return (number - 1 for number in self._numbers)

    @property
    def keys(self) -> list[str]:
        """Keys of all problems, in order."""
        wanted = self._column("key")
        return [str(key) for key in wanted]

    @property
    def sources(self) -> Counter[str]:
        """Source -> number of problems."""
        return Counter(map(str, self._column("source")))

    def without(self, keys: Collection[str]) -> Pool:
        """The pool without the problems of these keys."""
        if not keys:
            return self
        left = set(keys)
        pairs = zip(self._numbers, self._column("key"), strict=True)
        return self._view(array("q", (number for number, key in pairs if key not in left)))

    def drawn(self, shares: Sequence[tuple[range, int]], seed: int, limits: Mapping[str, int]) -> Pool:
        """Of each share, the problems that come first in a seeded order; they stay in the order of the pool.

        Args:
            shares: (numbers, count) of disjoint ranges of the pool's places, from 0, and how many to take of each, at
                most.
            seed: of the order, a hash of each key.
            limits: source -> problems of it, at most.
        """
        kept, taken, left = array("q"), Counter[str](), [count for _, count in shares]
        order = "SELECT number, source FROM problems ORDER BY uniform_hash(?, key), number"
        for number, source in self._database.execute(order, (seed,)):
            share = next((i for i, (numbers, _) in enumerate(shares) if number - 1 in numbers), None)
            if share is not None and left[share] and taken[source] < limits.get(source, len(self)):
                left[share] -= 1
                taken[source] += 1
                kept.append(number)
        return self._view(array("q", sorted(kept)))

    def mapped(self, asked: Callable[[Problem], Problem]) -> Pool:
        """The pool with every problem as ``asked`` gives it when it is read; keys and sources must stay."""
        view = self._view(self._numbers)
        view._asked = asked
        return view

    def _view(self, numbers: range | array[int]) -> Pool:
        view = object.__new__(Pool)
        view._database, view._numbers, view._asked = self._database, numbers, self._asked
        view.readings = self.readings
        return view

    def _read(self, numbers: Sequence[int]) -> list[Problem]:
        problems = [pickle.loads(blob) for blob in self._select("problem", numbers)]
        return problems if self._asked is None else [self._asked(problem) for problem in problems]

    def _column(self, name: str) -> Iterator[str]:
        for start in range(0, len(self._numbers), BLOCK):
            yield from self._select(name, self._numbers[start : start + BLOCK])

    def _select(self, name: str, numbers: Sequence[int]) -> list[Any]:
        """A column of the problems of these numbers, which ascend."""
        places = ",".join("?" * len(numbers))
        query = f"SELECT {name} FROM problems WHERE number IN ({places}) ORDER BY number"
        return [value for (value,) in self._database.execute(query, tuple(numbers))]


def _digest(problem: Problem) -> bytes:
    return hashlib.blake2b(identity(problem.prompt).encode("utf-8", "surrogatepass"), digest_size=16).digest()
