"""Passes over a policy that several processes hold between them (`gradalign.policy.shards`).

Every process goes through the same groups and cuts them into the same passes, of which each makes every count-th; one
that has none left makes a short one that counts nowhere, since a block is put together by all. What was found is added
up once for all passes that run side by side, so that everything after it, errors too, happens in every process alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gradalign.alignment.sinks import Reduce, Total
from gradalign.alignment.sums import Tensors
from gradalign.policy.load import Policy
from gradalign.policy.packing import Batch, Row
from gradalign.policy.shards import add_cut, whole


def turns(policy: Policy, passes: Sequence[list[Row]]) -> Iterator[tuple[int | None, list[Row]]]:
    """The passes that this process makes: which of ``passes``, and its rows; None for one that counts nowhere."""
    rank, count = (0, 1) if policy.shards is None else (policy.shards.rank, policy.shards.count)
    for number in range(rank, -(-len(passes) // count) * count, count):
        if number < len(passes):
            yield number, passes[number]
        else:
            yield None, [passes[0][0].only(passes[0][0].rollouts[0])]


def gathered(policy: Policy, found: Sequence[NDArray[np.float64]]) -> None:
    """Put in what the other processes found, in place of the zeros that this one has there."""
    if policy.shards is not None:
        policy.shards.add_up(list(found))


class CutReduce(Reduce):
    """`Reduce` along a direction that is cut: each layer's part of it is whole while it is needed.

    Args:
        batch, dtype, along, vocabulary, tied, beside: see there.
        head: indices of the output layer's parameters, which are needed many times.
    """

    def __init__(
        self, batch: Batch, dtype: torch.dtype, along: Tensors | None, vocabulary: int, tied: int | None,
        beside: Total | None, head: frozenset[int],
    ) -> None:  # fmt: skip
        super().__init__(batch, dtype, along, vocabulary, tied, beside)
        self.kept: dict[int, torch.Tensor | None] = dict.fromkeys(head)

    def _along(self, index: int) -> torch.Tensor | None:
        if self.along is None:
            return None
        made = self.kept.get(index)
        if made is None:
            made = whole(self.along[index])
            if index in self.kept:
                self.kept[index] = made
        return made


class CutTotal(Total):
    """`Total` into sums that are cut: a layer's gradient is whole until it is shared out.

    Args:
        batch, scales, total: see there.
        head: indices of the output layer's parameters, whose gradients come in many pieces.
    """

    def __init__(self, batch: Batch, scales: torch.Tensor, total: Tensors, head: frozenset[int]) -> None:
        self.made: dict[int, torch.Tensor] = {}
        super().__init__(batch, scales, self.made)
        self.cut, self.kept = total, head

    @contextlib.contextmanager
    def _whole(self, index: int) -> Iterator[None]:
        if index not in self.made:
            cut = self.cut[index]
            self.made[index] = torch.zeros(cut.shape, dtype=cut.dtype, device=cut.device)
        yield
        if index not in self.kept:
            add_cut(self.cut[index], self.made.pop(index))

    def matrix(self, index: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """See `Sink`."""
        with self._whole(index):
            super().matrix(index, a, b)

    def rows(self, index: int, ids: torch.Tensor, d: torch.Tensor) -> None:
        """See `Sink`."""
        with self._whole(index):
            super().rows(index, ids, d)

    def vector(self, index: int, d: torch.Tensor) -> None:
        """See `Sink`."""
        with self._whole(index):
            super().vector(index, d)

    def head(self, index: int, group: int, start: int, a: torch.Tensor, b: torch.Tensor, more: bool) -> None:
        """See `Sink`."""
        with self._whole(index):
            super().head(index, group, start, a, b, more)

    def finish(self) -> None:
        """See `Total`."""
        for index in sorted(self.made):
            add_cut(self.cut[index], self.made.pop(index))
