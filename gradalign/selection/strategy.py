"""What a strategy is, and how one turns alignments into a choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gradalign.alignment.record import Alignment
from gradalign.problems.schema import uniform_hash

Needs = Literal["nothing", "pass_rate", "dot", "cosine", "t", "corr", "learnalign"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """A ranking of problems.

    Attributes:
        name: what configurations call it.
        prefers: in a few words, for tables.
        needs: what it reads: ``nothing`` (no rollouts), ``pass_rate`` (rollouts alone), else a number of an engine.
        score: usefulness of an alignment, higher is better; None where it cannot be told. Its second argument is the
            seed.
        once: a curriculum asks in its first round alone, over the whole pool, and keeps to that choice.
    """

    name: str
    prefers: str
    needs: Needs
    score: Callable[[Alignment, int], float | None]
    once: bool = False

    @property
    def needs_engine(self) -> bool:
        """Whether gradients or forward passes of the candidates are needed."""
        return self.needs not in ("nothing", "pass_rate")


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


def choose(alignments: Sequence[Alignment], strategy: Strategy, size: Size, seed: int = 0) -> None:
    """Fill in ``score``, ``rank`` and ``selected`` of every alignment.

    Ranks are 1..N: scored ones by falling score, then all that were not scored; ties by a seeded hash of the key.
    Only scored ones are selected. ``selected`` is None where no size is given.
    """
    for alignment in alignments:
        alignment.score = strategy.score(alignment, seed) if alignment.status == "scored" else None

    def place(alignment: Alignment) -> tuple[bool, bool, float, float, str]:
        score = alignment.score
        tie = uniform_hash("tie", seed, alignment.key)
        return alignment.status != "scored", score is None, -(score or 0.0), tie, alignment.key

    limit = len(alignments) if size.top is None else size.top
    if size.fraction is not None:
        limit = max(1, int(size.fraction * len(alignments) + 1e-9))
    for rank, alignment in enumerate(sorted(alignments, key=place), 1):
        alignment.rank = rank
        score = alignment.score
        chosen = score is not None and rank <= limit and (size.threshold is None or score >= size.threshold)
        alignment.selected = chosen if size.given else None
