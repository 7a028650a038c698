"""``tscore``: t = dot / se, the alignment in units of its own standard error over rollouts.

Prefers problems whose alignment is sure to those where it is large by luck; a sure gain that is tiny ranks high too.
The t-value goes on the normal scale (Student's t with n - 1 degrees of freedom), so that problems with few and with
many rollouts compare; among problems with equally many the order is that of t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradalign.alignment.record import Alignment
from gradalign.selection.evidence import normal
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class TScore:
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"t"})
    prefers: ClassVar[str] = "sure gain along it (dot / standard error)"

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        return [
            None if a.numbers.t is None else float(normal(np.array(a.numbers.t), np.array(max(a.n_rollouts - 1, 1))))
            for a in alignments
        ]

    def errors(self, alignments: Sequence[Alignment]) -> list[float | None]:
        """See `gradalign.selection.parts.Unsure`; scores are on the normal scale."""
        return [1.0] * len(alignments)
