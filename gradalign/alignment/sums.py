"""Sums of the problems' gradients, over halves of the validation set and over processes; inner products."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import torch

from gradalign.errors import GradAlignError
from gradalign.policy.group import Group
from gradalign.policy.shards import local, over_parts
from gradalign.problems.schema import uniform_hash
from gradalign.processes import Processes

Tensors = Sequence[torch.Tensor]


class AddUp(Protocol):
    """How an engine adds gradients up."""

    def __call__(
        self, groups: Sequence[Group], along: Tensors | None, unit: bool, done: Callable[[], None]
    ) -> tuple[list[torch.Tensor], list[float]]:
        """The sum of the groups' gradients, and each one's inner product with ``along``.

        Args:
            groups: each of them ``scored``.
            along: one tensor a covered parameter; without it the products mean nothing.
            unit: each gradient is divided by its norm first.
            done: called after each group.
        """
        ...


def halved(
    groups: Sequence[Group], seed: int, held: Mapping[str, int] = MappingProxyType({})
) -> tuple[list[Group], list[Group]]:
    """Two disjoint halves by a seeded hash of the keys, the first one larger by one where the count is odd.

    Groups whose keys are ``held`` go to half 0 or 1 as that says; the others even out what they can.
    """
    order = sorted(groups, key=lambda group: uniform_hash(seed, group.key))
    first, second = ([group for group in order if held.get(group.key) == half] for half in (0, 1))
    free = [group for group in order if group.key not in held]
    more = max(0, (len(order) + 1) // 2 - len(first))
    return first + free[:more], second + free[more:]


def half_sum(
    half: Sequence[Group],
    add_up: AddUp,
    along: Tensors | None,
    unit: bool,
    done: Callable[[], None],
    processes: Processes,
) -> tuple[list[torch.Tensor], list[float]]:
    """`AddUp` over all processes, each differentiating its share of the groups.

    Raises:
        GradAlignError: a gradient, or their sum, is not finite.
    """
    mine = processes.mine(half)
    sums: list[list[torch.Tensor]] = []

    def share() -> list[float]:
        total, products = add_up(mine, along, unit, done)
        sums.append(total)
        if not math.isfinite(inner(total, total)):
            raise _not_finite(mine, add_up, unit)
        return products

    products = processes.together(share)
    processes.add_up(sums[0])
    return sums[0], processes.joined(products)


def one_by_one(gradient: Callable[[Group], list[torch.Tensor]], zeros: Callable[[], list[torch.Tensor]]) -> AddUp:
    """Adds up what ``gradient`` gives of each group, one tensor a covered parameter, beginning with ``zeros``."""

    def add_up(
        groups: Sequence[Group], along: Tensors | None, unit: bool, done: Callable[[], None]
    ) -> tuple[list[torch.Tensor], list[float]]:
        total, products = zeros(), []
        for group in groups:
            own = gradient(group)
            norm = inner(own, own) ** 0.5 if unit else 1.0
            scale = 1 / norm if norm > 0 else 0.0
            for t, g in zip(total, own, strict=True):
                t.add_(g, alpha=scale)
            products.append(0.0 if along is None else scale * inner(own, along))
            done()
        return total, products

    return add_up


def _not_finite(groups: Sequence[Group], add_up: AddUp, unit: bool) -> GradAlignError:
    """The error that names the first problem whose gradient is not finite."""
    for group in groups:
        total, _ = add_up([group], None, unit, lambda: None)
        if not math.isfinite(inner(total, total)):
            return GradAlignError(f"validation: problem {group.key!r}: gradient not finite; check the weights")
    return GradAlignError("validation: the problems' gradients overflow when they are added up; check the weights")


def inner(a: Tensors, b: Tensors) -> float:
    """Inner product of two gradients; of such as are cut, every process must ask for it."""
    product = sum(float(dot(local(x), local(y))) for x, y in zip(a, b, strict=True))
    return over_parts(product, a[0])


SPAN, CHUNK = 2**12, 2**22


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """() inner product of two tensors of one shape: spans of 4,096 products are added in the tensors' own type, the
    spans' sums in float64; at most four million products are held at a time."""
    parts = []
    for x, y in zip(a.reshape(-1).split(CHUNK), b.reshape(-1).split(CHUNK), strict=True):
        whole = x.numel() // SPAN * SPAN
        spans = torch.linalg.vecdot(x[:whole].view(-1, SPAN), y[:whole].view(-1, SPAN))
        parts.append(spans.double().sum() + torch.dot(x[whole:], y[whole:]))
    return torch.stack(parts).sum()
