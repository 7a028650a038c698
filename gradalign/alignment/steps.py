"""The finite-difference step: a rule for its length, and the search that it cuts short.

A difference of log-probabilities over a step h has two errors. Rounding of the log-probabilities is divided by h; what
the difference leaves out of the Taylor series grows as h^p, with p = 2 for central and p = 1 for one-sided differences:

    e(h)^2 = (a / h)^2 + (b h^p)^2.

Two measured errors, one on either side of the valley, give a and b; e is smallest where its derivative vanishes,

    h* = (a / (b sqrt(p)))^(1 / (p + 1)),

which is where rounding is sqrt(p) times the truncation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

START, FACTOR = 0.01, 4.0
"""The first step tried, in units of the weights, and the factor from one to the next."""
GOOD = 0.001
"""An error, relative to the root mean square of the exact numbers, at which no other step is tried."""
POOR, AGAIN = 0.05, 64.0
"""An error above which a valley is taken for one outside of the linear range, where the rule says nothing: the search
begins once more with a step shorter by so much."""
LONGEST, SHORTEST = 10.0, 1e-7
"""Steps beyond these are not tried."""


@dataclass(frozen=True, slots=True)
class Step:
    """A finite-difference step and its error.

    Attributes:
        length: h, the distance that the weights are moved.
        error: root mean square difference to exact numbers over their root mean square.
    """

    length: float
    error: float


def optimum(short: Step, long: Step, order: int) -> float | None:
    """h* of the rule from the errors at two steps; None where they do not lie on two sides of a valley.

    Args:
        short, long: two steps with their errors, the shorter first.
        order: p.
    """
    # With u = 1 / h^2 and w = h^(2p): e^2 = A u + B w, two linear equations.
    u1, w1, y1 = short.length**-2, short.length ** (2 * order), short.error**2
    u2, w2, y2 = long.length**-2, long.length ** (2 * order), long.error**2
    determinant = u1 * w2 - u2 * w1
    rounding, truncation = (y1 * w2 - y2 * w1) / determinant, (u1 * y2 - u2 * y1) / determinant
    if not (rounding > 0 and truncation > 0 and math.isfinite(rounding + truncation)):
        return None
    return (rounding / (order * truncation)) ** (1 / (2 * order + 2))


def search(error: Callable[[float], float], order: int) -> Step:
    """The best step found: downhill from `START` by factors until the valley is bracketed, then the rule's h*.

    Where curvature is strong, the first steps may all be too long and show valleys of their own; see `POOR`.

    Args:
        error: measures a step; infinity where it cannot.
        order: p.
    """
    tried: dict[float, float] = {}

    def measure(length: float) -> Step:
        if length not in tried:
            tried[length] = error(length)
        return Step(length, tried[length])

    def downhill(best: Step) -> Step:
        while best.error > GOOD:
            shorter, longer = measure(best.length / FACTOR), measure(best.length * FACTOR)
            lowest = min(shorter, best, longer, key=lambda step: step.error)
            if lowest is best:
                rule = optimum(shorter, longer, order)
                if rule is not None and shorter.length < rule < longer.length:
                    best = min(best, measure(rule), key=lambda step: step.error)
                break
            if not SHORTEST < lowest.length < LONGEST:
                break
            best = lowest
        return best

    start = START
    best = downhill(measure(start))
    while best.error > POOR and start / AGAIN > SHORTEST:
        start /= AGAIN
        best = min(best, downhill(measure(start)), key=lambda step: step.error)
    return best
