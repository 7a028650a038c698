"""LearnAlign (arXiv 2506.11480): how well a problem's gradient goes with those of all others that can be learnt.

With p_i the pass rate, V_i = p_i (1 - p_i) the learnability and n problems,

    score_i = (1 / n) sum_j V_i V_j cos(g_i, g_j),

over all j, i itself included (the paper averages the rows of the whole matrix). No validation set is asked. As the sum
is <V_i g_i / |g_i|, (1 / n) sum_j V_j g_j / |g_j|>, two passes over the features do: no pair is ever formed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradalign.alignment.gram import Floats, normalised
from gradalign.errors import GradAlignError


def learnalign(features: NDArray[np.floating], pass_rates: Floats, block: int = 1024) -> Floats:
    """LearnAlign's score of each problem among all of them.

    Args:
        features: (problems, numbers) gradients or sketches of them; read ``block`` rows at a time.
        pass_rates: (problems,) shares of the rollouts that were right.
        block: rows in memory at a time.

    Returns:
        (problems,) scores. A zero gradient has score 0 and adds nothing to those of others.

    Raises:
        GradAlignError: a pass rate is not in [0, 1].
    """
    rates = np.asarray(pass_rates, np.float64)
    if rates.shape != (len(features),):
        raise ValueError(f"{rates.shape} pass rates for {len(features)} rows of features")
    require_rates(rates)
    learnability = rates * (1 - rates)
    mean, scores = np.zeros(features.shape[1]), np.zeros(len(rates))
    blocks = [slice(start, start + block) for start in range(0, len(rates), block)]
    for rows in blocks:
        mean += learnability[rows] @ normalised(features[rows]) / len(rates)
    for rows in blocks:
        scores[rows] = learnability[rows] * (normalised(features[rows]) @ mean)
    return scores


def require_rates(pass_rates: Floats) -> None:
    """Refuse mean rewards that are no pass rates.

    Raises:
        GradAlignError: one is not in [0, 1].
    """
    outside = np.flatnonzero(~((pass_rates >= 0) & (pass_rates <= 1)))
    if len(outside):
        raise GradAlignError(
            f"learnalign: the mean reward of problem {outside[0] + 1} is {pass_rates[outside[0]]:g}, which is no pass "
            "rate; give rewards between 0 and 1, or take another strategy"
        )
