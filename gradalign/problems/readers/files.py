"""A path: ``.jsonl``, ``.parquet`` (verl's among them), ``.csv`` or ``.tsv``, read one row or one batch at a time.

CSV: UTF-8, a header, fields quoted by ``"`` where need be; a cell is a text, an empty one is no field at all. A prompt
that is a JSON list of chat messages is read as such.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.problems.fields import LONGEST, FieldMap
from gradalign.rows import Refuse, Row, read_rows, require_file, text_lines

DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (".jsonl", ".ndjson", ".parquet", *DELIMITERS)


@dataclass(frozen=True)
class File:
    """See the module's text.

    Attributes:
        name: the path; ``~`` is the home folder.
    """

    name: str

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(self.name).expanduser()

    @property
    def label(self) -> str:
        """See `gradalign.problems.readers.base.Reader`."""
        return str(self.path)

    @property
    def stem(self) -> str:
        """See `gradalign.problems.readers.base.Reader`."""
        return self.path.stem

    @property
    def fields(self) -> FieldMap:
        """See `gradalign.problems.readers.base.Reader`."""
        return FieldMap()

    def rows(self, refuse: Refuse) -> Iterator[tuple[int, Row]]:
        """See `gradalign.problems.readers.base.Reader`; in CSV the number is that of the line where the row ends."""
        require_file(self.path)
        if self.path.suffix not in KINDS:
            kinds = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
            raise GradAlignError(f"{self.path}: unknown kind of file {self.path.suffix!r}; name a {kinds} file")
        if self.path.suffix in DELIMITERS:
            return _csv(self.path, DELIMITERS[self.path.suffix], refuse)
        return read_rows(self.path, refuse)


def _csv(path: Path, delimiter: str, refuse: Refuse) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(4 * LONGEST)
    at, header = 0, list[str]()

    def texts() -> Iterator[str]:
        nonlocal at
        for at, line in text_lines(path, refuse):  # noqa: B007 (read below, where a row ends)
            yield line

    records = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        began = at + 1
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:  # where a record ends is not known from here on
            raise GradAlignError(f"{path}:{began}: not CSV ({error}, line {at}); mend the quotes there") from error
        if not cells:
            continue
        if not header:
            header = _header(cells, path)
        elif len(cells) != len(header):
            refuse(
                GradAlignError(
                    f"{path}:{at}: has {len(cells)} cells, and the header {len(header)}; quote cells that "
                    "hold a delimiter or a line break"
                )
            )
        else:
            yield at, {n: _cell(cell) for n, cell in zip(header, cells, strict=True) if cell}


def _header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) == 1 and ";" in names[0]:
        raise GradAlignError(f"{path}:1: the header is one cell, {names[0]!r}; write commas between cells, not ;")
    for name in names:
        if not name or names.count(name) > 1:
            what = f"names {name!r} twice" if name else "has a cell without a name"
            raise GradAlignError(f"{path}:1: the header {what}; give each column a name of its own")
    return names


def _cell(text: str) -> Any:
    if text.startswith("[{"):
        try:
            value = json.loads(text)
            json.dumps(value, ensure_ascii=False).encode()  # no half characters
            return value
        except (ValueError, RecursionError):
            return text
    return text
