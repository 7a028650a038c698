"""What `gradalign bench fidelity` measured, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradalign.bench.fidelity_arms import ARMS
from gradalign.bench.results import markdown_table, provenance, text_of

NOTES = """\
- Every number is the mean over the draws, over the problems that have a number on both sides.
- rho: Spearman's rank correlation; top: share of the highest problems that are among the truth's highest (by chance:
  that fraction); sign: share of problems on whose sign both agree.
- floor: the same between two disjoint draws of that many rollouts, statistic against itself.
- error: root mean square difference of the dots over their root mean square.
- zero variance: share of the draws' problems whose rewards do not vary; they are left out."""


def finish_fidelity(data: dict[str, Any]) -> str:
    """The Markdown."""
    measured, options = data["measured"], data["options"]
    low, high = measured["truth_rollouts"]
    direction = measured["direction"]
    reliability = text_of(direction["reliability"], ".3f")
    least = f"{low}" if low == high else f"{low} to {high}"
    parts = [
        f"Truth: `exact` on {least} rollouts of each of {measured['problems']} problems ({measured['truth_scored']} of "
        "them scored, the others' rewards do not vary); the draws are of the other rollouts, so nothing is compared "
        f"with itself. Direction: {direction['problems']} validation problems, agreement of its halves {reliability}; "
        f"on a few rollouts its cosine with the reference engine's is {text_of(measured['cross_check'], '.7f')}.",
        f"## Against the truth (top: the highest {options['fraction']:.1%})",
        _against_truth(measured["arms"]),
    ]
    titles = {"same_rollouts": "Against exact, on the same rollouts", "other_seed": "Against itself under another seed"}
    for name, title in titles.items():
        rows = _pairs(measured["arms"], name)
        if rows:
            columns = ["arm", "rollouts", "rho", "error", "sign", "largest cosine error"]
            parts += [f"## {title}", markdown_table(columns, rows)]
    arms = "\n".join(f"- `{name}`: {ARMS[name].about}." for name in measured["arms"])
    return "\n\n".join([*parts, "## How to read this", f"{arms}\n{NOTES}", provenance(data)])


def _against_truth(arms: dict[str, Any]) -> str:
    columns = [
        "arm", "rollouts", "draws", "zero variance", "statistic", "rho of dot", "rho of cosine", "top of dot",
        "top of cosine", "sign", "floor rho", "floor top", "floor sign",
    ]  # fmt: skip
    rows = []
    for arm, sizes in arms.items():
        for n, found in sizes.items():
            for statistic, truth in found["truth"].items():
                dot, cosine, floor = truth["dot"], truth["cosine"], found["floor"][statistic]
                silent = found["zero_variance"] / (found["draws"] * found["problems"])
                means = [
                    dot["spearman"], cosine["spearman"], dot["overlap"], cosine["overlap"], dot["sign"],
                    floor["spearman"], floor["overlap"], floor["sign"],
                ]  # fmt: skip
                texts = [text_of(mean(values), ".3f") for values in means]
                rows.append([arm, n, str(found["draws"]), f"{silent:.0%}", statistic, *texts])
    return markdown_table(columns, rows)


def _pairs(arms: dict[str, Any], name: str) -> list[list[str]]:
    rows = []
    for arm, sizes in arms.items():
        for n, found in sizes.items():
            own = found[name]
            if own is not None:
                largest = [value for value in own.get("cosine_error", []) if value is not None]
                rows.append([
                    arm, n, text_of(mean(own["spearman"]), ".5f"), text_of(mean(own["error"]), ".1e"),
                    text_of(mean(own["sign"]), ".4f"), text_of(max(largest) if largest else None, ".1e"),
                ])  # fmt: skip
    return rows


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None where none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
