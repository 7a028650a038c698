"""Cross-fitted alignments of the validation problems: each aligned with a direction that it had no part in.

A validation problem's alignment with the direction it helped to build is too large: it contains the problem's own
gradient. What alignments of sound problems look like is seen only where the problem is left out of the direction.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradalign.alignment.align import Progress, Scorer, silent
from gradalign.alignment.record import Alignment
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group
from gradalign.problems.schema import uniform_hash

FOLDS = 4


def crossfit(
    scorer: Scorer, validation: Sequence[Group], folds: int = FOLDS, progress: Progress = silent
) -> list[list[Alignment]]:
    """Align each fold of the validation problems with the direction of the other folds.

    Args:
        scorer: computes directions and alignments; its finite-difference step is kept where it has one already.
        validation: the validation groups; those that carry no gradient are left out.
        folds: parts of like size, dealt by a seeded hash of the keys; as many as there are problems, at most.
        progress: told of every direction and measurement.

    Returns:
        The alignments of each fold; none of the folds is empty.

    Raises:
        GradAlignError: fewer than two problems carry a gradient; see `Scorer`.
    """
    scored = [group for group in validation if group.status == "scored"]
    if len(scored) < 2:
        raise GradAlignError(
            f"validation: {len(scored)} of the {len(validation)} problems carry a gradient; at least two are needed, "
            "so that each can be aligned with a direction computed without it: take more problems that the policy "
            "solves sometimes, or more rollouts of each"
        )
    scored.sort(key=lambda group: uniform_hash("fold", scorer.seed, group.key))
    count = min(folds, len(scored))
    aligned = []
    for fold in range(count):
        direction = scorer.direction([g for i, g in enumerate(scored) if i % count != fold], progress)
        aligned.append(scorer.measure(scored[fold::count], direction, progress).alignments)
    return aligned
