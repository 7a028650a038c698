"""Pictures and tables of the regimes' page, from every BED.json here: python benchmarks/regimes/plot.py

Writes docs/regimes-BED.png, and in docs/regimes.md what is between ``<!-- BED -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, median
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
SHARES = {"unreliable_reward": "corrupted", "imbalance": "target", "low_utility": "useful"}


def main() -> None:
    """Draw every bed, and write its table into the page."""
    matplotlib.use("Agg")
    docs = HERE.parents[1] / "docs"
    page = docs / "regimes.md"
    text = page.read_text(encoding="utf-8")
    for source in sorted(HERE.glob("*.json")):
        data = json.loads(source.read_text(encoding="utf-8"))
        draw(data, docs / f"regimes-{source.stem}.png")
        begin = f"<!-- {source.stem} -->\n"
        text = re.sub(f"{begin}.*?<!-- end -->", f"{begin}{table(data)}<!-- end -->", text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def table(data: dict[str, Any]) -> str:
    """A line an arm: medians over its seeds, and every seed's final accuracy."""
    told, rounds = SHARES[data["regime"]], data["setting"]["rounds"]
    seeds = sorted({row["seed"] for row in data["rows"]})
    start = median(row["accuracy"][0] for row in data["rows"])
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; {start:.3f} before training.", "",
        f"| arm | final accuracy | {told} share, first round | all rounds | rollouts in all |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for arm in ARMS:
        rows = sorted((row for row in data["rows"] if row["arm"] == arm), key=lambda row: row["seed"])
        if not rows:
            continue
        final = [row["final_accuracy"] for row in rows]
        first = median(row["chosen_share"][0] for row in rows)
        shares = median(mean(row["chosen_share"][:rounds]) for row in rows)
        spent = median(row["rollouts"] for row in rows)
        lines.append(f"| `{arm}` | {_each(final)} | {first:.2f} | {shares:.2f} | {spent:,.0f} |")
        if arm == "random":  # up to what the default has spent at its end
            most = median(row["rollouts"] for row in data["rows"] if row["arm"] == "guarded")
            ends = [sum(spent <= most for spent in row["rollouts_at"]) for row in rows]
            longer = [mean(row["accuracy"][end - 2 : end]) for row, end in zip(rows, ends, strict=True)]
            spent = median(row["rollouts_at"][end - 1] for row, end in zip(rows, ends, strict=True))
            lines.append(f"| `random`, trained on | {_each(longer)} | | | {spent:,.0f} |")
    return "\n".join([*lines, ""])


def _each(values: list[float]) -> str:
    return f"{median(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def draw(data: dict[str, Any], out: Path) -> None:
    """Accuracy by step, accuracy by rollouts, and the share of the choice by round: medians, bands over the seeds."""
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.4))
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
    axes[2].set_ylabel(f"{SHARES[data['regime']]} share of the choice")
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
