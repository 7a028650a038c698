"""The parts that a strategy is put together from; configurations name them as in ``sound(fdr=0.1)``.

A part is a frozen dataclass; its fields are its parameters. A new one is a file of its own in ``gates/``, ``ranks/`` or
``picks/`` and a line in that folder's registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from gradalign.alignment.record import Alignment

Needs = frozenset[str]
"""What a part reads of an alignment: ``pass_rate`` and ``responses`` come with rollouts, all else from an engine: names
of `gradalign.alignment.record.Numbers`."""

FROM_ROLLOUTS: Needs = frozenset({"pass_rate", "responses"})
"""What rollouts give without an engine."""


class Gate(Protocol):
    """Says which groups may be chosen."""

    needs: ClassVar[Needs]
    final: ClassVar[bool]
    """Whether a group that was refused stays so, however many rollouts are added."""

    def passes(self, alignments: Sequence[Alignment], seed: int) -> Sequence[bool]:
        """Of each alignment, all of status ``scored``, whether it may be chosen."""
        ...


@runtime_checkable
class Informed(Protocol):
    """A gate that needs something besides alignments."""

    def check(self) -> None:
        """Refuse where that is not there, before any work.

        Raises:
            GradAlignError: it is not.
        """
        ...


class Rank(Protocol):
    """Says how useful groups are."""

    needs: ClassVar[Needs]
    prefers: ClassVar[str]
    """In a few words, for tables."""

    def scores(self, alignments: Sequence[Alignment], seed: int) -> Sequence[float | None]:
        """Usefulness of each alignment, all of status ``scored``; higher is better, None where it cannot be told."""
        ...


@runtime_checkable
class Unsure(Protocol):
    """A rank that knows how unsure its scores are."""

    def errors(self, alignments: Sequence[Alignment]) -> Sequence[float | None]:
        """Standard error of each alignment's score, all of status ``scored``; None where it cannot be told."""
        ...


class Pick(Protocol):
    """Says which of the groups that may be chosen are, given how useful they are."""

    needs: ClassVar[Needs]

    def picks(self, alignments: Sequence[Alignment], count: int, seed: int) -> list[int]:
        """Indices of at most ``count`` alignments, first choice first.

        Args:
            alignments: those that may be chosen, best first by ``score``, which none of them lacks.
            count: places.
            seed: of draws.
        """
        ...
