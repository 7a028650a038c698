"""How a reward that says something true differs from one that does not: signs in the rollouts, weighed by example.

The validation problems are sound. Copies of them whose rewards are spoilt on purpose are not, and everything else about
the copies is the same. A ridge logistic regression between the two weighs the signs, so that those which tell nothing
for this policy and these problems get no weight. It only orders problems: how often a sound problem comes out as badly
is asked elsewhere, of problems that had no part in the weighing (`gradalign.selection.audit`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from gradalign.alignment.record import Evidence, Floats
from gradalign.selection.evidence import unequal_pay

DEALS = 4
"""Dealings of each sound problem's rewards."""
RIDGE = 1.0

Spoil = Callable[[Floats, np.random.Generator], list[Floats]]
"""From a sound problem's (rollouts,) rewards to one or several spoilt ones."""


def swapped(rewards: Floats, random: np.random.Generator) -> list[Floats]:
    """Bad is paid like good, good like bad."""
    return [rewards.max() + rewards.min() - rewards]


def dealt(rewards: Floats, random: np.random.Generator) -> list[Floats]:
    """The same rewards, dealt to the responses at random."""
    return [random.permutation(rewards) for _ in range(DEALS)]


def contradictions(evidence: Evidence) -> int:
    """Distinct responses that were paid differently at different times."""
    return int((unequal_pay(evidence) > 0).sum())


def cut(evidence: Evidence, count: int, likelihood: bool) -> Evidence | None:
    """The first ``count`` rollouts, without log-probabilities where they are not to be used; None where rewards are
    all equal."""
    rewards = evidence.rewards[:count]
    if np.ptp(rewards) == 0:
        return None
    logprobs = evidence.logprobs[:count] if likelihood and evidence.logprobs is not None else None
    return Evidence(
        rewards, evidence.responses[:count], logprobs, None if evidence.moves is None else evidence.moves[:count]
    )


def signs(evidence: Evidence, rewards: Floats | None = None) -> Floats:
    """(12,) what the regression sees of a problem whose rewards vary.

    Five signs: Fisher's z of the correlation of the rewards with the ranks of the movements along v, and with those of
    the log-probabilities; log of the share of distinct responses among those paid more than the mean, and among the
    others (a right answer is one, wrong answers are many); log of one plus the `contradictions`. What they look like in
    a sound problem depends on its pass rate q: with them go q - 1/2, its square, and the product of each with q - 1/2.

    Args:
        evidence: of the problem.
        rewards: to look at instead of the evidence's own.
    """
    paid = evidence.rewards if rewards is None else rewards
    high = paid > paid.mean()
    rate = float(high.mean()) - 0.5
    found = np.array([
        _fisher(paid, evidence.moves),
        _fisher(paid, evidence.logprobs),
        _log_distinct(evidence.responses[high]),
        _log_distinct(evidence.responses[~high]),
        np.log1p(contradictions(Evidence(paid, evidence.responses))),
    ])  # fmt: skip
    return np.concatenate([found, [rate, rate**2], found * rate])


def _fisher(rewards: Floats, values: Floats | None) -> float:
    if values is None or np.ptp(values) == 0:
        return 0.0
    return float(np.arctanh(np.clip(np.corrcoef(rewards, stats.rankdata(values))[0, 1], -0.99, 0.99)))


def _log_distinct(responses: NDArray[np.int64]) -> float:
    return float(np.log(len(np.unique(responses)) / len(responses)))


class Regression:
    """Log-odds that a problem is spoilt, by ridge logistic regression on standardised columns.

    Args:
        sound: (problems, columns) `signs`.
        spoilt: (problems, columns) likewise; both classes weigh the same.
    """

    def __init__(self, sound: Floats, spoilt: Floats) -> None:
        rows = np.concatenate([sound, spoilt])
        labels = np.repeat([0.0, 1.0], [len(sound), len(spoilt)])
        weights = np.repeat([1.0, len(sound) / len(spoilt)], [len(sound), len(spoilt)])
        self.mean = np.average(rows, 0, weights)
        scale = np.sqrt(np.average((rows - self.mean) ** 2, 0, weights))
        self.scale = np.where(scale > 0, scale, 1.0)
        made = (rows - self.mean) / self.scale

        def loss(weighed: Floats) -> tuple[float, Floats]:
            slope, odds = weighed[1:], weighed[0] + made @ weighed[1:]
            error = weights * (0.5 * (1 + np.tanh(odds / 2)) - labels)
            value = float(weights @ (np.logaddexp(0, odds) - labels * odds)) + RIDGE / 2 * float(slope @ slope)
            return value, np.concatenate([[error.sum()], made.T @ error + RIDGE * slope])

        self.weighed: Floats = optimize.minimize(loss, np.zeros(made.shape[1] + 1), jac=True, method="L-BFGS-B").x

    def odds(self, rows: Floats) -> Floats:
        """(problems,) log-odds of (problems, columns) `signs`."""
        return self.weighed[0] + (rows - self.mean) / self.scale @ self.weighed[1:]


def examples(sound: Evidence, spoil: Spoil, random: np.random.Generator) -> tuple[Floats, Floats]:
    """(columns,) `signs` of a sound problem, and (copies, columns) of the copies of it that ``spoil`` makes."""
    return signs(sound), np.stack([signs(sound, rewards) for rewards in spoil(sound.rewards, random)])
