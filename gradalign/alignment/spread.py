"""Scoring by workers: the same passes over the same groups as one process would make, hence the same numbers.

What shares a pass is decided here, by lengths alone; a batch is some passes, done by one worker. The direction, whose
sums depend on their order, is one worker's work, and so is the self-check; it travels with the job.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gradalign.alignment.align import Progress, Scorer, silent
from gradalign.alignment.direction import Direction
from gradalign.alignment.directional import Directional, sweeps
from gradalign.alignment.exact import Exact, Recorded
from gradalign.alignment.passes import sharing
from gradalign.alignment.record import Alignment, Numbers
from gradalign.alignment.scored import Scored
from gradalign.alignment.sketch import CHECKED, Sketch, Sketched
from gradalign.alignment.steps import Step
from gradalign.errors import GradAlignError
from gradalign.executors.base import Executor, Job, R, T, once
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.logprobs import packs, telling
from gradalign.problems.schema import uniform_hash

SHARES, MOST = 8, 16
"""Batches that each worker gets, about, so that all end together; passes in one of them, at most."""
Groups = Sequence[Group]
Checked = tuple[Step | None, Sketched | None]


@dataclass
class Replica(Scorer):
    """A `Scorer` in a worker: engines outlive a batch, and what memory they found they have.

    Attributes:
        packed: whether this policy packs; told, not tried on a batch that shows less than all groups do.
    """

    packed: bool = field(kw_only=True)
    engines: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def _packed(self, groups: Groups) -> bool:
        return self.packed

    def _exact(self, packed: bool) -> Exact:
        return self._kept("exact", lambda: super(Replica, self)._exact(packed))

    def _directional(self, packed: bool) -> Directional:
        return self._kept("directional", lambda: super(Replica, self)._directional(packed))

    def _sketch(self, packed: bool, keep: bool = False) -> Sketch:
        return self._kept(f"sketch {keep}", lambda: super(Replica, self)._sketch(packed, keep))

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.engines:
            self.engines[name] = make()
        return self.engines[name]

    @property
    def together(self) -> bool:
        """Whether several groups may share one of the engine's passes."""
        if self.engine not in ("exact", "sketch"):
            return True
        engine = self._exact(self.packed) if self.engine == "exact" else self._sketch(self.packed)
        return not engine.passes.capture.unknown


@dataclass(frozen=True)
class ScoringJob:
    """A `gradalign.executors.base.Job` of a scorer.

    Attributes:
        options: the scorer's, but for its policy and its processes.
        packed: see `Replica`; None where it is what is asked.
        direction: to align with; None where there is none yet.
    """

    options: dict[str, Any]
    packed: bool | None = None
    direction: Direction | None = None

    def replica(self, policy: Policy, cut: int, packed: bool) -> Replica:
        """The worker's scorer; see `smaller`."""
        return Replica(policy, **self.smaller(cut), packed=packed)

    def smaller(self, cut: int) -> dict[str, Any]:
        """The options, with passes smaller by 4 for every ``cut``."""
        return self.options | {"batch_tokens": max(1, self.options["batch_tokens"] >> 2 * cut)}

    def along(self, policy: Policy) -> Direction:
        """The direction, beside the policy."""
        assert self.direction is not None
        if self.options["offload"]:
            return self.direction
        return dataclasses.replace(self.direction, unit=[tensor.to(policy.device) for tensor in self.direction.unit])


class Trial(ScoringJob):
    """Tries on telling groups whether the policy packs them, and whether its passes may hold several groups."""

    def begin(self, policy: Policy, cut: int) -> Callable[[Sequence[Groups]], list[tuple[bool, bool]]]:
        """See `Job`."""

        def tried(groups: Groups) -> tuple[bool, bool]:
            packed = packs(policy, groups, self.options["batch_tokens"])
            return packed, self.replica(policy, cut, packed).together

        return lambda items: [tried(groups) for groups in items]

    def name(self, item: Groups) -> str:
        """See `Job`."""
        return "trying whether groups can be packed"


class Following(ScoringJob):
    """Finds the direction of validation groups and references."""

    def begin(self, policy: Policy, cut: int) -> Callable[[Sequence[tuple[Groups, Groups]]], list[Direction]]:
        """See `Job`."""
        scorer = Scorer(policy, **self.smaller(cut) | {"offload": False})
        return lambda items: [scorer.direction(validation, silent, references) for validation, references in items]

    def name(self, item: tuple[Groups, Groups]) -> str:
        """See `Job`."""
        return "the validation direction"


class Calibrating(ScoringJob):
    """Checks the engine on some groups."""

    def begin(self, policy: Policy, cut: int) -> Callable[[Sequence[Groups]], list[Checked]]:
        """See `Job`."""
        replica, direction = self.replica(policy, cut, self.packed is True), self.along(policy)

        def check(groups: Groups) -> Checked:
            replica.calibrate(groups, direction)
            return replica.step, replica.sketched

        return lambda items: [check(groups) for groups in items]

    def name(self, item: Groups) -> str:
        """See `Job`."""
        return "the self-check"


@dataclass(frozen=True)
class Measuring(ScoringJob):
    """Measures groups.

    Attributes:
        stage: see `Scorer.numbers`.
        one_sided: contributions are taken from the very passes of the candidates; results are pairs.
    """

    stage: str = "candidates"
    one_sided: bool = False

    def begin(self, policy: Policy, cut: int) -> Callable[[Groups], list[Any]]:
        """See `Job`."""
        packed = self.packed is True
        replica, direction = self.replica(policy, cut, packed), self.along(policy)

        def both(groups: Groups) -> list[tuple[Numbers, Numbers]]:
            recorded: Recorded = []
            first, second = (
                replica.numbers(stage, groups, direction, silent, packed, recorded)
                for stage in ("candidates", "contributions")
            )
            return list(zip(first, second, strict=True))

        if self.one_sided:
            return both
        return lambda groups: replica.numbers(self.stage, groups, direction, silent, packed, None)

    def name(self, item: Group) -> str:
        """See `Job`."""
        return f"candidates: problem {item.key!r}"


@dataclass
class SpreadScorer(Scorer):
    """A `Scorer` whose passes are made by workers; its policy makes none.

    Attributes:
        executor: the workers, whose replicas are of the same weights as ``policy``.

    Raises:
        GradAlignError: a feature store is asked for.
    """

    executor: Executor = field(kw_only=True)
    lost: dict[int, Group] = field(default_factory=dict, kw_only=True)
    _together: bool = field(default=True, kw_only=True)
    _beside: list[Numbers] = field(default_factory=list, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sketching.store is not None:
            raise GradAlignError("a feature store is one process's; leave --store out, or take --executor local")

    def direction(self, validation: Groups, progress: Progress = silent, references: Groups = ()) -> Direction:
        """See `Scorer.direction`; one worker's work."""
        done = progress("validation direction", len(validation) + len(references))
        direction = self._once(Following(self._options), (validation, references))
        done(len(validation) + len(references))
        return direction.off_loaded() if self.offload else direction

    def calibrate(self, groups: Groups, direction: Direction) -> Step | None:
        """See `Scorer.calibrate`; one worker's work."""
        tried = [group for group in groups if group.status == "scored"]
        if tried and (self.forward_only or self.engine == "sketch"):
            job = Calibrating(self._options, self._packed(tried), direction)
            some = sorted(tried, key=lambda group: uniform_hash("calibrate", group.key))[:CHECKED]
            self.step, self.sketched = self._once(job, some)
        return self.step

    def measure(self, candidates: Groups, direction: Direction, progress: Progress = silent) -> Scored:
        """See `Scorer.measure`; groups that cost their workers have status ``failed``."""
        self.lost = {}
        scored = super().measure(candidates, direction, progress)
        scored.alignments = [
            Alignment.of(dataclasses.replace(group, invalid="failed")) if id(group) in self.lost else alignment
            for group, alignment in zip(candidates, scored.alignments, strict=True)
        ]
        return scored

    def numbers(
        self, stage: str, groups: Groups, direction: Direction, progress: Progress, packed: bool,
        recorded: Recorded | None,
    ) -> list[Numbers]:  # fmt: skip
        """See `Scorer.numbers`; nothing is recorded here."""
        done, one_sided = progress(stage, len(groups)), recorded is not None
        if stage == "contributions" and one_sided:
            done(len(groups))
            return self._beside
        found: dict[int, Any] = {}
        batches = self._batches(stage, [group for group in groups if id(group) not in self.lost], packed, one_sided)
        job = Measuring(self._options, packed, direction, stage, one_sided)
        for number, results in self.executor.each(job, batches):
            for group, result in zip(batches[number], results, strict=True):
                if result is None:
                    self.lost[id(group)] = group
                found[id(group)] = result
            done(len(results))
        pairs = [found.get(id(group)) or (Numbers(), Numbers()) for group in groups]
        if one_sided:
            self._beside = [second for _, second in pairs]
            return [first for first, _ in pairs]
        return [found.get(id(group)) or Numbers() for group in groups]

    @property
    def _options(self) -> dict[str, Any]:
        theirs = [f.name for f in dataclasses.fields(Scorer) if f.name not in ("policy", "processes")]
        return {name: getattr(self, name) for name in theirs} | {"targets": dict(self.targets)}

    def _once(self, job: Job[T, R], item: T) -> R:
        result = once(self.executor, job, item)
        if result is None:
            raise GradAlignError(
                f"{job.name(item)}: cost its worker again and again, see the warning; give workers more memory, or "
                "lower --batch-tokens"
            )
        return result

    def _packed(self, groups: Groups) -> bool:
        if not groups:
            return True
        some = [row.group for row in telling(groups, self.batch_tokens)]
        packed, self._together = self._once(Trial(self._options), some)
        return packed

    def _batches(self, stage: str, groups: list[Group], packed: bool, every: bool) -> list[list[Group]]:
        """Groups whose passes one process would make together are in one batch."""
        pieces: list[Groups]
        if stage == "contributions" or self.engine == "directional":
            pieces = list(sweeps(groups, self.batch_tokens))
        elif self.engine == "reference":
            pieces = [[group] for group in groups]
        else:
            cut = partial(sharing, tokens=self.batch_tokens, packed=packed, together=self._together)
            pieces = list(cut(groups, self.objective, self.policy.half, every))
        size = min(MOST, max(1, len(pieces) // (SHARES * self.executor.workers)))
        return [
            [group for piece in pieces[start : start + size] for group in piece]
            for start in range(0, len(pieces), size)
        ]
