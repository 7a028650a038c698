"""Judgements kept on disk: a SQLite file that several processes may use, and a kill leaves whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from gradalign.errors import GradAlignError
from gradalign.files import writing

WAIT = 60.0
"""Seconds to wait for another process that is writing."""


def cache_key(*parts: str) -> str:
    """The key of a judgement: a hash of everything that it depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class JudgeCache:
    """Judgements by key.

    Args:
        path: of the file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def known(self, keys: Iterable[str]) -> dict[str, float]:
        """The scores of those keys that have one.

        Raises:
            GradAlignError: the file is no cache, or cannot be used.
        """
        with self._open() as database:
            query = "SELECT score FROM judgements WHERE key = ?"
            rows = {key: database.execute(query, (key,)).fetchone() for key in keys}
        return {key: float(row[0]) for key, row in rows.items() if row is not None}

    def keep(self, key: str, score: float, reply: str) -> None:
        """Keep a judgement with what the judge said; the first one of a key stays.

        Raises:
            GradAlignError: the file is no cache, or cannot be used.
        """
        with self._open() as database:
            database.execute("INSERT OR IGNORE INTO judgements VALUES (?, ?, ?)", (key, score, reply))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=WAIT)) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, score REAL, reply TEXT)")
                yield database
        except sqlite3.Error as error:
            raise GradAlignError(
                f"{self.path}: cannot be used as a cache of judgements ({error}); name another file"
            ) from error
