"""TRL's data sets as problems: keys for their rows, and what may not be in two of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from datasets import Dataset, Value, concatenate_datasets

from gradalign.errors import GradAlignError
from gradalign.problems.arrow import stored
from gradalign.problems.keys import Keys, RepeatedKeyError
from gradalign.problems.schema import Problem, content_key, normalised

FIELDS = ("key", "prompt", "answer", "source")
BLOCK = 1000
"""Rows read at a time."""


class Problems(Sequence[Problem]):
    """The rows of a data set as problems, made as they are asked for.

    Args:
        dataset: rows with ``prompt`` (text or messages); ``key``, ``answer``, ``source`` where there are such columns.
        name: what messages call it.

    Raises:
        GradAlignError: no map-style data set, no prompt, or two rows with one key.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        if not isinstance(dataset, Dataset):
            raise GradAlignError(
                f"{name}: is {type(dataset).__name__}; choosing looks problems up by number, so give a datasets.Dataset"
            )
        if "prompt" not in dataset.column_names:
            raise GradAlignError(
                f"{name}: has no column 'prompt' (columns: {', '.join(dataset.column_names)}); rename yours"
            )
        if not len(dataset):
            raise GradAlignError(f"{name}: is empty; give at least one problem")
        self.dataset = _keyed(dataset.with_format(None))
        try:
            self.keys = Keys(column(self.dataset, "key"))
        except RepeatedKeyError as error:
            raise GradAlignError(
                f"{name}: rows {error.first} and {error.last} are the same problem (key {error.key!r}); leave one out, "
                "or give each a 'key' of its own"
            ) from error

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [_problem(row) for row in _rows(self.dataset[index])]
        return _problem(self.dataset[index])

    def __iter__(self) -> Iterator[Problem]:
        for block in self.dataset.iter(BLOCK):
            yield from map(_problem, _rows(block))

    def row(self, key: str) -> dict[str, Any]:
        """The row of a problem."""
        return self.dataset[self.keys.index(key)]

    def require_disjoint(self, others: Dataset, name: str, own: str) -> None:
        """Refuse ``others`` that hold one of these problems.

        Raises:
            GradAlignError: it does; names the row.
        """
        held = {normalised(prompt) for prompt in column(self.dataset, "prompt")}
        for number, prompt in enumerate(column(others, "prompt")):
            if normalised(prompt) in held:
                raise GradAlignError(
                    f"{name}: row {number} is also in {own}, which nothing else may hold: training is steered by its "
                    "gradient; take it out"
                )


def on_disk(rows: Callable[[], Iterable[Mapping[str, Any]]]) -> Dataset:
    """A data set of rows in a temporary file; see `gradalign.problems.arrow.stored`."""
    return Dataset(stored(rows), fingerprint=secrets.token_hex(8))  # to find one it would copy all rows


def column(dataset: Dataset, name: str) -> Iterator[Any]:
    """The values of a column, a block at a time from disk."""
    for block in dataset.with_format(None).select_columns(name).iter(BLOCK):
        yield from block[name]


def _rows(block: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*block.values(), strict=True):
        yield dict(zip(block, values, strict=True))


def _problem(row: dict[str, Any]) -> Problem:
    metadata = {name: value for name, value in row.items() if name not in FIELDS}
    return Problem(row["key"], row["prompt"], _text(row.get("answer")), _text(row.get("source")), metadata)


def _keyed(dataset: Dataset) -> Dataset:
    """The data set with a key for each row, as text."""
    given = "key" in dataset.column_names
    if given and dataset.features["key"] == Value("string") and not dataset.data.column("key").null_count:
        return dataset
    name, text = ("key", str) if given else ("prompt", content_key)
    keys = on_disk(lambda: ({"key": text(value)} for value in column(dataset, name)))
    return concatenate_datasets([dataset.remove_columns("key") if given else dataset, keys], axis=1)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
