"""Selection: a strategy is gates times a rank times a pick, each found by name; a budget says what it may cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gradalign.alignment.engines import ENGINES, provides
from gradalign.errors import GradAlignError, warn
from gradalign.parts import find, parse
from gradalign.selection.budgets import BUDGETS
from gradalign.selection.budgets.race import Budget
from gradalign.selection.gates import GATES
from gradalign.selection.parts import FROM_ROLLOUTS, Informed
from gradalign.selection.picks import PICKS
from gradalign.selection.ranks import RANKS
from gradalign.selection.strategies import STRATEGIES
from gradalign.selection.strategy import Size, Strategy, choose

__all__ = [
    "BUDGETS", "GATES", "PICKS", "RANKS", "STRATEGIES", "Budget", "Size", "Strategy", "check_rollouts",
    "choose", "compose", "find_budget", "find_strategy",
]  # fmt: skip


def compose(name: str | None, gates: Sequence[str] = (), rank: str | None = None, pick: str | None = None) -> Strategy:
    """A ready-made strategy with the parts that are given in place of its own.

    Args:
        name: of the ready-made one; None for ``gradalign``.
        gates: ``sound(fdr=0.1)`` and the like; ``none`` for none at all.
        rank: ``expected(worth=learnability)`` and the like.
        pick: ``top(caps={'web': 0.3})`` and the like.

    Raises:
        GradAlignError: an unknown name, part or parameter.
    """
    strategy = find(name or "gradalign", STRATEGIES, "strategy")
    if not gates and rank is None and pick is None:
        return strategy
    if gates:
        named = [gate for gate in gates if gate != "none" or len(gates) > 1]
        strategy = dataclasses.replace(strategy, gates=tuple(parse(gate, GATES, "gate") for gate in named))
    if rank is not None:
        strategy = dataclasses.replace(strategy, rank=parse(rank, RANKS, "rank"))
    if pick is not None:
        strategy = dataclasses.replace(strategy, pick=parse(pick, PICKS, "pick"))
    return dataclasses.replace(strategy, name=strategy.recipe)


def find_budget(text: str, most: int, strategy: Strategy) -> Budget:
    """The budget that ``text`` names, ``racing(screen=8, mean=12)`` and the like.

    Args:
        text: name and parameters.
        most: rollouts that any candidate may have.
        strategy: that chooses.

    Raises:
        GradAlignError: unknown name or parameter, or see `gradalign.selection.budgets.race.Budget.check`.
    """
    budget = parse(text, BUDGETS, "budget")
    budget.check(most, strategy)
    return budget


def find_strategy(
    name: str | None,
    engine: str,
    contributions: bool = False,
    gates: Sequence[str] = (),
    rank: str | None = None,
    pick: str | None = None,
) -> Strategy:
    """A strategy by name and parts, checked against what the engine gives.

    Args:
        name: of the strategy; None means ``gradalign`` where there is a cosine, else ``dot``.
        engine: of the run.
        contributions: whether the further forward-only pass is made.
        gates: see `compose`.
        rank: see `compose`.
        pick: see `compose`.

    Raises:
        GradAlignError: unknown name, it needs a number that the run does not give, or a gate lacks what it goes by.
    """
    provided = provides(engine, contributions) | FROM_ROLLOUTS
    strategy = compose(name or ("gradalign" if "cosine" in provided else "dot"), gates, rank, pick)
    missing = strategy.needs - provided
    if missing:
        able = [other for other, kind in ENGINES.items() if missing <= kind.provides]
        able = [other for other in able if strategy.needs <= provides(other, False) | FROM_ROLLOUTS]
        more = strategy.needs <= provides(engine, contributions=True) | FROM_ROLLOUTS
        advice = f"take --engine {' or '.join(able)}" if able else "take --contributions" if more else "none gives all"
        raise GradAlignError(
            f"strategy {strategy.name!r} needs {', '.join(sorted(missing))}, which engine {engine!r} does not give; "
            f"{advice}{' (or --contributions)' if able and more else ''}, or a strategy that it can serve"
        )
    for gate in strategy.gates:
        if isinstance(gate, Informed):
            gate.check()
    return strategy


FEW = 4
"""Rollouts below which a standard error says next to nothing."""


def check_rollouts(strategy: Strategy, most: int) -> None:
    """Refuse or warn of so few rollouts that a strategy has nothing to go by.

    Args:
        strategy: what is to choose.
        most: rollouts that any candidate has.

    Raises:
        GradAlignError: one rollout a problem, where gradients are needed.
    """
    if strategy.needs_engine and most == 1:
        raise GradAlignError(
            "candidates: every problem has one rollout, which carries no gradient and no standard error: rewards are "
            "compared within a problem; sample at least two of each for dot, eight for strategies with errors"
        )
    if strategy.needs & {"se", "t", "corr", "moves"} and most < FEW:
        warn(
            f"strategy {strategy.name!r} goes by standard errors, and {most} rollouts a problem give none worth the "
            "name; take --strategy dot, or sample eight"
        )
