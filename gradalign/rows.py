"""Rows of JSONL and Parquet files, each with its number: what problems and rollouts are read from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.errors import GradAlignError

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(number, row) of every row in file order; numbers count from 1, blank lines of JSONL included.

    Raises:
        GradAlignError: the file is missing or unreadable, of an unknown kind, a line is not a JSON object (a truncated
            last line among them).
    """
    try:
        if path.is_dir():
            raise GradAlignError(f"{path}: is a folder; name a .jsonl or .parquet file")
        if not path.exists():
            raise GradAlignError(f"{path}: no such file")
    except OSError as error:
        raise GradAlignError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix in (".jsonl", ".ndjson"):
        return _jsonl(path)
    raise GradAlignError(f"{path}: unknown kind of file {path.suffix!r}; name a .jsonl or .parquet file")


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if "\\ud" in line or "\\uD" in line:
                        json.dumps(row, ensure_ascii=False).encode()
                except UnicodeEncodeError as error:
                    raise GradAlignError(
                        f"{path}:{number}: holds half a character ({error.reason}); write proper Unicode text"
                    ) from error
                except (ValueError, RecursionError) as error:
                    raise GradAlignError(
                        f"{path}:{number}: not JSON ({error}); the line may be cut short: write it whole or remove it"
                    ) from error
                if not isinstance(row, dict):
                    raise GradAlignError(f'{path}:{number}: not a JSON object; write {{"field": value, ...}}')
                yield number, row
    except OSError as error:
        raise GradAlignError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise GradAlignError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
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
