"""A direction put together from parts: policy gradients of several sources, likelihoods of trusted responses.

    v = sum_s w_s v_s / |v_s|,        sum_s w_s = 1

with v_s the mean gradient of a part's problems. Each part enters with length one, so that a source with long gradients
does not drown the others; |v| says how far the parts agree (1 where they point the same way). For the likelihood part,

    v_ref = mean over problems of grad (1 / Z) sum_t log pi(y*_t | x, y*_<t),

y* a trusted response: there is one also where the policy solves nothing and no policy gradient exists.

Each part is halved by itself; the halves' directions are put together by the same formula, and their cosine is the
reliability. A problem that several parts have is in the same half of each. What the problems of the second half give
along the first half's direction is added up by problem, centred within each part, for the cosine's standard error.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gradalign.alignment.direction import Direction, require_gradient
from gradalign.alignment.sums import AddUp, half_sum, halved, inner
from gradalign.errors import GradAlignError, nearest, warn
from gradalign.policy.group import Group
from gradalign.policy.objective import Likelihood, Objective
from gradalign.processes import ALONE, Processes

REFERENCES = "references"
"""The part of trusted responses; sources are called ``source NAME``."""
REFERENCE_WEIGHT = 0.5
"""Its share where none is given."""


@dataclass(frozen=True)
class Part:
    """One of the gradients that are put together.

    Attributes:
        name: for records.
        weight: share in [0, 1].
        groups: each of them carries a gradient.
        likely: it is that of the responses' likelihood, not of their rewards.
    """

    name: str
    weight: float
    groups: Sequence[Group]
    likely: bool = False


def parse_targets(texts: Iterable[str]) -> dict[str, float]:
    """Weights of validation sources from ``SOURCE=WEIGHT`` texts.

    Raises:
        GradAlignError: another form, a source named twice, a weight that is no finite number of at least 0, or none
            above 0.
    """
    found: dict[str, float] = {}
    for text in texts:
        source, sign, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not sign or not 0 <= weight < math.inf:
            raise GradAlignError(f"targets: {text!r}: write SOURCE=WEIGHT, a finite weight of at least 0")
        if source in found:
            raise GradAlignError(f"targets: source {source!r} is named twice; name it once")
        found[source] = weight
    if found and not any(found.values()):
        raise GradAlignError("targets: every weight is 0; give one source a weight above 0")
    return found


def check_targets(targets: Mapping[str, float], sources: Iterable[str]) -> None:
    """Refuse targets that do not fit the validation problems' sources.

    Raises:
        GradAlignError: a source without a weight, or a weight without a source.
    """
    known = sorted(set(sources))
    for source in known if targets else []:
        if source not in targets:
            raise GradAlignError(
                f"targets: validation problems of source {source!r} have no weight; add {source}=WEIGHT, or {source}=0 "
                "to leave them out"
            )
    for source in targets:
        if source not in known:
            raise GradAlignError(f"targets: no validation problem is of source {source!r}{nearest(source, known)}")


def parts_of(
    validation: Sequence[Group],
    references: Sequence[Group],
    targets: Mapping[str, float],
    reference_weight: float,
    say: Callable[[str], None] = warn,
) -> list[Part]:
    """The parts of a direction.

    Args:
        validation: groups of the validation problems; not looked at where the references are all that is followed.
        references: groups of trusted responses; empty where there are none.
        targets: source -> weight, relative to one another; empty takes all validation problems together.
        reference_weight: share of the references, in (0, 1].
        say: is told of what is followed less than was asked for.

    Raises:
        GradAlignError: targets that do not fit; no problem carries a gradient.
    """
    likely = [group for group in references if group.invalid is None]
    if references and not likely:
        raise GradAlignError(f"references: none of the {len(references)} problems has a row that can be scored")
    parts: list[Part] = []
    if not (likely and reference_weight == 1):
        check_targets(targets, (group.source for group in validation))
        asked = [group for group in validation if targets.get(group.source, 1.0) > 0]
        if not likely:
            require_gradient(asked)
        names: list[str | None] = [source for source, weight in targets.items() if weight > 0]
        for name in names or [None]:
            of = [group for group in asked if name is None or group.source == name]
            carrying = [group for group in of if group.status == "scored"]
            if carrying:
                title = "validation" if name is None else f"source {name}"
                parts.append(Part(title, 1.0 if name is None else targets[name], carrying))
            elif name is not None and any(group.status == "scored" for group in asked):
                say(f"source {name!r}: none of its {len(of)} problems carries a gradient; the others are followed")
        if likely and not parts:
            say(
                f"none of the {len(asked)} validation problems carries a policy gradient: the {len(likely)} trusted "
                "responses alone are followed"
            )
    share = (1 - reference_weight if likely else 1.0) / (sum(part.weight for part in parts) or 1.0)
    parts = [Part(part.name, part.weight * share, part.groups) for part in parts]
    if likely:
        parts.append(Part(REFERENCES, reference_weight if parts else 1.0, likely, likely=True))
    return parts


def follow(
    validation: Sequence[Group],
    references: Sequence[Group],
    targets: Mapping[str, float],
    reference_weight: float,
    adder: Callable[[Sequence[Group], Objective], AddUp],
    objective: Objective,
    unit: bool,
    seed: int,
    progress: Callable[[str, int], Callable[[], None]],
    processes: Processes,
) -> Direction:
    """The direction of `parts_of` the validation problems and references, see there.

    Args:
        validation: groups of the validation problems.
        references: groups of trusted responses.
        targets: source -> weight.
        reference_weight: share of the references.
        adder: adds up gradients of groups under an objective.
        objective: of the policy gradients; gives the likelihoods' temperature.
        unit: see `combine`.
        seed: see `combine`.
        progress: see `gradalign.alignment.align.Progress`.
        processes: see `combine`.

    Raises:
        GradAlignError: see `parts_of` and `combine`.
    """
    parts = parts_of(validation, references, targets, reference_weight, warn if processes.first else _unsaid)
    likelihood = Likelihood(temperature=objective.temperature)
    adders = {part.name: adder(part.groups, likelihood if part.likely else objective) for part in parts}
    done = progress("validation direction", sum(len(part.groups) for part in parts))
    direction = combine(parts, lambda part: adders[part.name], unit, seed, done, processes)
    held = {group.key for part in parts for group in part.groups}
    others = [g for g in validation if targets.get(g.source, 1.0) > 0 and g.key not in held]
    bad = sum(group.invalid is not None for group in others)
    return dataclasses.replace(direction, n_zero_variance=len(others) - bad, n_invalid=bad)


def _unsaid(message: str) -> None:
    """Another process says it."""


def combine(
    parts: Sequence[Part],
    add_up: Callable[[Part], AddUp],
    unit: bool = False,
    seed: int = 0,
    done: Callable[[], None] = lambda: None,
    processes: Processes = ALONE,
) -> Direction:
    """The direction of some parts; see the module's text.

    Takes the memory of a direction for each part, and four more. The counts of silent and bad problems are 0.

    Args:
        parts: at least one, each with a problem.
        add_up: adds the gradients of a part up.
        unit: divide each problem's gradient by its norm first.
        seed: of the halving.
        done: called after each group.
        processes: each differentiates its share of the groups; all get the direction.

    Raises:
        GradAlignError: the gradients are not finite, or cancel.
    """
    held: dict[str, int] = {}
    halves = []
    for part in parts:
        halves.append(halved(part.groups, seed, held))
        held |= {group.key: number for number, half in enumerate(halves[-1]) for group in half}
    sums = [half_sum(h, add_up(p), None, unit, done, processes)[0] for p, (h, _) in zip(parts, halves, strict=True)]
    first, second, whole = ([torch.zeros_like(tensor) for tensor in sums[0]] for _ in range(3))
    for part, total in zip(parts, sums, strict=True):
        _add(first, total, part.weight)
    projected: dict[str, float] = defaultdict(float)
    told = True
    for part, total, (_, half) in zip(parts, sums, halves, strict=True):
        other, products = half_sum(half, add_up(part), first, unit, done, processes)
        norm = _add(second, other, part.weight)
        if half and norm > 0:
            count, told = len(half), told and len(half) > 1
            scale = part.weight / norm * math.sqrt(count / max(count - 1, 1))
            for group, deviation in zip(half, np.array(products) - np.mean(products), strict=True):
                projected[group.key] += scale * float(deviation)
        for a, b in zip(total, other, strict=True):
            a.add_(b)
        if _add(whole, total, part.weight) == 0:
            raise GradAlignError(f"validation: the gradients of {part.name} cancel to zero; take more problems")
        total.clear()
    lengths = inner(first, first) ** 0.5 * inner(second, second) ** 0.5
    reliability = reliability_se = None
    if projected:
        reliability = inner(first, second) / lengths if lengths > 0 else 0.0
        reliability_se = math.hypot(*projected.values()) / lengths if told and lengths > 0 else None
    norm = inner(whole, whole) ** 0.5
    if norm < 1e-6:  # of unit vectors: nothing but rounding is left
        raise GradAlignError("validation: the parts' gradients cancel to zero; give them other weights")
    for tensor in whole:
        tensor.div_(norm)
    likely = sum(len(part.groups) for part in parts if part.likely)
    shares = {part.name: part.weight for part in parts}
    return Direction(whole, norm, len(held), 0, 0, reliability, reliability_se, likely, shares)


def _add(to: Sequence[torch.Tensor], gradient: Sequence[torch.Tensor], weight: float) -> float:
    """Add ``weight`` times the gradient's unit vector; gives the gradient's length."""
    norm = inner(gradient, gradient) ** 0.5
    for a, b in zip(to, gradient, strict=True):
        a.add_(b, alpha=weight / norm if norm > 0 else 0.0)
    return norm
