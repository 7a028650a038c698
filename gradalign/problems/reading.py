"""What became of the rows that a pool was read from: none is dropped in silence, and the numbers add up."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradalign.errors import GradAlignError, warn

SHOWN, KEPT = 3, 1000
"""Rows that cannot be used: how many a warning names, and how many are remembered."""


@dataclass(slots=True)
class Reading:
    """What became of a pool's rows; ``rows`` is the sum of ``problems``, ``repeats``, ``near`` and ``refused``.

    Attributes:
        label: how messages call the pool.
        rows: that were there.
        problems: that they made.
        repeats: rows whose prompt an earlier row has.
        conflicts: repeats with another answer.
        near: rows whose prompt is nearly that of an earlier one.
        refused: rows that cannot be used.
        reasons: row and why, of the first `KEPT`.
        first: ``repeat``, ``conflict`` or ``near`` -> number of the first such row.
        like: the place of the row that the first ``near`` one is like.
    """

    label: str
    rows: int = 0
    problems: int = 0
    repeats: int = 0
    conflicts: int = 0
    near: int = 0
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    first: dict[str, int] = field(default_factory=dict)
    like: str = ""

    def refuse(self, error: GradAlignError) -> None:
        """Count a row that cannot be used."""
        self.rows += 1
        self.refused += 1
        if len(self.reasons) < KEPT:
            self.reasons.append(str(error).removeprefix(f"{self.label}:"))

    def say(self) -> None:
        """Warn of what was left out."""
        if self.repeats:
            differ = f", {self.conflicts} of them with another answer (row {self.first.get('conflict')})"
            warn(
                f"{self.label}: {self.repeats} of {self.rows} rows repeat an earlier prompt and are left out (first: "
                f"row {self.first['repeat']}){differ if self.conflicts else ''}"
            )
        if self.near:
            warn(
                f"{self.label}: {self.near} of {self.rows} rows nearly repeat an earlier prompt and are left out "
                f"(first: row {self.first['near']}, like {self.like})"
            )
        if self.refused:
            more = f"; and {self.refused - SHOWN} more" if self.refused > SHOWN else ""
            warn(
                f"{self.label}: {self.refused} of {self.rows} rows cannot be used and are left out: row "
                f"{'; row '.join(self.reasons[:SHOWN])}{more}"
            )
