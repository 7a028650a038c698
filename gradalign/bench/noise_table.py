"""What `gradalign bench noise` measured, as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from gradalign.bench.noise import BASELINES, CHOICES, DEFAULT, ORACLES, flipped, holm
from gradalign.bench.noise_data import ARMS
from gradalign.bench.results import markdown_table, provenance

Cells = dict[tuple[str, str, str, int], dict[int, dict[str, Any]]]
"""(arm, strategy, budget, rollouts) -> seed -> row."""

NOTES = """\
- Numbers are medians over the seeds, with the least and the largest in brackets.
- corrupted: share of the chosen problems whose reward was corrupted; half of all candidates' was.
- overlap: share of the oracle's problems that were chosen; the oracle takes those with the largest exact dot over all
  rollouts paid correctly, and no corrupted one.
- `oracle_dot`, `oracle_cosine`: the exact dot or cosine over all rollouts as the arm pays them: what no number of
  rollouts mends.
- spent: rollouts sampled, validation included."""


def finish_noise(data: dict[str, Any]) -> str:
    """The Markdown; adds ``tests`` to the data."""
    cells: Cells = defaultdict(dict)
    for row in data["rows"]:
        cells[row["arm"], row["strategy"], row["budget"], row["rollouts"]][row["seed"]] = row
    seeds = sorted({row["seed"] for row in data["rows"]})
    data["tests"] = tests(cells)
    data["targets"] = targets(cells)
    strategies = "\n".join(f"- `{name}`: {strategy.recipe}." for name, strategy in CHOICES.items())
    parts = [
        f"Seeds {', '.join(map(str, seeds))}; pre-registered default: `{DEFAULT}`.",
        "## What was held to", _targets(data["targets"]),
        f"## `{DEFAULT}` against the baselines (corrupted share, paired permutation test over seeds, Holm-adjusted)",
        _tests(data["tests"]),
    ]  # fmt: skip
    for arm in ARMS:
        parts += [f"## {arm}: corrupted share", _grid(cells, arm, "corrupted_share")]
        parts += [f"## {arm}: overlap with the oracle", _grid(cells, arm, "oracle_overlap")]
    parts += ["## Racing", _racing(cells)]
    return "\n\n".join([*parts, "## How to read this", f"{strategies}\n{NOTES}", provenance(data)])


def tests(cells: Cells) -> list[dict[str, Any]]:
    """The default's corrupted share against each baseline's, at every number of rollouts, in every arm of coins."""
    found: list[dict[str, Any]] = []
    for arm in ("coins", "matched_coins"):
        for other in BASELINES:
            for n in _counts(cells, arm):
                ours, theirs = (cells[arm, name, "fixed", n] for name in (DEFAULT, other))
                both = sorted(ours.keys() & theirs.keys())
                if len(both) > 1:
                    mine, their = ([own[s]["corrupted_share"] for s in both] for own in (ours, theirs))
                    difference = np.array(mine) - np.array(their)
                    found.append({
                        "arm": arm, "against": other, "rollouts": n, "seeds": len(both),
                        "difference": float(np.median(difference)), "p": flipped(difference),
                    })  # fmt: skip
    adjusted = holm([float(own["p"]) for own in found])
    for own, p in zip(found, adjusted, strict=True):
        own["p_holm"] = p
    return found


def targets(cells: Cells) -> dict[str, float]:
    """The numbers that the study was to reach, medians over seeds in arm ``coins``."""

    def share(name: str, n: int, what: str = "corrupted_share") -> float | None:
        values: list[float] = [row[what] for row in cells.get(("coins", name, "fixed", n), {}).values()]
        return median(values) if values else None

    truth = max((n for arm, _, _, n in cells if arm == "coins"), default=0)
    found = {
        "cosine at 64": share("gradalign", 64),
        "default at 16": share(DEFAULT, 16),
        "default at 64": share(DEFAULT, 64),
        "oracle's floor": share("oracle_dot", truth),
        "default at 32, overlap": share(DEFAULT, 32, "oracle_overlap"),
        "default at 32": share(DEFAULT, 32),
    }
    return {name: value for name, value in found.items() if value is not None}


def _targets(found: dict[str, float]) -> str:
    return markdown_table(["median corrupted share in `coins`", ""], [[k, f"{v:.3f}"] for k, v in found.items()])


def _tests(found: Sequence[dict[str, Any]]) -> str:
    columns = ["arm and baseline", "rollouts", "seeds", "median difference", "p", "p, Holm"]
    rows = [
        [f"{t['arm']}, {t['against']}", str(t["rollouts"]), str(t["seeds"]), f"{t['difference']:+.3f}",
         f"{t['p']:.4f}", f"{t['p_holm']:.4f}"]
        for t in found
    ]  # fmt: skip
    return markdown_table(columns, rows)


def _counts(cells: Cells, arm: str) -> list[int]:
    return sorted({n for a, name, budget, n in cells if (a, name, budget) == (arm, DEFAULT, "fixed")})


def _grid(cells: Cells, arm: str, what: str) -> str:
    counts = _counts(cells, arm)
    rows = [
        [
            f"**`{name}`**" if name == DEFAULT else f"`{name}`",
            *(_spread(cells, (arm, name, "fixed", n), what) for n in counts),
        ]
        for name in CHOICES
    ]
    truth = max((n for a, _, _, n in cells if a == arm), default=0)
    for name in ORACLES:
        rows.append([f"`{name}` ({truth})", *[_spread(cells, (arm, name, "fixed", truth), what)] * len(counts)])
    return markdown_table(["strategy", *(f"{n} rollouts" for n in counts)], rows)


def _spread(cells: Cells, cell: tuple[str, str, str, int], what: str) -> str:
    values = [row[what] for row in cells.get(cell, {}).values()]
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else "-"


def _racing(cells: Cells) -> str:
    rows = []
    for arm, name, budget, n in sorted(cells):
        if budget != "racing":
            continue
        own, whole = cells[arm, name, budget, n], cells[arm, name, "fixed", n]
        spent, full = (median(row["rollouts_spent"] for row in some.values()) for some in (own, whole))
        shown = [(what, kind) for what in ("corrupted_share", "oracle_overlap") for kind in (budget, "fixed")]
        texts = [_spread(cells, (arm, name, kind, n), what) for what, kind in shown]
        rows.append([f"{arm}, `{name}`", str(n), f"{spent:,.0f}", f"{spent / full:.0%}", *texts])
    columns = ["arm and strategy", "at most", "spent", "of fixed", "corrupted", "fixed", "overlap", "fixed"]
    return markdown_table(columns, rows)
