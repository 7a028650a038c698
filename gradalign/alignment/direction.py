"""The direction: the validation policy gradient v, with its own reliability."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from gradalign.errors import GradAlignError
from gradalign.files import writing
from gradalign.policy.group import Group
from gradalign.problems.schema import uniform_hash
from gradalign.processes import ALONE, Processes

Tensors = Sequence[torch.Tensor]


class NoGradientError(GradAlignError):
    """No validation problem carries a gradient: there is no direction to follow."""


@dataclass
class Direction:
    """The mean policy gradient of the validation problems.

    Attributes:
        unit: v / |v|, one tensor a covered parameter, in the policy's reduction dtype.
        norm: |v|.
        n_problems: validation problems that carry a gradient.
        n_zero_variance: validation problems whose rewards do not vary; they carry none.
        n_invalid: validation problems that bad rows have marked.
        reliability: cosine between the directions of two disjoint halves of the validation set; None with fewer
            than two problems.
        reliability_se: standard error of that cosine over the second half's problems; None with fewer than four.
    """

    unit: list[torch.Tensor]
    norm: float
    n_problems: int
    n_zero_variance: int
    n_invalid: int
    reliability: float | None
    reliability_se: float | None

    def facts(self) -> dict[str, float | int | None]:
        """The numbers, for a run's records."""
        return {
            "norm": self.norm,
            "problems": self.n_problems,
            "zero_variance": self.n_zero_variance,
            "invalid": self.n_invalid,
            "reliability": self.reliability,
            "reliability_se": self.reliability_se,
        }

    def averaged(self, earlier: Direction, weight: float) -> Direction:
        """``weight`` times the earlier direction and 1 - ``weight`` times this one, lengths included.

        The counts and the reliability stay this one's own.
        """
        own, others = (1 - weight) * self.norm, weight * earlier.norm
        mixed = [old.to(new) * others + new * own for old, new in zip(earlier.unit, self.unit, strict=True)]
        norm = inner(mixed, mixed) ** 0.5
        for tensor in mixed:
            tensor.div_(norm)
        return dataclasses.replace(self, unit=mixed, norm=norm)

    def off_loaded(self) -> Direction:
        """The same direction in a file that is gone with it; its pages are read as they are needed.

        Raises:
            GradAlignError: no room for it in the folder for temporary files (TMPDIR).
        """
        sizes = [tensor.numel() for tensor in self.unit]
        with tempfile.NamedTemporaryFile(prefix="gradalign-direction-") as file, writing(Path(file.name)):
            os.posix_fallocate(file.fileno(), 0, sum(sizes) * self.unit[0].element_size())
            mapped = torch.from_file(file.name, shared=True, size=sum(sizes), dtype=self.unit[0].dtype)
        unit = [part.view_as(tensor) for part, tensor in zip(mapped.split(sizes), self.unit, strict=True)]
        for to, tensor in zip(unit, self.unit, strict=True):
            to.copy_(tensor)
        return dataclasses.replace(self, unit=unit)

    @property
    def within_noise(self) -> bool:
        """Whether the halves' agreement is not significant (t-test at 2.5 %), or they are too small to tell."""
        if self.reliability is None or self.reliability_se is None:
            return True
        return self.reliability < _t_quantile(self.n_problems // 2 - 1) * self.reliability_se


def require_gradient(groups: Sequence[Group]) -> None:
    """Refuse a validation set without a gradient.

    Raises:
        NoGradientError: no problem's rewards vary.
    """
    if any(group.status == "scored" for group in groups):
        return
    if groups and max(len(group.rollouts) for group in groups) == 1:
        raise NoGradientError(
            f"validation: each of the {len(groups)} problems has a single rollout, and a gradient needs rewards that "
            "differ within a problem; sample several rollouts of each"
        )
    raise NoGradientError(
        f"validation: none of the {len(groups)} problems carries a gradient: within each, every rollout got the same "
        "reward; take problems that the policy solves sometimes, or more rollouts for each"
    )


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


def build_direction(
    groups: Sequence[Group],
    add_up: AddUp,
    unit: bool = False,
    seed: int = 0,
    done: Callable[[], None] = lambda: None,
    processes: Processes = ALONE,
) -> Direction:
    """Average the validation problems' policy gradients, each problem weighing the same.

    The problems are cut into two halves by a seeded hash of their keys. The cosine between the halves' directions is
    the reliability; the second half's problems, each projected on the first half's direction as they pass, give its
    standard error at no further cost.

    Args:
        groups: the validation groups.
        add_up: adds gradients up.
        unit: divide each problem's gradient by its norm first.
        seed: of the halving.
        done: called after each group.
        processes: each differentiates its share of the groups; all get the direction.

    Raises:
        GradAlignError: no validation problem carries a gradient, or the gradients are not finite or cancel.
    """
    require_gradient(groups)
    scored = [group for group in groups if group.status == "scored"]
    scored.sort(key=lambda group: uniform_hash(seed, group.key))
    halves = scored[: (len(scored) + 1) // 2], scored[(len(scored) + 1) // 2 :]
    sums: list[list[torch.Tensor]] = []
    norms: list[float] = []
    projections: list[float] = []
    for half in halves:
        mine, along = processes.mine(half), sums[0] if sums else None

        def share(mine: Sequence[Group] = mine, along: Tensors | None = along) -> list[float]:
            total, products = add_up(mine, along, unit, done)
            sums.append(total)
            if not math.isfinite(inner(total, total)):
                raise _not_finite(mine, add_up, unit)
            return products

        products = processes.together(share)
        processes.add_up(sums[-1])
        norms.append(inner(sums[-1], sums[-1]) ** 0.5)
        projections = [product / norms[0] if norms[0] > 0 else 0.0 for product in processes.joined(products)]
    first, second = sums
    reliability = reliability_se = None
    if halves[1]:
        product = norms[0] * norms[1]
        reliability = inner(first, second) / product if product > 0 else 0.0
        if len(projections) > 1 and norms[1] > 0:
            se = float(np.std(projections, ddof=1)) / len(projections) ** 0.5
            reliability_se = se / (norms[1] / len(projections))
    for a, b in zip(first, second, strict=True):
        a.add_(b).div_(len(scored))
    norm = inner(first, first) ** 0.5
    if norm == 0:
        raise GradAlignError("validation: the problems' gradients cancel to zero; take more problems or rollouts")
    for a in first:
        a.div_(norm)
    silent = sum(group.status == "zero_variance" for group in groups)
    invalid = len(groups) - len(scored) - silent
    return Direction(first, norm, len(scored), silent, invalid, reliability, reliability_se)


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
    """Inner product of two gradients."""
    return sum(float(dot(x, y)) for x, y in zip(a, b, strict=True))


def _t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t, by its expansion around the normal's (Abramowitz and Stegun 26.7.5)."""
    z, n = 1.959964, float(degrees)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


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
