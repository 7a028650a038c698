"""A forward and a backward pass over a batch of groups, gradients handed to a sink; and how groups become batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from gradalign.alignment.capture import Capture, Sink
from gradalign.errors import GradAlignError, warn
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.logprobs import per_rollout
from gradalign.policy.memory import out_of_memory
from gradalign.policy.objective import Objective
from gradalign.policy.packing import Batch, Part, Row, batches_of, lay_out, rows_of, size

Floats = NDArray[np.float64]
T = TypeVar("T")
LOGITS = {"cpu": 2**25, "cuda": 2**29}
"""By device, others as cuda: logits of one group that are held at a time, at most."""


@dataclass
class Weighted:
    """A group as its gradient needs it: each distinct response once.

    Attributes:
        group: the distinct responses.
        coefficients: (responses,) the coefficient of every counted token, divided by ``scale``.
        scale: a power of two, so that half precision does not lose small coefficients; 1 in other types.
        owner: (rollouts,) which of the responses each of the problem's rollouts is.
    """

    group: Group
    coefficients: Floats
    scale: float
    owner: NDArray[np.int64]


def weighted(group: Group, objective: Objective, half: bool, every: bool, weight: float = 1.0) -> Weighted:
    """A group's distinct responses with their coefficients added up, so that what cancels cancels exactly.

    Args:
        group: the group.
        objective: gives the coefficients.
        half: whether the policy computes in half precision.
        every: keep responses whose coefficients cancel, too: their log-probabilities are wanted.
        weight: multiplies the coefficients.
    """
    coefficients = objective.coefficients(group)
    distinct, owner = group.distinct()
    summed = np.bincount(owner, coefficients).astype(np.float64)
    summed[np.abs(summed) <= 1e-12 * np.bincount(owner, np.abs(coefficients))] = 0.0
    if not every:
        kept = summed != 0
        distinct.rollouts = [rollout for rollout, keep in zip(distinct.rollouts, kept, strict=True) if keep]
        summed = summed[kept]
    summed *= weight
    largest = np.abs(summed).max(initial=0.0)
    scale = 2.0 ** np.floor(np.log2(largest)) if half and largest > 0 else 1.0
    return Weighted(distinct, summed / scale, float(scale), owner)


class Budget:
    """Tokens in one pass, at most; halved when memory runs out.

    Args:
        tokens: to begin with.
        alone: other processes do not wait in the middle of a pass; where they do, none can begin another one.
    """

    def __init__(self, tokens: int, alone: bool = True) -> None:
        self.tokens, self.alone = tokens, alone
        self.warned = False

    def attempt(self, run: Callable[[], T], passes: Sequence[Sequence[Row]], packed: bool) -> T | None:
        """What ``run`` gives; None when memory ran out and smaller batches are to be tried.

        Args:
            run: makes some passes.
            passes: their rows.
            packed: how they are laid out.

        Raises:
            GradAlignError: memory ran out over single rollouts, than which nothing is smaller, or not `alone`.
        """
        try:
            return run()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        largest = max(passes, key=lambda rows: size(rows, packed))
        tokens = size(largest, packed)
        if not self.alone:
            raise GradAlignError(
                f"out of memory with {tokens:,} tokens in a pass; lower --batch-tokens, or cut the policy over more "
                "processes"
            )
        if sum(len(row.rollouts) for row in largest) == 1:
            raise GradAlignError(
                f"problem {largest[0].group.key!r}: out of memory over one rollout of {tokens:,} tokens; take weights "
                "of a shorter type (--dtype bfloat16), fewer parameters (--parameters), shorter responses, or a larger "
                "machine"
            )
        self.tokens = max(1, min(self.tokens, tokens) // 2)
        if not self.warned:
            warn(f"out of memory with {tokens:,} tokens in a pass; going on with {self.tokens:,} (--batch-tokens)")
            self.warned = True
        return None


def over_batches(
    groups: Iterable[Weighted],
    budget: Budget,
    packed: bool,
    together: bool,
    run: Callable[[list[Weighted], list[list[Row]]], T],
    abreast: int = 1,
) -> Iterator[T]:
    """Run passes over groups, in order: several small ones in one pass, a large one over several.

    Args:
        groups: are taken as they are needed.
        budget: tokens in one pass.
        packed: see `gradalign.policy.packing`.
        together: whether a pass may hold several groups.
        run: gets some groups and the rows of each pass over them: a group of several passes is alone among them.
        abreast: passes over small groups that ``run`` gets at once, at most.
    """
    source = iter(groups)
    waiting: deque[Weighted] = deque()
    while True:
        some: list[Weighted] = []
        passes: list[list[Row]] = []
        large = False
        while not some or (together and len(some) < abreast * budget.tokens):  # those that cancel have no rows
            group = waiting.popleft() if waiting else next(source, None)
            if group is None:
                break
            own = list(batches_of(rows_of(group.group, budget.tokens, packed), budget.tokens, packed))
            fits = len(own) == 1 and bool(passes) and size([*passes[-1], *own[0]], packed) <= budget.tokens
            if passes and own and (large or len(own) > 1 or (len(passes) == abreast and not fits)):
                waiting.appendleft(group)
                break
            some.append(group)
            if fits:
                passes[-1].extend(own[0])
            else:
                passes.extend(own)
            large = len(own) > 1 or large
        if not some:
            return
        result = budget.attempt(partial(run, some, passes), passes, packed)
        if result is None:
            waiting.extendleft(reversed(some))
        else:
            yield result


def sharing(
    groups: Sequence[Group], objective: Objective, half: bool, every: bool, tokens: int, packed: bool, together: bool
) -> list[Sequence[Group]]:
    """The groups as `over_batches` takes them together, while memory lasts; for the arguments see there."""

    def run(some: list[Weighted], passes: list[list[Row]]) -> int:
        return len(some)

    each = (weighted(group, objective, half, every) for group in groups)
    ends = np.cumsum([0, *over_batches(each, Budget(tokens), packed, together, run)]).tolist()
    return [groups[start:end] for start, end in pairwise(ends)]


class Passes:
    """Forward and backward passes of a policy, layer by layer.

    Args:
        policy: the policy.
        temperature: of the log-probabilities.
        packed: see `gradalign.policy.packing`.
    """

    def __init__(self, policy: Policy, temperature: float, packed: bool) -> None:
        self.policy, self.temperature, self.packed = policy, temperature, packed
        self.capture = Capture(policy, packed)
        self.split = self.capture.split

    def lay_out(self, rows: Sequence[Row]) -> Batch:
        """The batch of some rows."""
        return lay_out(rows, self.packed, self.policy.device)

    def run(self, batch: Batch, coefficients: Floats, sink: Sink) -> Floats:
        """Differentiate the sum of coefficients times log-probabilities.

        Args:
            batch: what is passed over.
            coefficients: (rollouts of the batch,) of each of a rollout's counted tokens.
            sink: is handed the gradients.

        Returns:
            (rollouts of the batch,) their log-probabilities, summed over counted tokens.
        """
        each = torch.from_numpy(coefficients).to(batch.slot.device, self.policy.reduction_dtype)
        each = each[batch.rollout] * batch.counted
        with self.policy.opened(), self.capture.into(sink):
            hidden = self.split.hidden_states(batch)
            flat = hidden.detach()
            back = torch.zeros_like(flat)
            logprobs = torch.zeros_like(each)
            with torch.no_grad():
                for group, part in enumerate(batch.parts):
                    slots = batch.slot[part.places]
                    own, back_ = self._head(
                        batch, group, part, flat[slots], each[part.targets], sink, hidden.requires_grad
                    )
                    logprobs[part.targets] = own
                    back[slots] = back_
            if hidden.requires_grad:
                hidden.backward(back)
        return per_rollout(batch, logprobs)

    def _head(
        self, batch: Batch, group: int, part: Part, hidden: torch.Tensor, each: torch.Tensor, sink: Sink, carried: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of one group: (response tokens,) log-probabilities, and (places, hidden) the gradient that comes back.

        That is left zero where it is not ``carried`` on, through the trunk.
        The gradient by the logits is known as soon as they are: the log-probabilities enter linearly.
        """
        place, target = batch.place[part.targets] - part.places.start, batch.target[part.targets]
        logprobs, back = torch.zeros_like(each), torch.zeros_like(hidden)
        some = max(1, LOGITS.get(hidden.device.type, LOGITS["cuda"]) // self.split.vocabulary)
        for start in range(0, len(hidden), some):
            within = ((place >= start) & (place < start + some)).nonzero()[:, 0]
            places = slice(start, start + some)
            logprobs[within] = self._chunk(
                group, hidden[places], back[places] if carried else None, place[within] - start, target[within],
                each[within], sink, start + some < len(hidden),
            )  # fmt: skip
        return logprobs, back

    def _chunk(
        self, group: int, hidden: torch.Tensor, back: torch.Tensor | None, place: torch.Tensor, target: torch.Tensor,
        each: torch.Tensor, sink: Sink, more: bool,
    ) -> torch.Tensor:  # fmt: skip
        """The same for some places; adds to ``back`` where that is wanted."""
        split, capture = self.split, self.capture
        blocks = list(split.blocks())
        raw = [split.raw(hidden, block) for block in blocks]
        logits = [split.after(values) for values in raw]
        if self.temperature != 1.0:
            logits = [values / self.temperature for values in logits]
        normaliser = torch.stack([torch.logsumexp(values, 1) for values in logits]).logsumexp(0)
        logprobs = -normaliser[place]
        total = torch.zeros_like(normaliser).index_add_(0, place, each)
        for block, values, made in zip(blocks, raw, logits, strict=True):
            own = ((target >= block.start) & (target < block.stop)).nonzero()[:, 0]
            at = place[own], target[own] - block.start
            logprobs[own] += made[at]
            # d/dlogits of sum_k a_k log p(y_k) at a place: (sum_k a_k (1[y_k] - p)) / T
            d = made.sub_(normaliser[:, None]).exp_().mul_(-total[:, None])
            d.index_put_(at, each[own], accumulate=True)
            if self.temperature != 1.0:
                d.div_(self.temperature)
            d = split.before(values, d).to(hidden.dtype)
            if split.module is None:
                if back is not None:
                    back[:, block] = d
                continue
            if back is not None:
                back.addmm_(d, split.weights(block)[0])
            if capture.head is not None:
                sink.head(capture.head, group, block.start, d, hidden, more)
            if capture.head_bias is not None:
                sink.head(capture.head_bias, group, block.start, d, d.new_ones(len(d), 1), more)
        return logprobs
