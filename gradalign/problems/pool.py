"""A pool on disk: problems are held in a temporary database, so that a pool may be larger than memory.

The database is private to the process and gone with it. What stays in memory is its page cache (`CACHE`).
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import pickle
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from gradalign.problems.database import filling, temporary_database
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
        self._database = temporary_database(CACHE)
        self._database.execute(
            "CREATE TABLE problems (number INTEGER PRIMARY KEY, place TEXT, key TEXT UNIQUE, prompt BLOB UNIQUE, "
            "source TEXT, problem BLOB)"
        )
        self._database.create_function("uniform_hash", 2, lambda seed, key: uniform_hash("draw", seed, key))
        self.readings: list[Reading] = []
        self._count = 0
        self._views = itertools.count()
        self._table, self._at = "problems", "number"  # where its problems are, and their places there, from 1
        self._asked: Callable[[Problem], Problem] | None = None

    def add(self, problem: Problem, place: str) -> Earlier | None:
        """Append a problem; where one of its key or its prompt is there already, that one, and nothing is appended.

        Args:
            problem: the problem.
            place: where it is from, for messages.
        """
        number = self._count + 1
        values = (number, place, problem.key, _digest(problem), problem.source, _packed(problem))
        try:
            with filling(place):
                self._database.execute("INSERT INTO problems VALUES (?, ?, ?, ?, ?, ?)", values)
        except sqlite3.IntegrityError:
            return self.find(problem)
        self._count = number
        return None

    def find(self, problem: Problem) -> Earlier | None:
        """What was added with the problem's key or, failing that, its prompt; None where nothing was."""
        digest = _digest(problem)
        found = self._database.execute(
            "SELECT place, key, prompt, problem FROM problems WHERE key = ? OR prompt = ? ORDER BY key != ?",
            (problem.key, digest, problem.key),
        ).fetchone()
        return None if found is None else Earlier(found[0], _unpacked(found[3]).answer, found[2] == digest)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        start = range(self._count)[index]
        return next(self._problems(start, start + 1))

    def __iter__(self) -> Iterator[Problem]:
        return self._problems(0, self._count)

    @property
    def places(self) -> Iterator[int]:
        """Places of the problems in the pool that this one was made from, counting from 0."""
        return (number - 1 for number in self._column("number", 0, self._count))

    @property
    def keys(self) -> Sequence[str]:
        """Keys of all problems, in order, read as they are asked for."""
        return _Keys(self)

    @property
    def sources(self) -> Counter[str]:
        """Source -> number of problems."""
        return Counter(map(str, self._column("source", 0, self._count)))

    def without(self, keys: Collection[str]) -> Pool:
        """The pool without the problems of these keys."""
        if not keys:
            return self
        self._database.execute("CREATE TABLE left_out (key TEXT PRIMARY KEY)")
        self._database.executemany("INSERT OR IGNORE INTO left_out VALUES (?)", ((key,) for key in keys))
        view = self._view(
            f"SELECT number FROM {self._table} WHERE key NOT IN (SELECT key FROM left_out) ORDER BY {self._at}"
        )
        self._database.execute("DROP TABLE left_out")
        return view

    def drawn(self, shares: Sequence[tuple[range, int]], seed: int, limits: Mapping[str, int]) -> Pool:
        """Of each share, the problems that come first in a seeded order; they stay in the order of the pool.

        Args:
            shares: (numbers, count) of disjoint ranges of the pool's places, from 0, and how many to take of each, at
                most.
            seed: of the order, a hash of each key.
            limits: source -> problems of it, at most.
        """
        taken, left = Counter[str](), [count for _, count in shares]
        order = "SELECT number, source FROM problems ORDER BY uniform_hash(?, key), number"
        self._database.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY)")
        for number, source in self._database.execute(order, (seed,)):
            share = next((i for i, (numbers, _) in enumerate(shares) if number - 1 in numbers), None)
            if share is not None and left[share] and taken[source] < limits.get(source, self._count):
                left[share] -= 1
                taken[source] += 1
                self._database.execute("INSERT INTO kept VALUES (?)", (number,))
        view = self._view("SELECT number FROM kept ORDER BY number")
        self._database.execute("DROP TABLE kept")
        return view

    def mapped(self, asked: Callable[[Problem], Problem]) -> Pool:
        """The pool with every problem as ``asked`` gives it when it is read; keys and sources must stay."""
        view = copy.copy(self)
        view._asked = asked
        return view

    def _view(self, numbers: str) -> Pool:
        """A pool of the problems whose numbers a query gives."""
        view, name = copy.copy(self), f"view_{next(self._views)}"
        with filling("a part of a pool"):
            self._database.execute(f"CREATE TABLE {name} (place INTEGER PRIMARY KEY, number INTEGER)")
            made = self._database.execute(f"INSERT INTO {name} (number) {numbers}")
        view._count = made.rowcount
        view._table, view._at = f"{name} CROSS JOIN problems USING (number)", f"{name}.place"
        return view

    def _problems(self, start: int, stop: int) -> Iterator[Problem]:
        problems = map(_unpacked, self._column("problem", start, stop))
        return problems if self._asked is None else map(self._asked, problems)

    def _column(self, name: str, start: int, stop: int) -> Iterator[Any]:
        """A column of the problems at places ``start`` to ``stop`` - 1."""
        query = f"SELECT {name} FROM {self._table} WHERE {self._at} > ? AND {self._at} <= ? ORDER BY {self._at}"
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            yield from [value for (value,) in self._database.execute(query, (first, last))]


class _Keys(Sequence[str]):
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __len__(self) -> int:
        return len(self._pool)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = range(len(self))[index]
        return str(next(self._pool._column("key", start, start + 1)))

    def __iter__(self) -> Iterator[str]:
        return map(str, self._pool._column("key", 0, len(self)))


def _packed(problem: Problem) -> bytes:
    """A problem as bytes, by Python's own serialisation: the database never leaves the process."""
    return pickle.dumps((problem.key, problem.prompt, problem.answer, problem.source, problem.metadata))


def _unpacked(packed: bytes) -> Problem:
    return Problem(*pickle.loads(packed))


def _digest(problem: Problem) -> bytes:
    return hashlib.blake2b(identity(problem.prompt).encode("utf-8", "surrogatepass"), digest_size=16).digest()
