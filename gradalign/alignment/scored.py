"""What scoring gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradalign.alignment.direction import Direction
from gradalign.alignment.record import Alignment
from gradalign.alignment.sketch import Sketched
from gradalign.alignment.steps import Step


@dataclass
class Scored:
    """What scoring gives.

    Attributes:
        direction: the validation direction.
        alignments: one a candidate group, in the candidates' order.
        seconds: wall-clock time by part: ``direction``, ``self-check``, ``candidates``, ``contributions``.
        step: the finite-difference step and its error, where forward passes were differenced.
        sketched: what the sketch is and how it agrees with others, where there is one.
    """

    direction: Direction
    alignments: list[Alignment]
    seconds: dict[str, float] = field(default_factory=dict)
    step: Step | None = None
    sketched: Sketched | None = None
