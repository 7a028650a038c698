"""Batches on their way through workers that may be lost: what is tried again, what is cut smaller, what is given up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradalign.errors import warn

TRIES = 3
"""Times that a batch may cost its worker before its items are tried alone, and an item alone before it is given up."""


@dataclass(slots=True)
class Piece:
    """A batch, or one item of it.

    Attributes:
        batch: the batch's number.
        place: of the first item within the batch.
        items: what is to be done.
        lost: how often it has cost its worker.
        alone: whether it is an item that is tried alone.
    """

    batch: int
    place: int
    items: Sequence[Any]
    lost: int = 0
    alone: bool = False

    @property
    def cut(self) -> int:
        """See `gradalign.executors.base.Job.begin`. A whole batch is done as it is: its results stay the same."""
        return self.lost if self.alone else 0


class Pieces:
    """The batches of one job.

    Args:
        batches: their items.
        name: how messages call an item.
    """

    def __init__(self, batches: Sequence[Sequence[Any]], name: Callable[[Any], str]) -> None:
        self.waiting = deque(Piece(number, 0, items) for number, items in enumerate(batches))
        self.name = name
        self._results: dict[int, list[Any]] = {}
        self._missing = {number: len(items) for number, items in enumerate(batches)}

    @property
    def unfinished(self) -> bool:
        """Whether some item has no result yet."""
        return bool(self._missing)

    def finished(self, piece: Piece, results: Sequence[Any]) -> list[Any] | None:
        """Take a piece's results; gives the batch's where these were the last ones missing."""
        found = self._results.setdefault(piece.batch, [None] * (self._missing[piece.batch]))
        found[piece.place : piece.place + len(piece.items)] = results
        self._missing[piece.batch] -= len(piece.items)
        if self._missing[piece.batch]:
            return None
        del self._missing[piece.batch]
        return self._results.pop(piece.batch)

    def again(self, piece: Piece) -> None:
        """Back to the front: it was waiting behind another one when its worker was lost."""
        self.waiting.appendleft(piece)

    def failed(self, piece: Piece, why: str, memory: bool = False) -> list[Any] | None:
        """It has cost its worker (``why``), or its worker's ``memory``; gives the batch's results where that ends it.

        Warns of an item that is given up.
        """
        piece.lost += 1
        if piece.lost < TRIES and not (memory and not piece.alone):
            self.waiting.appendleft(piece)
        elif not piece.alone:
            singles = [Piece(piece.batch, piece.place + i, [item], 0, True) for i, item in enumerate(piece.items)]
            self.waiting.extendleft(reversed(singles))
        else:
            warn(f"{self.name(piece.items[0])}: cost its worker {TRIES} times ({why}); it is left out as failed")
            return self.finished(piece, [None])
        return None
