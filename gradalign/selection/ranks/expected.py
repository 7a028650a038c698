"""``expected``: the probability that a problem is sound, times what training on it would be worth if it is.

    score = P(sound | evidence)^purity * max(worth, 0)

The evidence is the correlation of the rewards with the movements along v and, by ``agreement``, with the policy's own
log-probabilities, as a deviate from its permutation null; the posterior is that of two groups fitted to the problems at
hand (`gradalign.selection.evidence.probability_sound`). So neither a set of sure and tiny gains nor one of large and
dubious ones wins. Where the worth is nil or less, problems follow in the order of their evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from gradalign.alignment.record import Alignment, Floats
from gradalign.selection.evidence import correlations, deviate, probability_sound, shrunk
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Expected:
    """See the module's text.

    Attributes:
        worth: ``gain`` (dot, shrunk by empirical Bayes), ``learnability`` (p (1 - p)), or ``one`` (soundness alone).
        purity: power of the probability; above 1 for a cleaner and less useful set.
        agreement: weight of the policy's own log-probabilities in the evidence; where rollouts carry none, they have no
            say.
    """

    needs: ClassVar[Needs] = frozenset({"moves", "dot", "se"})
    prefers: ClassVar[str] = "gain along it, if the reward is sound"

    worth: Literal["gain", "learnability", "one"] = "gain"
    purity: Annotated[float, Field(ge=0)] = 1.0
    agreement: Annotated[float, Field(ge=0)] = 0.5

    def scores(self, alignments: Sequence[Alignment], seed: int) -> list[float | None]:
        """See `gradalign.selection.parts.Rank`."""
        found: list[float | None] = [None] * len(alignments)
        known, deviates = self._deviates(alignments)
        if not known:
            return found
        sound = probability_sound(deviates)
        worth = self._worth([alignments[i] for i in known], sound)
        scores = sound**self.purity * np.maximum(worth, 0)
        least = float(scores[scores > 0].min()) if (scores > 0).any() else 1.0
        scores = np.where(scores > 0, scores, least * 1e-3 * np.tanh(deviates / 10))
        for index, value in zip(known, scores, strict=True):
            found[index] = float(value)
        return found

    def errors(self, alignments: Sequence[Alignment]) -> list[float | None]:
        """See `gradalign.selection.parts.Unsure`.

        sqrt((P^purity e)^2 + (d max(worth, 0))^2), with e the error of the worth (se of dot, that of p (1 - p), or
        none) and d half the change of P^purity over one standard error of the evidence to both sides, which is 1 on
        the normal scale; P between the problems at hand is interpolated.
        """
        found: list[float | None] = [None] * len(alignments)
        known, deviates = self._deviates(alignments)
        if not known:
            return found
        rows, sound = [alignments[i] for i in known], probability_sound(deviates)
        order = np.argsort(deviates)
        ends = [np.interp(deviates + step, deviates[order], sound[order]) ** self.purity for step in (-1, 1)]
        doubt = np.abs(ends[1] - ends[0]) / 2 * np.maximum(self._worth(rows, sound), 0)
        errors = np.zeros(len(rows))
        if self.worth == "gain":
            errors = np.array([a.numbers.se for a in rows], np.float64)
        elif self.worth == "learnability":
            rates, counts = np.array([[a.pass_rate or 0.0, a.n_rollouts] for a in rows], np.float64).T
            errors = np.abs(1 - 2 * rates) * np.sqrt(rates * (1 - rates) / counts)
        for index, value in zip(known, np.hypot(sound**self.purity * errors, doubt), strict=True):
            found[index] = float(value)
        return found

    def _deviates(self, alignments: Sequence[Alignment]) -> tuple[list[int], Floats]:
        """Indices of the alignments that there is evidence of, and (those,) its deviate from the permutation null."""
        evidence = correlations(alignments, self.agreement)
        known = [i for i, corr in enumerate(evidence) if corr is not None]
        counts = np.array([alignments[i].n_rollouts for i in known], np.float64)
        return known, deviate(np.array([evidence[i] for i in known], np.float64), counts)

    def _worth(self, rows: Sequence[Alignment], sound: Floats) -> Floats:
        if self.worth == "one":
            return np.ones(len(rows))
        if self.worth == "learnability":
            rates = np.array([a.pass_rate or 0.0 for a in rows])
            return rates * (1 - rates)
        dots, errors = np.array([[a.numbers.dot, a.numbers.se] for a in rows], np.float64).T
        return shrunk(dots, errors, sound)
