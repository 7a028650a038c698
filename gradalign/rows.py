"""Rows of JSONL and Parquet files, each with its number: what problems and rollouts are read from."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.errors import GradAlignError

Row = dict[str, Any]


Refuse = Callable[[GradAlignError], None]
"""Told of a row that cannot be used; raises where one such row stops the run."""


def stop(error: GradAlignError) -> None:
    """Stop at the first row that cannot be used.

    Raises:
        GradAlignError: always.
    """
    raise error


def read_rows(path: Path, refuse: Refuse = stop) -> Iterator[tuple[int, Row]]:
    """(number, row) of every row in file order; numbers count from 1, blank lines of JSONL included.

    Args:
        path: the file.
        refuse: told of lines that are not a JSON object of proper text, which are passed over if it does not raise.

    Raises:
        GradAlignError: the file is missing or unreadable, of an unknown kind, a line is not a JSON object (a truncated
            last line among them).
    """
    require_file(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix in (".jsonl", ".ndjson"):
        return _jsonl(path, refuse)
    raise GradAlignError(f"{path}: unknown kind of file {path.suffix!r}; name a .jsonl or .parquet file")


def require_file(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        GradAlignError: it is missing, a folder, or out of reach.
    """
    try:
        if path.is_dir():
            raise GradAlignError(f"{path}: is a folder; name a .jsonl or .parquet file")
        if not path.exists():
            raise GradAlignError(f"{path}: no such file")
    except OSError as error:
        raise GradAlignError(f"{path}: cannot be read ({error.strerror})") from error


def text_lines(path: Path, refuse: Refuse = stop) -> Iterator[tuple[int, str]]:
    """(number, line) of a UTF-8 file, ends of lines included; a byte-order mark is left out.

    Args:
        path: the file.
        refuse: told of lines that are not UTF-8, which are passed over if it does not raise.

    Raises:
        GradAlignError: the file cannot be read, is UTF-16, or a line is not UTF-8.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1:
                    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise GradAlignError(f"{path}: is UTF-16 text; convert it to UTF-8")
                    line = line.removeprefix(codecs.BOM_UTF8)
                try:
                    yield number, line.decode("utf-8")
                except UnicodeDecodeError as error:
                    where = f"{error.reason} at byte {error.start + 1} of the line"
                    refuse(GradAlignError(f"{path}:{number}: not UTF-8 text ({where}); convert it"))
    except OSError as error:
        raise GradAlignError(f"{path}: cannot be read ({error.strerror})") from error


def _jsonl(path: Path, refuse: Refuse) -> Iterator[tuple[int, Row]]:
    for number, line in text_lines(path, refuse):
        if not line.strip():
            continue
        try:
            yield number, _json_row(line, f"{path}:{number}")
        except GradAlignError as error:
            refuse(error)


def _json_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
        if "\\ud" in line or "\\uD" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise GradAlignError(f"{where}: holds half a character ({error.reason}); write proper Unicode text") from error
    except (ValueError, RecursionError) as error:
        raise GradAlignError(
            f"{where}: not JSON ({error}); the line may be cut short: write it whole or remove it"
        ) from error
    if not isinstance(row, dict):
        raise GradAlignError(f'{where}: not a JSON object; write {{"field": value, ...}}')
    return row


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in _plain(batch).to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise GradAlignError(f"{path}: cannot be read as Parquet ({reason}); write it again") from error


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with times as text: Python has none as fine or as far as Parquet's."""
    for index, field in enumerate(batch.schema):
        if pa.types.is_temporal(field.type):
            batch = batch.set_column(index, field.name, batch.column(index).cast(pa.string()))
    return batch
