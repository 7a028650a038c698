"""``accgreedy``: -|p - 1/2|, pass rate nearest one half; needs rollouts alone.

The scalar filter that the paper holds against: a fair coin as reward looks perfect to it.
"""

from gradalign.alignment.record import Alignment
from gradalign.selection.strategy import Strategy


def _score(alignment: Alignment, seed: int) -> float | None:
    return None if alignment.pass_rate is None else -abs(alignment.pass_rate - 0.5)


STRATEGY = Strategy("accgreedy", "pass rate near 1/2", "pass_rate", _score)
