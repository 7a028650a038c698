"""Temporary databases: what would grow in memory with a pool is on disk, private to the process and gone with it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator

from gradalign.errors import GradAlignError


def temporary_database(cache: int) -> sqlite3.Connection:
    """A database in a file that has no name; the system removes it with the process, however that ends.

    Args:
        cache: kilobytes of it kept in memory, at most.
    """
    # The empty name is a temporary file that is deleted when it is closed.
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for pragma in (f"cache_size = -{cache}", "journal_mode = OFF", "synchronous = OFF", "temp_store = FILE"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("BEGIN")
    return database


def temporary_folder() -> str:
    """Where such files are: $TMPDIR, else /var/tmp, since /tmp may be memory; as for the databases."""
    return "/var/tmp" if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()


class NoRoomError(GradAlignError):
    """A temporary file cannot be written to: no fault of what was to be put there."""


@contextlib.contextmanager
def filling(what: str) -> Iterator[None]:
    """Turn a full disk met while ``what`` is put into a temporary file into one clear line.

    Raises:
        NoRoomError: the disk is full, or the file cannot be written to.
    """
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise NoRoomError(
            f"{what}: cannot be held in a temporary file ({error}); free space, or name a folder with more by the "
            "environment's TMPDIR"
        ) from error
