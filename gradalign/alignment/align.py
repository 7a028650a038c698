"""Scoring from end to end: validation groups and candidates in, direction and alignments out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np

from gradalign.alignment.combined import REFERENCE_WEIGHT, follow
from gradalign.alignment.direction import Direction, build_direction, require_gradient, warn_of_noise
from gradalign.alignment.directional import Directional
from gradalign.alignment.engines import check_cut, check_difference, check_wanted, provides
from gradalign.alignment.exact import Exact, Recorded
from gradalign.alignment.learnalign import learnalign, require_rates
from gradalign.alignment.record import Alignment, Numbers
from gradalign.alignment.reference import Reference
from gradalign.alignment.scored import Scored
from gradalign.alignment.sketch import USUAL, Sketch, Sketched, Sketching
from gradalign.alignment.steps import Step
from gradalign.alignment.sums import AddUp
from gradalign.alignment.trusted import by_source, each_problem, require_compared
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.logprobs import packs
from gradalign.policy.objective import Objective
from gradalign.policy.rope import steady_length
from gradalign.processes import ALONE, Processes

Progress = Callable[[str, int], Callable[..., None]]
"""Called with a stage's name and size; gives a function to call with (or without) the number of items done."""


def silent(stage: str, total: int) -> Callable[..., None]:
    """A `Progress` that shows nothing."""
    return lambda items=1: None


Measure = Callable[[Sequence[Group], Direction], Iterator[Numbers]]
"""Numbers of each group, in order; every group's status is ``scored``."""


@dataclass
class Scorer:
    """How alignments are computed; reused while the policy moves.

    Attributes:
        policy: the policy; only its gradients are touched, and left empty.
        objective: advantage, aggregation, temperature.
        engine: a name in `gradalign.alignment.engines.ENGINES`.
        batch_tokens: tokens in one forward or backward pass, at most (one rollout at least).
        contributions: with ``exact`` and ``sketch``, a further forward-only pass gives se, t and corr.
        unit: each validation problem's gradient is divided by its norm before averaging.
        seed: of the validation set's halving, and of sketches.
        processes: each works on its share of the groups; all get all results.
        difference: how forward-only scores differentiate, see `gradalign.alignment.directional`; None leaves it to the
            weights' type.
        offload: the direction is kept in a file, not in memory.
        step: of forward-only scores, where `calibrate` has chosen one.
        sketching: layers, projection and store of engine ``sketch``.
        wanted: numbers that are not measured unless they are asked for: ``features`` (of a sketch, held in memory),
            ``learnalign`` (the candidates among each other, which takes the features), ``sources`` and ``near``
            (cosines with each source, and with each problem, of the validation set, by their features).
        sketched: of a sketch, where `calibrate` has compared it.
        targets: validation source -> weight, see `gradalign.alignment.combined`; empty takes all problems together.
        reference_weight: share in (0, 1] of trusted responses in the direction, where there are some.

    Raises:
        GradAlignError: unknown engine, or a difference or a policy that it cannot take; no features to keep.
    """

    policy: Policy
    objective: Objective
    engine: str = "exact"
    batch_tokens: int = 4096
    contributions: bool = False
    unit: bool = False
    seed: int = 0
    processes: Processes = ALONE
    difference: str | None = None
    offload: bool = False
    step: Step | None = None
    sketching: Sketching = USUAL
    wanted: frozenset[str] = frozenset()
    sketched: Sketched | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    reference_weight: float = REFERENCE_WEIGHT

    def __post_init__(self) -> None:
        provides(self.engine, self.contributions)
        self.batch_tokens = min(self.batch_tokens, steady_length(self.policy.config) or self.batch_tokens)
        if self.policy.shards is not None:
            check_cut(self.engine, self.offload, self.processes)
        self.contributions = self.contributions and self.engine in ("exact", "sketch")  # the others give them anyway
        if self.forward_only:
            check_difference(self.engine, self.policy, self.difference)
        check_wanted(self.engine, self.sketching, self.wanted, self.processes)

    @property
    def keeps(self) -> bool:
        """Whether the features of all candidates are kept until all are there."""
        return bool(self.wanted & {"features", "learnalign"})

    @property
    def forward_only(self) -> bool:
        """Whether forward passes are differenced."""
        return self.engine == "directional" or self.contributions

    def direction(
        self, validation: Sequence[Group], progress: Progress = silent, references: Sequence[Group] = ()
    ) -> Direction:
        """The validation direction; ``references`` are groups of trusted responses to follow as well.

        Raises:
            GradAlignError: no validation problem carries a gradient; targets that do not fit.
        """
        validation = self.objective.marked(validation)
        trusted = [g for g in validation if g.status == "scored" and self.targets.get(g.source, 1.0) > 0]
        if self.targets or references:
            direction = follow(
                validation, references, self.targets, self.reference_weight, self._adder, self.objective, self.unit,
                self.seed, progress, self.processes,
            )  # fmt: skip
        else:
            require_gradient(validation)
            add_up, done = self._adder(trusted, self.objective), progress("validation direction", len(trusted))
            direction = build_direction(validation, add_up, self.unit, self.seed, done, self.processes)
        direction = direction.off_loaded() if self.offload else direction
        if "sources" in self.wanted:
            adder, sketch = partial(self._adder, objective=self.objective), self._sketch(packed=False)
            direction.sources = by_source(sketch, validation, self.targets, adder, self.unit, progress, self.processes)
        if "near" in self.wanted:
            measure = self._sketch(self._packed(trusted), keep=True).measure
            direction.each = each_problem(self._measure(measure, trusted, direction, progress, "validation problems"))
        return direction

    def _adder(self, groups: Sequence[Group], objective: Objective) -> AddUp:
        """Adds up gradients of ``groups``."""
        if self.engine == "reference":
            return Reference(self.policy, objective).add_up
        return Exact(self.policy, objective, self.batch_tokens, self._packed(groups)).add_up

    def calibrate(self, groups: Sequence[Group], direction: Direction) -> Step | None:
        """Choose the finite-difference step on up to eight of ``groups``, and keep it; None where none is needed.

        A sketch is compared with exact scores and with itself, which is kept too.

        Raises:
            GradAlignError: no step agrees with exact dots.
        """
        tried = [group for group in groups if group.status == "scored"]
        if self.forward_only and tried:
            self.step = self._directional(self._packed(tried)).calibrate(tried, direction)
        if self.engine == "sketch" and tried:
            self.sketched = self._sketch(self._packed(tried)).check(tried, direction)
        return self.step

    def measure(self, candidates: Sequence[Group], direction: Direction, progress: Progress = silent) -> Scored:
        """Align candidate groups with a direction.

        Groups whose status is not ``scored`` get a row without numbers. `calibrate` is called on the candidates where
        it was not called before.

        Raises:
            GradAlignError: a number that is not finite; see `calibrate`.
        """
        seconds: dict[str, float] = {}
        require_compared(direction, self.wanted)
        candidates = self.objective.marked(candidates)
        scored = [group for group in candidates if group.status == "scored"]
        start = time.perf_counter()
        rates = np.array([group.rewards.mean() for group in scored])
        if "learnalign" in self.wanted:
            require_rates(rates)
        if (self.forward_only and self.step is None) or (self.engine == "sketch" and self.sketched is None):
            self.calibrate(scored, direction)
            seconds["self-check"] = time.perf_counter() - start
        packed = self.engine != "reference" and self._packed(scored)
        one_sided = self.engine == "exact" and self.contributions and self.difference == "one-sided"
        recorded: Recorded | None = [] if one_sided else None
        start = time.perf_counter()
        numbers = self.numbers("candidates", scored, direction, progress, packed, recorded)
        features = {place: own.features for place, own in enumerate(numbers) if own.features is not None}
        if "learnalign" in self.wanted and features:
            values = learnalign(np.stack(list(features.values())), rates[list(features)])
            for place, value in zip(features, values, strict=True):
                numbers[place].learnalign = float(value)
        seconds["candidates"] = time.perf_counter() - start

        if self.contributions:
            start = time.perf_counter()
            more = self.numbers("contributions", scored, direction, progress, packed, recorded)
            for own, other in zip(numbers, more, strict=True):
                own.se, own.t, own.corr, own.moves = other.se, other.t, other.corr, other.moves
                if self.engine == "sketch":
                    own.dot = other.dot  # of all layers, and of what se is the error of
            seconds["contributions"] = time.perf_counter() - start

        by_group = {id(group): own for group, own in zip(scored, numbers, strict=True)}
        alignments = [Alignment.of(group, by_group.get(id(group))) for group in candidates]
        return Scored(direction, alignments, seconds, self.step, self.sketched)

    def numbers(
        self, stage: str, groups: Sequence[Group], direction: Direction, progress: Progress, packed: bool,
        recorded: Recorded | None,
    ) -> list[Numbers]:  # fmt: skip
        """What a stage, ``candidates`` or ``contributions``, says of groups that are all ``scored``."""
        measure: Measure = Reference(self.policy, self.objective).measure
        if stage == "contributions" or self.engine == "directional":
            measure = partial(self._directional(packed).measure, recorded=recorded)
        elif self.engine == "exact":
            measure = partial(self._exact(packed).measure, recorded=recorded)
        elif self.engine == "sketch":
            sketch = self._sketch(packed)
            with sketch.stored():
                return self._measure(sketch.measure, groups, direction, progress, stage)
        return self._measure(measure, groups, direction, progress, stage)

    def _exact(self, packed: bool) -> Exact:
        return Exact(self.policy, self.objective, self.batch_tokens, packed)

    def _directional(self, packed: bool) -> Directional:
        made = Directional(self.policy, self.objective, self.batch_tokens, packed, self.difference)
        made.step = self.step
        return made

    def _sketch(self, packed: bool, keep: bool = False) -> Sketch:
        keep = keep or self.keeps
        return Sketch(self.policy, self.objective, self.batch_tokens, packed, self.sketching, self.seed, keep)

    def _packed(self, groups: Sequence[Group]) -> bool:
        return packs(self.policy, groups, self.batch_tokens)

    def _measure(
        self, measure: Measure, groups: Sequence[Group], direction: Direction, progress: Progress, stage: str
    ) -> list[Numbers]:
        """Every group's numbers, each process measuring its share."""
        mine = self.processes.mine(groups)
        done = progress(stage, len(mine))

        def work() -> list[Numbers]:
            numbers = []
            for group, measured in zip(mine, measure(mine, direction), strict=True):
                measured.require_finite(group)
                numbers.append(measured)
                done()
            return numbers

        return self.processes.joined(self.processes.together(work))


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
    progress: Progress = silent,
    direction: Direction | None = None,
    difference: str | None = None,
    offload: bool = False,
    sketching: Sketching = USUAL,
    wanted: frozenset[str] = frozenset(),
    references: Sequence[Group] = (),
    targets: Mapping[str, float] = MappingProxyType({}),
    reference_weight: float = REFERENCE_WEIGHT,
    make: Callable[..., Scorer] = Scorer,
) -> Scored:
    """Align candidate groups with the validation direction; see `Scorer` for the arguments, ``make`` for another one.

    With a ready ``direction``, the validation groups and ``references`` are not looked at.

    Raises:
        GradAlignError: unknown engine; no validation problem carries a gradient; a number that is not finite.
    """
    scorer = make(
        policy, objective, engine, batch_tokens, contributions, unit, seed, difference=difference, offload=offload,
        sketching=sketching, wanted=wanted, targets=targets, reference_weight=reference_weight,
    )  # fmt: skip
    seconds: dict[str, float] = {}
    if direction is None:
        start = time.perf_counter()
        direction = scorer.direction(validation, progress, references)
        seconds["direction"] = time.perf_counter() - start
    warn_of_noise(direction)
    scored = scorer.measure(candidates, direction, progress)
    scored.seconds = seconds | scored.seconds
    return scored
