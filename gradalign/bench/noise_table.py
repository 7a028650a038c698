"""What `gradalign bench noise` measured, as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from gradalign.bench.noise import BASELINES, CHOICES, DEFAULT, ORACLES, RIVAL
from gradalign.bench.noise_data import ARMS
from gradalign.bench.results import markdown_table, provenance
from gradalign.bench.significance import flipped, holm

SHOWN = (DEFAULT, "guarded_dot", "expected", "corr")
"""Strategies whose races the table tells of; the JSON has all."""

Cells = dict[tuple[str, str, str, int], dict[int, dict[str, Any]]]
"""(arm, strategy, budget, rollouts) -> seed -> row."""

NOTES = """\
- Numbers are medians over the seeds, with the least and the largest in brackets.
- corrupted: share of the chosen problems whose reward was corrupted; half of all candidates' was.
- overlap: share of the oracle's problems that were chosen; the oracle takes those with the largest exact dot over all
  rollouts paid correctly, and no corrupted one.
- `oracle_dot`, `oracle_cosine`: the exact dot or cosine over all rollouts as the arm pays them: what no number of
  rollouts mends.
- spent: rollouts sampled, validation included.
- bound: `dot` where all of 40 % of the rival's rollouts go to the problems that are not corrupted, evenly: what a race
  could reach that knew them beforehand."""


def finish_noise(data: dict[str, Any]) -> str:
    """The Markdown; adds ``tests`` to the data."""
    cells: Cells = defaultdict(dict)
    for row in data["rows"]:
        if row["budget"] == "fixed":
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
    parts += ["## Racing", _racing(data, cells)]
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
            f"`{name}` (default)" if name == DEFAULT else f"`{name}`",
            *(_cell(cells, (arm, name, "fixed", n), what) for n in counts),
        ]
        for name in CHOICES
    ]
    truth = max((n for a, _, _, n in cells if a == arm), default=0)
    for name in ORACLES:
        rows.append([f"`{name}` ({truth})", *[_cell(cells, (arm, name, "fixed", truth), what)] * len(counts)])
    return markdown_table(["strategy", *(f"{n} rollouts" for n in counts)], rows)


def _cell(cells: Cells, cell: tuple[str, str, str, int], what: str) -> str:
    return _spread([row[what] for row in cells.get(cell, {}).values()])


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else "-"


def _racing(data: dict[str, Any], cells: Cells) -> str:
    races: dict[tuple[str, str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in data["rows"]:
        if row["budget"] == "racing" and row["strategy"] in SHOWN:
            races[row["arm"], row["strategy"], row["rollouts"], row["race"]].append(row)
    rows = []
    for (arm, name, most, race), own in races.items():
        whole = cells[arm, name, "fixed", RIVAL].values()
        if not whole:
            continue
        spent, full = (median(row["rollouts_spent"] for row in some) for some in (own, whole))
        shown = [(what, some) for what in ("corrupted_share", "oracle_overlap") for some in (own, whole)]
        texts = [_spread([row[what] for row in some]) for what, some in shown]
        rows.append([f"{arm}, `{name}`, `{race}`", str(most), f"{spent:,.0f}", f"{spent / full:.0%}", *texts])
    for arm in ARMS:
        bound = [row for row in data["rows"] if row["strategy"] == "bound_dot" and row["arm"] == arm]
        rival = list(cells[arm, DEFAULT, "fixed", RIVAL].values())
        if bound and rival:
            spent, full = (median(row["rollouts_spent"] for row in some) for some in (bound, rival))
            least = str(max(row["rollouts"] for row in bound))
            share, overlap = (_spread([row[what] for row in bound]) for what in ("corrupted_share", "oracle_overlap"))
            rows.append([f"{arm}, bound", least, f"{spent:,.0f}", f"{spent / full:.0%}", share, "", overlap, ""])
    columns = ["arm, strategy, race", "at most", "spent", f"of fixed {RIVAL}", "corrupted", "fixed", "overlap", "fixed"]
    return markdown_table(columns, rows)
