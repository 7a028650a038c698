"""What `gradalign bench regimes` ran, as tables and tests."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

import numpy as np

from gradalign.bench.regime_arms import ARMS, BASELINES, CONTENDERS, DEFAULT, ORACLE
from gradalign.bench.regime_beds import SHARES
from gradalign.bench.results import markdown_table
from gradalign.bench.significance import flipped, holm

Runs = dict[str, dict[int, dict[str, Any]]]
"""Arm -> seed -> row."""

NOTES = """\
- Numbers are medians over seeds, with the least and the largest in brackets. All arms of a seed have the same problems.
- final: mean of the last two evaluations at equal steps; best: the best evaluation; area: mean of all evaluations after
  the first.
- steps and rollouts to random: where the arm first reaches `random`'s final accuracy, as shares of `random`'s steps
  and rollouts there; `-` where it does not. Rollouts count everything sampled: to choose, for the validation set, to
  train.
- `random`, trained on: its accuracy (mean of the two evaluations up to there) once it has spent as many rollouts as the
  default has at the end, or taken three times the steps, which may come first.
- gap closed: (arm - random) / (oracle - random), of the final accuracies' medians over the arm's seeds; `-` where the
  oracle ends no higher than `random`.
- p: paired permutation test over seeds that the one ends higher, one-sided, Holm-adjusted over an arm's baselines; n
  seeds cannot give less than 2 ** -n, times the number of baselines."""


def finish_regimes(data: dict[str, Any]) -> str:
    """The Markdown below the title; adds ``summary`` and ``tests`` to the data."""
    runs = by_arm(data["rows"])
    told = SHARES[data["regime"]][0]
    data["summary"], data["tests"] = summary(runs), tests(runs)
    seeds = sorted({row["seed"] for row in data["rows"]})
    return "\n\n".join([
        f"Regime {data['regime'].replace('_', ' ')}, bed `{data['bed']}`: {len(data['rows'])} runs, seeds "
        f"{', '.join(map(str, seeds))}. Start: {spread([row['accuracy'][0] for row in data['rows']])}.",
        _accuracies(runs, data["summary"], told),
        "## What reaching random's final accuracy costs", _costs(runs),
        f"## {' and '.join(f'`{arm}`' for arm in CONTENDERS)} against the baselines", _tested(data["tests"]),
        f"## The {told} share among the chosen, round by round", _by_round(runs),
        "## How to read this", NOTES,
        f"Setting: {_flat(data['setting'])}.", _origins(data["rows"]),
    ])  # fmt: skip


def by_arm(rows: Sequence[dict[str, Any]]) -> Runs:
    """The rows by arm and seed."""
    runs: Runs = defaultdict(dict)
    for row in rows:
        runs[row["arm"]][row["seed"]] = row
    return runs


def summary(runs: Runs) -> dict[str, dict[str, float]]:
    """Arm -> medians over its seeds."""
    found = {}
    for arm, rows in runs.items():
        names = ("final_accuracy", "best_accuracy", "area", "rollouts")
        found[arm] = {name: median(row[name] for row in rows.values()) for name in names}
        found[arm]["chosen_share"] = median(share_chosen(row) for row in rows.values())
        found[arm]["collapsed"] = sum(row["collapsed"] for row in rows.values())
        shared = rows.keys() & runs.get("random", {}).keys() & runs.get(ORACLE, {}).keys()
        if shared:
            here, low, high = (
                median(runs[one][seed]["final_accuracy"] for seed in shared) for one in (arm, "random", ORACLE)
            )
            if high > low:
                found[arm]["gap_closed"] = (here - low) / (high - low)
    return found


def tests(runs: Runs) -> list[dict[str, Any]]:
    """The contenders' final accuracy against each baseline's, on the seeds that both have."""
    found: list[dict[str, Any]] = []
    for own, other in itertools.product(CONTENDERS, BASELINES):
        both = sorted(runs.get(own, {}).keys() & runs.get(other, {}).keys())
        if len(both) > 1:
            ours, theirs = ([runs[arm][s]["final_accuracy"] for s in both] for arm in (own, other))
            gain = np.array(ours) - np.array(theirs)
            found.append({
                "arm": own, "against": other, "seeds": len(both), "gain": float(np.median(gain)),
                "wins": int((gain > 0).sum()), "p": flipped(-gain),
            })  # fmt: skip
    for own in CONTENDERS:
        family = [test for test in found if test["arm"] == own]
        for test, p in zip(family, holm([test["p"] for test in family]), strict=True):
            test["p_holm"] = p
    return found


def share_chosen(row: dict[str, Any]) -> float:
    """Mean of the shares of the rounds at equal steps."""
    return mean(row["chosen_share"][: row["steps_at"].index(row["steps"])])


def reached(row: dict[str, Any], level: float) -> int | None:
    """Place of the first evaluation after training began that is at least ``level``."""
    return next((i for i, value in enumerate(row["accuracy"]) if i and value >= level), None)


def _accuracies(runs: Runs, made: dict[str, dict[str, float]], told: str) -> str:
    columns = ["arm", "seeds", "final", "best", "area", f"{told} share", "rollouts", "gap closed", "collapsed"]
    lines = []
    for arm in (arm for arm in ARMS if arm in runs):
        rows = list(runs[arm].values())
        accuracies = [spread([row[n] for row in rows]) for n in ("final_accuracy", "best_accuracy", "area")]
        lines.append([
            f"`{arm}`", str(len(rows)), *accuracies,
            spread(list(map(share_chosen, rows))), f"{made[arm]['rollouts']:,.0f}",
            f"{made[arm]['gap_closed']:.2f}" if "gap_closed" in made[arm] else "-", str(made[arm]["collapsed"]),
        ])  # fmt: skip
    if longer := at_equal_rollouts(runs):
        lines.append(["`random`, trained on", str(len(longer)), spread(longer), *["-"] * 6])
    return markdown_table(columns, lines)


def at_equal_rollouts(runs: Runs) -> list[float]:
    """``random``'s accuracy once it has spent what the default has at its end, on each seed where it trained on."""
    found = []
    for seed in runs.get("random", {}).keys() & runs.get(DEFAULT, {}).keys():
        row, own = runs["random"][seed], runs[DEFAULT][seed]
        if len(row["accuracy"]) > len(own["accuracy"]):
            spent = zip(row["accuracy"], row["rollouts_at"], strict=True)
            found.append(mean([accuracy for accuracy, so_far in spent if so_far <= own["rollouts"]][-2:]))
    return found


def _costs(runs: Runs) -> str:
    lines = []
    for arm in (arm for arm in ARMS if arm in runs and arm != "random"):
        shares: dict[str, list[float]] = {"steps_at": [], "rollouts_at": []}
        missed = 0
        for seed, row in runs[arm].items():
            random = runs.get("random", {}).get(seed)
            if random is None:
                continue
            place = reached(row, random["final_accuracy"])
            missed += place is None
            for name, cost in (("steps_at", random["steps"]), ("rollouts_at", random["rollouts"])):
                shares[name].append(np.inf if place is None else row[name][place] / cost)
        if shares["steps_at"]:
            lines.append([f"`{arm}`", str(len(shares["steps_at"])), *map(_finite, shares.values()), str(missed)])
    return markdown_table(["arm", "seeds", "steps to random", "rollouts to random", "never"], lines)


def _tested(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        [f"`{own['arm']}` - `{own['against']}`", str(own["seeds"]), f"{own['gain']:+.3f}",
         f"{own['wins']} of {own['seeds']}", f"{own['p']:.4f}", f"{own['p_holm']:.4f}"]
        for own in found
    ]  # fmt: skip
    return markdown_table(["final accuracy", "seeds", "median gain", "higher on", "p", "p, Holm"], lines)


def _by_round(runs: Runs) -> str:
    most = max((len(row["chosen_share"]) for arm in runs if arm != "random" for row in runs[arm].values()), default=0)
    lines = []
    for arm in (arm for arm in ARMS if arm in runs):
        shares = [row["chosen_share"] for row in runs[arm].values()]
        cells = [[share[i] for share in shares if i < len(share)] for i in range(most)]
        lines.append([f"`{arm}`", *(f"{median(cell):.2f}" if cell else "-" for cell in cells)])
    return markdown_table(["arm", *map(str, range(most))], lines)


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the largest."""
    return f"{median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def _finite(values: Sequence[float]) -> str:
    found = ["-" if value == np.inf else f"{value:.2f}" for value in (median(values), min(values), max(values))]
    return f"{found[0]} ({found[1]} to {found[2]})"


def _flat(values: dict[str, Any]) -> str:
    flat = {**values.get("sizes", {}), **{name: value for name, value in values.items() if name != "sizes"}}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in flat.items())


def _origins(rows: Sequence[dict[str, Any]]) -> str:
    told = {", ".join(f"{name} {value}" for name, value in row["from"].items()) for row in rows}
    return f"Ran with {'; '.join(sorted(told))}. Seconds a run: {spread([row['seconds'] for row in rows])}."
