"""Pictures and tables of the regimes' page, from every BED.json here: python benchmarks/regimes/plot.py

Writes docs/regimes-BED.png, and in docs/regimes.md what is between ``<!-- BED -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes

from gradalign.bench.regime_arms import ARMS
from gradalign.bench.regime_beds import SHARES
from gradalign.bench.regime_tables import at_equal_rollouts, by_arm, spread
from gradalign.bench.results import markdown_table, text_of

HERE = Path(__file__).parent
DRAWN = {
    "oracle": ("#6b7280", ":"), "nearest": ("#7f5af0", "-"), "guarded": ("#0b6e4f", "-"), "gradalign": ("#c1121f", "-"),
    "dot": ("#e07a1f", "--"), "accgreedy": ("#1f77b4", "--"), "random": ("#111827", "--"),
}  # fmt: skip
"""Arm -> colour and line; those that are drawn."""


def main() -> None:
    """Draw every bed, and write its table into the page."""
    matplotlib.use("Agg")
    docs = HERE.parents[1] / "docs"
    page = docs / "regimes.md"
    text = page.read_text(encoding="utf-8")
    for source in sorted(HERE.glob("*.json")):
        data = json.loads(source.read_text(encoding="utf-8"))
        if len({row["seed"] for row in data["rows"]}) > 1:
            draw(data, docs / f"regimes-{source.stem}.png")
        begin = f"<!-- {source.stem} -->\n"
        text = re.sub(f"{begin}.*?<!-- end -->", f"{begin}{table(data)}<!-- end -->", text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def table(data: dict[str, Any]) -> str:
    """A line an arm, medians over its seeds; then the contenders against the baselines."""
    runs = by_arm(data["rows"])
    seeds = sorted({row["seed"] for row in data["rows"]})
    start = median(row["accuracy"][0] for row in data["rows"])
    lines = []
    for arm in (arm for arm in ARMS if arm in runs):
        rows, made = list(runs[arm].values()), data["summary"][arm]
        lines.append([
            f"`{arm}`", str(len(rows)), spread([row["final_accuracy"] for row in rows]),
            text_of(median(row["chosen_share"][0] for row in rows), ".2f"),
            text_of(made["chosen_share"], ".2f"),
            f"{made['rollouts']:,.0f}", text_of(made.get("gap_closed"), ".2f"),
        ])  # fmt: skip
    if longer := at_equal_rollouts(runs):
        lines.append(["`random`, trained on", str(len(longer)), spread(longer), *["-"] * 4])
    share = f"{SHARES[data['regime']][0]} share, first round"
    columns = ["arm", "seeds", "final accuracy", share, "all rounds", "rollouts in all", "gap closed"]
    parts = [
        f"Seeds {', '.join(map(str, seeds))}; {start:.3f} before training.", markdown_table(columns, lines),
        *([_tests(data["tests"])] if data["tests"] else []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _tests(tests: list[dict[str, Any]]) -> str:
    """A line a baseline."""
    own = {(test["arm"], test["against"]): test for test in tests}
    contenders = list(dict.fromkeys(test["arm"] for test in tests))
    columns = ["final accuracy", *(text for arm in contenders for text in (f"`{arm}`, higher on", "p, Holm"))]
    lines = []
    for other in dict.fromkeys(test["against"] for test in tests):
        cells = []
        for arm in contenders:
            one = own.get((arm, other))
            cells += (
                [f"{one['gain']:+.3f}, {one['wins']} of {one['seeds']}", f"{one['p_holm']:.3f}"] if one else ["-", "-"]
            )
        lines.append([f"over `{other}`", *cells])
    return markdown_table(columns, lines)


def draw(data: dict[str, Any], out: Path) -> None:
    """Accuracy by step, accuracy by rollouts, and the share of the choice by round: medians, bands over the seeds."""
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.4))
    setting = data["setting"]
    for arm, (colour, style) in DRAWN.items():
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
    axes[2].set_ylabel(f"{SHARES[data['regime']][0]} share of the choice")
    axes[2].set_ylim(-0.02, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    bed = ": ".join([*([data["policy"]] if "policy" in data else []), data["bed"].replace("_", " ")])
    figure.suptitle(f"{bed}: medians over the seeds, bands from least to largest")
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
