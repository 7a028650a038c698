"""``racing(screen=8, mean=12)``: few rollouts for all, then more where the place in the choice is still open.

After a screen of all candidates, targets double from stage to stage up to the most that any candidate may have. What
is left of ``mean`` rollouts a candidate is shared out evenly over the targets to come (what one leaves over goes to
the next); at each, the candidates that have fewer are brought to it, those whose place is most open first, until the
share is used up. A most of 2 to 4 times the mean works best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from scipy import stats

from gradalign.alignment.record import Alignment, Floats
from gradalign.errors import GradAlignError
from gradalign.parts import spec
from gradalign.selection.budgets.prior import beta_of, chance_to_vary, rates, seen, together
from gradalign.selection.budgets.race import Counts, Standing
from gradalign.selection.gates import GATES
from gradalign.selection.parts import Unsure
from gradalign.selection.strategy import Strategy

DECIDED = 4.0
"""Standard errors from the cut beyond which a place is no longer open."""
DEAD = 0.05
"""Chance that the next rollouts make rewards vary below which a problem gets none."""


@dataclass(frozen=True)
class Racing:
    """See the module's text.

    Attributes:
        screen: rollouts that every candidate gets.
        mean: rollouts a candidate on average, never exceeded in all.
    """

    staged: ClassVar[bool] = True

    screen: Annotated[int, Field(ge=2)] = 8
    mean: Annotated[float, Field(allow_inf_nan=False)] = 12

    def __post_init__(self) -> None:
        if self.mean < self.screen:
            raise ValueError(
                f"mean is {self.mean:g}, less than the screen of {self.screen}; raise mean, or lower screen"
            )

    def check(self, most: int, strategy: Strategy) -> None:
        """See `gradalign.selection.budgets.race.Budget`."""
        if not strategy.needs:
            raise GradAlignError(f"budget racing: strategy {strategy.name!r} needs no rollouts; leave the budget out")
        for name, value in (("screen", self.screen), ("mean", self.mean)):
            if most <= value:
                raise GradAlignError(
                    f"budget racing: rollouts is {most}, the most that any candidate gets, and {name} is {value:g}; "
                    f"raise rollouts (2 to 4 times the mean works best), or lower {name}"
                )

    def wanted(self, standing: Standing) -> Counts | None:
        """See `gradalign.selection.budgets.race.Budget`."""
        counts = standing.counts
        if not standing.alignments:
            return np.full_like(counts, self.screen)
        left = int(self.mean * len(counts) + 1e-9) - int(counts.sum())
        targets = [target for target in self.targets(standing.most) if target > counts.max()]
        for number, target in enumerate(targets):
            open_ = openness(standing, target)
            order = np.lexsort((np.array([a.rank or 0 for a in standing.alignments]), open_))
            order = order[(open_[order] <= DECIDED) & (counts[order] < target)]
            taken = order[np.cumsum(target - counts[order]) <= left // (len(targets) - number)]
            if len(taken):
                wanted = counts.copy()
                wanted[taken] = target
                return wanted
        return None

    def targets(self, most: int) -> list[int]:
        """Rollouts that candidates are brought to after the screen, rising."""
        found = [self.screen]
        while found[-1] < most:
            found.append(min(2 * found[-1], most))
        return found[1:]


def openness(standing: Standing, target: int) -> Floats:
    """(candidates,) how far each candidate's place is from being open, in standard errors; infinite where it is closed.

    With a score s, its error e, and the cut c midway between the scores of the last place in and the first out (or the
    threshold): |s - c| / e. Errors are the rank's; one that it does not know is the median of the others, and where it
    knows none, the distance in rank from the cut takes the place of s - c, and the standard deviation of the ranks,
    n / sqrt(12), that of e. What a gate refused that further rollouts may mend is open at and above the cut:
    max(c - s, 0) / e. A place is closed where a gate's refusal is final, for want of a score, and to bad rows.

    A problem whose rewards do not vary yet has no score. It is chosen with probability p q: p that the rollouts up to
    ``target`` make its rewards vary (`chance_to_vary`), q the share of the choice among problems with a score. Since a
    score z errors from the cut is on the wrong side of it with probability Phi(-z), its z is -Phi^-1(p q). Below
    `DEAD`, p counts as none.
    """
    alignments, found = standing.alignments, np.full(len(standing.alignments), np.inf)
    final = {spec(gate, GATES) for gate in standing.strategy.gates if gate.final}
    scored = [
        i for i, a in enumerate(alignments) if a.status == "scored" and a.score is not None and a.gate not in final
    ]
    scores = np.array([alignments[i].score for i in scored], np.float64)
    refused = np.array([alignments[i].gate is not None for i in scored], bool)
    eligible = np.sort(scores[~refused])[::-1]
    cut, inside = _cut(standing, eligible)
    errors = _errors(standing, scored)
    if errors is None:
        place = np.searchsorted(-eligible, -scores) + 0.5
        away, errors = inside - place, np.full(len(scored), max(len(eligible), 1) / np.sqrt(12))
        away = np.full(len(scored), np.inf) if np.isneginf(cut) else away
    else:
        away = scores - cut
    found[scored] = np.where(refused, np.maximum(-away, 0), np.abs(away)) / errors

    share = inside / len(eligible) if len(eligible) else 1.0
    prior = together([standing.prior, seen(alignments)])
    betas = {source: beta_of(prior, source) for source in prior}
    for index, (alignment, rate) in enumerate(zip(alignments, rates(alignments), strict=True)):
        if alignment.status == "zero_variance" and rate is not None and standing.counts[index] < target:
            count = int(standing.counts[index])
            chance = chance_to_vary(rate, count, target - count, betas[alignment.source])
            if chance >= DEAD:
                found[index] = -stats.norm.ppf(chance * share)
    return found


def _cut(standing: Standing, eligible: Floats) -> tuple[float, int]:
    """The score at which the choice ends, minus infinity where all are in; how many of ``eligible`` (falling) are."""
    size = standing.size
    places = min(size.of(len(standing.alignments)), len(eligible))
    if size.threshold is not None:
        return size.threshold, int((eligible >= size.threshold).sum())
    if places == len(eligible):
        return -np.inf, places
    return float(eligible[places - 1] + eligible[places]) / 2, places


def _errors(standing: Standing, wanted: list[int]) -> Floats | None:
    """(wanted,) standard errors of the scores of the alignments ``wanted``; None where none is known."""
    rank = standing.strategy.rank
    if not isinstance(rank, Unsure):
        return None
    scored: list[Alignment] = [a for a in standing.alignments if a.status == "scored"]
    by_row = {id(a): error for a, error in zip(scored, rank.errors(scored), strict=True)}
    errors = np.array([by_row[id(standing.alignments[i])] or np.nan for i in wanted], np.float64)
    if not np.isfinite(errors).any():
        return None
    return np.where(np.isfinite(errors), errors, np.nanmedian(errors))
