"""What `gradalign bench speed` puts side by side: one function and one line of `ARMS` each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gradalign.alignment.direction import Direction
from gradalign.alignment.directional import Directional
from gradalign.alignment.exact import Exact
from gradalign.alignment.record import Numbers
from gradalign.alignment.sketch import Sketch, Sketching
from gradalign.alignment.steps import START, Step
from gradalign.bench.counts import Count, head_sketched, repeated, shared, sketched
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective


@dataclass(frozen=True)
class Setup:
    """What all arms work on.

    Attributes:
        policy: the policy.
        objective: what is differentiated.
        batch_tokens: tokens in one pass of an engine, at most.
        direction: what groups are aligned with.
    """

    policy: Policy
    objective: Objective
    batch_tokens: int
    direction: Direction


Run = Callable[[Sequence[Group]], list[Numbers]]
"""Measures groups, in order."""


@dataclass(frozen=True)
class Arm:
    """One way to align groups with a direction.

    Attributes:
        about: what it is, in a line.
        make: from the set-up and all groups that will be measured, what is timed; what it does itself is not timed.
        count: operations of one group.
        differences: it takes finite differences, which float32 weights alone can carry.
        sketched: its dots are estimates, or of some layers alone.
    """

    about: str
    make: Callable[[Setup, Sequence[Group]], Run]
    count: Count
    differences: bool = False
    sketched: bool = False


def _plain(setup: Setup, groups: Sequence[Group]) -> Run:
    """One group a batch, every rollout with its prompt, a backward pass, then all gradients against the direction."""
    policy, unit, temperature = setup.policy, setup.direction.unit, setup.objective.temperature

    def one(group: Group) -> Numbers:
        prompt, responses = group.prompt_ids, np.stack([rollout.response_ids for rollout in group.rollouts])
        ids = np.concatenate([np.broadcast_to(prompt, (len(responses), len(prompt))), responses], 1)
        tokens = torch.from_numpy(ids).to(policy.device)
        coefficients = torch.from_numpy(setup.objective.coefficients(group)).to(policy.device, policy.reduction_dtype)
        logits = policy.model(input_ids=tokens, use_cache=False).logits[:, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits.to(policy.reduction_dtype) / temperature, -1)
        chosen = logprobs.gather(2, tokens[:, len(prompt) :, None])[..., 0]
        (chosen.sum(1) * coefficients).sum().backward()
        dots, squares = [], []
        for parameter, v in zip(policy.parameters, unit, strict=True):
            assert parameter.grad is not None
            flat = parameter.grad.to(policy.reduction_dtype).reshape(-1)
            dots.append(torch.dot(flat, v.reshape(-1)))
            squares.append(torch.dot(flat, flat))
            parameter.grad = None
        dot, square = torch.stack([torch.stack(dots).sum(), torch.stack(squares).sum()]).tolist()
        return Numbers(dot=dot, norm=square**0.5, cosine=dot / square**0.5)

    return lambda some: [one(group) for group in some]


def _exact(setup: Setup, groups: Sequence[Group]) -> Run:
    engine = Exact(setup.policy, setup.objective, setup.batch_tokens, True)
    return lambda some: list(engine.measure(some, setup.direction))


def _central(setup: Setup, groups: Sequence[Group]) -> Run:
    engine = Directional(setup.policy, setup.objective, setup.batch_tokens, True)
    engine.step = Step(START, 0.0)  # choosing it is not timed
    return lambda some: list(engine.measure(some, setup.direction))


def _one_sided(setup: Setup, groups: Sequence[Group]) -> Run:
    engine = Directional(setup.policy, setup.objective, setup.batch_tokens, True, "one-sided")
    engine.step = Step(START / 16, 0.0)  # its error grows linearly
    recorded = {len(groups): engine.record(groups), 1: engine.record(groups[:1])}  # the base is at hand: not timed

    return lambda some: list(engine.measure(some, setup.direction, recorded[len(some)]))


def _forward_mode(setup: Setup, groups: Sequence[Group]) -> Run:
    engine = Directional(setup.policy, setup.objective, setup.batch_tokens, True, "forward-mode")
    return lambda some: list(engine.measure(some, setup.direction))


def _sketch(layers: str) -> Callable[[Setup, Sequence[Group]], Run]:
    def make(setup: Setup, groups: Sequence[Group]) -> Run:
        sketching = Sketching(layers, f"two-sided:{RANK}")
        engine = Sketch(setup.policy, setup.objective, setup.batch_tokens, True, sketching)
        return lambda some: list(engine.measure(some, setup.direction))

    return make


RANK = 8
"""Rows and columns that sketches keep of a matrix."""
BASELINE = "plain"
"""The arm that speed-ups are against."""
ARMS = {
    BASELINE: Arm("plain autograd, one group a batch, prompts repeated, logits at all positions", _plain, repeated(3)),
    "exact": Arm("engine exact: one backward pass a group, its prompt once", _exact, shared(3)),
    "directional": Arm(
        f"engine directional: two forward passes, the weights moved by {START:g} each way", _central, shared(2), True
    ),
    "one-sided": Arm("engine directional, one forward pass, the unmoved one at hand", _one_sided, shared(1), True),
    "forward-mode": Arm("engine directional, tangents carried through one pass", _forward_mode, shared(3)),
    "sketch": Arm(
        f"engine sketch, each matrix projected to {RANK} x {RANK}", _sketch("all"), sketched(RANK), sketched=True
    ),
    "lm-head": Arm(
        "engine sketch of the output layer alone, likewise", _sketch("lm-head"), head_sketched(RANK), sketched=True
    ),
}
"""Name -> arm; an engine's work is counted in forward passes (a backward pass is two)."""
