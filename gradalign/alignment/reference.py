"""Engine ``reference``: plain autograd, one rollout at a time, unpadded. The referee of every other engine.

Shares no code with the other engines beyond the objective's coefficients: the whole sequence through the model,
log-softmax over all logits, one backward pass a rollout. Slow on purpose; sees everything, also in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from gradalign.alignment.direction import Direction
from gradalign.alignment.record import Numbers, from_contributions
from gradalign.alignment.sums import AddUp, one_by_one
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective


class Reference:
    """See the module's text."""

    provides = frozenset({"dot", "norm", "cosine", "se", "t", "corr", "moves"})

    def __init__(self, policy: Policy, objective: Objective) -> None:
        self.policy = policy
        self.objective = objective

    def gradient(self, group: Group) -> list[torch.Tensor]:
        """The group's policy gradient, one tensor a covered parameter."""
        return self._measure(group, None)[0]

    @property
    def add_up(self) -> AddUp:
        """Adds gradients up."""
        return one_by_one(self.gradient, self._zeros)

    def measure(self, groups: Sequence[Group], direction: Direction) -> Iterator[Numbers]:
        """Numbers of each group, all six of them."""
        for group in groups:
            gradient, derivatives = self._measure(group, direction)
            unit = [tensor.to(self.policy.device) for tensor in direction.unit]
            dot = sum(float((g * v).sum(dtype=torch.float64)) for g, v in zip(gradient, unit, strict=True))
            norm = sum(float((g.double() ** 2).sum()) for g in gradient) ** 0.5
            numbers = from_contributions(group, self.objective, derivatives)
            numbers.dot, numbers.norm, numbers.cosine = dot, norm, dot / norm if norm > 0 else 0.0
            yield numbers

    def _zeros(self) -> list[torch.Tensor]:
        return [torch.zeros_like(p, dtype=self.policy.reduction_dtype) for p in self.policy.parameters]

    def _measure(self, group: Group, direction: Direction | None) -> tuple[list[torch.Tensor], np.ndarray]:
        policy = self.policy
        total = self._zeros()
        derivatives = np.zeros(len(group.rollouts))
        for k, coefficient in enumerate(self.objective.coefficients(group)):
            score = torch.autograd.grad(
                self._log_probability(group, group.rollouts[k]), policy.parameters,
                materialize_grads=True, allow_unused=True,
            )  # fmt: skip
            for t, s in zip(total, score, strict=True):
                t.add_(s, alpha=float(coefficient))
            if direction is not None:
                pairs = zip(score, (tensor.to(policy.device) for tensor in direction.unit), strict=True)
                derivatives[k] = sum(float((s * v).sum(dtype=torch.float64)) for s, v in pairs)
        return total, derivatives

    def _log_probability(self, group: Group, rollout: Rollout) -> torch.Tensor:
        """log pi(y_k), the sum over the response tokens that count."""
        policy = self.policy
        ids = torch.from_numpy(np.concatenate([group.prompt_ids, rollout.response_ids])).to(policy.device)
        with policy.arithmetic():
            logits = policy.model(input_ids=ids[None], use_cache=False).logits[0].to(policy.reduction_dtype)
        start = len(group.prompt_ids)
        logprobs = torch.log_softmax(logits[start - 1 : -1] / self.objective.temperature, dim=-1)
        chosen = logprobs.gather(1, ids[start:, None])[:, 0]
        return chosen[torch.from_numpy(rollout.mask).to(policy.device)].sum()
