"""Engine ``exact``: one backward pass a group over packed rows, reduced parameter by parameter as it runs.

A group's prompt is computed once where the architecture allows it; equal responses are computed once, their
coefficients added up. Each covered parameter's gradient is reduced to its inner product with the direction and its
squared norm as soon as it is complete, and freed: nothing of a group but these two numbers outlives its backward pass.
A group too large for one pass is added up over several; only then is a whole gradient carried between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from gradalign.alignment.direction import Direction, dot
from gradalign.alignment.record import Floats, Numbers
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.logprobs import token_logprobs
from gradalign.policy.objective import Objective
from gradalign.policy.packing import lay_out, rows_of

Sink = Callable[[int, torch.Tensor], None]
"""Called once a covered parameter with its index and the group's complete gradient in the reduction dtype."""


class Exact:
    """See the module's text.

    Args:
        policy: the policy.
        objective: what is differentiated.
        batch_tokens: tokens in one forward and backward pass, at most (one rollout at least).
        shared: a group's prompt is computed once; see `gradalign.policy.logprobs.shares_prompts`.
    """

    provides = frozenset({"dot", "norm", "cosine"})

    def __init__(self, policy: Policy, objective: Objective, batch_tokens: int, shared: bool) -> None:
        self.policy = policy
        self.objective = objective
        self.batch_tokens = batch_tokens
        self.shared = shared

    def gradient(self, group: Group) -> list[torch.Tensor]:
        """The group's policy gradient, one tensor a covered parameter, in the reduction dtype."""
        kept: dict[int, torch.Tensor] = {}
        self._stream(group, kept.__setitem__)
        policy = self.policy
        return [
            kept[i] if i in kept else torch.zeros_like(p, dtype=policy.reduction_dtype)
            for i, p in enumerate(policy.parameters)
        ]

    def measure(self, groups: Sequence[Group], direction: Direction) -> Iterator[Numbers]:
        """Dot, norm and cosine of each group."""
        for group in groups:
            parts: list[tuple[torch.Tensor, torch.Tensor]] = []
            self._stream(group, partial(_reduce, direction, parts))
            sums = torch.stack([torch.stack(pair) for pair in parts]).sum(0).tolist() if parts else [0.0, 0.0]
            norm = sums[1] ** 0.5
            yield Numbers(dot=sums[0], norm=norm, cosine=sums[0] / norm if norm > 0 else 0.0)

    def _distinct(self, group: Group) -> tuple[Group, Floats]:
        """The distinct responses that carry weight, and (responses,) their summed coefficients."""
        coefficients = self.objective.coefficients(group)
        distinct, owner = group.distinct()
        summed = np.bincount(owner, coefficients).astype(np.float64)
        kept = np.abs(summed) > 1e-12 * np.bincount(owner, np.abs(coefficients))
        distinct.rollouts = [rollout for rollout, keep in zip(distinct.rollouts, kept, strict=True) if keep]
        return distinct, summed[kept]

    def _stream(self, group: Group, sink: Sink) -> None:
        """Run the group's passes; hand each parameter's complete gradient to ``sink`` in the last of them."""
        policy = self.policy
        group, summed = self._distinct(group)
        rows = list(rows_of(group, self.batch_tokens, self.shared))
        # Half precision would lose small coefficients; a power of two changes nothing else.
        scale = 2.0 ** np.floor(np.log2(np.abs(summed).max())) if len(summed) else 1.0
        coefficients = torch.from_numpy(summed / scale).to(policy.device, policy.reduction_dtype)
        carried: dict[int, torch.Tensor] = {}
        last = False

        def complete(index: int, parameter: torch.Tensor) -> None:
            grad, parameter.grad = parameter.grad, None
            assert grad is not None
            grad = grad.to(policy.reduction_dtype) * scale
            if index in carried:
                grad = carried.pop(index).add_(grad)
            if last:
                sink(index, grad)
            else:
                carried[index] = grad

        hooks = [p.register_post_accumulate_grad_hook(partial(complete, i)) for i, p in enumerate(policy.parameters)]
        try:
            for number, row in enumerate(rows):
                last = number == len(rows) - 1
                batch = lay_out([row], policy.device, policy.dtype)
                logprobs = token_logprobs(policy, batch, self.objective.temperature)
                own = coefficients[torch.tensor(row.rollouts, device=policy.device)][batch.rollout]
                (logprobs * own * batch.counted).sum().backward()
            for index in list(carried):  # touched by an earlier pass only
                sink(index, carried.pop(index))
        finally:
            for hook in hooks:
                hook.remove()


def _reduce(
    direction: Direction, parts: list[tuple[torch.Tensor, torch.Tensor]], index: int, grad: torch.Tensor
) -> None:
    parts.append((dot(grad, direction.unit[index]), dot(grad, grad)))
