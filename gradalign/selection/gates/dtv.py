"""``dtv``: the gradient does not go against the mean of the others', <g_i, mean of g_j over j != i> > 0.

Leave-one-out, so that a problem's own length does not speak for it: with n problems,

    <g_i, (1 / (n - 1)) sum_{j != i} g_j> = (<g_i, sum_j g_j> - |g_i|^2) / (n - 1),

which takes two passes over the gradients and forms no pair. No validation set is asked, so that a majority of bad
problems drops the good ones. <g_i, g_j> are taken from a sketch's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradalign.alignment.record import Alignment, Floats
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Dtv:
    """See the module's text; a problem that there is no other beside passes."""

    needs: ClassVar[Needs] = frozenset({"features"})
    final: ClassVar[bool] = False

    def passes(self, alignments: Sequence[Alignment], seed: int) -> list[bool]:
        """See `gradalign.selection.parts.Gate`."""
        if len(alignments) < 2:
            return [True] * len(alignments)
        return (leave_one_out([np.asarray(a.numbers.features) for a in alignments]) > 0).tolist()


def leave_one_out(features: Sequence[NDArray[Any]]) -> Floats:
    """(problems,) inner product of each problem's gradient with the mean of the others'.

    Args:
        features: of at least two problems, (numbers,) each; taken to float64 one at a time.
    """
    total = np.zeros(len(features[0]))
    for own in features:
        total += own
    found = np.empty(len(features))
    for index, own in enumerate(features):
        wide = own.astype(np.float64)
        found[index] = wide @ (total - wide) / (len(features) - 1)
    return found
