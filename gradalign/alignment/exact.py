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

from gradalign.alignment.direction import Direction, Tensors, inner
from gradalign.alignment.passes import Budget, Passes, Weighted, over_batches, weighted
from gradalign.alignment.record import Floats, Numbers
from gradalign.alignment.sinks import Reduce, Total
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.policy.packing import Row

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
        self.budget = Budget(batch_tokens)
        self.passes = passes or Passes(policy, objective.temperature, packed)

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
        capture = self.passes.capture

        def run(some: list[Weighted], passes: list[list[Row]]) -> tuple[list[tuple[float, float]], Recorded]:
            known = {id(each.group): each for each in some}
            record: Recorded = []
            sums = dict.fromkeys(known, (0.0, 0.0))
            whole = total if along is None and total is not None else None
            if len(passes) > 1 and whole is None:
                whole = self._zeros()
            for rows in passes:
                batch = self.passes.lay_out(rows)
                own = [known[key] for key in dict.fromkeys(id(row.group) for row in rows)]
                scales = torch.tensor([each.scale for each in own], dtype=torch.float64, device=batch.slot.device)
                coefficients = np.concatenate([known[id(row.group)].coefficients[row.rollouts] for row in rows])
                if whole is not None:
                    record.append((rows, self.passes.run(batch, coefficients, Total(batch, scales, whole))))
                    continue
                beside = Total(batch, scales, total) if total is not None else None
                size = self.passes.split.vocabulary
                sink = Reduce(batch, self.policy.reduction_dtype, along, size, capture.tied, beside)
                record.append((rows, self.passes.run(batch, coefficients, sink)))
                scaled = sink.sums * torch.stack([scales, scales**2], 1)
                sums.update(zip(map(id, (each.group for each in own)), map(tuple, scaled.tolist()), strict=True))
            if whole is not None and whole is not total:
                product = 0.0 if along is None else inner(whole, [tensor.to(self.policy.device) for tensor in along])
                sums[id(some[0].group)] = product, inner(whole, whole)
                for to, tensor in zip(total, whole, strict=True) if total is not None else ():
                    to.add_(tensor)
            return list(sums.values()), record

        together = not capture.unknown
        for sums, record in over_batches(groups, self.budget, self.packed, together, run):
            if recorded is not None:
                recorded.extend(record)
            yield from sums
