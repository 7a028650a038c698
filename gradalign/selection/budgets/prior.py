"""What is known of a source's pass rates, and how likely further rollouts make a problem's rewards vary.

A problem's pass rate is Beta(a, b), those of one source alike; its rollouts pass or fail independently. Rewards are put
on [0, 1] by the lowest and the highest seen (0 and 1 at least), so that rewards other than 0 and 1 count in part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.special import betaln

from gradalign.alignment.record import Alignment

Prior = Mapping[str, Sequence[float]]
"""Source -> sums over its problems: 1, rate, rate squared, 1 / rollouts. Sums of rounds add up."""

Beta = tuple[float, float]
UNKNOWN: Beta = (0.5, 0.5)
"""Jeffreys' prior, where too little was seen."""
FEWEST = 20
"""Problems that a Beta is fitted to, at least; a source with fewer takes that of all."""


def rates(alignments: Sequence[Alignment]) -> list[float | None]:
    """Each problem's mean reward on [0, 1]; None where it was not sampled or has bad rows."""
    known = [a.evidence.rewards for a in alignments if a.evidence is not None]
    low = min([0.0, *(float(rewards.min()) for rewards in known)])
    high = max([1.0, *(float(rewards.max()) for rewards in known)])
    return [None if a.pass_rate is None else (a.pass_rate - low) / (high - low) for a in alignments]


def seen(alignments: Sequence[Alignment]) -> dict[str, list[float]]:
    """The `Prior` that a round's alignments leave."""
    found: dict[str, list[float]] = {}
    for alignment, rate in zip(alignments, rates(alignments), strict=True):
        if rate is not None:
            own = (1.0, rate, rate**2, 1 / alignment.n_rollouts)
            old = found.get(alignment.source, [0.0] * 4)
            found[alignment.source] = [x + y for x, y in zip(old, own, strict=True)]
    return found


def together(priors: Iterable[Prior]) -> dict[str, list[float]]:
    """The sums of several rounds as one."""
    found: dict[str, list[float]] = {}
    for prior in priors:
        for source, sums in prior.items():
            found[source] = [x + y for x, y in zip(found.get(source, [0.0] * 4), sums, strict=True)]
    return found


def beta_of(prior: Prior, source: str) -> Beta:
    """The Beta of a source's pass rates: its own, else that of all sources, else `UNKNOWN`."""
    every = [sum(parts) for parts in zip(*prior.values(), strict=True)]
    for sums in (prior.get(source), every):
        if sums and sums[0] >= FEWEST and (fitted := fit(sums)) is not None:
            return fitted
    return UNKNOWN


def fit(sums: Sequence[float]) -> Beta | None:
    """Beta by moments, freed of the binomial noise of the rates; None where all rates are 0 or all are 1.

    With mean rate m and 1 / rollouts averaging h, the rates' variance is m (1 - m) (rho + (1 - rho) h), where
    rho = 1 / (a + b + 1) is the correlation of two rollouts of one problem (Griffiths, 1973). rho is kept within
    [0.01, 0.99].
    """
    count, total, squares, inverses = sums
    mean, noise = total / count, inverses / count
    variance = mean * (1 - mean)
    if variance < 1e-12:
        return None
    excess = (squares / count - mean**2) / variance - noise
    rho = min(0.99, max(0.01, excess / (1 - noise) if noise < 1 else 0.99))
    strength = 1 / rho - 1
    return mean * strength, (1 - mean) * strength


def chance_to_vary(rate: float, count: int, more: int, beta: Beta) -> float:
    """Probability that ``more`` rollouts make rewards vary that were equal in all ``count`` so far.

    1 - B(a + count + more, b) / B(a + count, b) where all have passed (rate above one half), B the beta function: the
    Beta-binomial probability that all further ones pass too; with a and b exchanged where all have failed.
    """
    same, other = beta if rate > 0.5 else beta[::-1]
    return float(-np.expm1(betaln(same + count + more, other) - betaln(same + count, other)))
