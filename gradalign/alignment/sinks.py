"""What is made of a backward pass's factors (`gradalign.alignment.capture.Sink`): each group's numbers, or a sum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from gradalign.alignment import fused
from gradalign.alignment.sums import Tensors
from gradalign.policy.packing import Batch

CACHED = 2**18
"""Elements of one group's gradient that are formed and reduced at a time on a CPU: what its caches hold."""
SMALL, TOGETHER = {"cpu": 2**16}, {"cpu": 2**21}
"""By device: matrices of at most so many elements are formed for several groups at once; so many elements in all."""
LARGE = 2**27
"""The same on devices that want large work: half a gigabyte."""


def product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a^T b in ``dtype``; (.., rows, n) and (.., rows, m) give (.., n, m)."""
    a = a.transpose(-1, -2)
    if a.dtype != dtype and a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype) if a.ndim == 2 else torch.bmm(a, b, out_dtype=dtype)
    return torch.matmul(a, b).to(dtype)


class Total:
    """Adds the gradients of all groups up.

    Args:
        batch: the batch.
        scales: (groups,) powers of two that the groups' gradients are to be multiplied by.
        total: one tensor a covered parameter, in the reduction dtype; added to.
    """

    def __init__(self, batch: Batch, scales: torch.Tensor, total: Tensors | dict[int, torch.Tensor]) -> None:
        self.scales, self.total = scales, total
        lengths = torch.tensor([p.slots.stop - p.slots.start for p in batch.parts], device=scales.device)
        self.by_slot = None if bool((scales == 1).all()) else scales.repeat_interleave(lengths)[:, None]

    def _scaled(self, d: torch.Tensor) -> torch.Tensor:
        if d.dtype == torch.float16:  # its range would be left
            d = d.float()
        return d if self.by_slot is None else d * self.by_slot.to(d.dtype)

    def matrix(self, index: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """See `Sink`."""
        total, a = self.total[index], self._scaled(a)
        if a.dtype == total.dtype:
            total.addmm_(a.t(), b.to(a.dtype))
        else:
            total.add_(product(a, b.to(a.dtype), total.dtype))

    def rows(self, index: int, ids: torch.Tensor, d: torch.Tensor) -> None:
        """See `Sink`."""
        self.total[index].index_add_(0, ids, self._scaled(d).to(self.total[index].dtype))

    def vector(self, index: int, d: torch.Tensor) -> None:
        """See `Sink`."""
        total = self.total[index]
        total.add_(self._scaled(d).sum(0, dtype=total.dtype))

    def head(self, index: int, group: int, start: int, a: torch.Tensor, b: torch.Tensor, more: bool) -> None:
        """See `Sink`."""
        total = self.total[index][start : start + a.shape[1]]
        total.view(len(total), -1).add_(product(a, b, total.dtype).mul_(self.scales[group]))

    def whole(self, index: int, gradient: torch.Tensor) -> None:
        """See `Sink`."""
        total = self.total[index]
        total.add_(gradient.to(total.dtype).mul_(self.scales[0]))

    def finish(self) -> None:
        """Called when the pass is over."""


class Reduce:
    """Takes each group's inner product with ``along`` and its squared norm; no gradient outlives its layer.

    Args:
        batch: the batch; every group in it is whole.
        dtype: the reduction dtype.
        along: one tensor a covered parameter; None takes norms alone.
        vocabulary: rows of the output layer.
        tied: index of the matrix that is both input embedding and output layer, where there is one.
        beside: is handed everything as well.

    Attributes:
        sums: (groups, 2) inner products and squared norms, in float64.
    """

    def __init__(
        self, batch: Batch, dtype: torch.dtype, along: Tensors | None, vocabulary: int, tied: int | None,
        beside: Total | None = None,
    ) -> None:  # fmt: skip
        self.dtype, self.along, self.vocabulary, self.tied, self.beside = dtype, along, vocabulary, tied, beside
        self.spans = [part.slots for part in batch.parts]
        ids = batch.input_ids.flatten()
        self.sums = torch.zeros(len(self.spans), 2, dtype=torch.float64, device=ids.device)
        lengths = np.array([span.stop - span.start for span in self.spans])
        padded = np.full((len(lengths), lengths.max()), lengths.sum())
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.arange(lengths.sum())
        self.uniform = lengths.min() == lengths.max()
        self.even = padded.size <= 1.25 * lengths.sum()
        self.padded = torch.from_numpy(padded).to(ids.device)
        self.owner = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(ids.device)
        self.ends = torch.from_numpy(lengths.cumsum()).to(ids.device)
        self.starts = self.ends - torch.from_numpy(lengths).to(ids.device)
        self.carried: dict[int, torch.Tensor] = {}
        if tied is not None:  # rows of the output layer's gradient that the embedding's meets
            self.pairs = words, _ = self._pairs(ids)
            self.met: torch.Tensor | None = None
            self.words = words[1].cpu().numpy()
            self.by_group = np.searchsorted(words[0].cpu().numpy(), np.arange(len(lengths) + 1))

    def _pairs(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(2, pairs) each group with each token it has, in order; (slots,) which of them each slot is."""
        size = ids.max() + 1
        pairs, inverse = torch.unique(self.owner * size + ids, return_inverse=True)
        return torch.stack([pairs // size, pairs % size]), inverse

    def _along(self, index: int) -> torch.Tensor | None:
        return None if self.along is None else self.along[index].to(self.sums.device)

    def _add(self, group: int, gradient: torch.Tensor, along: torch.Tensor | None) -> None:
        gradient = gradient.reshape(-1)
        norm = torch.dot(gradient, gradient)
        dot = torch.zeros_like(norm) if along is None else torch.dot(gradient, along.reshape(-1))
        self.sums[group] += torch.stack([dot, norm])

    def _add_all(self, groups: slice, gradients: torch.Tensor, along: torch.Tensor | None) -> None:
        """(groups, size) gradients."""
        norms = torch.linalg.vecdot(gradients, gradients)
        dots = torch.zeros_like(norms) if along is None else gradients @ along.reshape(-1)
        self.sums[groups] += torch.stack([dots, norms], 1)

    def matrix(self, index: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """See `Sink`."""
        if self.beside is not None:
            self.beside.matrix(index, a, b)
        along, size = self._along(index), a.shape[1] * b.shape[1]
        if fused.takes(a, self.dtype):
            self.sums += fused.reduce(a, b, along, self.starts, self.ends)
            return
        if size <= SMALL.get(a.device.type, LARGE) and len(self.spans) > 1 and (a.device.type == "cpu" or self.even):
            a, b = self._by_group(a), self._by_group(b)
            some = max(1, TOGETHER.get(a.device.type, LARGE) // size)
            for start in range(0, len(self.spans), some):
                groups = slice(start, start + some)
                self._add_all(groups, product(a[groups], b[groups], self.dtype).flatten(1), along)
            return
        step = a.shape[1] if a.is_cuda else max(1, CACHED // b.shape[1])
        for group, span in enumerate(self.spans):
            for start in range(0, a.shape[1], step):
                rows = slice(start, start + step)
                own = product(a[span, rows], b[span], self.dtype)
                self._add(group, own, None if along is None else along[rows])

    def _by_group(self, d: torch.Tensor) -> torch.Tensor:
        """(slots, size) as (groups, longest, size), filled up with zeros."""
        if self.uniform:
            return d.view(len(self.spans), -1, d.shape[1])
        return torch.cat([d, d.new_zeros(1, d.shape[1])])[self.padded]

    def rows(self, index: int, ids: torch.Tensor, d: torch.Tensor) -> None:
        """See `Sink`."""
        if self.beside is not None:
            self.beside.rows(index, ids, d)
        along = self._along(index)
        if index == self.tied:
            words, inverse = self.pairs
        else:
            words, inverse = self._pairs(ids)
        own = d.new_zeros(words.shape[1], d.shape[1], dtype=self.dtype).index_add_(0, inverse, d.to(self.dtype))
        norms = torch.linalg.vecdot(own, own)
        if index == self.tied and self.met is not None:
            norms += 2 * torch.linalg.vecdot(own, self.met)
        dots = torch.zeros_like(norms) if along is None else torch.linalg.vecdot(own, along[words[1]])
        self.sums.index_add_(0, words[0], torch.stack([dots, norms], 1).double())

    def vector(self, index: int, d: torch.Tensor) -> None:
        """See `Sink`."""
        if self.beside is not None:
            self.beside.vector(index, d)
        own = d.new_zeros(len(self.spans), d.shape[1], dtype=self.dtype).index_add_(0, self.owner, d.to(self.dtype))
        self._add_all(slice(None), own, self._along(index))

    def head(self, index: int, group: int, start: int, a: torch.Tensor, b: torch.Tensor, more: bool) -> None:
        """See `Sink`."""
        if self.beside is not None:
            self.beside.head(index, group, start, a, b, more)
        rows = slice(start, start + a.shape[1])
        if not more and index not in self.carried and fused.takes(a, self.dtype):
            along = self._along(index)
            if along is not None:
                along = along[rows].reshape(a.shape[1], -1)
            if index == self.tied:
                self._meet(group, rows, b.shape[1], lambda words: product(a[:, words], b, self.dtype))
            ends = self.ends.new_full((1,), len(a))
            self.sums[group] += fused.reduce(a, b, along, ends - len(a), ends)[0]
            return
        own = product(a, b, self.dtype)
        if index == self.tied:
            self._meet(group, rows, b.shape[1], own.__getitem__)
        if more or index in self.carried:  # the group's gradient is whole with its last call only
            if index not in self.carried:
                self.carried[index] = own.new_zeros(self.vocabulary, own.shape[1])
            own = self.carried[index][rows].add_(own)
        if not more:
            along = self._along(index)
            self._add(group, own, None if along is None else along[rows])
            if index in self.carried:
                own.zero_()

    def _meet(self, group: int, rows: slice, width: int, gradient: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Keep a group's ``gradient`` of the output layer, by some of ``rows``, where these are its own tokens."""
        first, last = map(int, self.by_group[group : group + 2])
        low, high = (first + int(i) for i in np.searchsorted(self.words[first:last], (rows.start, rows.stop)))
        if self.met is None:
            self.met = torch.zeros(self.pairs[0].shape[1], width, dtype=self.dtype, device=self.sums.device)
        if low < high:
            self.met[low:high] += gradient(self.pairs[0][1, low:high] - rows.start)

    def whole(self, index: int, gradient: torch.Tensor) -> None:
        """See `Sink`."""
        if self.beside is not None:
            self.beside.whole(index, gradient)
        self._add(0, gradient.to(self.dtype), self._along(index))

    def finish(self) -> None:
        """Called when the pass is over."""
        if self.beside is not None:
            self.beside.finish()
