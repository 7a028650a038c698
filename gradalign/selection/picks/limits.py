"""What every pick keeps to: shares of the choice by source, and a share left to chance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from gradalign.alignment.record import Alignment
from gradalign.problems.schema import uniform_hash
from gradalign.selection.parts import Needs

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Limits(ABC):
    """Limits that a pick keeps to; the picks inherit them.

    Shares are of the places asked for, rounded down (of ``explore``, to the nearest number).

    Attributes:
        caps: source -> largest share of the choice that it may have; ``"*"`` stands for every source not named.
        floors: source -> least share of the choice that it gets, as long as it has problems that may be chosen.
        explore: share of the choice that is drawn at random from those that may be chosen, so that what the score
            underrates is seen again.
    """

    needs: ClassVar[Needs] = frozenset()

    caps: dict[str, Share] = field(default_factory=dict)
    floors: dict[str, Share] = field(default_factory=dict)
    explore: Share = 0.0

    def __post_init__(self) -> None:
        if sum(self.floors.values()) > 1 + 1e-9:
            raise ValueError(f"floors add up to {sum(self.floors.values()):g} of the choice; lower them to 1 at most")
        for source, floor in self.floors.items():
            cap = self.caps.get(source, self.caps.get("*", 1.0))
            if floor > cap:
                raise ValueError(f"source {source!r} has a floor of {floor:g} above its cap of {cap:g}; change one")

    def picks(self, alignments: Sequence[Alignment], count: int, seed: int) -> list[int]:
        """See `gradalign.selection.parts.Pick`."""
        drawn = round(self.explore * count)
        chosen = self._within(self.order(alignments, count, seed), alignments, count, drawn, [])
        if drawn:
            draws = sorted(range(len(alignments)), key=lambda i: uniform_hash("explore", seed, alignments[i].key))
            chosen = self._within(draws, alignments, count, 0, chosen)
        return chosen

    @abstractmethod
    def order(self, alignments: Sequence[Alignment], count: int, seed: int) -> Iterable[int]:
        """Indices of the alignments, which come best first, in the order in which they are wanted."""
        ...

    def _within(
        self, order: Iterable[int], alignments: Sequence[Alignment], count: int, free: int, chosen: list[int]
    ) -> list[int]:
        """``chosen`` filled up from ``order`` but for ``free`` of ``count`` places; limits are shares of them all.

        Places of floors come first, then whatever no cap refuses.
        """
        wanted = list(order)
        held = Counter(alignments[i].source for i in chosen)
        taken = set(chosen)
        for floors in (True, False):
            for index in wanted:
                source = alignments[index].source
                if len(taken) >= count - free or index in taken:
                    continue
                limit = self._floor(source, count) if floors else self._cap(source, count)
                if held[source] < limit:
                    taken.add(index)
                    held[source] += 1
        taken.difference_update(chosen)
        return chosen + [index for index in wanted if index in taken]

    def _floor(self, source: str, count: int) -> int:
        return int(self.floors.get(source, 0.0) * count + 1e-9)

    def _cap(self, source: str, count: int) -> int:
        return int(self.caps.get(source, self.caps.get("*", 1.0)) * count + 1e-9)
