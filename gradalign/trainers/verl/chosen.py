"""Which rows of verl's Parquet a selection keeps, in which order. Needs neither verl nor torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gradalign.errors import GradAlignError, nearest
from gradalign.problems.fields import key_of, prompt_of
from gradalign.rows import Row, read_rows

RANKED = {"status", "rank", "selected"}
"""Columns of a table that holds all candidates, chosen or not."""


@dataclass(frozen=True)
class Selection:
    """``data.gradalign`` of verl's configuration.

    Attributes:
        selection: file of the choice: chosen.jsonl, chosen.verl.parquet, scored.jsonl or alignments.parquet.
        places: rows of an epoch: the chosen again and again until so many, cut off there; None takes each once.
        key_field: of the Parquet's keys, ``outer.inner`` for a nested one (default: key, extra_info.key, else a hash
            of the prompt).
    """

    selection: Path
    places: int | None = None
    key_field: str | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any] | None) -> Selection:
        """From the configuration's values.

        Raises:
            GradAlignError: one is unknown, missing, or no number of places.
        """
        values = values or {}
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise GradAlignError(f"data.gradalign: unknown field {name!r}{nearest(name, known)}")
        if not values.get("selection"):
            raise GradAlignError("data.gradalign.selection is missing; add +data.gradalign.selection=FILE")
        places = values.get("places")
        if places is not None and (not isinstance(places, int) or isinstance(places, bool) or places < 1):
            raise GradAlignError(f"data.gradalign.places: is {places!r}; write a whole number, 1 or more")
        return cls(Path(str(values["selection"])).expanduser(), places, values.get("key_field"))

    def rows(self, rows: Iterable[Row], prompt_field: str, where: str) -> list[int]:
        """Indices of the rows to keep, best first; a problem that the selection holds twice comes twice.

        Args:
            rows: of verl's files, in order; of two of one key the first counts.
            prompt_field: of their prompts.
            where: names the files in messages.

        Raises:
            GradAlignError: the selection cannot be read, is empty, or holds keys that no row has.
        """
        chosen = read_chosen(self.selection)
        wanted, found = set(chosen), dict[str, int]()
        for index, row in enumerate(rows):
            key = _key(row, self.key_field, prompt_field, f"{where}: row {index + 1}")
            if key in wanted:
                found.setdefault(key, index)
        lacking = [key for key in chosen if key not in found]
        if lacking:
            raise GradAlignError(
                f"{self.selection}: {len(lacking)} of its {len(chosen)} problems are not in {where} (first: key "
                f"{lacking[0]!r}); name the files they were chosen from, or their keys' field by "
                "+data.gradalign.key_field=NAME"
            )
        return [found[key] for key in chosen]

    def placed(self, count: int) -> list[int]:
        """Which of ``count`` rows stands in each place of an epoch."""
        return [place % count for place in range(count if self.places is None else self.places)]


def read_chosen(path: Path) -> list[str]:
    """Keys of the chosen problems, best first.

    Raises:
        GradAlignError: the file cannot be read, a row has no key, or nothing is chosen.
    """
    chosen: list[tuple[int, str]] = []
    for number, row in read_rows(path):
        if row.keys() >= RANKED and not row["selected"]:
            continue
        extra = row.get("extra_info")
        key = row.get("key", extra.get("key") if isinstance(extra, dict) else None)
        if not isinstance(key, str):
            raise GradAlignError(
                f"{path}:{number}: no field 'key'; name a file that gradalign wrote: chosen.jsonl, "
                "chosen.verl.parquet, scored.jsonl or alignments.parquet"
            )
        chosen.append((row["rank"] or 0 if row.keys() >= RANKED else number, key))
    if not chosen:
        raise GradAlignError(f"{path}: nothing is chosen in it")
    return [key for _, key in sorted(chosen, key=lambda one: one[0])]


def is_training(files: Sequence[str], training: Sequence[str] | None, validation: Sequence[str] | None) -> bool:
    """Whether verl asks for its training data: it has one data set class for these and for its validation data.

    Args:
        files: that are asked for.
        training: ``data.train_files``; None where the configuration has none.
        validation: ``data.val_files``, likewise.

    Raises:
        GradAlignError: both name the same files.
    """
    if training is not None and validation is not None and list(training) == list(validation):
        raise GradAlignError(
            "data.val_files is data.train_files, and the selection is of the latter alone; name a copy of the files, "
            "or others"
        )
    return training is None or list(files) == list(training)


def _key(row: Row, named: str | None, prompt_field: str, where: str) -> str:
    place = f"{where}: field {prompt_field!r}"
    return key_of(row, named, lambda: prompt_of(row.get(prompt_field), place), where)[0]
