"""Engine ``exact``: one forward and one backward pass, reduced layer by layer as it runs.

Many small groups share a pass; a group's prompt is computed once where the architecture allows it; equal responses are
computed once, their coefficients added up; logits are formed only where a response token is predicted. A layer's
gradient is formed for one group after the other, reduced to its inner product with the direction and its squared norm,
and freed: nothing of a group but these two numbers outlives its layer. A group too large for one pass is added up over
several; only then is a whole gradient carried between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from gradalign.alignment.cut import CutReduce, CutTotal, gathered, turns
from gradalign.alignment.direction import Direction
from gradalign.alignment.passes import Budget, Passes, Weighted, over_batches, weighted
from gradalign.alignment.record import Floats, Numbers
from gradalign.alignment.sinks import Reduce, Total
from gradalign.alignment.sums import Tensors, inner
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.policy.packing import Batch, Row

Sums = list[tuple[float, float]]
Recorded = list[tuple[list[Row], Floats]]
"""Of each pass: its rows, and (rollouts of the rows,) log-probabilities summed over counted tokens."""


class Exact:
    """See the module's text.

    Args:
        policy: the policy.
        objective: what is differentiated.
        batch_tokens: tokens in one forward and backward pass, at most (one rollout at least).
        packed: a group's prompt is computed once; see `gradalign.policy.logprobs.packs`.
        passes: of this policy, where they are not the ordinary ones.
    """

    provides = frozenset({"dot", "norm", "cosine"})

    def __init__(
        self, policy: Policy, objective: Objective, batch_tokens: int, packed: bool, passes: Passes | None = None
    ) -> None:
        self.policy, self.objective, self.packed = policy, objective, packed
        self.budget = Budget(batch_tokens, alone=policy.shards is None)
        self.passes = passes or Passes(policy, objective.temperature, packed)
        capture = self.passes.capture
        self.head = frozenset(index for index in (capture.head, capture.head_bias) if index is not None)

    def measure(
        self, groups: Iterable[Group], direction: Direction, recorded: Recorded | None = None
    ) -> Iterator[Numbers]:
        """Dot, norm and cosine of each group.

        Args:
            groups: are taken as they are needed.
            direction: to align them with.
            recorded: where log-probabilities of all responses go as a by-product; costs passes over responses whose
                coefficients cancel.
        """
        each = (self._weighted(group, every=recorded is not None) for group in groups)
        for product, square in self._sums(each, direction.unit, None, recorded):
            norm = square**0.5
            yield Numbers(dot=product, norm=norm, cosine=product / norm if norm > 0 else 0.0)

    def gradient(self, group: Group) -> list[torch.Tensor]:
        """The group's policy gradient, one tensor a covered parameter, in the reduction dtype."""
        return self.add_up([group])[0]

    def add_up(
        self,
        groups: Sequence[Group],
        along: Tensors | None = None,
        unit: bool = False,
        done: Callable[[], None] = lambda: None,
    ) -> tuple[list[torch.Tensor], list[float]]:
        """The sum of the groups' gradients, and each one's inner product with ``along``; see `AddUp`."""
        weights = [1.0] * len(groups)
        if unit:
            squares = [square for _, square in self._sums(map(self._weighted, groups), None)]
            weights = [square**-0.5 if square > 0 else 0.0 for square in squares]
        each = [self._weighted(group, weight) for group, weight in zip(groups, weights, strict=True)]
        while True:
            tokens, total = self.budget.tokens, self._zeros()
            products = []
            for product, _ in self._sums(each, along, total):
                products.append(product)
                done()
            if self.budget.tokens == tokens:  # else memory ran out half-way through a pass: what was added is spoilt
                return total, products

    def _weighted(self, group: Group, weight: float = 1.0, every: bool = False) -> Weighted:
        return weighted(group, self.objective, self.policy.half, every, weight)

    def _zeros(self) -> list[torch.Tensor]:
        return [torch.zeros_like(p, dtype=self.policy.reduction_dtype) for p in self.policy.parameters]

    def _sums(
        self,
        groups: Iterable[Weighted],
        along: Tensors | None,
        total: list[torch.Tensor] | None = None,
        recorded: Recorded | None = None,
    ) -> Iterator[tuple[float, float]]:
        """Inner product with ``along`` and squared norm of each group's gradient, which is added to ``total``."""

        def run(some: list[Weighted], passes: list[list[Row]]) -> tuple[Sums, Recorded]:
            if along is None and total is not None:  # nothing is asked of single groups
                return [(0.0, 0.0)] * len(some), self._added(some, passes, total)
            if len(passes) > 1 and sum(bool(each.group.rollouts) for each in some) == 1:
                return self._large(some, passes, along, total)
            return self._small(some, passes, along, total)

        together = not self.passes.capture.unknown
        abreast = 1 if self.policy.shards is None else self.policy.shards.count
        for sums, record in over_batches(groups, self.budget, self.packed, together, run, abreast):
            if recorded is not None:
                recorded.extend(record)
            yield from sums

    def _added(self, some: Sequence[Weighted], passes: list[list[Row]], total: list[torch.Tensor]) -> Recorded:
        """Passes over groups whose gradients are added to ``total``."""
        found = self._run(some, passes, lambda batch, scales: self._total(batch, scales, total))
        return [(rows, logprobs) for rows, (_, logprobs) in zip(passes, found, strict=True)]

    def _large(
        self, some: Sequence[Weighted], passes: list[list[Row]], along: Tensors | None, total: list[torch.Tensor] | None
    ) -> tuple[Sums, Recorded]:
        """A group over several passes; beside it only groups all of whose coefficients cancel."""
        whole = self._zeros()
        recorded = self._added(some, passes, whole)
        product = 0.0 if along is None else inner(whole, [tensor.to(self.policy.device) for tensor in along])
        found = product, inner(whole, whole)
        for to, tensor in zip(total, whole, strict=True) if total is not None else ():
            to.add_(tensor)
        return [found if each.group.rollouts else (0.0, 0.0) for each in some], recorded

    def _small(
        self, some: Sequence[Weighted], passes: list[list[Row]], along: Tensors | None, total: list[torch.Tensor] | None
    ) -> tuple[Sums, Recorded]:
        """Groups that share passes; none where all their coefficients cancel."""
        sums = {id(each.group): (0.0, 0.0) for each in some}
        recorded: Recorded = []
        size, tied = self.passes.split.vocabulary, self.passes.capture.tied

        def make(batch: Batch, scales: torch.Tensor) -> Reduce:
            beside = None if total is None else self._total(batch, scales, total)
            if self.policy.shards is None:
                return Reduce(batch, self.policy.reduction_dtype, along, size, tied, beside)
            return CutReduce(batch, self.policy.reduction_dtype, along, size, tied, beside, self.head)

        carrying = iter([each for each in some if each.group.rollouts])
        for rows, (found, logprobs) in zip(passes, self._run(some, passes, make), strict=True):
            recorded.append((rows, logprobs))
            for product, square in found.tolist():
                each = next(carrying)
                sums[id(each.group)] = product * each.scale, square * each.scale**2
        return list(sums.values()), recorded

    def _total(self, batch: Batch, scales: torch.Tensor, total: list[torch.Tensor]) -> Total:
        return Total(batch, scales, total) if self.policy.shards is None else CutTotal(batch, scales, total, self.head)

    def _run(
        self, some: Sequence[Weighted], passes: list[list[Row]], make: Callable[[Batch, torch.Tensor], Reduce | Total]
    ) -> list[tuple[Floats, Floats]]:
        """Passes; each gives (its groups, 2) sums, of `Reduce` alone, and (rollouts of its rows,) log-probabilities."""
        known = {id(each.group): each for each in some}
        groups = [list(dict.fromkeys(id(row.group) for row in rows)) for rows in passes]
        found = [
            (np.zeros((len(own), 2)), np.zeros(sum(len(row.rollouts) for row in rows)))
            for own, rows in zip(groups, passes, strict=True)
        ]
        for number, rows in turns(self.policy, passes):
            batch = self.passes.lay_out(rows)
            scales = [known[key].scale for key in dict.fromkeys(id(row.group) for row in rows)]
            sink = make(batch, torch.tensor(scales, dtype=torch.float64, device=batch.slot.device))
            coefficients = np.concatenate([known[id(row.group)].coefficients[row.rollouts] for row in rows])
            logprobs = self.passes.run(batch, coefficients * (number is not None), sink)
            sink.finish()
            if number is not None:
                found[number][1][:] = logprobs
                if isinstance(sink, Reduce):
                    found[number][0][:] = sink.sums.cpu().numpy()
        gathered(self.policy, [array for pair in found for array in pair])
        return found
