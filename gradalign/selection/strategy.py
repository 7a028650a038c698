"""What a strategy is, and how one turns alignments into a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gradalign.alignment.record import Alignment
from gradalign.parts import spec
from gradalign.problems.schema import uniform_hash
from gradalign.selection.gates import GATES
from gradalign.selection.parts import FROM_ROLLOUTS, Gate, Needs, Pick, Rank
from gradalign.selection.picks import PICKS
from gradalign.selection.picks.top import Top
from gradalign.selection.ranks import RANKS


@dataclass(frozen=True)
class Strategy:
    """Gates times a rank times a pick.

    Attributes:
        name: what configurations call it; of one that is put together there, its `recipe`.
        rank: which groups are most useful.
        gates: which may be chosen; asked one after the other, each about those that the ones before let pass.
        pick: which of them are.
        once: a curriculum asks in its first round alone, over the whole pool, and keeps to that choice.
        warmup: rounds that a curriculum trains on problems drawn at random, before it asks for the first time.
        stale: a curriculum samples the whole pool in its first round alone, and later scores those rollouts again with
            the policy as it is then.
    """

    name: str
    rank: Rank
    gates: tuple[Gate, ...] = ()
    pick: Pick = field(default_factory=Top)
    once: bool = False
    warmup: int = 0
    stale: bool = False

    @property
    def prefers(self) -> str:
        """In a few words, for tables."""
        gates = [f"gate {spec(gate, GATES)}" for gate in self.gates]
        return f"{'; '.join([self.rank.prefers, *gates])}{', once before training' if self.once else ''}"

    @property
    def recipe(self) -> str:
        """The parts as a configuration names them."""
        parts = [spec(gate, GATES) for gate in self.gates]
        return " > ".join([*parts, spec(self.rank, RANKS), spec(self.pick, PICKS)])

    @property
    def needs(self) -> Needs:
        """What it reads of alignments; nothing at all where no rollouts are needed."""
        return self.rank.needs.union(self.pick.needs, *(gate.needs for gate in self.gates))

    @property
    def needs_engine(self) -> bool:
        """Whether gradients or forward passes of the candidates are needed."""
        return bool(self.needs - FROM_ROLLOUTS)


@dataclass(frozen=True, slots=True)
class Size:
    """How many to choose; at most one of the three is given, and with none of them nothing is chosen.

    Attributes:
        top: this many.
        fraction: this share of all candidates, scored or not, rounded down, at least one.
        threshold: all whose score is at least this.
    """

    top: int | None = None
    fraction: float | None = None
    threshold: float | None = None

    @property
    def given(self) -> bool:
        """Whether anything is to be chosen."""
        return (self.top, self.fraction, self.threshold) != (None, None, None)

    def of(self, candidates: int) -> int:
        """Places for a choice among ``candidates``."""
        if self.fraction is not None:
            return max(1, int(self.fraction * candidates + 1e-9))
        return candidates if self.top is None else self.top


def choose(alignments: Sequence[Alignment], strategy: Strategy, size: Size, seed: int = 0) -> None:
    """Fill in ``score``, ``gate``, ``rank`` and ``selected`` of every alignment.

    Ranks are 1..N: the chosen ones in the order in which they were picked, others by falling score, those that a gate
    has refused, then all that were not scored; ties by a seeded hash of the key. Only scored ones that every gate let
    pass are selected. ``selected`` is None where no size is given.
    """
    scored = [a for a in alignments if a.status == "scored"]
    for alignment in alignments:
        alignment.score = alignment.gate = None
    for alignment, score in zip(scored, strategy.rank.scores(scored, seed), strict=True):
        alignment.score = score
    open_ = scored
    for gate in strategy.gates:
        for alignment, passes in zip(open_, gate.passes(open_, seed), strict=True):
            alignment.gate = None if passes else spec(gate, GATES)
        open_ = [a for a in open_ if a.gate is None]

    def place(alignment: Alignment) -> tuple[bool, bool, bool, float, float, str]:
        score = alignment.score
        tie = uniform_hash("tie", seed, alignment.key)
        refused = alignment.gate is not None
        return alignment.status != "scored", refused, score is None, -(score or 0.0), tie, alignment.key

    ordered = sorted(alignments, key=place)
    least = float("-inf") if size.threshold is None else size.threshold
    eligible = [a for a in ordered if a.gate is None and a.score is not None and a.score >= least]
    count = len(eligible) if size.threshold is not None else size.of(len(alignments))
    picked = [eligible[i] for i in strategy.pick.picks(eligible, count, seed)] if eligible else []
    chosen = {id(a) for a in picked}
    for rank, alignment in enumerate([*picked, *(a for a in ordered if id(a) not in chosen)], 1):
        alignment.rank = rank
        alignment.selected = id(alignment) in chosen if size.given else None
