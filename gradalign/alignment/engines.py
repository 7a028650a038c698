"""Engines by name. A new one is a file of its own and a line here."""

from __future__ import annotations

from typing import Literal

from gradalign.alignment.directional import Directional, difference_for
from gradalign.alignment.exact import Exact
from gradalign.alignment.reference import Reference
from gradalign.alignment.sketch import Sketch, Sketching
from gradalign.errors import GradAlignError, nearest
from gradalign.policy.load import Policy
from gradalign.processes import Processes

EngineName = Literal["exact", "directional", "sketch", "reference"]
ENGINES: dict[str, type[Exact] | type[Directional] | type[Sketch] | type[Reference]] = {
    "exact": Exact,
    "directional": Directional,
    "sketch": Sketch,
    "reference": Reference,
}
"""Engine name -> class; its ``provides`` says which numbers it gives."""


def provides(engine: str, contributions: bool) -> frozenset[str]:
    """Names of the numbers that an engine gives, with or without the further forward-only pass.

    Raises:
        GradAlignError: no such engine.
    """
    if engine not in ENGINES:
        raise GradAlignError(f"unknown engine {engine!r}{nearest(engine, ENGINES)}")
    return ENGINES[engine].provides | (Directional.provides if contributions else frozenset())


def check_cut(engine: str, offload: bool, processes: Processes) -> None:
    """Refuse what a policy that is cut over processes (`gradalign.policy.shards`) does not allow.

    Raises:
        GradAlignError: the engine takes a policy that is whole; the direction is to be in a file; groups are shared
            out over ``processes``.
    """
    if engine in ("reference", "sketch"):
        raise GradAlignError(
            f"shard: engine {engine} takes a policy that is whole in one process; take --engine exact or directional, "
            "or leave --shard out"
        )
    if offload:
        raise GradAlignError("shard: every process keeps its part of the direction in memory; leave --offload out")
    if processes.count > 1:
        raise GradAlignError("shard: the processes share passes out, not groups; leave the scorer's processes out")


def check_wanted(engine: str, sketching: Sketching, wanted: frozenset[str], processes: Processes) -> None:
    """Refuse to be asked for what takes features where there are none.

    Raises:
        GradAlignError: ``wanted`` has some of it, and the engine is no sketch or has no projection; several processes
            would keep one feature store.
    """
    if sketching.store is not None and processes.count > 1:
        raise GradAlignError("a feature store is one process's; leave it out, or run one process")
    if wanted & {"features", "learnalign", "sources", "near"} and not (engine == "sketch" and sketching.keeps_features):
        what = "LearnAlign compares" if "learnalign" in wanted else "the choice compares"
        raise GradAlignError(
            f"{what} the features of all problems, which only engine sketch with a projection keeps; "
            "take --engine sketch --projection two-sided:8, or another strategy"
        )


def check_difference(engine: str, policy: Policy, difference: str | None) -> None:
    """Refuse a way to differentiate that the engine or the weights' type does not allow.

    Raises:
        GradAlignError: it does not.
    """
    difference_for(policy, difference)
    if engine == "directional" and difference == "one-sided":
        raise GradAlignError(
            "one-sided differences save a pass only where log-probabilities at the unmoved weights come from the same "
            "passes, which engine exact gives: take --engine exact --contributions, or --difference central"
        )
