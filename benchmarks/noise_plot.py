"""Picture of the noise study: python benchmarks/noise_plot.py [noise_study.json] writes a .png beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

import matplotlib
from matplotlib import pyplot

SHOWN = {
    "guarded": ("#0b6e4f", "-"), "expected": ("#1f77b4", "-"), "corr": ("#7f5af0", "-"), "dot": ("#e07a1f", "--"),
    "gradalign": ("#c1121f", "-"), "accgreedy": ("#6b7280", "--"), "random": ("#111827", ":"),
}  # fmt: skip
"""Strategy -> colour and line."""
ARMS = {
    "coins": "coins",
    "matched_coins": "matched coins",
    "wrong_gold": "wrong gold answers",
    "stale": "stale rollouts",
}
WHAT = {"corrupted_share": "corrupted share of the choice", "oracle_overlap": "overlap with the oracle's choice"}


def main() -> None:
    """Draw both measures of every arm."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("noise_study.json")
    data = json.loads(source.read_text(encoding="utf-8"))
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(len(WHAT), len(ARMS), figsize=(15, 7.5), sharex=True, sharey="row")
    for column, (arm, title) in enumerate(ARMS.items()):
        rows = [row for row in data["rows"] if row["arm"] == arm and row["budget"] == "fixed"]
        counts = sorted({row["rollouts"] for row in rows if row["strategy"] == "guarded"})
        for line, (what, label) in enumerate(WHAT.items()):
            axis = axes[line][column]
            for name, (colour, style) in SHOWN.items():
                own = [[row[what] for row in rows if row["strategy"] == name and row["rollouts"] == n] for n in counts]
                name = "gradalign (cosine)" if name == "gradalign" else name
                axis.plot(counts, [median(values) for values in own], style, color=colour, label=name, marker="o", ms=4)
                axis.fill_between(counts, [min(v) for v in own], [max(v) for v in own], color=colour, alpha=0.1, lw=0)
            if what == "corrupted_share":
                floor = [row[what] for row in rows if row["strategy"] == "oracle_dot"]
                axis.axhline(median(floor), color="#e07a1f", lw=0.8, ls=":", label="dot, 512 rollouts")
                axis.set_title(title)
            axis.set_xscale("log", base=2)
            axis.set_xticks(counts, [str(n) for n in counts])
            axis.set_ylim(0, 1)
            axis.grid(alpha=0.25)
            if column == 0:
                axis.set_ylabel(label)
            if line == len(WHAT) - 1:
                axis.set_xlabel("rollouts a problem")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    seeds = len({row["seed"] for row in data["rows"]})
    figure.suptitle(f"Which strategy sees through bad rewards: medians of {seeds} seeds, bands from least to largest")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(source.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
