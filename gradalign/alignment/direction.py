"""The direction: the validation policy gradient v, with its own reliability."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gradalign.alignment.sums import AddUp, half_sum, halved, inner
from gradalign.errors import GradAlignError, warn
from gradalign.files import writing
from gradalign.policy.group import Group
from gradalign.processes import ALONE, Processes


class NoGradientError(GradAlignError):
    """No validation problem carries a gradient: there is no direction to follow."""


class Signal(NamedTuple):
    """What the agreement rho of two halves says of the whole set's direction.

    With gradients mu + noise and s = |mu|^2 over the expected squared length of the whole mean's noise, each half has
    twice that noise, and rho = s / (s + 2). Attributes:
        reliability: expected agreement with another set of the same size, s / (s + 1) = 2 rho / (1 + rho) (Spearman
            and Brown, 1910).
        cosine: expected cosine with the true direction mu, the square root of that.
        ratio: the signal-to-noise ratio s = 2 rho / (1 - rho); None where the halves are equal.
    """

    reliability: float
    cosine: float
    ratio: float | None


@dataclass
class Direction:
    """The mean policy gradient of the validation problems, or what `gradalign.alignment.combined` makes of several.

    Attributes:
        unit: v / |v|, one tensor a covered parameter, in the policy's reduction dtype.
        norm: |v|.
        n_problems: validation problems that carry a gradient.
        n_zero_variance: validation problems whose rewards do not vary; they carry none.
        n_invalid: validation problems that bad rows have marked.
        reliability: cosine between the directions of two disjoint halves of the validation set; None with fewer
            than two problems.
        reliability_se: standard error of that cosine over the second half's problems; None with fewer than four.
        n_references: problems of which a trusted response's likelihood is followed.
        parts: name -> share, where the direction is put together from several; ``references`` is that of likelihoods.
        sources: validation source -> (numbers,) a sketch's features of the mean gradient of its problems, where they
            were asked for; not saved.
        each: (validation problems, numbers) a sketch's features of each one's gradient, of length 1, where they were
            asked for; not saved.
    """

    unit: list[torch.Tensor]
    norm: float
    n_problems: int
    n_zero_variance: int
    n_invalid: int
    reliability: float | None
    reliability_se: float | None
    n_references: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    sources: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    each: NDArray[np.float64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Its tensors as arrays, which go to other processes as they are."""
        return self.__dict__ | {"unit": [tensor.cpu().numpy() for tensor in self.unit]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # shared memory must not be written to, and is not
            unit = [torch.from_numpy(array) for array in state["unit"]]
        self.__dict__.update(state | {"unit": unit})

    @property
    def signal(self) -> Signal | None:
        """What the halves' agreement says of the whole; None where it is not above zero: nothing but noise is seen."""
        rho = self.reliability
        if rho is None or rho <= 0:
            return None
        rho = min(rho, 1.0)
        whole = 2 * rho / (1 + rho)
        return Signal(whole, math.sqrt(whole), 2 * rho / (1 - rho) if rho < 1 else None)

    def facts(self) -> dict[str, Any]:
        """The numbers, for a run's records."""
        signal = self.signal
        more = {"references": self.n_references, "parts": self.parts} if self.parts else {}
        return more | {
            "norm": self.norm,
            "problems": self.n_problems,
            "zero_variance": self.n_zero_variance,
            "invalid": self.n_invalid,
            "reliability": self.reliability,
            "reliability_se": self.reliability_se,
            "whole_reliability": signal and signal.reliability,
            "expected_cosine": signal and signal.cosine,
            "signal_to_noise": signal and signal.ratio,
        }

    def averaged(self, earlier: Direction, weight: float) -> Direction:
        """``weight`` times the earlier direction and 1 - ``weight`` times this one, lengths included.

        The counts, the reliability and the sources stay this one's own.
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
        degrees = max(1, self.n_problems // 2 - max(1, len(self.parts)))
        return self.reliability < _t_quantile(degrees) * self.reliability_se


def warn_of_noise(direction: Direction) -> None:
    """Warn when a direction is within noise."""
    if not direction.within_noise:
        return
    halves = "cannot be compared" if direction.reliability is None else f"agree by {direction.reliability:.2f} only"
    warn(
        f"the validation direction is within noise: its halves {halves} ({direction.n_problems} problems carry a "
        "gradient); more validation problems, or more rollouts of each, make it reliable"
    )


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
    halves = halved(scored, seed)
    first, _ = half_sum(halves[0], add_up, None, unit, done, processes)
    second, products = half_sum(halves[1], add_up, first, unit, done, processes)
    norms = inner(first, first) ** 0.5, inner(second, second) ** 0.5
    projections = [product / norms[0] if norms[0] > 0 else 0.0 for product in products]
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


def _t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t, by its expansion around the normal's (Abramowitz and Stegun 26.7.5)."""
    z, n = 1.959964, float(degrees)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
