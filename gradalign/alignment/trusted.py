"""The validation set in parts: features of the mean gradient of each source's problems, and of each problem's own.

A projection is linear, so that the features of the mean are the mean of the features: the gradients of a source are
added up whole and projected once, at the cost of one more pass over the validation problems and the memory of one
direction. What is kept is a short vector a source, however large the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gradalign.alignment.direction import Direction, require_gradient
from gradalign.alignment.record import Floats, Numbers
from gradalign.alignment.sketch import Sketch
from gradalign.alignment.sums import AddUp, half_sum
from gradalign.errors import GradAlignError, warn
from gradalign.policy.group import Group
from gradalign.processes import Processes


def by_source(
    sketch: Sketch,
    validation: Sequence[Group],
    targets: Mapping[str, float],
    adder: Callable[[Sequence[Group]], AddUp],
    unit: bool,
    progress: Callable[[str, int], Callable[[], None]],
    processes: Processes,
) -> dict[str, Floats]:
    """Source -> (numbers,) features of its problems' mean gradient, sources in alphabetical order.

    Args:
        sketch: projects as candidates are projected.
        validation: groups of the validation problems.
        targets: source -> weight; one whose weight is 0 is left out, other weights play no part.
        adder: adds up gradients of groups.
        unit: each problem's gradient is divided by its norm first.
        progress: see `gradalign.alignment.align.Progress`.
        processes: each differentiates its share of the groups; all get the features.

    Raises:
        GradAlignError: no validation problem carries a policy gradient, or one is not finite.
    """
    asked = [group for group in validation if targets.get(group.source, 1.0) > 0]
    require_gradient(asked)
    scored = [group for group in asked if group.status == "scored"]
    add_up, done, found = adder(scored), progress("validation sources", len(scored)), dict[str, Floats]()
    for source in sorted({group.source for group in asked}):
        own = [group for group in asked if group.source == source]
        carrying = [group for group in own if group.status == "scored"]
        if carrying:
            total, _ = half_sum(carrying, add_up, None, unit, done, processes)
            features = sketch.project(sketch.coverage.restricted(total))
            found[source] = features.double().cpu().numpy() / len(carrying)
        elif processes.first:
            warn(f"source {source!r}: none of its {len(own)} problems carries a gradient; the others are followed")
    return found


def each_problem(measured: Sequence[Numbers]) -> Floats:
    """(problems, numbers) features of each validation problem's gradient, of length 1.

    Args:
        measured: numbers of the validation problems, their features kept.

    Raises:
        GradAlignError: no problem's features move.
    """
    features = np.array([own.features for own in measured if own.features is not None and own.norm], np.float64)
    if not len(features):
        raise GradAlignError("validation: no problem's gradient reaches the layers that are sketched; take others")
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def require_compared(direction: Direction, wanted: frozenset[str]) -> None:
    """Refuse a direction that was not taken together with its sources, or its single problems, where they are wanted.

    Raises:
        GradAlignError: it was not.
    """
    if ("sources" in wanted and not direction.sources) or ("near" in wanted and direction.each is None):
        what = "each source" if "sources" in wanted else "each problem"
        raise GradAlignError(
            f"the choice compares problems with {what} of the validation set, of which a saved direction does not "
            "know; give the validation set's rollouts, or take another strategy"
        )
