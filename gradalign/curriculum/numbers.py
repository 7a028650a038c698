"""A round in numbers, for a trainer's log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradalign.alignment.record import Alignment


def counted(alignments: Sequence[Alignment]) -> str:
    """How many problems have which status, as text."""
    statuses = [a.status for a in alignments]
    return ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))


def summary(alignments: Sequence[Alignment], chosen: set[str], before: set[str]) -> dict[str, float]:
    """What was chosen, in numbers."""
    count = len(alignments)
    scores = sorted(a.score for a in alignments if a.score is not None)
    mine = [a for a in alignments if a.key in chosen]
    rates = [a.pass_rate for a in mine if a.pass_rate is not None]
    numbers = {
        "problems": float(count),
        "chosen": float(len(chosen)),
        "scored_share": sum(a.status == "scored" for a in alignments) / count,
        "zero_variance_share": sum(a.status == "zero_variance" for a in alignments) / count,
        "overlap": len(chosen & before) / len(chosen),
    }
    if scores:
        for name, quantile in (("min", 0.0), ("median", 0.5), ("max", 1.0)):
            numbers[f"score/{name}"] = scores[round(quantile * (len(scores) - 1))]
        numbers["score/chosen_mean"] = sum(a.score or 0.0 for a in mine) / len(mine)
    if rates:
        numbers["pass_rate/chosen"] = sum(rates) / len(rates)
    for source in sorted({a.source for a in alignments}):
        numbers[f"source/{source or 'none'}"] = sum(a.source == source for a in mine) / len(mine)
    return numbers


def spent(facts: dict[str, Any]) -> dict[str, float]:
    """What choosing cost, and how far the direction is to be trusted, in numbers."""
    numbers = {"rollouts": float(facts["rollouts"]), "seconds": sum(facts["seconds"].values())}
    for name, value in (facts["direction"] or {}).items():
        if isinstance(value, int | float):
            numbers[f"direction/{name}"] = float(value)
    return numbers
