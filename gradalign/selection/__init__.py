"""Selection: strategies by name. A new one is a file here and a line below."""

from __future__ import annotations

from gradalign.alignment.engines import ENGINES, provides
from gradalign.errors import GradAlignError, nearest
from gradalign.selection import accgreedy, corr, dot, gradalign, learnalign, random, static, tscore
from gradalign.selection.strategy import Size, Strategy, choose

STRATEGIES: dict[str, Strategy] = {
    module.STRATEGY.name: module.STRATEGY
    for module in (gradalign, dot, tscore, corr, learnalign, accgreedy, static, random)
}
"""Strategy name -> strategy."""

__all__ = ["STRATEGIES", "Size", "Strategy", "choose", "find_strategy"]


def find_strategy(name: str | None, engine: str, contributions: bool = False) -> Strategy:
    """A strategy by name, checked against what the engine gives.

    Args:
        name: of the strategy; None means ``gradalign`` where there is a cosine, else ``dot``.
        engine: of the run.
        contributions: whether the further forward-only pass is made.

    Raises:
        GradAlignError: unknown name, or it needs a number that the run does not give.
    """
    provided = provides(engine, contributions)
    if name is None:
        name = "gradalign" if "cosine" in provided else "dot"
    if name not in STRATEGIES:
        raise GradAlignError(f"unknown strategy {name!r}{nearest(name, STRATEGIES)}")
    strategy = STRATEGIES[name]
    if strategy.needs_engine and strategy.needs not in provided:
        able = [other for other, kind in ENGINES.items() if strategy.needs in kind.provides]
        more = " (or --contributions)" if strategy.needs in provides(engine, contributions=True) else ""
        raise GradAlignError(
            f"strategy {name!r} needs {strategy.needs}, which engine {engine!r} does not give; take --engine "
            f"{' or '.join(able)}{more}, or a strategy that it can serve"
        )
    return strategy
