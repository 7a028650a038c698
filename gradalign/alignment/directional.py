"""Engine ``directional``: forward passes alone, but for the self-check of a few groups.

A rollout's derivative c_k = <grad log pi(y_k), v/|v|> is a directional derivative, hence a difference of two forward
passes with the weights moved by a step h along v/|v|:

    c_k = (log pi(y_k; theta + h v/|v|) - log pi(y_k; theta - h v/|v|)) / 2h + O(h^2).

Too short a step drowns in rounding, too long a one leaves the linear range; the step is chosen on a few of the groups
to be scored, whose dots are also computed by the exact engine: which is the run's self-check at the same time. Weights
are restored bit for bit, also after an exception.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gradalign.alignment.direction import Direction
from gradalign.alignment.exact import Exact
from gradalign.alignment.record import Floats, Numbers, from_contributions
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.logprobs import token_logprobs
from gradalign.policy.objective import Objective
from gradalign.policy.trunk import Split
from gradalign.policy.packing import Row, batches_of, lay_out, rows_of
from gradalign.problems.schema import uniform_hash

START, FACTOR = 0.01, 4.0
"""The first step tried, in units of the weights, and the factor between one and the next."""
GOOD = 0.001
"""An error of the dots, relative to their root mean square, at which no other step is tried."""
TRIED = 8
"""Groups on which steps are tried, at most."""
TOLERANCE = 0.05
"""Largest error of the dots on those groups, relative to their root mean square, that is let pass."""
SWEEP = 64
"""Batches between two moves of the weights, at most."""
GROUPS = 256
"""Groups measured at a time."""


@dataclass(frozen=True, slots=True)
class Step:
    """A finite-difference step and its error.

    Attributes:
        length: h, the distance the weights are moved each way.
        error: root mean square difference to the exact dots over their root mean square.
    """

    length: float
    error: float


def require_float32(policy: Policy) -> None:
    """Refuse weights in which a finite-difference step is lost.

    Raises:
        GradAlignError: the weights are in a shorter floating-point type than float32.
    """
    if policy.dtype not in (torch.float32, torch.float64):
        raise GradAlignError(
            f"forward-only scores need float32 weights: in {str(policy.dtype).removeprefix('torch.')} the step is "
            "lost in rounding; add --dtype float32, or take --engine exact without --contributions"
        )


class Directional:
    """See the module's text.

    Args:
        policy: the policy; float32 (or float64) weights.
        objective: what is differentiated.
        batch_tokens: tokens in one forward pass, at most (one row at least).
        packed: a group's prompt is computed once; see `gradalign.policy.logprobs.packs`.

    Raises:
        GradAlignError: the weights are in a shorter floating-point type.
    """

    provides = frozenset({"dot", "se", "t", "corr"})

    def __init__(self, policy: Policy, objective: Objective, batch_tokens: int, packed: bool) -> None:
        require_float32(policy)
        self.policy = policy
        self.objective = objective
        self.batch_tokens = batch_tokens
        self.packed = packed
        self.step: Step | None = None
        self.split = Split(policy)

    def measure(self, groups: Sequence[Group], direction: Direction) -> Iterator[Numbers]:
        """Dot, se, t and corr of each group; call `calibrate` first."""
        for start in range(0, len(groups), GROUPS):
            some = groups[start : start + GROUPS]
            for group, derivatives in zip(some, self.derivatives(some, direction), strict=True):
                yield (
                    from_contributions(group, self.objective, derivatives)
                    if np.isfinite(derivatives).all()
                    else (Numbers(dot=float("nan")))
                )

    def derivatives(self, groups: Sequence[Group], direction: Direction, length: float | None = None) -> list[Floats]:
        """(rollouts,) directional derivatives c_k of each group, by central differences of ``length``."""
        if length is None:
            assert self.step is not None, "calibrate() was not called"
            length = self.step.length
        distinct = [group.distinct() for group in groups]
        rows = [row for group, _ in distinct for row in rows_of(group, self.batch_tokens, self.packed)]
        batches = list(batches_of(rows, self.batch_tokens, self.packed))
        moved: list[Floats] = []
        for start in range(0, len(batches), SWEEP):
            sweep = batches[start : start + SWEEP]
            with self._weights_moved(direction, length):
                ahead = [self._token_logprobs(batch) for batch in sweep]
            with self._weights_moved(direction, -length):
                moved.extend(self._per_rollout(b, a) for b, a in zip(sweep, ahead, strict=True))
        flat = np.concatenate(moved) / (2 * length)
        own = np.split(flat, np.cumsum([len(group.rollouts) for group, _ in distinct])[:-1])
        return [values[owner] for values, (_, owner) in zip(own, distinct, strict=True)]

    def calibrate(self, groups: Sequence[Group], direction: Direction) -> Step:
        """Choose the step on up to `TRIED` of ``groups``, all ``scored``: downhill in the error from `START`.

        The error has one valley: rounding falls with the step, the distance from the linear range grows with it.

        Raises:
            GradAlignError: no step comes within `TOLERANCE`.
        """
        some = sorted(groups, key=lambda group: uniform_hash("calibrate", group.key))[:TRIED]
        exact = Exact(self.policy, self.objective, self.batch_tokens, self.packed)
        known = list(exact.measure(some, direction))
        for group, numbers in zip(some, known, strict=True):
            numbers.require_finite(group)
        truth = np.array([numbers.dot for numbers in known], np.float64)
        scale = float(np.sqrt((truth**2).mean())) or 1.0
        errors: dict[float, float] = {}
        best, untried = START, [START]
        while untried and errors.get(best, np.inf) > GOOD:
            for length in untried:
                derivatives = self.derivatives(some, direction, length)
                dots = [from_contributions(g, self.objective, d).dot for g, d in zip(some, derivatives, strict=True)]
                error = float(np.sqrt(((np.array(dots, np.float64) - truth) ** 2).mean())) / scale
                errors[length] = error if np.isfinite(error) else np.inf
            best = min(errors, key=lambda length: errors[length])
            untried = [length for length in (best / FACTOR, best * FACTOR) if length not in errors]
        if not errors[best] <= TOLERANCE:
            raise GradAlignError(
                f"forward-only scores disagree with exact ones by {errors[best]:.0%} on {len(some)} problems at "
                f"the best step ({best:g}); take --engine exact without --contributions"
            )
        self.step = Step(best, errors[best])
        return self.step

    @contextlib.contextmanager
    def _weights_moved(self, direction: Direction, length: float) -> Iterator[None]:
        with torch.no_grad(), self._padding_embedding_held():
            kept = [p.detach().clone() for p in self.policy.parameters]
            try:
                for parameter, unit in zip(self.policy.parameters, direction.unit, strict=True):
                    parameter.add_(unit, alpha=length)
                yield
            finally:
                for parameter, old in zip(self.policy.parameters, kept, strict=True):
                    parameter.copy_(old)

    @contextlib.contextmanager
    def _padding_embedding_held(self) -> Iterator[None]:
        """Keep the input embedding of the padding token where it is.

        Autograd gives an embedding's ``padding_idx`` no gradient, so training never moves it as an input; where the
        weights are tied to the output layer, moving them would.
        """
        embedding = self.policy.model.get_input_embeddings()
        padding = getattr(embedding, "padding_idx", None)
        if padding is None:
            yield
            return
        held = embedding(torch.tensor([padding], device=self.policy.device))[0]

        def hold(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            return torch.where((inputs[0] == padding)[..., None], held, output)

        hook = embedding.register_forward_hook(hold)
        try:
            yield
        finally:
            hook.remove()

    def _token_logprobs(self, rows: list[Row]) -> torch.Tensor:
        batch = lay_out(rows, self.packed, self.policy.device)
        return token_logprobs(self.split, batch, self.objective.temperature)

    def _per_rollout(self, rows: list[Row], ahead: torch.Tensor) -> Floats:
        """(rollouts of the rows,) change of log pi(y_k), summed over counted tokens in float64."""
        batch = lay_out(rows, self.packed, self.policy.device)
        change = (ahead - token_logprobs(self.split, batch, self.objective.temperature)).double() * batch.counted
        sums = torch.zeros(batch.n_rollouts, dtype=torch.float64, device=change.device)
        return sums.index_add_(0, batch.rollout, change).cpu().numpy()
