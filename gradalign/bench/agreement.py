"""How far an arm's numbers agree with the truth, with fresh rollouts, with `exact`, and with another seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradalign.alignment.ranks import spearman
from gradalign.alignment.record import Numbers
from gradalign.bench.draws import Draws
from gradalign.bench.measures import largest_error, overlap, relative_rms_error, sign_agreement

STATISTICS = ("dot", "cosine", "t", "corr")
"""What is compared with the truth, where an arm gives it."""
TARGETS = ("dot", "cosine")
"""Of the truth."""

Column = Sequence[Numbers | None]
Measures = dict[str, Callable[[Sequence[float], Sequence[float]], float | None]]


def agreement(own: Draws, truth: Column, exact: Draws | None, other: Draws | None, fraction: float) -> dict[str, Any]:
    """Everything told of an arm at one number of rollouts; each measure is a list over draws or pairs of draws.

    Args:
        own: the arm's numbers by draw and problem.
        truth: the truth's by problem.
        exact: those of `exact` on the same rollouts; None for that arm itself.
        other: the arm's own under another seed, where it draws at random.
        fraction: share of the problems that counts as the top.
    """
    ranking: Measures = {
        "spearman": spearman,
        "overlap": lambda a, b: overlap(a, b, fraction),
        "sign": sign_agreement,
    }
    given = [s for s in STATISTICS if any(getattr(n, s) is not None for draw in own for n in draw if n is not None)]
    pairs = list(zip(own[::2], own[1::2], strict=False))
    against = [(draw, truth) for draw in own]
    return {
        "draws": len(own),
        "problems": len(truth),
        "zero_variance": sum(numbers is None for draw in own for numbers in draw),
        "truth": {s: {target: _measured(against, s, target, ranking) for target in TARGETS} for s in given},
        "floor": {s: _measured(pairs, s, s, ranking) for s in given},
        "same_rollouts": None if exact is None else _same(own, exact, given),
        "other_seed": None if other is None else _same(own, other, given),
    }


def _same(own: Draws, others: Draws, given: Sequence[str]) -> dict[str, list[float | None]]:
    """On the same rollouts: of the dots, and of the cosines where there are any."""
    pairs = list(zip(own, others, strict=True))
    dots: Measures = {"spearman": spearman, "error": relative_rms_error, "sign": sign_agreement}
    cosines: Measures = {"cosine_error": largest_error} if "cosine" in given else {}
    return {**_measured(pairs, "dot", "dot", dots), **_measured(pairs, "cosine", "cosine", cosines)}


def _measured(
    pairs: Sequence[tuple[Column, Column]], name: str, other: str, measures: Measures
) -> dict[str, list[float | None]]:
    """Measures of each pair of columns, over the problems that have a number in both; None with fewer than two."""
    found: dict[str, list[float | None]] = {measure: [] for measure in measures}
    for some, others in pairs:
        both = [
            (getattr(a, name), getattr(b, other))
            for a, b in zip(some, others, strict=True)
            if a is not None and b is not None
        ]
        both = [(a, b) for a, b in both if a is not None and b is not None]
        for measure, function in measures.items():
            found[measure].append(function(*map(list, zip(*both, strict=True))) if len(both) > 1 else None)
    return found
