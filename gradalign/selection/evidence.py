"""How surely a reward says something true: statistics over a problem's rollouts that several gates and ranks share.

Under a reward that ignores the response, every dealing of a problem's rewards to its responses is as likely as any
other. So whatever is computed of the responses alone, its correlation with the rewards has a null that is known
exactly: the permutation null.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logit

from gradalign.alignment.record import Alignment, Evidence, Floats
from gradalign.problems.schema import uniform_hash


def deviate(corr: Floats, count: Floats) -> Floats:
    """The normal deviate that is as unlikely as Pearson's ``corr`` over ``count`` pairs of independent normal data.

    Student's t of a correlation (n - 2 degrees of freedom), put on the normal scale: correlations over few and over
    many rollouts become comparable. Fewer than three pairs say nothing: 0. Within 38, beyond which tails underflow.
    """
    corr, count = np.asarray(corr, np.float64), np.asarray(count, np.float64)
    freedom = np.maximum(count - 2, 1)
    t = corr * np.sqrt(freedom / np.maximum(1 - corr**2, 1e-12))
    return np.where(count > 2, normal(t, freedom), 0.0)


def normal(t: Floats, freedom: Floats) -> Floats:
    """Normal deviates that are as unlikely as Student's t-values with ``freedom`` degrees of freedom; within 38."""
    # By the tail that is small, so that no precision is lost.
    z = np.where(t > 0, -stats.norm.ppf(stats.t.sf(t, freedom)), stats.norm.ppf(stats.t.cdf(t, freedom)))
    return np.clip(z, -38, 38)


def unequal_pay(evidence: Evidence) -> Floats:
    """(distinct responses,) largest difference between the rewards of equal responses; 0 where one came once."""
    order = np.argsort(evidence.responses, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(evidence.responses[order]) != 0])
    rewards = evidence.rewards[order]
    return np.maximum.reduceat(rewards, starts) - np.minimum.reduceat(rewards, starts)


def predictor(alignment: Alignment, agreement: float = 0.0) -> Floats | None:
    """(rollouts,) what the rewards of a sound problem should go with; centred ranks, None where nothing varies.

    The ranks of the movements w_k c_k along v, plus ``agreement`` times the ranks of the responses' log-probabilities:
    what the policy itself thinks likely is right more often than not. Ranks, since with few rollouts one outlier
    decides a product of values.
    """
    evidence = alignment.evidence
    if evidence is None or evidence.moves is None:
        return None
    made = _standardised(evidence.moves)
    if agreement and evidence.logprobs is not None:
        made = made + agreement * _standardised(evidence.logprobs)
    return made if np.ptp(made) > 0 else None


def _standardised(values: Floats) -> Floats:
    ranks = stats.rankdata(values)
    centred = ranks - ranks.mean()
    scale = float(centred.std())
    return centred / scale if scale > 0 else centred


def correlations(alignments: Sequence[Alignment], agreement: float = 0.0) -> list[float | None]:
    """Pearson correlation of each problem's rewards with its `predictor`; None where either does not vary."""
    found: list[float | None] = []
    for alignment in alignments:
        made = predictor(alignment, agreement)
        if made is None or alignment.evidence is None or np.ptp(alignment.evidence.rewards) == 0:
            found.append(None)
            continue
        centred = alignment.evidence.rewards - alignment.evidence.rewards.mean()
        scale = float(np.linalg.norm(centred) * np.linalg.norm(made))
        found.append(float(np.clip(centred @ made / scale, -1, 1)))
    return found


def p_values(
    alignments: Sequence[Alignment], seed: int, draws: int = 999, upper: bool = True, middle: bool = False
) -> list[float | None]:
    """One-sided permutation p-value of each problem's correlation between rewards and movements along v.

    (1 + dealings at least as extreme) / (1 + dealings): valid whatever the number of draws (Phipson and Smyth, 2010).

    Args:
        alignments: with evidence; None is returned where there is none, or nothing varies.
        seed: of the dealings, which are the same for all problems with equally many rollouts.
        draws: dealings.
        upper: how often as large a correlation; else how often as small a one.
        middle: mid-p-values, for ranking: ties count half, and the problem's own dealing by its tail in Student's
            approximation, so that no two problems tie for want of draws. Not for tests.
    """
    sign = 1.0 if upper else -1.0
    found: list[float | None] = [None] * len(alignments)
    by_count: dict[int, list[int]] = defaultdict(list)
    for index, alignment in enumerate(alignments):
        evidence = alignment.evidence
        if evidence is None or evidence.moves is None or np.ptp(evidence.moves) == 0 or np.ptp(evidence.rewards) == 0:
            continue
        by_count[len(evidence.rewards)].append(index)
    for count, indices in by_count.items():
        evidences = [e for e in (alignments[i].evidence for i in indices) if e is not None]
        rewards = _unit(np.stack([e.rewards for e in evidences]))
        moved = sign * _unit(np.stack([e.moves for e in evidences if e.moves is not None]))
        observed = (rewards * moved).sum(1)
        random = np.random.default_rng(int(uniform_hash("dealings", seed, count) * 2**53))
        larger, equal = np.zeros(len(indices)), np.zeros(len(indices))
        for _ in range(draws):
            dealt = (rewards[:, random.permutation(count)] * moved).sum(1)
            larger += dealt > observed + 1e-9
            equal += np.abs(dealt - observed) <= 1e-9
        own: NDArray[np.float64] | float = 1.0
        if middle:
            own, equal = stats.norm.sf(deviate(observed, np.full(len(indices), count))), equal / 2
        for index, p in zip(indices, (own + larger + equal) / (1 + draws), strict=True):
            found[index] = float(p)
    return found


def _unit(values: Floats) -> Floats:
    """Rows centred, each of length one."""
    centred = values - values.mean(1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def probability_sound(deviates: Floats) -> Floats:
    """(problems,) posterior probability that a problem's reward is not independent of its responses.

    Two groups (Efron, 2008): deviates of unsound problems are N(0, 1), those of sound ones N(m, s) with m > 0 and s >=
    1; their shares, m and s are fitted by expectation maximisation to the problems at hand. The wider density is the
    larger one far below zero too, where rewards go against the movements: that is no evidence for them, and counts as
    what is least likely to be sound.
    """
    share, mean, spread = 0.5, 1.5, 1.0
    posterior = np.full(len(deviates), share)
    if not len(deviates):
        return posterior
    for _ in range(200):
        at = deviates if spread == 1 else np.maximum(deviates, -mean / (spread**2 - 1))
        posterior = expit(logit(share) + stats.norm.logpdf(at, mean, spread) - stats.norm.logpdf(at))
        weight = max(float(posterior.sum()), 1e-9)
        share = min(0.98, max(0.02, float(posterior.mean())))
        mean = max(0.3, float((posterior * deviates).sum()) / weight)
        spread = max(1.0, float(np.sqrt((posterior * (deviates - mean) ** 2).sum() / weight)))
    return posterior


def shrunk(values: Floats, errors: Floats, weights: Floats | None = None) -> Floats:
    """Empirical Bayes: posterior means of quantities measured with known errors.

    value_i ~ N(true_i, error_i^2), true_i ~ N(m, tau^2), m and tau fitted to all of them (Efron and Morris, 1975; by
    expectation maximisation): large values that are unsure are pulled towards the mean.

    Args:
        values: (problems,) measured.
        errors: (problems,) their standard errors.
        weights: (problems,) how much each counts in fitting m and tau; None for all the same.
    """
    weight = np.ones(len(values)) if weights is None else weights
    if not float(weight.sum()) > 0:
        return values.copy()
    scale = float(np.sqrt(np.average(values**2, weights=weight))) or 1.0
    y, variance = values / scale, (errors / scale) ** 2 + 1e-9
    between = max(float(np.average((y - np.average(y, weights=weight)) ** 2 - variance, weights=weight)), 1e-3)
    mean = 0.0
    for _ in range(100):
        precision = weight / (variance + between)
        mean = float((precision * y).sum() / precision.sum())
        pull = between / (between + variance)
        between = max(float(np.average((pull * (y - mean)) ** 2 + pull * variance, weights=weight)), 1e-12)
    return scale * (mean + between / (between + variance) * (y - mean))
