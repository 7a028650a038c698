"""Pictures of the regimes: python benchmarks/regimes/plot.py writes docs/regimes-BED.png for every BED.json here."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes

HERE = Path(__file__).parent
ARMS = {
    "oracle": ("#6b7280", ":"), "nearest": ("#7f5af0", "-"), "guarded": ("#0b6e4f", "-"), "gradalign": ("#c1121f", "-"),
    "dot": ("#e07a1f", "--"), "accgreedy": ("#1f77b4", "--"), "random": ("#111827", "--"),
}  # fmt: skip
"""Arm -> colour and line."""


def main() -> None:
    """Draw every bed."""
    matplotlib.use("Agg")
    for source in sorted(HERE.glob("*.json")):
        draw(json.loads(source.read_text(encoding="utf-8")), HERE.parents[1] / "docs" / f"regimes-{source.stem}.png")


def draw(data: dict[str, Any], out: Path) -> None:
    """Accuracy by step, accuracy by rollouts, and the share of the choice by round: medians, bands over the seeds."""
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.4))
    shares = {"unreliable_reward": "corrupted", "imbalance": "target", "low_utility": "useful"}
    setting = data["setting"]
    for arm, (colour, style) in ARMS.items():
        rows = [row for row in data["rows"] if row["arm"] == arm]
        if not rows:
            continue
        places = range(min(len(row["accuracy"]) for row in rows))
        equal = [place for place in places if place <= setting["rounds"]]
        name = "gradalign (cosine)" if arm == "gradalign" else arm
        band(axes[0], [rows[0]["steps_at"][i] for i in equal], rows, "accuracy", equal, colour, style, name)
        spent = [median(row["rollouts_at"][i] for row in rows) / 1000 for i in places]
        band(axes[1], spent, rows, "accuracy", places, colour, style, name)
        rounds = range(min(setting["rounds"], *(len(row["chosen_share"]) for row in rows)))
        band(axes[2], list(rounds), rows, "chosen_share", rounds, colour, style, name)
    for axis, label in zip(axes, ("optimiser steps", "thousand rollouts, all counted", "round"), strict=True):
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("test accuracy")
    axes[2].set_ylabel(f"{shares[data['regime']]} share of the choice")
    axes[2].set_ylim(-0.02, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    seeds = len({row["seed"] for row in data["rows"]})
    figure.suptitle(f"{data['bed'].replace('_', ' ')}: medians of {seeds} seeds, bands from least to largest")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def band(
    axis: Axes, x: list[float], rows: list[dict[str, Any]], what: str, places: Any, colour: str, style: str, name: str
) -> None:
    """A line of medians with its band."""
    values = [[row[what][i] for row in rows] for i in places]
    axis.plot(x, [median(own) for own in values], style, color=colour, label=name, marker="o", ms=3)
    axis.fill_between(x, [min(own) for own in values], [max(own) for own in values], color=colour, alpha=0.1, lw=0)


if __name__ == "__main__":
    main()
