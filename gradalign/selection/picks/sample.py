"""``sample(temperature=0.5)``: drawn without replacement, each problem's chance growing with its score.

Successive draws from softmax(score / (temperature * spread)), where spread is the standard deviation of the scores at
hand, so that the temperature means the same for every rank. Drawn by the Gumbel-top-k trick (Kool et al.,
arXiv 1903.06059). For problems that should not be forgotten though others score a little higher.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from gradalign.alignment.record import Alignment
from gradalign.problems.schema import uniform_hash
from gradalign.selection.picks.limits import Limits


@dataclass(frozen=True)
class Sample(Limits):
    """See the module's text.

    Attributes:
        temperature: 0 takes the highest scores; large ones draw uniformly.
    """

    temperature: Annotated[float, Field(ge=0)] = 0.5

    def order(self, alignments: Sequence[Alignment], count: int, seed: int) -> Iterable[int]:
        """See `Limits.order`."""
        scores = np.array([a.score for a in alignments], np.float64)
        scale = self.temperature * float(scores.std())
        if scale == 0:
            return range(len(alignments))
        uniform = [uniform_hash("gumbel", seed, a.key) for a in alignments]
        noisy = scores / scale + np.array([-math.log(-math.log(max(u, 1e-300))) for u in uniform])
        return np.argsort(-noisy, kind="stable").tolist()
