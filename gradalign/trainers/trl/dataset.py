"""TRL's data sets as problems: keys for their rows, and what may not be in two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from datasets import Dataset

from gradalign.errors import GradAlignError
from gradalign.problems.schema import Problem, content_key, normalised

FIELDS = ("key", "prompt", "answer", "source")


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
        if "key" in dataset.column_names:
            self.keys = [str(key) for key in dataset["key"]]
            dataset = dataset.remove_columns("key")
        else:
            self.keys = [content_key(prompt) for prompt in dataset["prompt"]]
        self.dataset = dataset.add_column("key", self.keys)
        self._index = {key: number for number, key in enumerate(self.keys)}
        if len(self._index) < len(self.keys):
            first = next(number for number, key in enumerate(self.keys) if self._index[key] != number)
            raise GradAlignError(
                f"{name}: rows {first} and {self._index[self.keys[first]]} are the same problem (key "
                f"{self.keys[first]!r}); leave one out, or give each a 'key' of its own"
            )

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self.dataset[index]
        metadata = {name: value for name, value in row.items() if name not in FIELDS}
        return Problem(self.keys[index], row["prompt"], _text(row.get("answer")), _text(row.get("source")), metadata)

    def row(self, key: str) -> dict[str, Any]:
        """The row of a problem."""
        return self.dataset[self._index[key]]

    def require_disjoint(self, others: Dataset, name: str, own: str) -> None:
        """Refuse ``others`` that hold one of these problems.

        Raises:
            GradAlignError: it does; names the row.
        """
        held = {normalised(prompt) for prompt in self.dataset["prompt"]}
        for number, prompt in enumerate(others["prompt"]):
            if normalised(prompt) in held:
                raise GradAlignError(
                    f"{name}: row {number} is also in {own}, which nothing else may hold: training is steered by its "
                    "gradient; take it out"
                )


def _text(value: Any) -> str:
    return "" if value is None else str(value)
