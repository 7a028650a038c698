"""What `gradalign bench fidelity` judges: one line of `ARMS` each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from gradalign.alignment.align import Scorer
from gradalign.alignment.direction import Direction
from gradalign.alignment.record import Numbers
from gradalign.alignment.sketch import Sketch, Sketching
from gradalign.policy.group import Group
from gradalign.policy.load import Policy, load_policy
from gradalign.policy.logprobs import packs
from gradalign.policy.objective import Objective


@dataclass
class Setup:
    """What all arms work on.

    Attributes:
        policy: the policy, with float32 weights.
        objective: what is differentiated.
        batch_tokens: tokens in one pass, at most.
        direction: what groups are aligned with.
    """

    policy: Policy
    objective: Objective
    batch_tokens: int
    direction: Direction

    @cached_property
    def rounded(self) -> Policy:
        """The policy with its weights rounded to bfloat16."""
        return load_policy(self.policy.path, dtype="bfloat16", device=str(self.policy.device))


Score = Callable[[Setup, Sequence[Group], int], list[Numbers]]
"""Numbers of groups, all of them ``scored``; the seed is that of the arm's own draws."""


@dataclass(frozen=True)
class Arm:
    """One way to score.

    Attributes:
        about: what it is, in a line.
        score: does it.
        seeded: it draws at random (projections), so it is also compared with itself under another seed.
    """

    about: str
    score: Score
    seeded: bool = False


def _engine(name: str) -> Score:
    """An engine as `gradalign score` runs it, the self-check of finite differences included."""

    def score(setup: Setup, groups: Sequence[Group], seed: int) -> list[Numbers]:
        return _numbers(Scorer(setup.policy, setup.objective, name, setup.batch_tokens), setup, groups)

    return score


def _sketch(layers: str, projection: str) -> Score:
    """Engine sketch without its self-check, which the benchmark is itself."""

    def score(setup: Setup, groups: Sequence[Group], seed: int) -> list[Numbers]:
        packed = packs(setup.policy, groups, setup.batch_tokens)
        sketching = Sketching(layers, projection)
        engine = Sketch(setup.policy, setup.objective, setup.batch_tokens, packed, sketching, seed)
        return list(engine.measure(groups, setup.direction))

    return score


def _rounded(setup: Setup, groups: Sequence[Group], seed: int) -> list[Numbers]:
    return _numbers(Scorer(setup.rounded, setup.objective, "exact", setup.batch_tokens), setup, groups)


def _numbers(scorer: Scorer, setup: Setup, groups: Sequence[Group]) -> list[Numbers]:
    return [alignment.numbers for alignment in scorer.measure(groups, setup.direction).alignments]


TRUTH = "exact"
"""The arm that gives the truth, and that the others are compared with on the same rollouts."""
ARMS = {
    TRUTH: Arm("engine exact", _engine("exact")),
    "directional": Arm("engine directional, its step chosen by its self-check", _engine("directional")),
    "bfloat16": Arm("engine exact with the weights rounded to bfloat16; the direction is float32's", _rounded),
    "sketch": Arm("engine sketch, each matrix projected to 8 x 8", _sketch("all", "two-sided:8"), True),
    "coordinates": Arm("engine sketch, 4,096 coordinates of all", _sketch("all", "coordinates:4096"), True),
    "last:2": Arm("engine sketch of the last two blocks, each matrix to 8 x 8", _sketch("last:2", "two-sided:8"), True),
    "lm-head": Arm("engine exact over the output layer alone", _sketch("lm-head", "none")),
}
"""Name -> arm."""
