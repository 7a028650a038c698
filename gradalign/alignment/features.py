"""A sink that projects each group's gradient as it passes, so that a group leaves one short vector behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gradalign.alignment.coverage import Adapter
from gradalign.alignment.projection import Kept
from gradalign.policy.packing import Batch


class Project:
    """A sink that projects each group's gradient.

    Args:
        batch: the batch.
        kept: of each covered parameter.
        adapters: of each covered parameter, see `gradalign.alignment.coverage`.
        like: a tensor of the type that sums are taken in.

    Attributes:
        features: (groups, numbers).
    """

    def __init__(
        self, batch: Batch, kept: Sequence[Kept], adapters: Sequence[Adapter | None], like: torch.Tensor
    ) -> None:
        self.kept, self.adapters, self.dtype = kept, adapters, like.dtype
        self.spans = [part.slots for part in batch.parts]
        ends = np.cumsum([own.size for own in kept]).tolist()
        self.places = [slice(end - own.size, end) for own, end in zip(kept, ends, strict=True)]
        self.features = like.new_zeros(len(self.spans), ends[-1])

    def matrix(self, index: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """See `gradalign.alignment.capture.Sink`."""
        a, b = a.to(self.dtype), b.to(self.dtype)
        adapter = self.adapters[index]
        if adapter is not None:
            a, b = adapter.factors(a, b)
        self.features[:, self.places[index]] += self.kept[index].matrix(a, b, self.spans)

    def rows(self, index: int, ids: torch.Tensor, d: torch.Tensor) -> None:
        """See `gradalign.alignment.capture.Sink`."""
        self.features[:, self.places[index]] += self.kept[index].rows(ids, d.to(self.dtype), self.spans)

    def vector(self, index: int, d: torch.Tensor) -> None:
        """See `gradalign.alignment.capture.Sink`."""
        for group, span in enumerate(self.spans):
            self._whole(group, index, d[span].sum(0, dtype=self.dtype))

    def head(self, index: int, group: int, start: int, a: torch.Tensor, b: torch.Tensor, more: bool) -> None:
        """See `gradalign.alignment.capture.Sink`."""
        made = self.kept[index].block(start, a.to(self.dtype), b.to(self.dtype))
        self.features[group, self.places[index]] += made

    def whole(self, index: int, gradient: torch.Tensor) -> None:
        """See `gradalign.alignment.capture.Sink`."""
        gradient, adapter = gradient.to(self.dtype), self.adapters[index]
        self._whole(0, index, gradient if adapter is None else adapter.whole(gradient))

    def _whole(self, group: int, index: int, gradient: torch.Tensor) -> None:
        self.features[group, self.places[index]] += self.kept[index].whole(gradient)
