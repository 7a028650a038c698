"""``gradalign bench speed``: engines side by side in one process, taking turns.

In every repeat each arm measures the same groups once, so that a machine that slows down slows all of them. Between
them the machine's own rate is measured: the product of two large matrices.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradalign.alignment.align import Progress, Scorer, silent
from gradalign.alignment.direction import Direction
from gradalign.bench.counts import Shape
from gradalign.bench.machine import peak, product_seconds, product_width, synchronise
from gradalign.bench.results import Results
from gradalign.bench.speed_arms import ARMS, Run, Setup
from gradalign.bench.workloads import WORKLOADS, Workload, random_groups, require_room
from gradalign.errors import warn
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective


@dataclass(frozen=True)
class SpeedPlan:
    """What is measured.

    Attributes:
        workloads: names in `WORKLOADS`.
        arms: names in `ARMS`.
        repeats: times that each arm measures all groups.
        groups: groups of each workload, at most; None means all.
        batch_tokens: tokens in one pass of an engine, at most.
        seed: of the random tokens.
    """

    workloads: Sequence[str]
    arms: Sequence[str]
    repeats: int
    groups: int | None
    batch_tokens: int
    seed: int


def measure_speed(policy: Policy, model: str, plan: SpeedPlan, results: Results, progress: Progress = silent) -> None:
    """Measure what ``results`` lacks.

    An arm whose memory is not enough is left out with a line; so are finite differences in short types.

    Raises:
        GradAlignError: a workload is longer than the model takes.
    """
    for name in plan.workloads:
        require_room(policy, model, name)
    for name in plan.workloads:
        record = results.measured.setdefault(name, _record(policy, plan, WORKLOADS[name]))
        for arm in plan.arms:
            if ARMS[arm].differences and policy.dtype not in (torch.float32, torch.float64):
                short = str(policy.dtype).removeprefix("torch.")
                record["left_out"][arm] = f"finite differences are lost in the rounding of {short}"
        _workload(policy, name, plan, record, results, progress)
        results.save()  # also where an arm was left out


def _record(policy: Policy, plan: SpeedPlan, workload: Workload) -> dict[str, Any]:
    """The record of a workload of which nothing was measured yet."""
    lengths, shape = workload.lengths, Shape.of(policy.config)
    counts = {arm: ARMS[arm].count(shape, lengths) for arm in plan.arms}
    return {
        "groups": min(workload.groups, plan.groups or workload.groups),
        "prompt": lengths.prompt,
        "rollouts": lengths.rollouts,
        "response": lengths.response,
        "tokens": lengths.tokens,
        "operations": {arm: {"weights": c.weights, "attention": c.attention} for arm, c in counts.items()},
        "left_out": {},
        "product": {"width": product_width(policy.device), "seconds": []},
        "arms": {arm: {"seconds": [], "peak_bytes": [], "dots": []} for arm in plan.arms},
    }


def _workload(
    policy: Policy, name: str, plan: SpeedPlan, record: dict[str, Any], results: Results, progress: Progress
) -> None:
    missing = [arm for arm in plan.arms if _lacks(record, arm, plan.repeats)]
    if not missing:
        return
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    *groups, held_out = random_groups(WORKLOADS[name], record["groups"] + 1, vocabulary, plan.seed)
    setup = Setup(policy, Objective(), plan.batch_tokens, _direction(policy, plan, held_out))
    runs: dict[str, Run] = {}
    for arm in missing:  # the first pass of anything is slower
        runs[arm] = ARMS[arm].make(setup, groups)
        _timed(policy, runs[arm], groups[:1], record, arm, keep=False)
    done = progress(name, plan.repeats * len(missing))
    for repeat in range(plan.repeats):
        for arm in missing:
            if _lacks(record, arm, repeat + 1):
                record["product"]["seconds"] += product_seconds(policy.device, policy.dtype)
                _timed(policy, runs[arm], groups, record, arm)
                results.save()
            done()


def _lacks(record: dict[str, Any], arm: str, repeats: int) -> bool:
    return arm not in record["left_out"] and len(record["arms"][arm]["seconds"]) < repeats


def _direction(policy: Policy, plan: SpeedPlan, group: Group) -> Direction:
    """The gradient of a group that is not measured: dots with it are larger than rounding, and can be compared."""
    return Scorer(policy, Objective(), "exact", plan.batch_tokens).direction([group])


def _timed(
    policy: Policy, run: Run, groups: Sequence[Group], record: dict[str, Any], arm: str, keep: bool = True
) -> None:
    """Time one run over ``groups`` and write it down, or why the arm is left out."""
    try:
        with peak(policy.device) as memory:
            synchronise(policy.device)
            start = time.perf_counter()
            numbers = run(groups)
            synchronise(policy.device)
            seconds = time.perf_counter() - start
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        policy.model.zero_grad(set_to_none=True)
        record["left_out"][arm] = "out of memory"
        warn(f"arm {arm}: out of memory; it is left out")
        return
    if keep:
        own = record["arms"][arm]
        own["seconds"].append(seconds)
        own["peak_bytes"].append(memory.bytes)
        own["dots"] = [one.dot for one in numbers]
