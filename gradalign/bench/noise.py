"""``gradalign bench noise``: which strategy sees through rewards gone wrong, with how few rollouts.

For every seed and arm of `gradalign.bench.noise_data`, every strategy chooses from the same numbers: once from the
first 8, 16, ... rollouts of every problem (budget ``fixed``), once by racing. Told of each choice are the share of
corrupted problems in it and its overlap with the oracle's: the problems whose exact dot, from many rollouts paid
correctly, is largest, corrupted ones left out, since in expectation a reward that ignores the response moves the policy
nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradalign.alignment.align import Progress, silent
from gradalign.alignment.record import Alignment
from gradalign.bench.noise_data import ARMS, Arm, Seed, Setting
from gradalign.bench.results import Results
from gradalign.parts import spec
from gradalign.policy.load import Policy
from gradalign.selection import STRATEGIES, Size, Strategy, choose, compose
from gradalign.selection.budgets import BUDGETS
from gradalign.selection.budgets.race import race
from gradalign.selection.budgets.racing import Racing

DEFAULT = "guarded"
"""The pre-registered strategy."""

BASELINES = ("gradalign", "dot", "accgreedy")
"""What it is tested against."""

ORACLES = {"oracle_dot": "dot", "oracle_cosine": "gradalign"}
"""Strategies that see all rollouts, paid as in the arm."""

RACED = ("guarded", "expected", "corr", "dot", "guarded_dot")
"""What is also raced."""

RACES = ((Racing(screen=4, mean=10), 16), (Racing(screen=4, mean=10), 32), (Racing(screen=8, mean=16), 32))
"""Races, and the most rollouts that a candidate may have in each."""

RIVAL, SPARED = 32, 0.4
"""Rollouts of the fixed budget that races are compared with, and the share of it that they were to make do with."""

CHOICES: dict[str, Strategy] = {
    **{
        name: STRATEGIES[name]
        for name in (
            "random", "accgreedy", "learnability", "gradalign", "dot", "lcb", "shrunk", "tscore", "corr",
            "permutation", "expected", "guarded",
        )
    },
    "guarded_dot": compose("dot", ["consistent"]),
    "guarded_learnability": compose("learnability", ["consistent"], rank="expected(worth=learnability)"),
    "sound_dot": compose("dot", ["sound(fdr=0.1)"]),
    "expected_movement_alone": compose("expected", rank="expected(agreement=0)"),
    "expected_purely": compose("expected", rank="expected(worth=one)"),
    "expected_learnability": compose("expected", rank="expected(worth=learnability)"),
}  # fmt: skip
"""Strategy as the study calls it -> strategy."""


@dataclass(frozen=True)
class NoisePlan:
    """What is measured.

    Attributes:
        seeds: of problems, rollouts and corruptions.
        choose: problems in a choice.
        setting: sizes.
    """

    seeds: Sequence[int]
    choose: int
    setting: Setting


def measure_noise(policy: Policy, plan: NoisePlan, results: Results, data: Path, progress: Progress = silent) -> None:
    """Measure what ``results`` lacks, arm by arm of every seed.

    Args:
        policy: embedded.
        plan: what is measured.
        results: where it is written.
        data: folder of the seeds' numbers.
        progress: told of every stage.
    """
    rows: list[dict[str, Any]] = results.data.setdefault("rows", [])
    results.data["default"] = DEFAULT
    measured = {(row["arm"], row["seed"]) for row in rows}
    for number in plan.seeds:
        missing = [arm for arm in ARMS if (arm, number) not in measured]
        seed = Seed(policy, number, plan.setting, data, progress) if missing else None
        done = progress(f"seed {number}: choices", len(missing))
        for arm in missing:
            assert seed is not None
            rows += [{"arm": arm, "seed": number, **row} for row in choices(seed.arm(arm), plan, number)]
            results.save()
            done()


def choices(arm: Arm, plan: NoisePlan, seed: int) -> list[dict[str, Any]]:
    """Every strategy's choice from one arm, as rows without arm and seed."""
    places, setting = plan.choose, plan.setting
    trusted = setting.validation * setting.validation_rollouts
    best = set(np.argsort(-arm.gain, kind="stable")[:places].tolist())
    rows = []

    def row(name: str, budget: str, rollouts: int, spent: int, alignments: Sequence[Alignment]) -> None:
        chosen = [i for i, a in enumerate(alignments) if a.selected]
        gain = float(arm.gain[chosen].sum() / arm.gain[list(best)].sum())
        rows.append({
            "strategy": name, "budget": budget, "rollouts": rollouts, "chosen": len(chosen),
            "corrupted_share": float(arm.corrupted[chosen].mean()) if chosen else 0.0,
            "oracle_overlap": len(best & set(chosen)) / places, "gain": gain,
            "rollouts_spent": spent + trusted,
        })  # fmt: skip

    oracles = {name: STRATEGIES[strategy] for name, strategy in ORACLES.items()}
    for n, strategies in [*((n, CHOICES) for n in setting.rollouts), (setting.truth, oracles)]:
        alignments = arm.alignments(np.full(setting.problems, n))
        for name, strategy in strategies.items():
            choose(alignments, strategy, Size(top=places), seed)
            row(name, "fixed", n, n * setting.problems, alignments)
    spared = int((SPARED * (RIVAL * setting.problems + trusted) - trusted) / (~arm.corrupted).sum())
    if 2 <= spared <= setting.truth:  # what a race could reach that knew which problems are corrupted
        alignments = arm.alignments(np.where(arm.corrupted, 1, spared))
        choose(alignments, STRATEGIES["dot"], Size(top=places), seed)
        row("bound_dot", "fixed", spared, spared * int((~arm.corrupted).sum()), alignments)
    for racing, most in RACES if max(most for _, most in RACES) <= setting.truth else ():
        for name in RACED:
            raced = race(racing, CHOICES[name], Size(top=places), setting.problems, most, arm.alignments, seed)
            row(name, "racing", most, sum(raced.spent), raced.alignments)
            rows[-1]["race"] = spec(racing, BUDGETS)
    return rows
