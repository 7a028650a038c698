"""Scoring from end to end: validation groups and candidates in, direction and alignments out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from gradalign.alignment.direction import Direction, build_direction, require_gradient
from gradalign.alignment.directional import Directional, Step
from gradalign.alignment.exact import Exact
from gradalign.alignment.record import Alignment, Numbers
from gradalign.alignment.reference import Reference
from gradalign.errors import GradAlignError, nearest, warn
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.logprobs import shares_prompts
from gradalign.policy.objective import Objective

EngineName = Literal["exact", "directional", "reference"]
ENGINES: dict[str, type[Exact] | type[Directional] | type[Reference]] = {
    "exact": Exact,
    "directional": Directional,
    "reference": Reference,
}
"""Engine name -> class; its ``provides`` says which numbers it gives."""


class Engine(Protocol):
    """Whatever measures groups against a direction."""

    def measure(self, groups: Sequence[Group], direction: Direction) -> Iterator[Numbers]:
        """Numbers of each group, in order; every group's status is ``scored``."""
        ...


def provides(engine: str, contributions: bool) -> frozenset[str]:
    """Names of the numbers that an engine gives, with or without the further forward-only pass.

    Raises:
        GradAlignError: no such engine.
    """
    if engine not in ENGINES:
        raise GradAlignError(f"unknown engine {engine!r}{nearest(engine, ENGINES)}")
    return ENGINES[engine].provides | (Directional.provides if contributions else frozenset())


@dataclass
class Scored:
    """What scoring gives.

    Attributes:
        direction: the validation direction.
        alignments: one a candidate group, in the candidates' order.
        seconds: wall-clock time by part: ``direction``, ``self-check``, ``candidates``, ``contributions``.
        step: the finite-difference step and its error, where forward passes were differenced.
    """

    direction: Direction
    alignments: list[Alignment]
    seconds: dict[str, float] = field(default_factory=dict)
    step: Step | None = None


def score(
    policy: Policy,
    candidates: Sequence[Group],
    validation: Sequence[Group],
    objective: Objective,
    engine: str = "exact",
    batch_tokens: int = 4096,
    contributions: bool = False,
    unit: bool = False,
    seed: int = 0,
    progress: Callable[[str, int], Callable[[], None]] = lambda name, total: lambda: None,
) -> Scored:
    """Align candidate groups with the validation direction.

    Args:
        policy: the policy; only its gradients are touched, and left empty.
        candidates: groups to score; those whose status is not ``scored`` get a row without numbers.
        validation: groups of the trusted validation set.
        objective: advantage, aggregation, temperature.
        engine: ``exact``, ``directional`` or ``reference``.
        batch_tokens: tokens in one forward or backward pass, at most (one rollout at least).
        contributions: with ``exact``, a further forward-only pass gives se, t and corr.
        unit: each validation problem's gradient is divided by its norm before averaging.
        seed: of the validation set's halving.
        progress: called with a stage's name and number of groups; gives a function to be called after each.

    Raises:
        GradAlignError: unknown engine; no validation problem carries a gradient; a number that is not finite.
    """
    provides(engine, contributions)
    contributions = contributions and engine == "exact"  # the others give them anyway
    require_gradient(validation)
    scored = [group for group in candidates if group.status == "scored"]
    trusted = [group for group in validation if group.status == "scored"]
    shared = engine != "reference" and shares_prompts(policy, [*scored, *trusted], batch_tokens)
    exact = Exact(policy, objective, batch_tokens, shared)
    reference = Reference(policy, objective)
    forward = Directional(policy, objective, batch_tokens, shared) if engine == "directional" or contributions else None
    seconds: dict[str, float] = {}

    start = time.perf_counter()
    gradient = reference.gradient if engine == "reference" else exact.gradient
    done = progress("validation direction", len(trusted))
    direction = build_direction(policy, validation, gradient, unit, seed, done)
    seconds["direction"] = time.perf_counter() - start
    if direction.within_noise:
        halves = "cannot be compared" if direction.reliability is None else f"agree by {direction.reliability:.2f} only"
        warn(
            f"the validation direction is within noise: its halves {halves} ({direction.n_problems} problems carry a "
            "gradient); more validation problems, or more rollouts of each, make it reliable"
        )

    step = None
    if forward is not None and scored:
        start = time.perf_counter()
        step = forward.calibrate(scored, direction)
        seconds["self-check"] = time.perf_counter() - start

    start = time.perf_counter()
    measuring: Engine = reference if engine == "reference" else exact
    if engine == "directional":
        assert forward is not None
        measuring = forward
    done = progress("candidates", len(scored))
    numbers: dict[int, Numbers] = {}
    for group, measured in zip(scored, measuring.measure(scored, direction), strict=True):
        measured.require_finite(group)
        numbers[id(group)] = measured
        done()
    seconds["candidates"] = time.perf_counter() - start

    if contributions:
        assert forward is not None
        start = time.perf_counter()
        done = progress("contributions", len(scored))
        for group, more in zip(scored, forward.measure(scored, direction), strict=True):
            more.require_finite(group)
            own = numbers[id(group)]
            own.se, own.t, own.corr = more.se, more.t, more.corr
            done()
        seconds["contributions"] = time.perf_counter() - start

    alignments = [Alignment.of(group, numbers.get(id(group))) for group in candidates]
    return Scored(direction, alignments, seconds, step)
