"""Engine ``directional``: forward passes alone, but for the self-check of a few groups.

A rollout's derivative c_k = <grad log pi(y_k), v/|v|> is a directional derivative. Three ways to take it:

- ``central``: c_k = (log pi(y_k; theta + h v/|v|) - log pi(y_k; theta - h v/|v|)) / 2h + O(h^2), two forward passes;
- ``one-sided``: c_k = (log pi(y_k; theta + h v/|v|) - log pi(y_k; theta)) / h + O(h), one forward pass where the
  log-probabilities at theta are known from the very same passes (`Directional.record`, or engine ``exact`` as a
  by-product): what a sampler stored is of other arithmetic, and its rounding would be divided by h;
- ``forward-mode``: tangents carried through one forward pass, exact but for rounding, hence the way in half precision,
  where a finite step would be lost; costs about three.

The step is found by a rule (`gradalign.alignment.steps`) on a few of the groups to be scored, whose dots are also
computed by the exact engine: which is the run's self-check at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch.autograd import forward_ad

from gradalign.alignment.cut import gathered, turns
from gradalign.alignment.direction import Direction
from gradalign.alignment.exact import Exact, Recorded
from gradalign.alignment.moved import movable, tangent
from gradalign.alignment.passes import Budget
from gradalign.alignment.record import Floats, Numbers, from_contributions
from gradalign.alignment.steps import Step, search
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.logprobs import per_rollout, token_logprobs
from gradalign.policy.objective import Objective
from gradalign.policy.packing import Row, batches_of, lay_out, rows_of
from gradalign.policy.trunk import Split
from gradalign.problems.schema import uniform_hash

Difference = Literal["central", "one-sided", "forward-mode"]
TRIED = 8
"""Groups on which steps are tried, at most."""
TOLERANCE, HALF_TOLERANCE = 0.05, 0.1
"""Largest error of the dots on those groups, relative to their root mean square, that is let pass; the second in half
precision, where the exact dots that they are compared with are rounded as much."""
SWEEP = 16
"""Batches' worth of tokens between two moves of the weights, at most."""


def difference_for(policy: Policy, wanted: str | None) -> Difference:
    """How to differentiate: ``wanted``, or what the weights' type allows.

    Raises:
        GradAlignError: finite differences in a type in which the step is lost.
    """
    half = policy.dtype not in (torch.float32, torch.float64)
    if half and wanted not in (None, "forward-mode"):
        raise GradAlignError(
            f"{wanted} differences need float32 weights: in {str(policy.dtype).removeprefix('torch.')} the step is "
            "lost in rounding; add --dtype float32, or take --difference forward-mode"
        )
    chosen: Difference = next((name for name in get_args(Difference) if name == wanted), "central")
    return "forward-mode" if half else chosen


class Directional:
    """See the module's text.

    Args:
        policy: the policy.
        objective: what is differentiated.
        batch_tokens: tokens in one forward pass, at most (one row at least).
        packed: a group's prompt is computed once; see `gradalign.policy.logprobs.packs`.
        difference: how derivatives are taken; None leaves it to the weights' type.

    Raises:
        GradAlignError: finite differences in half precision.
    """

    provides = frozenset({"dot", "se", "t", "corr", "moves"})

    def __init__(
        self, policy: Policy, objective: Objective, batch_tokens: int, packed: bool, difference: str | None = None
    ) -> None:
        self.policy, self.objective, self.packed = policy, objective, packed
        self.difference = difference_for(policy, difference)
        self.budget = Budget(batch_tokens, alone=policy.shards is None)
        self.split = Split(policy)
        self.step: Step | None = None

    def measure(
        self, groups: Iterable[Group], direction: Direction, recorded: Recorded | None = None
    ) -> Iterator[Numbers]:
        """Dot, se, t and corr of each group; call `calibrate` first.

        Args:
            groups: are taken as they are needed; all at once with ``recorded``.
            direction: along which derivatives are taken.
            recorded: the groups' passes at theta, for one-sided differences.
        """
        for some in [list(groups)] if recorded is not None else sweeps(groups, self.budget.tokens):
            for group, derivatives in zip(some, self.derivatives(some, direction, recorded=recorded), strict=True):
                yield (
                    from_contributions(group, self.objective, derivatives)
                    if np.isfinite(derivatives).all()
                    else Numbers(dot=float("nan"))
                )

    def record(self, groups: Sequence[Group]) -> Recorded:
        """The groups' passes at theta, for one-sided differences along any number of directions."""
        while True:
            passes = self._passes(groups)
            with torch.no_grad():
                values = self.budget.attempt(partial(self._all_logprobs, passes), passes, self.packed)
            if values is not None:
                return list(zip(passes, values, strict=True))

    def derivatives(
        self,
        groups: Sequence[Group],
        direction: Direction,
        length: float | None = None,
        recorded: Recorded | None = None,
    ) -> list[Floats]:
        """(rollouts,) directional derivatives c_k of each group.

        Args:
            groups: the groups.
            direction: v/|v|.
            length: of the step; None takes the calibrated one.
            recorded: the groups' passes at theta; one-sided differences make them where they are not given.
        """
        if not groups:
            return []
        if self.difference == "one-sided":
            recorded = self.record(groups) if recorded is None else recorded
        if length is None and self.difference != "forward-mode":
            assert self.step is not None, "calibrate() was not called"
            length = self.step.length
        while True:
            passes = [rows for rows, _ in recorded] if recorded is not None else self._passes(groups)
            run = partial(self._along, passes, direction, length or 0.0, recorded)
            found = self.budget.attempt(run, passes, self.packed)
            if found is not None:
                break
            recorded = self.record(groups) if recorded is not None else None  # in smaller passes
        distinct = [group.distinct() for group in groups]
        own = np.split(np.concatenate(found), np.cumsum([len(group.rollouts) for group, _ in distinct])[:-1])
        return [values[owner] for values, (_, owner) in zip(own, distinct, strict=True)]

    def calibrate(self, groups: Sequence[Group], direction: Direction) -> Step:
        """Find the step on up to `TRIED` of ``groups``, all ``scored``, and check the engine against exact dots there.

        Raises:
            GradAlignError: no step comes within `TOLERANCE`, or `HALF_TOLERANCE`.
        """
        some = sorted(groups, key=lambda group: uniform_hash("calibrate", group.key))[:TRIED]
        recorded: Recorded = []
        exact = Exact(self.policy, self.objective, self.budget.tokens, self.packed)
        known = list(exact.measure(some, direction, recorded))
        for group, numbers in zip(some, known, strict=True):
            numbers.require_finite(group)
        truth = np.array([numbers.dot for numbers in known], np.float64)
        scale = float(np.sqrt((truth**2).mean())) or 1.0
        base = recorded if self.difference == "one-sided" else None

        def error(length: float) -> float:
            derivatives = self.derivatives(some, direction, length, base)
            dots = [from_contributions(g, self.objective, d).dot for g, d in zip(some, derivatives, strict=True)]
            found = float(np.sqrt(((np.array(dots, np.float64) - truth) ** 2).mean())) / scale
            return found if np.isfinite(found) else np.inf

        order = 1 if self.difference == "one-sided" else 2
        self.step = Step(0.0, error(0.0)) if self.difference == "forward-mode" else search(error, order)
        if not self.step.error <= (HALF_TOLERANCE if self.policy.half else TOLERANCE):
            at, else_ = f" at the best step ({self.step.length:g})", "--difference forward-mode, or "
            if self.difference == "forward-mode":
                at, else_ = "", "float32 weights (TRL's bf16 trains on those too), or " if self.policy.half else ""
            raise GradAlignError(
                f"forward-only scores ({self.difference}) disagree with exact ones by {self.step.error:.0%} on "
                f"{len(some)} problems{at}; take {else_}--engine exact without --contributions"
            )
        return self.step

    def _passes(self, groups: Sequence[Group]) -> list[list[Row]]:
        distinct = [group.distinct()[0] for group in groups]
        rows = [row for group in distinct for row in rows_of(group, self.budget.tokens, self.packed)]
        return list(batches_of(rows, self.budget.tokens, self.packed))

    def _along(
        self, passes: Sequence[list[Row]], direction: Direction, length: float, recorded: Recorded | None
    ) -> list[Floats]:
        """(rollouts of its rows,) derivatives of each pass."""
        if self.difference == "forward-mode":
            with tangent(self.policy, direction) as factor:
                return [values / factor for values in self._all_logprobs(passes, tangents=True)]
        with movable(self.policy, direction) as move:
            move(length)
            ahead = self._all_logprobs(passes)
            if recorded is not None:
                return [(a - base) / length for a, (_, base) in zip(ahead, recorded, strict=True)]
            move(-length)
            return [(a - b) / (2 * length) for a, b in zip(ahead, self._all_logprobs(passes), strict=True)]

    def _all_logprobs(self, passes: Sequence[list[Row]], tangents: bool = False) -> list[Floats]:
        """What `_logprobs` gives of each pass."""
        found = [np.zeros(sum(len(row.rollouts) for row in rows)) for rows in passes]
        for number, rows in turns(self.policy, passes):
            values = self._logprobs(rows, tangents)
            if number is not None:
                found[number][:] = values
        gathered(self.policy, found)
        return found

    def _logprobs(self, rows: Sequence[Row], tangents: bool = False) -> Floats:
        """(rollouts of the rows,) log pi(y_k), summed over counted tokens, or their tangents."""
        batch = lay_out(rows, self.packed, self.policy.device)
        values = token_logprobs(self.split, batch, self.objective.temperature)
        if tangents:
            carried = forward_ad.unpack_dual(values).tangent
            values = torch.zeros_like(values) if carried is None else carried
        return per_rollout(batch, values)


def sweeps(groups: Iterable[Group], batch_tokens: int) -> Iterator[list[Group]]:
    """The groups between two moves of the weights."""
    some: list[Group] = []
    tokens = 0
    for group in groups:
        some.append(group)
        tokens += len(group.prompt_ids) + sum(len(rollout.response_ids) for rollout in group.rollouts)
        if tokens >= SWEEP * batch_tokens:
            yield some
            some, tokens = [], 0
    if some:
        yield some
